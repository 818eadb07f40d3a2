"""Which chunks give their first latent to slow memory: pure functions over mean keys.

Dims: B batch, N layers, L tokens of a chunk, H heads, D head dim, E = H * D.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from cfmodel.config import Decision, Promotion

FIRST_CHUNK = 2
"""No promotion from the first two chunks. Source: released behaviour, start frame >= 6."""


def mean_key(k_BLHD: Tensor) -> Tensor:
    """A chunk's summary B E: keys before rotary phase, averaged over all tokens, heads joined."""
    return k_BLHD.mean(dim=1, dtype=torch.float32).flatten(1)


def surprisal_cosines(means_NBE: Tensor, previous_NBE: Tensor, decision: Decision) -> Tensor:
    """Cosine (N, B) of each layer's mean key to the previous committed chunk's.

    With ``decision='shared'`` every layer carries the mean over layers.

    Raises:
        ValueError: the two differ in shape.
    """
    if means_NBE.shape != previous_NBE.shape:
        raise ValueError(
            f"mean keys {tuple(means_NBE.shape)} and {tuple(previous_NBE.shape)}: expected equal"
        )
    cosines = nnf.cosine_similarity(means_NBE, previous_NBE, dim=-1)
    if decision == "shared":
        return cosines.mean(dim=0, keepdim=True).expand_as(cosines)
    return cosines


def interval(promotion: Promotion) -> int:
    """Chunks from one candidate to the next."""
    return int(promotion.rpartition("-")[2])


def by_surprisal(promotion: Promotion) -> bool:
    """Whether a candidate is compared with ``tau``; a uniform rule takes every candidate."""
    return promotion.startswith("surprisal")


def is_candidate(chunk: int, promotion: Promotion) -> bool:
    """Whether the first latent of the chunk with this index may be promoted at all.

    Source: arXiv:2602.06028 section 3 (2-chunk interval).

    Example:
        >>> [i for i in range(8) if is_candidate(i, "surprisal-2")]
        [2, 4, 6]
    """
    return chunk >= FIRST_CHUNK and chunk % interval(promotion) == 0


def is_surprising(cosine: float, tau: float) -> bool:
    """Whether a chunk differs enough from the one before it to be kept.

    Source: arXiv:2602.06028, eq. 7; deviation: tested at the clean commit pass only, against the
    previous committed chunk.

    Example:
        >>> is_surprising(0.94, 0.95), is_surprising(0.95, 0.95)
        (True, False)
    """
    return cosine < tau


def promotions(cosines: Sequence[Sequence[float]], tau: float) -> list[list[bool]]:
    """Decisions by layer and sample from cosines by layer and sample."""
    return [[is_surprising(cosine, tau) for cosine in row] for row in cosines]


def stack_means(k: Sequence[Tensor]) -> Tensor:
    """Mean keys (N, B, E) of a chunk's layers."""
    return torch.stack([mean_key(k_BLHD) for k_BLHD in k])
