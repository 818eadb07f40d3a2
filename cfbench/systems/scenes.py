"""Films of the tiny world by frame number, in any order: for what must be known to be true.

N pixel frames, Y rows, X columns.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cfbench import video

HEIGHT, WIDTH = 80, 128
Leaves = Literal["stay", "short", "long"]


class SceneFilm:
    """A scene's film, any of whose frames can be asked for.

    Args:
        seed: of the scene; films of equal seed and stratum are equal.
        stratum: what leaves and comes back, as in ``sample_scene``.
        frames: length of the film.
    """

    def __init__(self, seed: int, stratum: Leaves, frames: int) -> None:
        from cfmodel.tinyworld.scene import CHUNK_FRAMES, sample_scene

        self.frames = frames
        chunks = -(-frames // CHUNK_FRAMES) + 1
        self._scene = sample_scene(seed, stratum=stratum, chunks=chunks)
        self._rendered: dict[int, video.Frames] = {}

    def events(self) -> list[tuple[str, int, int]]:
        """Kind, first and past-the-last frame of every event of the script that the film shows."""
        from cfmodel.tinyworld.scene import chunk_start

        found: list[tuple[str, int, int]] = []
        chunk = 0
        for event in self._scene.script:
            first, end = chunk_start(chunk), chunk_start(chunk + event.chunks)
            chunk += event.chunks
            if first < self.frames:
                found.append((event.kind, first, min(end, self.frames)))
        return found

    def take(self, index_N: NDArray[np.intp]) -> video.Frames:
        """The frames with these numbers, uint8 (N, Y, X, 3); each is rendered once."""
        import torch

        from cfmodel.tinyworld.film import BLOCK
        from cfmodel.tinyworld.render import render
        from cfmodel.tinyworld.tracks import play

        wanted = sorted({int(index) for index in index_N} - self._rendered.keys())
        for start in range(0, len(wanted), BLOCK):
            part = wanted[start : start + BLOCK]
            rgb = render(play(self._scene, torch.tensor(part)), HEIGHT, WIDTH).rgb
            block = (rgb * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).numpy()
            self._rendered.update(zip(part, block, strict=True))
        return np.stack([self._rendered[int(index)] for index in index_N])
