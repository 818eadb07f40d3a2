"""The study in a real browser: blind, whole by keyboard, and no vote lost whatever happens."""

import contextlib
import io
import json
import re
from collections import Counter

import pytest

from cfbench.study import database
from cfbench.study.design import load
from cfbench.study.export import open_votes, votes
from cfbench.study.raters import digest
from tests.helpers.study import chromium, served, study_folder

pytest.importorskip("gradio")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no chromium on this machine"),
]

WAIT_MS = 60_000
SECRETS = re.compile(
    r"longlive|infinity|baseline|comparison|\"ours\"|/study/media|preset|obvious", re.IGNORECASE
)
SLOW = {"offline": False, "latency": 400, "downloadThroughput": 40_000, "uploadThroughput": 20_000}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(study_folder(tmp_path_factory.mktemp("study"))) as one:
        yield one


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


def begin(page, address):
    """Consent and training, by keyboard alone."""
    page.goto(address)
    page.wait_for_selector("#study-consent:not([hidden])")
    page.focus("#study-agree")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#study-training:not([hidden])")
    page.keyboard.press("Enter")
    page.wait_for_selector("#study-quiz:not([hidden])")
    page.keyboard.press("Enter")
    page.wait_for_selector("#study-pair:not([hidden])")


def watch(page):
    """Play both films until the answers unlock."""
    page.keyboard.press("Space")
    page.wait_for_function("document.getElementById('study-watched').textContent === 'watched'")


def answer(page, key):
    """The same answer to every question of the pair that is shown, each stored."""
    for _ in range(page.locator(".study-question").count()):
        with page.expect_response(lambda one: one.url.endswith("/api/vote") and one.ok):
            page.keyboard.press(key)
    page.wait_for_function("!document.getElementById('study-next').disabled")


def count(page):
    return page.text_content("#study-count")


def forward(page):
    before = count(page)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => document.getElementById('study-pair').hidden ||"
        " document.getElementById('study-count').textContent !== before",
        arg=before,
    )


def rate_all(page):
    """The rest of the study; how many pairs it had."""
    pairs = 0
    while page.is_visible("#study-pair"):
        watch(page)
        answer(page, "123"[pairs % 3])
        forward(page)
        pairs += 1
    page.wait_for_selector("#study-end:not([hidden])")
    return pairs


def stored(server, page):
    """Effective votes of this page's rater and how many answers the database holds of them."""
    token = page.evaluate("location.hash.slice(1)")
    design, _ = load(server.study)
    with contextlib.closing(open_votes(server.study)) as db:
        query = "SELECT session FROM sessions WHERE token = ?"
        (session,) = db.execute(query, (digest(token),)).fetchone()
        mine = [vote for vote in votes(db, design) if vote.session == session]
        (answers,) = db.execute(
            "SELECT count(*) FROM answers WHERE session = ?", (session,)
        ).fetchone()
        items = database.items_of(db, session)
    return mine, answers, items


def test_whole_study_by_keyboard_is_blind_and_leaves_this_machine_never(server, page):
    heard, frames, away = [], [], []
    page.on("websocket", lambda socket: frames.append(socket.url))
    page.on(
        "request",
        lambda one: None if one.url.startswith((server.address, "data:", "blob:"))
        else away.append(one.url),
    )  # fmt: skip

    def listen(response):
        heard.append((response.url, json.dumps(response.headers)))

    page.on("response", listen)
    begin(page, server.address)
    sizes, order = set(), set()
    token = page.evaluate("location.hash.slice(1)")
    state = page.request.get(f"{server.address}/api/state", headers={"x-study-token": token})
    text = state.text()
    urls = re.findall(r"/m/[0-9a-f]{40}\.mp4", text)
    digests = []
    for url in urls:
        film = page.request.get(server.address + url)
        assert film.status == 200
        sizes.add(len(film.body()))
        order.add(tuple(one["name"] for one in film.headers_array if one["name"] != "date"))
        digests.append(hash(film.body()))
        assert not SECRETS.search(json.dumps(film.headers))
        assert tags(film.body()) == EXPECTED_TAGS
    assert len(urls) == len(set(urls)) == len(set(digests))
    assert len(sizes) == len(order) == 1
    assert rate_all(page) == 8
    mine, answers, items = stored(server, page)
    assert len(items) == 8
    assert len(mine) == answers == 6 * 3 + 2
    assert all(min(vote.watched_left_s, vote.watched_right_s) >= 0.95 for vote in mine)
    assert {vote.changes for vote in mine} == {0}
    assert re.fullmatch(r"[A-Z2-7]{8}", page.text_content("#study-code"))
    assert not away
    assert not frames
    dom = page.content() + text + "".join(url + head for url, head in heard)
    assert not SECRETS.findall(dom)


EXPECTED_TAGS = {
    "major_brand": "isom", "minor_version": "512", "compatible_brands": "isomiso2avc1mp41",
    "language": "und", "handler_name": "VideoHandler",
}  # fmt: skip


def tags(content):
    import av

    with av.open(io.BytesIO(content)) as film:
        return dict(film.metadata) | dict(film.streams.video[0].metadata)


def test_answers_stay_locked_until_both_films_were_watched(server, page):
    begin(page, server.address)
    page.keyboard.press("1")
    page.wait_for_timeout(200)
    assert stored(server, page)[1] == 0
    assert page.locator(".study-answers button:not(.study-cannot)").first.is_disabled()
    watch(page)
    answer(page, "1")
    assert stored(server, page)[1] in (1, 3)


def test_films_run_in_step(browser, tmp_path):
    with served(study_folder(tmp_path, prompts=1, seconds=3)) as one:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(WAIT_MS)
        begin(page, one.address)
        page.keyboard.press("Space")
        apart = """() => Math.abs(document.getElementById('study-left').currentTime
                                  - document.getElementById('study-right').currentTime)"""
        page.wait_for_function("document.getElementById('study-left').currentTime > 0.5")
        page.evaluate("document.getElementById('study-right').currentTime = 2")
        page.wait_for_function(f"({apart})() < 0.08")
        page.close()


def test_refresh_back_and_double_click_lose_and_double_nothing(server, page):
    begin(page, server.address)
    watch(page)
    page.locator(".study-answers button").first.dblclick()
    page.wait_for_function("document.getElementById('study-saved').textContent === 'stored'")
    assert stored(server, page)[1] == 1
    page.reload()
    page.wait_for_selector("#study-pair:not([hidden])")
    assert page.locator('.study-answers button[aria-pressed="true"]').count() == 1
    watch(page)
    questions = page.locator(".study-question").count()
    for index in range(questions):
        page.locator(".study-question").nth(index).locator("button").nth(2).click()
    page.wait_for_function("!document.getElementById('study-next').disabled")
    page.wait_for_function("document.getElementById('study-saved').textContent === 'stored'")
    forward(page)
    page.go_back()
    page.wait_for_function("document.getElementById('study-count').textContent.match('pair 1 ')")
    assert page.locator('.study-answers button[aria-pressed="true"]').count() == questions
    mine, answers, _ = stored(server, page)
    assert len(mine) == questions
    assert answers == questions + 1
    assert Counter(vote.answer for vote in mine) == {"right": questions}


def test_two_tabs_share_one_session(server, page):
    begin(page, server.address)
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("#study-pair:not([hidden])")
    for tab in (page, other):
        tab.bring_to_front()
        watch(tab)
        answer(tab, "1")
    mine, answers, items = stored(server, page)
    assert len(mine) == answers
    assert {vote.order for vote in mine} == {0}
    assert len(items) == 8


def test_slow_network_and_a_killed_server_lose_no_vote(server, page):
    begin(page, server.address)
    watch(page)
    network = page.context.new_cdp_session(page)
    network.send("Network.emulateNetworkConditions", SLOW)
    answer(page, "1")
    forward(page)
    watch(page)
    server.kill()
    page.keyboard.press("3")
    page.wait_for_function("document.getElementById('study-saved').textContent.includes('again')")
    server.start()
    page.wait_for_function("document.getElementById('study-saved').textContent === 'stored'")
    mine, answers, _ = stored(server, page)
    assert len(mine) == answers
    assert Counter(vote.order for vote in mine)[1] == 1
    rate_all_but_answered(page)
    mine, answers, _ = stored(server, page)
    assert len(mine) == answers == 6 * 3 + 2


def rate_all_but_answered(page):
    while page.is_visible("#study-pair"):
        if page.text_content("#study-watched") != "watched":
            watch(page)
        asked = page.locator(".study-question")
        for index in range(asked.count()):
            if not asked.nth(index).locator('button[aria-pressed="true"]').count():
                with page.expect_response(lambda one: one.url.endswith("/api/vote") and one.ok):
                    asked.nth(index).locator("button").nth(1).click()
        page.wait_for_function("!document.getElementById('study-next').disabled")
        page.focus("#study-play")
        forward(page)


def test_phones_are_sent_away_politely(server, browser):
    context = browser.new_context(viewport={"width": 390, "height": 800})
    phone = context.new_page()
    phone.set_default_timeout(WAIT_MS)
    phone.goto(server.address)
    phone.wait_for_selector("#study-phone:not([hidden])")
    assert not phone.is_visible("#study-consent")
    context.close()


def test_html_in_free_text_stays_text(server, page):
    begin(page, server.address)
    page.locator(".study-cannot").first.click()
    evil = "<img src=x onerror=\"document.title='owned'\">"
    page.keyboard.insert_text(evil)
    with page.expect_response(lambda one: one.url.endswith("/api/vote") and one.ok):
        page.keyboard.press("Enter")
    page.reload()
    page.wait_for_selector("#study-pair:not([hidden])")
    assert evil in (page.text_content("#study-questions") or "")
    assert page.locator("#study-questions img").count() == 0
    assert page.title() != "owned"
