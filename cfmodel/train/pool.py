"""A pool of encoded clips on the device, refilled from the endless stream while it is read.

Dims: N clips, B batch, F latent frames, G chunks, S text tokens, E text width.
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


RENDER_BLOCK = 1536  # frames; bounds the renderer's memory


class Latents(NamedTuple):
    """Clean latents B F C X Y and the text of each chunk B G S E."""

    x0: Tensor
    text: Tensor


class LatentPool:
    """Ring of ``capacity`` clips; every read may first put new ones in place of the oldest.

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
        self._geometry, self._capacity, self._device = geometry, capacity, device
        self._random = torch.Generator(device=device).manual_seed(seed)
        self._x0: Tensor | None = None
        self._text: Tensor | None = None
        self.distinct = 0
        self.frames_rendered = 0

    @torch.no_grad()
    def refill(self) -> None:
        """Renders, encodes and stores one batch of the stream."""
        batch = next(self._stream)
        x0, text = self._make(batch)
        if self._x0 is None or self._text is None:
            self._x0 = torch.empty(
                (self._capacity, *x0.shape[1:]), dtype=torch.bfloat16, device=self._device
            )
            self._text = torch.empty(
                (self._capacity, *text.shape[1:]), dtype=torch.bfloat16, device=self._device
            )
        where = (self.distinct + torch.arange(len(x0), device=self._device)) % self._capacity
        self._x0[where] = x0.to(torch.bfloat16)
        self._text[where] = text.to(torch.bfloat16)
        self.distinct += len(x0)

    def _make(self, batch: Batch) -> Latents:
        size = self._geometry
        tracks = batch.tracks.to(self._device)
        parts = range(0, len(tracks), RENDER_BLOCK)
        rgb = torch.cat(
            [render(tracks[k : k + RENDER_BLOCK], size.height, size.width).rgb for k in parts]
        )
        self.frames_rendered += len(rgb)
        x0 = self._encode(rgb.unflatten(0, (len(batch.clips), -1)))
        texts = [text for clip in batch.clips for text in clip.texts]
        unique = sorted(set(texts))
        place = {text: k for k, text in enumerate(unique)}
        index = torch.tensor([place[text] for text in texts], device=self._device)
        embedded = self._encode_text(unique)[index]
        return Latents(x0, embedded.unflatten(0, (len(batch.clips), -1)))

    def read(self, batch: int) -> Latents:
        """Random clips of those held, float32."""
        if self._x0 is None or self._text is None:
            raise RuntimeError("the pool is empty; call refill() first")
        held = min(self.distinct, self._capacity)
        pick = torch.randint(held, (batch,), generator=self._random, device=self._device)
        return Latents(self._x0[pick].float(), self._text[pick].float())
