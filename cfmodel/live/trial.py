"""A viewer without a screen: what a live film costs and how soon a new prompt is seen, over HTTP.

It asks for chunks as the page does and plays them by the clock.
"""

import io
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from cfmodel.pipeline import Pipeline

TICK_S = 0.01
LEAST_S = 5.0
SLACK_S = 0.4
"""As in the page, beyond twice the time that a chunk takes to come."""
FADE = 0.9
"""As in the page: of a slow chunk, from one to the next."""
FIRST = "A red cube hops on grass under a clear sky. The camera holds still."
SECOND = "A red cube hops on grass under a clear sky. The camera pans away to the left."


@dataclass
class Playhead:
    """A picture that moves on with the clock and waits where nothing is buffered."""

    end_s: float = 0.0
    """Where what is buffered ends."""
    at_s: float = 0.0
    stalls: int = 0
    stalled_s: float = 0.0
    _seen_s: float | None = None
    _is_stalled: bool = False

    def move(self, now_s: float) -> None:
        """Play on until ``now_s`` of the clock, the first call being the beginning."""
        passed_s = 0.0 if self._seen_s is None else now_s - self._seen_s
        self._seen_s = now_s
        missing_s = max(0.0, self.at_s + passed_s - self.end_s)
        self.at_s += passed_s - missing_s
        self.stalls += missing_s > 0 and not self._is_stalled
        self._is_stalled = missing_s > 0
        self.stalled_s += missing_s


class _Reply(NamedTuple):
    status: int
    data: bytes
    told: dict[str, Any]


@dataclass
class _Watched:
    """What a viewer saw; ``changed_s`` and ``seen_s`` are of the second prompt, by the clock."""

    head: Playhead = field(default_factory=Playhead)
    film: bytearray = field(default_factory=bytearray)
    told: list[dict[str, Any]] = field(default_factory=list)
    first_s: float = 0.0
    changed_s: float | None = None
    seen_s: float | None = None


def trial(pipeline: "Pipeline", address: str, seconds: float, *, load_s: float) -> dict[str, Any]:
    """Watches a film, with a new prompt half-way. Returns what was measured.

    ``fps_made`` are pixel frames a second of generation, with what decoding and encoding take;
    ``fps_shown`` those on screen from the first picture on; ``first_frame_s`` is from the request
    until a picture is decoded; ``prompt_on_screen_s`` from the change of the prompt until the
    first chunk made with it is on screen.

    Args:
        pipeline: what is served, for the record.
        address: of its server.
        seconds: of film to show.
        load_s: seconds that loading took, for the record.

    Raises:
        RuntimeError: the server refuses, the film ends early, or frames are missing.
        ValueError: see ``check``.
    """
    import torch

    check(seconds)
    about = json.loads(_get(address, "/api/about"))
    for name in ("/", "/live.js", "/live.css"):
        _get(address, name)
    watched, wall_s = _watch(address, about, seconds)
    frames = sum(one["frames"] for one in watched.told)
    decoded = _decoded(bytes(watched.film))
    # The last picture comes with the chunk behind it.
    if decoded != frames - 1:
        raise RuntimeError(f"{decoded} of {frames} frames could be decoded; expected all but one")
    made_s = sum(one["made_s"] for one in watched.told)
    assert watched.changed_s is not None, "half of the film was shown"
    seen_s = None if watched.seen_s is None else round(watched.seen_s - watched.changed_s, 3)
    return {
        "preset": about["preset"], "key": about["key"], "device": about["device"],
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_s": round(load_s, 2),
        "seconds": round(watched.head.at_s, 2), "chunks": len(watched.told), "frames": frames,
        "bytes": len(watched.film), "fps": about["fps"], "fps_made": round(frames / made_s, 1),
        "fps_shown": round(watched.head.at_s * about["fps"] / wall_s, 2),
        "first_frame_s": round(watched.first_s, 3), "prompt_on_screen_s": seen_s,
        "stalls": watched.head.stalls, "stalled_s": round(watched.head.stalled_s, 3),
        "weights": pipeline.weights["student"],
    }  # fmt: skip


def check(seconds: float) -> None:
    """Whether a trial is long enough.

    Raises:
        ValueError: less than 5 s, in which a new prompt may not be seen.
    """
    if seconds < LEAST_S:
        raise ValueError(
            f"--trial {seconds:g}: expected at least {LEAST_S:g} s, to see a new prompt"
        )


def lines(result: dict[str, Any]) -> list[str]:
    """A trial's result in words."""
    seen_s = result["prompt_on_screen_s"]
    return [
        f"{result['preset']} on {result['device']}, {result['threads']} of {result['cores']} cores",
        f"made {result['fps_made']} frames/s, shown {result['fps_shown']} of {result['fps']}",
        f"first frame after {result['first_frame_s']} s; {result['stalls']} stalls",
        "a new prompt was not seen" if seen_s is None else f"a new prompt is seen after {seen_s} s",
    ]


def _watch(address: str, about: dict[str, Any], seconds: float) -> tuple[_Watched, float]:
    began = time.monotonic()
    kind = about["kinds"][0]["kind"]
    reply = _post(address, "start", {"prompt": FIRST, "kind": kind})
    session = json.loads(reply.data)["session"]
    watched, head, took_s = _Watched(), Playhead(), 0.0
    watched.head = head
    while head.at_s < seconds:
        head.move(time.monotonic()) if watched.told else None
        _look(watched, address, session, seconds / 2)
        if watched.told and head.end_s - head.at_s > min(about["ahead_s"], SLACK_S + 2 * took_s):
            time.sleep(TICK_S)
            continue
        asked = time.monotonic()
        ask = {"session": session, "chunk": len(watched.told)}
        reply = _post(address, "chunk", ask)
        if reply.status == 204:
            continue
        took_s = max(time.monotonic() - asked, FADE * took_s)
        watched.film += reply.data
        if not watched.told:
            _decoded(reply.data)
            watched.first_s = time.monotonic() - began
        watched.told.append(reply.told)
        head.end_s = reply.told["start_s"] + reply.told["frames"] / about["fps"]
    wall_s = time.monotonic() - began - watched.first_s
    _post(address, "stop", {"session": session})
    return watched, wall_s


def _look(watched: _Watched, address: str, session: str, half_s: float) -> None:
    """Change the prompt when half of the film was shown; note when the new one is on screen."""
    now, head = time.monotonic(), watched.head
    if watched.changed_s is None and head.at_s >= half_s:
        watched.changed_s = now
        _post(address, "prompt", {"session": session, "prompt": SECOND})
    elif watched.changed_s is not None and watched.seen_s is None:
        starts = [one["start_s"] for one in watched.told if one["prompt"] == 2]
        if starts and head.at_s >= starts[0]:
            watched.seen_s = now - (head.at_s - starts[0])


def _decoded(film: bytes) -> int:
    """Pictures that can be decoded of the beginning of a film."""
    import av

    with av.open(io.BytesIO(film), "r") as container:
        return sum(1 for _ in container.decode(video=0))


def _get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(address + path, timeout=60) as reply:
        return reply.read()


def _post(address: str, route: str, tree: dict[str, Any]) -> _Reply:
    headers = {"content-type": "application/json"}
    data = json.dumps(tree).encode()
    request = urllib.request.Request(f"{address}/api/{route}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            told = json.loads(reply.headers.get("x-live") or "{}")
            return _Reply(reply.status, reply.read(), told)
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        raise RuntimeError(f"the server answers {route} with {error.code}: {said}") from error
