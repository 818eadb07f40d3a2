"""A live session over a film of plain pictures: demand, pace, prompts, and every way to end."""

import io
import threading
from itertools import count, islice

import av
import numpy as np
import pytest

from cfmodel.live.film import film_of, limit
from cfmodel.live.fragments import KINDS, FragmentWriter
from cfmodel.live.session import Session, Shot
from cfmodel.memory.base import FrameSlot
from cfmodel.pipeline import Request, load
from cfmodel.presets import preset
from cfmodel.sample import script_of

WAIT_S = 20.0
SHORT_S = 0.2
"""Long enough for a thread to do what it must not do: a chunk here takes microseconds."""
FPS = 16


class Plain:
    """A writer whose bytes are the number of its frames."""

    def push(self, frames_RYXC):
        return f"{len(frames_RYXC)};".encode()

    def close(self):
        return b"end"


class Pictures:
    """A film of grey chunks that remembers which texts it asked for."""

    def __init__(self, chunks=None, fails_at=None, error=None):
        self.chunks, self.fails_at, self.error, self.texts = chunks, fails_at, error, []

    def __call__(self, ask):
        for chunk in count() if self.chunks is None else range(self.chunks):
            if chunk == self.fails_at:
                raise self.error or AssertionError
            self.texts.append(ask(chunk))
            slow = tuple(FrameSlot(frame, "slow", 0) for frame in range(0, chunk * 3, 6))
            yield Shot(np.zeros((12 if chunk else 9, 8, 8, 3), np.uint8), slow)


@pytest.fixture
def begin():
    begun = []

    def call(film, *, ahead_s=1e9, gone_s=WAIT_S, clock=None):
        clocks = {} if clock is None else {"clock": clock}
        session = Session(
            film, "first", Plain(), fps=FPS, ahead_s=ahead_s, turn=threading.Lock(),
            gone_s=gone_s, **clocks,
        )  # fmt: skip
        begun.append(session)
        return session

    yield call
    for session in begun:
        session.stop("the test is over")
        session.thread.join(WAIT_S)
        assert not session.thread.is_alive()


def test_a_changed_prompt_takes_effect_at_the_next_chunk_and_at_none_before(begin):
    film = Pictures()
    session = begin(film)
    told = [session.take(chunk, WAIT_S).made for chunk in range(2)]
    assert session.change("second") == 2
    told += [session.take(chunk, WAIT_S).made for chunk in range(2, 4)]
    assert [made.prompt for made in told] == [1, 1, 2, 2]
    assert film.texts == ["first", "first", "second", "second"]
    assert [made.start_s for made in told] == [0, 9 / FPS, 21 / FPS, 33 / FPS]
    assert [len(made.slots) for made in told] == [0, 1, 1, 2]


def test_generation_runs_ahead_of_playback_by_no_more_than_it_may(begin):
    now = [100.0]
    film = Pictures()
    session = begin(film, ahead_s=1.5, clock=lambda: now[0])
    # Chunk 3 begins 33 / 16 s = 2.06 s into the film, and no time has passed.
    assert all(session.take(chunk, WAIT_S) for chunk in range(3))
    session.thread.join(SHORT_S)
    assert len(film.texts) == 3, "nothing is made that was not asked for"
    assert session.take(3, SHORT_S) is None
    now[0] += 0.6
    assert session.take(3, WAIT_S) is not None
    assert len(film.texts) == 4


def test_a_chunk_may_be_asked_for_again_and_none_out_of_turn(begin):
    session = begin(Pictures(), ahead_s=0.5, clock=lambda: 0.0)
    assert session.take(0, WAIT_S) == session.take(0, WAIT_S)
    assert session.take(1, SHORT_S) is None
    for chunk in (0, 2, 3):
        with pytest.raises(ValueError, match="out of turn; 1 was"):
            session.take(chunk, 0)


def test_a_film_ends_with_its_last_bytes_and_a_reason(begin):
    session = begin(Pictures(chunks=2))
    assert [session.take(chunk, WAIT_S).data for chunk in range(3)] == [b"9;", b"12;", b"end"]
    session.thread.join(WAIT_S)
    assert "longest length" in session.ended
    assert session.take(3, WAIT_S) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("error", "why"),
    [(RuntimeError("no memory"), "the film failed: no memory"), (KeyError(1), "broke off")],
)
def test_a_film_that_fails_says_why_even_if_nobody_foresaw_it(begin, error, why):
    session = begin(Pictures(fails_at=1, error=error))
    assert session.take(0, WAIT_S) is not None
    assert session.take(1, WAIT_S) is None
    assert why in session.ended


def test_generation_stops_when_the_viewer_stops_or_is_not_heard_of(begin):
    session = begin(Pictures())
    session.take(0, WAIT_S)
    session.stop("the viewer left")
    session.thread.join(WAIT_S)
    assert not session.thread.is_alive()
    assert session.ended == "the viewer left"
    silent = begin(Pictures(), gone_s=SHORT_S)
    silent.thread.join(WAIT_S)
    assert "not heard of" in silent.ended


def test_a_live_film_is_the_one_that_sample_makes():
    pipeline = load(preset("nano"), device="cpu")
    live = [
        shot.frames_RYXC for shot in islice(film_of(pipeline, "first", 3)(lambda _: "first"), 3)
    ]
    script = script_of("first", 9.0)
    made = pipeline.films([Request(script.id, script.segments, 3)], 3)
    assert all(np.array_equal(a, b[0]) for a, b in zip(live, made, strict=True))


@pytest.mark.parametrize(
    ("name", "chunks", "why"),
    [
        ("ours", None, "stay below 21"),
        ("infinity-rope", None, "stay below 6"),
        ("causvid", None, "position 0"),
        ("absolute", 115_201, "grow with the film"),
        ("full-context", 81, "forgets nothing"),
    ],
)
def test_films_go_on_as_long_as_memory_allows(name, chunks, why):
    found = limit(preset(f"nano/{name}"))
    assert found.chunks == chunks
    assert why in found.why


@pytest.mark.parametrize("kind", KINDS)
def test_fragments_joined_are_one_film_and_each_push_gives_what_it_can(kind):
    frames = np.random.default_rng(0).integers(0, 255, (21, 64, 64, 3)).astype(np.uint8)
    writer = FragmentWriter(kind, fps=FPS, height=64, width=64)
    first = writer.push(frames[:9])
    assert first[4:8] == b"ftyp"
    assert (first.count(b"moof"), first.count(b"ftyp")) == (8, 1)
    second, end = writer.push(frames[9:]), writer.close()
    assert (second.count(b"moof"), end.count(b"moof")) == (12, 1)
    with av.open(io.BytesIO(first + second + end), "r") as container:
        assert sum(1 for _ in container.decode(video=0)) == 21
    assert {"h264": "avc1.", "vp9": "vp09."}[kind] in writer.mime
    with pytest.raises(ValueError, match="even sizes"):
        FragmentWriter(kind, fps=FPS, height=63, width=64)
