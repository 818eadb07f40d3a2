"""What a new text does to the memory: the three published ways of switching prompts in a film.

Dims: B batch, F frames, C latent channels, X rows and Y columns of a latent, T frames of the sink.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cfmodel.config import Switch
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.attention import KVView, PreparedView, mask_form
from cfmodel.nn.masks import token_mask
from cfmodel.nn.transformer import TextKV, VideoTransformer


def switched(
    model: VideoTransformer,
    memory: SlotMemory,
    text_at: Callable[[int], TextKV],
    switches: Callable[[int], Switch],
    *,
    dtype: torch.dtype,
) -> Callable[[int, Sequence[Tensor]], None]:
    """A function for ``rollout``'s ``begin`` that changes the memory where a scene begins.

    Args:
        model: the student.
        memory: of the films.
        text_at: text of the chunk with this index.
        switches: what happens to the memory before the chunk with this index; ``keep`` if nothing.
        dtype: in which latents enter the model.
    """

    def begin(chunk: int, recent: Sequence[Tensor]) -> None:
        match switches(chunk):
            case "keep":
                pass
            case "flush":
                memory.flush()
            case "cut":
                memory.cut()
            case "recache":
                if recent:
                    film = torch.cat(list(recent), dim=1)
                    recache(model, memory, film.to(dtype), text_at(chunk))

    return begin


@torch.no_grad()
def recache(model: VideoTransformer, memory: SlotMemory, film_BFCXY: Tensor, text: TextKV) -> None:
    """Keys and values of the window made anew under a text, in one pass at noise level 0.

    All frames of the pass see each other, and the sink. Its sink stays as it was unless the film
    still fits the window; then the sink is made anew too.

    Args:
        model: the student.
        memory: whose window is rewritten.
        film_BFCXY: the latest clean latents of the film, up to the memory's capacity.
        text: of the scene that begins.

    Source: LongLive v1.0 with ``global_sink``, whose released code gives this pass no causal mask.
    """
    frames = film_BFCXY.shape[1]
    first = memory.frames - frames
    sink = min(memory.config.sink, memory.frames) if first else 0
    views = [
        _prepared(model, memory.sink_view(layer, sink, first, frames), sink)
        for layer in range(model.config.layers)
    ]
    sigma_BF = film_BFCXY.new_zeros(film_BFCXY.shape[:2], dtype=torch.float32)
    kv = model(film_BFCXY, sigma_BF, text, context=views, return_kv=True).kv
    assert kv is not None, "asked for"
    memory.rewrite(kv, first)


def _prepared(model: VideoTransformer, view: KVView, sink: int) -> PreparedView:
    """A view in which the sink takes the place of as many of the first new frames."""
    prepared = model.prepare([view])[0]
    if not sink:
        return prepared
    frames = view.query_positions_BF.shape[1]
    form = mask_form(model.attention)
    rows = frames if form == "block" else 1
    allowed_BQT = torch.ones(
        view.k_BKHD.shape[0], rows, sink + frames, dtype=torch.bool, device=view.k_BKHD.device
    )
    allowed_BQT[:, :, sink : 2 * sink] = False
    tokens = model.geometry.tokens_per_frame
    mask = token_mask(allowed_BQT, tokens, form)
    if mask.dense is not None:
        mask = mask._replace(dense=mask.dense[:, :, :1])
    return prepared._replace(mask=mask)
