"""Answers in the order they were given, and films fetched once."""

import contextlib
from collections.abc import Generator
from typing import Any

import pytest

from cfbench.study.design import load
from cfbench.study.export import open_votes, votes
from tests.helpers.study import chromium, served, study_folder

pytest.importorskip("gradio")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no chromium on this machine"),
]

LEFT, RIGHT = 0, 2
"""Places of these answers among a question's buttons."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Any, None, None]:
    with served(study_folder(tmp_path_factory.mktemp("study"))) as one:
        yield one


@pytest.fixture
def page(server: Any, browser: Any) -> Generator[Any, None, None]:
    """A rater's page at its first pair."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    one = context.new_page()
    one.goto(server.address)
    one.check("#study-agree")
    one.click("#study-begin")
    for _ in range(2):
        one.click("#study-training-next")
    one.wait_for_selector("#study-pair:not([hidden])")
    yield one
    context.close()


def choose(page: Any, question: int, place: int) -> None:
    page.locator(".study-question").nth(question).locator("button").nth(place).click()


def watch(page: Any) -> None:
    page.focus("#study-play")
    page.keyboard.press("Space")
    page.wait_for_function("document.getElementById('study-watched').textContent === 'watched'")


def says(page: Any, text: str) -> None:
    page.wait_for_function(
        "text => document.getElementById('study-saved').textContent.includes(text)", arg=text
    )


def stored(server: Any) -> list[Any]:
    design, _ = load(server.study)
    with contextlib.closing(open_votes(server.study)) as db:
        return votes(db, design)


def test_an_answer_that_is_sent_again_does_not_replace_a_later_one(server: Any, page: Any) -> None:
    lost: list[int] = []

    def lose_the_first(route: Any) -> None:
        lost.append(1)
        if len(lost) == 1:
            route.abort()
        else:
            route.continue_()

    page.route("**/api/vote", lose_the_first)
    watch(page)
    before = len(stored(server))
    choose(page, 0, LEFT)
    says(page, "again")
    choose(page, 0, RIGHT)
    page.wait_for_timeout(1500)
    says(page, "stored")
    (vote,) = stored(server)[before:]
    assert (vote.answer, vote.changes) == ("right", 1)


def test_films_that_were_loaded_ahead_are_not_fetched_again(server: Any, page: Any) -> None:
    page.wait_for_function("document.getElementById('study-preload').textContent.includes('2 of')")
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    watch(page)
    for question in range(page.locator(".study-question").count()):
        choose(page, question, LEFT)
    page.click("#study-next")
    page.wait_for_function(
        "document.getElementById('study-count').textContent.startsWith('pair 2 ')"
    )
    shown = page.evaluate("[document.getElementById('study-left').src]")
    assert shown[0].startswith("blob:")
    watch(page)
    assert len([url for url in asked if "/m/" in url]) <= 2, "the third pair's films alone"
