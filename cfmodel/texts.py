"""Which text each chunk of a film has, known beforehand or asked for while the film is made.

Dims: B films, G texts, S text tokens, E text width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cfmodel.nn.transformer import TextKV, VideoTransformer


class Asked:
    """Texts by chunk, each asked for once however often it is read; the last two are kept.

    Args:
        ask: the text of the chunk with this index, called in the order of chunks.
    """

    def __init__(self, ask: Callable[[int], str]) -> None:
        self._ask = ask
        self._texts: dict[int, str] = {}

    def __call__(self, chunk: int) -> str:
        """The text of a chunk."""
        if chunk not in self._texts:
            before = self._texts.get(chunk - 1)
            self._texts = {} if before is None else {chunk - 1: before}
            self._texts[chunk] = self._ask(chunk)
        return self._texts[chunk]

    def is_new(self, chunk: int) -> bool:
        """Whether a chunk has another text than the chunk before it."""
        text = self(chunk)
        return text != self._texts.get(chunk - 1, text)


class Texts:
    """Cross-attention keys and values of each chunk's texts, made when the texts change.

    Args:
        model: the student.
        texts_at: every film's text at the chunk with this index.
        tokens_of: a text's tokens (S, E).
    """

    def __init__(
        self,
        model: VideoTransformer,
        texts_at: Callable[[int], tuple[str, ...]],
        tokens_of: Callable[[str], Tensor],
    ) -> None:
        self._model = model
        self._texts_at = texts_at
        self._tokens_of = tokens_of
        self._now: tuple[str, ...] = ()
        self._kv: TextKV | None = None

    @torch.no_grad()
    def __call__(self, chunk: int) -> TextKV:
        """What a chunk attends to."""
        now = self._texts_at(chunk)
        if self._kv is None or now != self._now:
            weight = self._model.patch_embed.weight
            tokens_BGSE = torch.stack([self._tokens_of(text) for text in now])[:, None]
            self._now = now
            self._kv = self._model.text_kv(tokens_BGSE.to(weight.device, weight.dtype))
        return self._kv
