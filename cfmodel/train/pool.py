"""Pools on the device: rings of rendered or encoded clips, refilled while they are read.

Dims: N clips, B batch, R pixel frames, F latent frames, G chunks, S text tokens, E text width.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cfmodel.config import Geometry
from cfmodel.tinyworld.render import render
from cfmodel.train.data import Batch

Encode = Callable[[Tensor], Tensor]
EncodeText = Callable[[list[str]], Tensor]


RENDER_BLOCK = 3072  # frames; bounds the renderer's memory


@torch.no_grad()
def render_clips(batch: Batch, geometry: Geometry, device: torch.device) -> Tensor:
    """Pixels (B, R, 3, Y, X) in [0, 1] of a batch's clips, on the device."""
    tracks = batch.tracks.to(device)
    parts = range(0, len(tracks), RENDER_BLOCK)
    rgb = torch.cat(
        [render(tracks[k : k + RENDER_BLOCK], geometry.height, geometry.width).rgb for k in parts]
    )
    return rgb.unflatten(0, (len(batch), -1))


class Ring:
    """Units of a few named columns, on the device: new ones take the place of the oldest.

    Attributes:
        filled: how many are held.
        taken: how many were ever put in.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.filled, self.taken = 0, 0
        self._columns: dict[str, Tensor] = {}

    def put(self, units: dict[str, Tensor]) -> None:
        """Adds units, equally many rows of every column."""
        count = len(next(iter(units.values())))
        if not self._columns:
            self._columns = {
                name: torch.empty(self.capacity, *x.shape[1:], dtype=x.dtype, device=x.device)
                for name, x in units.items()
            }
        where = (self.taken + torch.arange(count)) % self.capacity
        for name, column in self._columns.items():
            column[where.to(column.device)] = units[name]
        self.taken += count
        self.filled = min(self.filled + count, self.capacity)

    def draw(self, count: int, random: torch.Generator) -> dict[str, Tensor]:
        """Random units, with repetition.

        Raises:
            RuntimeError: nothing was put in yet.
        """
        if not self.filled:
            raise RuntimeError("the pool is empty; fill it first")
        pick = torch.randint(self.filled, (count,), generator=random, device=random.device)
        return {name: column[pick.to(column.device)] for name, column in self._columns.items()}


class Latents(NamedTuple):
    """Clean latents B F C X Y and the text of each chunk B G S E."""

    x0: Tensor
    text: Tensor


class LatentPool:
    """Ring of encoded clips with the texts of their chunks.

    Args:
        stream: batches of clips of ``frames`` latents.
        encode: pixels (B, R, 3, Y, X) in [0, 1] to latents.
        encode_text: texts to embeddings (N, S, E).
        capacity: clips held.
        device: where rendering, encoding and the pool are.
    """

    def __init__(
        self,
        stream: Iterator[Batch],
        encode: Encode,
        encode_text: EncodeText,
        geometry: Geometry,
        *,
        capacity: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self._stream, self._encode, self._encode_text = stream, encode, encode_text
        self._geometry, self._device = geometry, device
        self._random = torch.Generator(device=device).manual_seed(seed)
        self._ring = Ring(capacity)
        self.frames_rendered = 0

    @property
    def distinct(self) -> int:
        """Clips made so far."""
        return self._ring.taken

    @torch.no_grad()
    def refill(self) -> None:
        """Renders, encodes and stores one batch of the stream."""
        x0, text = self._make(next(self._stream))
        self._ring.put({"x0": x0.to(torch.bfloat16), "text": text.to(torch.bfloat16)})

    def _make(self, batch: Batch) -> Latents:
        rgb = render_clips(batch, self._geometry, self._device)
        self.frames_rendered += rgb.shape[0] * rgb.shape[1]
        texts = [text for clip in batch.texts for text in clip]
        unique = sorted(set(texts))
        place = {text: k for k, text in enumerate(unique)}
        index = torch.tensor([place[text] for text in texts], device=self._device)
        embedded = self._encode_text(unique)[index]
        return Latents(self._encode(rgb), embedded.unflatten(0, (len(batch), -1)))

    def read(self, batch: int) -> Latents:
        """Random clips of those held, float32."""
        drawn = self._ring.draw(batch, self._random)
        return Latents(drawn["x0"].float(), drawn["text"].float())
