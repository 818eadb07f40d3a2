"""The live page in a real browser: it plays, heeds a new prompt, refuses bad ones, and is left."""

import json

import pytest

from cfmodel.live.serve import served
from cfmodel.live.trial import post
from cfmodel.pipeline import load
from cfmodel.presets import preset
from tests.helpers.study import chromium

pytest.importorskip("fastapi")
sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no chromium on this machine"),
]

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
WAIT_MS = 60_000
AWAY = "A red cube hops on grass under a clear sky. The camera pans away to the left."
SPREAD = """() => {
  const video = document.getElementById("live-video"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  const levels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const red = levels.filter((_, index) => index % 4 === 0);
  return [canvas.width, canvas.height, Math.max(...red) - Math.min(...red)];
}"""
"""Columns and rows of the picture on screen, and the spread of its red."""


@pytest.fixture(scope="module")
def address():
    with served(load(preset("tiny"), device="cpu")) as one:
        yield one


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        one = play.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield one
        one.close()


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
    since = page.evaluate("document.getElementById('live-video').currentTime")
    page.wait_for_function(
        "until => document.getElementById('live-video').currentTime > until", arg=since + seconds
    )


def test_a_film_plays_while_it_is_made_and_heeds_a_new_prompt(page, address):
    asked, wrong = [], []
    page.on("request", lambda one: asked.append(one.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    begin(page)
    plays_on(page, 3.0)
    width, height, spread = page.evaluate(SPREAD)
    assert (width, height) == (128, 80)
    assert spread > 50, "a picture, not a blank"
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
    assert roles["slow"] == page.locator("#live-promotions li").count() > 0
    assert float(page.text_content("#live-fps")) > 0
    session = page.evaluate("now.session")
    page.click("#live-stop")
    page.wait_for_selector("body[data-phase=idle]")
    assert "stopped after" in page.text_content("#live-message")
    ended = post(address, "prompt", {"session": session, "prompt": AWAY})
    assert (ended.status, json.loads(ended.data)) == (410, {"ended": "stopped by the viewer"})
    assert not [url for url in asked if not url.startswith((address, "blob:", "data:"))]
    assert not wrong


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("' '", "empty prompt"),
        ("'red '.repeat(100)", "prompt of 400 bytes"),
        ("'red \\ud800 cube'", "character 5"),
    ],
)
def test_a_bad_prompt_is_refused_and_the_film_goes_on(page, prompt, told):
    begin(page)
    page.evaluate(f"document.getElementById('live-prompt').value = {prompt}")
    page.click("#live-go")
    page.wait_for_selector("#live-message.bad")
    assert told in page.text_content("#live-message")
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
