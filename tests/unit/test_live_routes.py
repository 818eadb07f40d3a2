"""What the live server answers over HTTP, to good requests and to bad ones; its trial."""

import json
import urllib.error
import urllib.request

import pytest

from cfmodel.live import trial as trials
from cfmodel.pipeline import load
from cfmodel.presets import preset

pytest.importorskip("fastapi")

from cfmodel.live.serve import check, served


@pytest.fixture(scope="module")
def address():
    with served(load(preset("nano"), device="cpu")) as one:
        yield one


@pytest.fixture
def post(address):
    return lambda route, **tree: trials.post(address, route, tree)


@pytest.fixture
def session(post):
    name = json.loads(post("start", prompt="a red ball", kind="h264").data)["session"]
    yield name
    post("stop", session=name)


def test_a_film_comes_in_chunks_with_what_is_told_of_them(post, session):
    first, second = (post("chunk", session=session, chunk=chunk) for chunk in (0, 1))
    assert (first.status, first.data[4:8], second.data[4:8]) == (200, b"ftyp", b"moof")
    told = second.told
    assert (told["chunk"], told["frames"], told["prompt"], told["start_s"]) == (1, 12, 1, 9 / 16)
    assert told["slots"][0] == [0, "sink"]
    assert [post("chunk", session=session, chunk=n).status for n in ("2", 5)] == [422, 422]


def test_a_prompt_is_heeded_or_refused_and_the_film_goes_on(post, session):
    post("chunk", session=session, chunk=0)
    for prompt, says in (
        ("", "empty prompt"),
        ("x" * 257, "257 bytes"),
        ("nul \0", "NUL"),
        ("half \ud800", "character 6"),
        (7, "expected prompt"),
    ):
        refused = post("prompt", session=session, prompt=prompt)
        assert refused.status == 422
        assert says in json.loads(refused.data)["error"]
    changed = post("prompt", session=session, prompt="a blue cube")
    assert json.loads(changed.data) == {"number": 2, "warnings": []}
    assert post("chunk", session=session, chunk=1).told["prompt"] == 2


def test_a_second_viewer_is_told_that_it_is_busy_and_let_in_when_the_first_leaves(post, session):
    busy = post("start", prompt="a red ball", kind="vp9")
    assert busy.status == 409
    assert b"busy: 1 of 1 sessions" in busy.data
    post("stop", session=session)
    again = post("start", prompt="a red ball", kind="vp9")
    assert again.status == 200
    post("stop", session=json.loads(again.data)["session"])
    assert post("chunk", session=session, chunk=0).status == 404


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"[" * 10_000, "application/json", 422),
        (b"[]", "application/json", 422),
        (b" " * 20_000, "application/json", 413),
        (b'{"prompt": "x", "kind": "av1"}', "application/json", 422),
    ],
)
def test_bad_requests_are_refused(address, body, kind, status):
    ask = urllib.request.Request(f"{address}/api/start", body, {"content-type": kind})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(ask, timeout=30)
    assert refused.value.code == status
    assert json.loads(refused.value.read())["error"]


def test_the_page_asks_nobody_else(address, post):
    assert post("chunk", session="nobody", chunk=0).status == 404
    for name in ("", "live.js", "live.css"):
        with urllib.request.urlopen(f"{address}/{name}", timeout=30) as reply:
            assert "default-src 'self'" in reply.headers["content-security-policy"]
            text = reply.read().decode()
        assert "://" not in text


def test_prompts_that_the_tiny_model_was_not_trained_on_are_warned_of():
    assert check("A red ball hops on grass under a clear sky.", preset("tiny")) == []
    assert "not trained on" in check("the stock market", preset("tiny"))[0]
