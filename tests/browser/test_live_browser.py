"""The live page in a real browser: it plays, heeds a new prompt, refuses bad ones, and is left."""

import json

import pytest

from cfmodel.live.serve import served
from cfmodel.live.trial import post
from cfmodel.pipeline import load
from cfmodel.presets import preset
from tests.helpers.study import chromium

pytest.importorskip("fastapi")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no chromium on this machine"),
]

WAIT_MS = 60_000
AWAY = "A red cube hops on grass under a clear sky. The camera pans away to the left."
SPREAD = """() => {
  const context = [...now.pictures.values()].pop().getContext("2d");
  const red = context.getImageData(0, 0, WIDTH, HEIGHT).data.filter((_, at) => at % 4 === 0);
  return Math.max(...red) - Math.min(...red);
}"""
"""Of the latest picture that was kept."""


@pytest.fixture(scope="module")
def address():
    with served(load(preset("tiny"), device="cpu")) as one:
        yield one


@pytest.fixture
def page(browser, address):
    one = browser.new_page(viewport={"width": 1280, "height": 900})
    one.set_default_timeout(WAIT_MS)
    one.goto(address)
    one.wait_for_selector("body[data-kind]")
    yield one
    one.goto("about:blank")
    one.close()


def begin(page):
    page.click("#live-go")
    page.wait_for_selector("body[data-phase=on][data-prompt='1']")


def plays_on(page, seconds=1.0):
    """The film goes on for a while from where it is."""
    until = page.evaluate("video.currentTime") + seconds
    page.wait_for_function("until => video.currentTime > until", arg=until)


def test_a_film_plays_while_it_is_made_and_heeds_a_new_prompt(page, address):
    asked, wrong = [], []
    page.on("request", lambda one: asked.append(one.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    begin(page)
    plays_on(page, 3.0)
    assert page.evaluate("[video.videoWidth, video.videoHeight]") == [128, 80]
    assert page.evaluate(SPREAD) > 50, "a picture, not a blank"
    # 1.5 s ahead, and the chunk of 0.75 s that was asked for then.
    assert page.evaluate("ahead()") < 2.3
    page.fill("#live-prompt", AWAY)
    page.click("#live-go")
    page.wait_for_selector("body[data-prompt='2']")
    assert page.locator("#live-prompts li").count() == 2
    assert AWAY in page.locator("#live-prompts li").first.text_content()
    plays_on(page)
    roles = {
        name: page.locator(f"#live-{name} figure").count() for name in ("sink", "slow", "fast")
    }
    assert (roles["sink"], roles["fast"]) == (3, 3)
    assert roles["slow"] > 0
    assert float(page.text_content("#live-fps")) > 0
    session = page.evaluate("now.session")
    page.click("#live-stop")
    page.wait_for_selector("body[data-phase=idle]")
    assert "stopped after" in page.text_content("#live-message")
    ended = post(address, "prompt", {"session": session, "prompt": AWAY})
    assert (ended.status, json.loads(ended.data)) == (410, {"ended": "stopped by the viewer"})
    assert not [url for url in asked if not url.startswith((address, "blob:", "data:"))]
    assert not wrong


def test_a_bad_prompt_is_refused_and_the_film_goes_on(page):
    begin(page)
    for prompt, told in (("''", "empty"), ("'x'.repeat(400)", "400 bytes"), ("'\\ud800'", "half")):
        page.evaluate(f"at('prompt').value = {prompt}")
        page.click("#live-go")
        page.wait_for_selector(f"#live-message.bad:has-text('{told}')")
    plays_on(page)
    assert page.get_attribute("body", "data-prompt") == "1"
    page.click("#live-stop")
    page.wait_for_selector("body[data-phase=idle]")


def test_a_second_viewer_waits_until_the_first_has_left(page, address):
    begin(page)
    other = {"prompt": AWAY, "kind": "h264"}
    busy = post(address, "start", other)
    assert busy.status == 409
    assert b"1 of 1 sessions" in busy.data
    plays_on(page)
    page.goto("about:blank")
    let_in = post(address, "start", other)
    assert let_in.status == 200
    post(address, "stop", {"session": json.loads(let_in.data)["session"]})
