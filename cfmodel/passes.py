"""The passes of chunks over a memory, each perhaps replayed as a CUDA graph.

Dims: B batch, F frames of a chunk, C latent channels, X rows and Y columns of a latent.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from cfmodel.memory.base import Memory
from cfmodel.nn.attention import PreparedView
from cfmodel.nn.rope import RotaryTable
from cfmodel.nn.transformer import Output, TextKV, VideoTransformer
from cfmodel.recorded import Fixed, Recorded

KEPT = 2
"""Recordings at a time: the denoising pass and the clean one."""


class Passes:
    """Runs passes of one model.

    With ``recorded`` passes are replayed as CUDA graphs once all slots of the memory are held: keys
    and values are then read and written where they lie, all else is copied to where it is expected.
    """

    def __init__(self, model: VideoTransformer, *, recorded: bool = False) -> None:
        self.model = model
        self._recorded = recorded
        self._replay = Recorded(partial(_in_place, model), active=recorded, most=KEPT)

    def prepare(self, memory: Memory, frames: int, *, clean: bool = False) -> list[PreparedView]:
        """Every layer's view of the memory, made ready for the passes of one chunk."""
        layers = range(self.model.config.layers)
        return self.model.prepare([memory.view(layer, frames, clean=clean) for layer in layers])

    def run(
        self,
        x_BFCXY: Tensor,
        sigma_BF: Tensor,
        text: TextKV,
        views: Sequence[PreparedView],
        *,
        keep: bool = False,
    ) -> Output:
        """One pass, from views of ``prepare``; what it returns is valid until the next one.

        With ``keep`` it returns keys and values too, for the memory.
        """
        if self._recorded and all(view.settled and view.mask is None for view in views):
            tables = [view.query_table for view in views]
            places = [(Fixed(view.k_BKHD), Fixed(view.v_BKHD)) for view in views]
            return self._replay(x_BFCXY, sigma_BF, text, tables, places, keep)
        return self.model(x_BFCXY, sigma_BF, text, context=views, return_kv=keep)

    def clean(
        self, x0_BFCXY: Tensor, text: TextKV, views: Sequence[PreparedView]
    ) -> list[tuple[Tensor, Tensor]]:
        """Every layer's un-rotated keys, and values, of a finished chunk, at noise level 0."""
        sigma_BF = x0_BFCXY.new_zeros(x0_BFCXY.shape[:2], dtype=torch.float32)
        found = self.run(x0_BFCXY, sigma_BF, text, views, keep=True).kv
        assert found is not None, "asked for"
        return found


def _in_place(
    model: VideoTransformer,
    x_BFCXY: Tensor,
    sigma_BF: Tensor,
    text: TextKV,
    tables: Sequence[RotaryTable],
    places: Sequence[tuple[Fixed, Fixed]],
    keep: bool,
) -> Output:
    views = [
        PreparedView(k.tensor, v.tensor, table, None)
        for table, (k, v) in zip(tables, places, strict=True)
    ]
    return model(x_BFCXY, sigma_BF, text, context=views, return_kv=keep)
