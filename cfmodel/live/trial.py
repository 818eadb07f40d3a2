"""A viewer without a screen, who asks for chunks as the page does and plays by the clock."""

import io
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple

from cfmodel.live.routes import TOLD
from cfmodel.live.serve import EVENTS, SCENE

TICK_S, LEAST_S = 0.01, 5.0
SLACK_S, FADE = 0.4, 0.9
"""As in the page."""


class Reply(NamedTuple):
    """An answer: HTTP status, body, and what is told of a chunk."""

    status: int
    data: bytes
    told: dict[str, Any]


def post(address: str, route: str, tree: dict[str, Any]) -> Reply:
    """What a server answers to a request of the page."""
    request = urllib.request.Request(
        f"{address}/api/{route}", json.dumps(tree).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            told = json.loads(reply.headers.get(TOLD) or "{}")
            return Reply(reply.status, reply.read(), told)
    except urllib.error.HTTPError as error:
        return Reply(error.code, error.read(), {})


def check(seconds: float) -> None:
    """Whether a trial is long enough.

    Raises:
        ValueError: less than 5 s, in which a new prompt may not be seen.
    """
    if seconds < LEAST_S:
        raise ValueError(f"--trial {seconds:g}: expected at least {LEAST_S:g}, in seconds")


def trial(address: str, seconds: float) -> dict[str, Any]:
    """Watches a film, with a new prompt half-way. Returns what was measured.

    ``fps_made`` are pixel frames a second of generation, decoding and encoding included;
    ``fps_shown`` those on screen from the first one on; ``first_frame_s`` is from the request
    until a picture is decoded; ``prompt_on_screen_s`` from a new prompt until the first chunk made
    with it is on screen, None if it was not.

    Raises:
        RuntimeError: the server refuses, the film ends early, or frames are missing.
    """
    import torch

    with urllib.request.urlopen(f"{address}/api/about", timeout=60) as got:
        about = json.load(got)
    fps, kind = about["experiment"]["geometry"]["fps"], about["kinds"][0]["kind"]
    told, film = list[dict[str, Any]](), bytearray()
    changed_s = seen_s = None
    # Seconds of film on screen and buffered: the picture waits where nothing is buffered.
    at_s = end_s = first_s = took_s = 0.0
    began = now = time.monotonic()
    reply = _good(post(address, "start", {"prompt": f"{SCENE} {EVENTS[0]}", "kind": kind}))
    session = json.loads(reply.data)["session"]
    while at_s < seconds:
        before, now = now, time.monotonic()
        at_s = min(at_s + now - before, end_s)
        if changed_s is None and at_s >= seconds / 2:
            changed_s = now
            change = {"session": session, "prompt": f"{SCENE} {EVENTS[1]}"}
            _good(post(address, "prompt", change))
        starts = [one["start_s"] for one in told if one["prompt"] == 2]
        if seen_s is None and starts and at_s >= starts[0]:
            seen_s = now - (at_s - starts[0])
        if told and end_s - at_s > min(about["ahead_s"], SLACK_S + 2 * took_s):
            time.sleep(TICK_S)
            continue
        reply = _good(post(address, "chunk", {"session": session, "chunk": len(told)}))
        if reply.status == 200:
            took_s = max(time.monotonic() - now, FADE * took_s)
            film += reply.data
            if not told and _decoded(film):
                # Playback begins here.
                now = time.monotonic()
                first_s = now - began
            told.append(reply.told)
            end_s = reply.told["start_s"] + reply.told["frames"] / fps
    wall_s = time.monotonic() - began - first_s
    post(address, "stop", {"session": session})
    frames = sum(one["frames"] for one in told)
    # The last picture comes with the chunk behind it.
    if (decoded := _decoded(film)) != frames - 1:
        raise RuntimeError(f"{decoded} of {frames} frames could be decoded; expected all but one")
    seen = None if seen_s is None or changed_s is None else round(seen_s - changed_s, 3)
    return {
        "preset": about["preset"], "key": about["key"], "device": about["device"],
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "fps": fps,
        "seconds": round(at_s, 2), "bytes": len(film),
        "fps_made": round(frames / sum(one["made_s"] for one in told), 1),
        "fps_shown": round(at_s * fps / wall_s, 2), "first_frame_s": round(first_s, 3),
        "prompt_on_screen_s": seen, "stalled_s": round(wall_s - at_s, 3),
    }  # fmt: skip


def _decoded(film: bytes | bytearray) -> int:
    """Pictures that can be decoded of the beginning of a film."""
    import av

    with av.open(io.BytesIO(film), "r") as container:
        return sum(1 for _ in container.decode(video=0))


def _good(reply: Reply) -> Reply:
    if reply.status not in (200, 204):
        raise RuntimeError(f"the server answers {reply.status}: {reply.data.decode()}")
    return reply
