"""Fits the tiny tier's normaliser, once: ``python -m cfbench.scorers.tiny.norm``.

A dimension's 1 is its mean over rendered films of the prompts, sent through the codec where there
is one (the most that a model behind that codec can reach). Its 0 is its mean over destroyed films:
every second of one is a second of the rendered film of some **other** prompt, drawn anew, and every
frame is blurred (sigma 2.4) and covered with white noise (sigma 0.25).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from cfbench.aggregate import DIMENSIONS, SCHEMA
from cfbench.prompts import load, select, sha256
from cfbench.scorers.tiny import weights
from cfbench.scorers.tiny.damage import blur, noise
from cfbench.scorers.tiny.dims import TinySuite
from cfbench.scorers.tiny.read import pixels
from cfbench.store import write_atomic
from cfbench.types import Prompt
from cfbench.video import held
from cfmodel.config import seed_for
from cfmodel.io.codec import TaeCodec
from cfmodel.tinyworld.film import film
from cfmodel.tinyworld.scene import CHUNK_FRAMES, FPS, chunk_start

logger = logging.getLogger(__name__)

Frames = NDArray[np.uint8]
NAME = "tiny"
BLUR, NOISE = 1.0, 0.25
LEAST_RANGE = 0.02
BLOCK = 64
LATENTS = 12
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "data" / "tiny-normaliser.json"


def rendered(prompt: Prompt, frames: int) -> Frames:
    """The film that a prompt's scene renders to.

    Raises:
        ValueError: the prompt has no scene.
    """
    if prompt.scene is None:
        raise ValueError(f"prompt {prompt.id} has no scene; name a file of tiny-world prompts")
    return torch.cat(list(film(prompt.scene, frames))).numpy()


def through(codec: TaeCodec, frames: Frames) -> Frames:
    """Frames sent through a codec; their number is 1 + 4 k."""
    latents = codec.encode(torch.from_numpy(frames)[None])
    decoder = codec.decoder(1)
    return torch.cat([decoder.push(part)[0] for part in latents.split(LATENTS, 1)]).cpu().numpy()


def frozen(frames: Frames) -> Frames:
    """The first frame for as long."""
    return np.repeat(frames[:1], len(frames), 0)


def destroyed(others: Sequence[Frames], seed: int) -> Frames:
    """Seconds of other prompts' films of one length, drawn at random, blurred and noisy.

    Raises:
        ValueError: no film.
    """
    if not others:
        raise ValueError("a destroyed film needs other prompts' films; use two prompts or more")
    rng = np.random.default_rng(seed)
    length = len(others[0])
    seconds: list[Frames] = []
    for start in range(0, length, FPS):
        other, size = others[int(rng.integers(len(others)))], min(FPS, length - start)
        first = FPS * int(rng.integers((length - size) // FPS + 1))
        seconds.append(other[first : first + size])
    mixed = np.concatenate(seconds)
    generator = torch.Generator().manual_seed(seed)
    parts: list[Frames] = []
    for start in range(0, len(mixed), BLOCK):
        x = pixels(torch.from_numpy(mixed[start : start + BLOCK]))
        x = blur(x, torch.full((len(x),), BLUR))
        x = noise(x, torch.full((len(x),), NOISE), generator)
        parts.append((x * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def raw_means(
    suite: TinySuite, prompts: Sequence[Prompt], make: Callable[[int], Frames]
) -> dict[str, float | None]:
    """Mean of every dimension over the films ``make(0), make(1), ...`` of the prompts."""
    found: dict[str, list[float]] = {spec.name: [] for spec in suite.dimensions}
    for k, prompt in enumerate(prompts):
        for score in suite.score(held(make(k), FPS), prompt):
            if score.value is not None:
                found[score.dimension].append(score.value)
    return {name: float(np.mean(v)) if v else None for name, v in found.items()}


def fit(
    low: dict[str, float | None], high: dict[str, float | None]
) -> dict[str, tuple[float, float]]:
    """Ranges of the sixteen dimensions from the means of destroyed and of rendered films.

    Where destroying a film does not lower a dimension (noise makes it dynamic), its 0 is 0, which
    is also the least that the formula gives.

    Raises:
        ValueError: no film had a value.
    """
    ranges: dict[str, tuple[float, float]] = {}
    for name in DIMENSIONS:
        top = high[name]
        if top is None:
            raise ValueError(f"{name} has no value on any rendered film; use more prompts")
        bottom = low[name]
        if bottom is None or top - bottom < LEAST_RANGE:
            bottom = 0.0
        ranges[name] = (bottom, max(top, bottom + LEAST_RANGE))
    return ranges


def document(
    ranges: dict[str, tuple[float, float]], suite: TinySuite, prompts: Sequence[Prompt], **rest: Any
) -> bytes:
    """The normaliser's file; ``content_sha256`` is of everything else in it."""
    tree: dict[str, Any] = {
        "schema": SCHEMA,
        "name": NAME,
        "clamp": True,
        "ranges": {name: list(pair) for name, pair in ranges.items()},
        "dimensions": {spec.name: spec.version for spec in suite.dimensions},
        "networks": suite.nets.hashes,
        "prompts": {
            "count": len(prompts),
            "sha256": hashlib.sha256("".join(sha256(p) for p in prompts).encode()).hexdigest(),
        },
        "zero": " ".join((__doc__ or "").split()),
        **rest,
    }
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    tree["content_sha256"] = hashlib.sha256(canonical).hexdigest()
    return (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode()


def main(
    prompts: Annotated[Path, typer.Option(help="tiny-world prompts, not those of the test")],
    out: Annotated[Path, typer.Option(help="the normaliser's file")] = DEFAULT_OUT,
    limit: Annotated[int, typer.Option(help="prompts, strata in turn")] = 24,
    chunks: Annotated[int, typer.Option(help="length of the films; 81 chunks are 60 s")] = 81,
    codec: Annotated[Path | None, typer.Option(help="the tiny codec's weights")] = None,
    nets: Annotated[Path, typer.Option(help="folder of the networks")] = weights.ASSETS,
    freeze: Annotated[bool, typer.Option(help="also measure films frozen at frame 0")] = True,
) -> None:
    """Scores rendered, destroyed and frozen films, and writes the ranges."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    from cfbench.aggregate import aggregate, parse_normaliser
    from cfbench.scorers.tiny.train import load_codec

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    suite = TinySuite(weights.load(nets, device), weights.measuring_codec(device))
    chosen = select(load(prompts), limit)
    coder = None if codec is None else load_codec(codec, torch.device("cpu"))
    length = chunk_start(chunks - 1) + CHUNK_FRAMES
    truth: list[Frames] = []
    for prompt in chosen:
        frames = rendered(prompt, length)
        truth.append(frames if coder is None else through(coder, frames))
        logger.info("rendered %s", prompt.id)
    high = raw_means(suite, chosen, lambda k: truth[k])
    low = raw_means(
        suite,
        chosen,
        lambda k: destroyed([*truth[:k], *truth[k + 1 :]], seed_for("destroyed", k) % 2**31),
    )
    rows = {"rendered": high, "destroyed": low}
    if freeze:
        rows["frozen"] = raw_means(suite, chosen, lambda k: frozen(truth[k]))
    content = document(fit(low, high), suite, chosen, means=rows, codec=codec is not None)
    write_atomic(out, content)
    table = parse_normaliser(content, str(out))
    for name, means in rows.items():
        scaled = {
            d: None if (v := means[d]) is None else float(table.apply(d, np.array(v)))
            for d in DIMENSIONS
        }
        typer.echo(json.dumps({name: scaled, "aggregate": aggregate(scaled)._asdict()}, indent=1))
    typer.echo(f"sha256 {table.sha256}")


if __name__ == "__main__":
    typer.run(main)
