"""Films that are wrong in every way we know of, scored: ``python -m tests.helpers.bad_films``.

Prints how many were tried, and how many the scorer survived (JSON): the run goes on to its end, the
film has a score or a reason, and the good film between them has its score.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from cfbench import prompts, video
from cfbench.store import LocalStore, open_store
from cfbench.types import Prompt, Segment
from tests.helpers.bench import CLIP, cfbench, run_record

FPS = 16
TEXT = "a film"


def pictures(count: int, rows: int = 64, columns: int = 96) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 255, (count, rows, columns, 3)).astype(np.uint8)


def written(path: Path, frames: np.ndarray, *, uneven: bool = False) -> None:
    """A film without loss; ``uneven`` doubles the time that every third frame stands."""
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264rgb", rate=FPS, options={"qp": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        stream.codec_context.time_base = Fraction(1, FPS * 4)
        now = 0
        for k, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = now, Fraction(1, FPS * 4)
            now += 8 if uneven and k % 3 == 0 else 4
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def good(path: Path) -> None:
    video.encode(path, [pictures(8)], FPS)


def bytes_of(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


def still(path: Path) -> None:
    video.encode(path, [pictures(1)], FPS)


def cut(share: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        video.encode(path, [pictures(40)], FPS)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return make


FILMS: dict[str, Callable[[Path], None]] = {
    "truncated": cut(0.6),
    "head alone": cut(0.02),
    "sound alone": sound,
    "no film": bytes_of(b"this is no film" * 100),
    "empty": bytes_of(b""),
    "gone": lambda path: None,
    "one frame": still,
    "odd size": lambda path: written(path, pictures(6, 47, 33)),
    "tiny": lambda path: written(path, pictures(6, 2, 4)),
    "uneven times": lambda path: written(path, pictures(12), uneven=True),
}
TEXTS = {"quotes": "it's a \"film\" / with 100% \\ 'marks'", "unicode": "un café \u2014 \U0001f3a5"}


def jobs() -> Iterator[tuple[str, Callable[[Path], None], str, bytes | None]]:
    """Name, film, text, and what lies in the prompt's place if that is not a prompt."""
    for name, make in FILMS.items():
        yield name, make, TEXT, None
    for name, text in TEXTS.items():
        yield name, good, text, None
    yield "prompt gone", good, TEXT, b""
    yield "prompt broken", good, TEXT, b"{"
    yield "newline in prompt", good, TEXT, b'{"id": "p", "text": "two\\nlines"}'
    yield "good", good, TEXT, None


def fill(root: Path) -> None:
    with LocalStore(root) as store:
        for number, (name, make, text, other) in enumerate(jobs()):
            path = store.scratch("mp4")
            make(path)
            content = path.read_bytes() if path.exists() else None
            # What cannot be told apart by its bytes is told apart by its name.
            sha = hashlib.sha256((content or b"") + bytes([number])).hexdigest()
            if content is not None:
                store.put(path, sha, "mp4")
            prompt = Prompt(id=f"p{number}", segments=(Segment(text=text, seconds=1.0),))
            prompt_sha = hashlib.sha256(f"{number}".encode()).hexdigest()
            if other is None:
                prompt_sha = store.put_bytes(prompts.canonical(prompt), "json")
            elif other:
                prompt_sha = store.put_bytes(other, "json")
            clip = {**vars(CLIP), "sha256": sha}
            store.append(
                "runs",
                run_record(
                    name.replace(" ", "-"), prompt_id=prompt.id, prompt_sha=prompt_sha,
                    clip=type(CLIP)(**clip),
                ),
            )  # fmt: skip


def survived(root: Path, suite: str) -> dict[str, Any]:
    """Which films of the store have a value or a reason in every dimension, after a run."""
    ended = cfbench("score", "--suite", suite, "--out", root, "--workers", "1")
    names = {run.clip.sha256: run.id for run in open_store(root).runs()}
    told: dict[str, list[bool]] = {name: [] for name in names.values()}
    values: dict[str, list[float]] = {name: [] for name in names.values()}
    for score in open_store(root).scores():
        name = names[score.clip_sha]
        told[name].append((score.value is None) == bool(score.reason))
        values[name] += [] if score.value is None else [score.value]
    fine = {name for name, rows in told.items() if rows and all(rows)}
    went_on = ended.returncode == 3 and bool(values["good"]) and "Traceback" not in ended.stderr
    lost = sorted(set(told) - fine - {"good"})
    tried = len(told) - 1
    return {
        "tried": tried, "survived": tried - len(lost) if went_on else 0, "lost": lost,
        "scored": sorted(name for name, rows in values.items() if rows), "exit": ended.returncode,
        "stderr": ended.stderr[-400:],
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "weights").mkdir()
        fill(Path(folder) / "out")
        found = survived(Path(folder) / "out", f"vbench:{Path(folder) / 'weights'}")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
