"""What the live server answers over HTTP, to good requests and to bad ones; its trial."""

import json
import socket
import urllib.error
import urllib.request
from typing import NamedTuple

import pytest

from cfmodel.live import trial as trials
from cfmodel.pipeline import load
from cfmodel.presets import preset

pytest.importorskip("fastapi")

from cfmodel.live.serve import bound, check, served

RED = "a red ball"


class Reply(NamedTuple):
    status: int
    data: bytes
    headers: dict[str, str]

    @property
    def tree(self):
        return json.loads(self.data)


@pytest.fixture(scope="module")
def pipeline():
    return load(preset("nano"), device="cpu")


@pytest.fixture(scope="module")
def address(pipeline):
    with served(pipeline) as one:
        yield one


@pytest.fixture
def post(address):
    """Posts JSON, or bytes as they are."""

    def call(route, tree, kind="application/json"):
        data = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        ask = urllib.request.Request(f"{address}/api/{route}", data, {"content-type": kind})
        try:
            with urllib.request.urlopen(ask, timeout=30) as reply:
                return Reply(reply.status, reply.read(), dict(reply.headers))
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read(), dict(error.headers))

    return call


@pytest.fixture
def session(post):
    name = post("start", {"prompt": RED, "kind": "h264"}).tree["session"]
    yield name
    post("stop", {"session": name})


def test_a_film_comes_in_chunks_with_what_is_told_of_them(post, session):
    first, second = (post("chunk", {"session": session, "chunk": chunk}) for chunk in (0, 1))
    assert (first.status, first.data[4:8], second.data[4:8]) == (200, b"ftyp", b"moof")
    told = json.loads(second.headers["x-live"])
    assert (told["chunk"], told["frames"], told["prompt"], told["start_s"]) == (1, 12, 1, 9 / 16)
    assert told["slots"][0] == {"frame": 0, "role": "sink"}
    assert told["fps"] > 0


def test_a_prompt_is_heeded_or_refused_and_the_film_goes_on(post, session):
    post("chunk", {"session": session, "chunk": 0})
    for prompt, says in (
        ("", "empty prompt"),
        ("x" * 257, "257 bytes"),
        ("nul \0", "NUL"),
        ("half \ud800", "character 6"),
        (7, "expected prompt"),
    ):
        refused = post("prompt", {"session": session, "prompt": prompt})
        assert refused.status == 422
        assert says in refused.tree["error"]
    changed = post("prompt", {"session": session, "prompt": "a blue cube"})
    assert changed.tree == {"number": 2, "warnings": []}
    told = json.loads(post("chunk", {"session": session, "chunk": 1}).headers["x-live"])
    assert told["prompt"] == 2


def test_a_second_viewer_is_told_that_it_is_busy(post, session):
    busy = post("start", {"prompt": RED, "kind": "vp9"})
    assert busy.status == 409
    assert busy.tree["error"].startswith("busy: 1 of 1 sessions")
    assert post("stop", {"session": session}).tree == {"ended": "stopped by the viewer"}
    again = post("start", {"prompt": RED, "kind": "vp9"})
    assert again.status == 200
    post("stop", {"session": again.tree["session"]})
    gone = post("chunk", {"session": session, "chunk": 0})
    assert (gone.status, gone.tree) == (410, {"ended": "stopped by the viewer"})


@pytest.mark.parametrize(
    ("route", "body", "kind", "status"),
    [
        ("start", b"{}", "text/plain", 415),
        ("start", b"{", "application/json", 422),
        ("start", b"[" * 10_000, "application/json", 422),
        ("start", b"[]", "application/json", 422),
        ("start", b" " * 20_000, "application/json", 413),
        ("start", b'{"prompt": "x", "kind": "av1"}', "application/json", 422),
        ("start", b'{"prompt": "", "kind": "h264"}', "application/json", 422),
        ("chunk", b'{"session": "nobody", "chunk": 0}', "application/json", 404),
        ("alive", b"{}", "application/json", 422),
        ("nothing", b"{}", "application/json", 404),
    ],
)
def test_bad_requests_are_refused(post, route, body, kind, status):
    refused = post(route, body, kind)
    assert refused.status == status
    if route != "nothing":
        assert refused.tree["error"]


def test_chunks_are_numbers_in_order(post, session):
    assert post("chunk", {"session": session, "chunk": "0"}).status == 422
    assert post("chunk", {"session": session, "chunk": 5}).status == 422
    assert post("chunk", {"session": session, "chunk": 0}).status == 200
    assert post("alive", {"session": session}).tree == {"ended": None}


def test_the_page_asks_nobody_else(address):
    texts = []
    for name in ("", "live.js", "live.css"):
        with urllib.request.urlopen(f"{address}/{name}", timeout=30) as reply:
            assert "default-src 'self'" in reply.headers["content-security-policy"]
            texts.append(reply.read().decode())
    assert not [text for text in texts if "http://" in text or "https://" in text]


def test_prompts_that_the_tiny_model_was_not_trained_on_are_warned_of():
    tiny = preset("tiny")
    assert check("A red ball hops on grass under a clear sky.", tiny) == []
    assert "not trained on" in check("the stock market", tiny)[0]


def test_a_trial_tells_what_was_seen(pipeline, address):
    result = trials.trial(pipeline, address, 5.0, load_s=1.0)
    assert result["seconds"] >= 5
    assert result["fps_made"] > result["fps"] == 16
    assert result["fps_shown"] <= 16.1, "no faster than the clock"
    # At most 1.5 s are buffered and one chunk of 0.75 s is being made.
    assert 0 < result["prompt_on_screen_s"] < 2.3 + result["stalled_s"]
    assert len(trials.lines(result)) == 4
    with pytest.raises(ValueError, match="at least 5 s"):
        trials.trial(pipeline, address, 1.0, load_s=1.0)


def test_a_playhead_waits_where_nothing_is_buffered():
    head = trials.Playhead(end_s=1.0)
    for now_s in (10.0, 10.75, 11.5, 11.75):
        head.move(now_s)
    assert (head.at_s, head.stalls, head.stalled_s) == (1.0, 1, 0.75)
    head.end_s = 2.0
    head.move(12.0)
    assert (head.at_s, head.stalls) == (1.25, 1)


def test_addresses_that_cannot_be_listened_on_are_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="choose another --port"):
            bound("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ValueError, match="--host no"):
        bound("no.such.host.invalid", 8000)
