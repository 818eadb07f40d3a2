"""Films of a scene, what can be known of them frame by frame, and prompts made from scenes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cfmodel.tinyworld.caption import script_captions
from cfmodel.tinyworld.render import Truth, render
from cfmodel.tinyworld.scene import Scene, Stratum, chunk_start, sample_scene, scene_from_json
from cfmodel.tinyworld.tracks import play

BLOCK = 48
STRATA: tuple[Stratum, ...] = ("stay", "short", "long")
PROMPT_CHUNKS = 81


def film(
    scene: dict[str, Any] | Scene, frames: int, height: int = 80, width: int = 128
) -> Iterator[Tensor]:
    """Blocks of uint8 frames (n, Y, X, 3) of the first ``frames`` pixel frames of a scene."""
    scene = scene if isinstance(scene, Scene) else scene_from_json(scene)
    for start in range(0, frames, BLOCK):
        index = torch.arange(start, min(start + BLOCK, frames))
        yield pictures(scene, index, height, width)


def pictures(scene: Scene, frames: Tensor, height: int = 80, width: int = 128) -> Tensor:
    """Uint8 frames (n, Y, X, 3) of the given pixel frames (n,), all at once."""
    rgb = render(play(scene, frames), height, width).rgb
    return (rgb * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)


def truth(scene: Scene, frames: Tensor, height: int = 80, width: int = 128) -> Truth:
    """Ground truth of the given pixel frames: visibility, boxes and coverage of each instance."""
    parts = [
        render(play(scene, block), height, width, truth=True).truth for block in frames.split(BLOCK)
    ]
    return Truth(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("visible", "box", "coverage")
        )
    )


def last_seen(visible: Tensor, threshold: float = 0.1) -> Tensor:
    """Frames since each instance was last in view, (N, I) from (N, I); -1 before it ever was.

    Example:
        >>> last_seen(torch.tensor([[0.0], [1.0], [0.0], [0.0]])).flatten().tolist()
        [-1, 0, 1, 2]
    """
    index = torch.arange(len(visible))[:, None].expand(visible.shape)
    latest = torch.where(visible > threshold, index, -1).cummax(0).values
    return torch.where(latest < 0, -1, index - latest)


def scene_prompt(seed: int, stratum: Stratum, *, chunks: int = PROMPT_CHUNKS) -> dict[str, Any]:
    """A benchmark prompt: captions of a scene's events with its colour, ground and sky named."""
    scene = sample_scene(seed, stratum=stratum, chunks=chunks)
    segments, chunk = [], 0
    for line in script_captions(scene, main=True):
        if chunk >= chunks:
            break
        shown = min(line.chunks, chunks - chunk)
        frames = chunk_start(chunk + shown) - chunk_start(chunk)
        segments.append({"text": line.text, "seconds": frames / 16})
        chunk += shown
    return {
        "id": f"tiny-{stratum}-{seed}",
        "segments": segments,
        "stratum": stratum,
        "scene": scene.to_json(),
        "source": "cfmodel.tinyworld",
        "licence": "Apache-2.0",
    }
