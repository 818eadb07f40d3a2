"""Who may attend to whom, decided between frames and expanded to tokens once.

A ``FrameMask`` takes index tensors of query and key frames that broadcast against each other.
Dims: B batch, Q query frames, T key frames, L query tokens, K key tokens, H heads.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

FrameMask = Callable[[Tensor, Tensor], Tensor]
Form = Literal["dense", "block"]


def block_causal(chunk: int) -> FrameMask:
    """Each chunk sees itself, in both directions, and all chunks before it."""

    def mask(query: Tensor, key: Tensor) -> Tensor:
        return key // chunk <= query // chunk

    return mask


def sliding_window(chunk: int, window: int, sink: int = 0) -> FrameMask:
    """Each chunk sees the last ``window`` frames, its own included, and the first ``sink``.

    Raises:
        ValueError: the window does not hold a chunk.
    """
    if window < chunk:
        raise ValueError(f"window={window} is smaller than chunk={chunk}; use >= {chunk}")

    def mask(query: Tensor, key: Tensor) -> Tensor:
        end = (query // chunk + 1) * chunk
        recent = (key < end) & (key >= end - window)
        return recent | ((key < sink) & (key < end))

    return mask


def teacher_forcing(frames: int, chunk: int) -> FrameMask:
    """The mask of a sequence [clean | noisy] of ``frames`` each.

    Clean chunk i sees clean chunks <= i; noisy chunk i sees clean chunks < i and itself.

    Raises:
        ValueError: ``frames`` is not a whole number of chunks.
    """
    if frames % chunk:
        raise ValueError(f"frames={frames} does not divide by chunk={chunk}")

    def mask(query: Tensor, key: Tensor) -> Tensor:
        query_chunk, key_chunk = query % frames // chunk, key % frames // chunk
        query_noisy, key_noisy = query >= frames, key >= frames
        clean = ~query_noisy & ~key_noisy & (key_chunk <= query_chunk)
        past = query_noisy & ~key_noisy & (key_chunk < query_chunk)
        own = query_noisy & key_noisy & (key_chunk == query_chunk)
        return clean | past | own

    return mask


def and_masks(*masks: FrameMask) -> FrameMask:
    """What all of ``masks`` allow."""

    def mask(query: Tensor, key: Tensor) -> Tensor:
        allowed = masks[0](query, key)
        for other in masks[1:]:
            allowed = allowed & other(query, key)
        return allowed

    return mask


class Mask(NamedTuple):
    """A mask over tokens in the one form that the attention function reads.

    ``dense`` is boolean, True = may attend, broadcastable to B H L K; ``block`` is FlexAttention's.
    """

    dense: Tensor | None = None
    block: BlockMask | None = None


def token_mask(allowed_BQT: Tensor, tokens_per_frame: int, form: Form = "dense") -> Mask:
    """The token mask of a boolean frame mask.

    Args:
        allowed_BQT: (Q, T) or (B, Q, T); True = the query frame may attend to the key frame.
        tokens_per_frame: tokens that each frame is expanded to.
        form: what the attention function in use reads (``attention.mask_form``).
    """
    allowed_BQT = allowed_BQT if allowed_BQT.dim() == 3 else allowed_BQT[None]
    if form == "dense":
        dense_BLK = allowed_BQT.repeat_interleave(tokens_per_frame, 1)
        dense_BLK = dense_BLK.repeat_interleave(tokens_per_frame, 2)
        return Mask(dense=dense_BLK[:, None])
    batch, queries, keys = allowed_BQT.shape

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        sample = b if batch > 1 else b * 0
        return allowed_BQT[sample, q // tokens_per_frame, k // tokens_per_frame]

    block = create_block_mask(
        mask_mod,
        B=batch if batch > 1 else None,
        H=None,
        Q_LEN=queries * tokens_per_frame,
        KV_LEN=keys * tokens_per_frame,
        device=allowed_BQT.device,
    )
    return Mask(block=block)


def pooled_mask(valid_BT: Tensor, sizes: Sequence[int], new_tokens: int, form: Form) -> Mask:
    """The mask of queries that all see the same frames, which differ in size, and each other.

    Args:
        valid_BT: which frames a sample holds.
        sizes: tokens of each frame.
        new_tokens: queries.
        form: ``dense`` alone.

    Raises:
        ValueError: a mask of blocks is asked for.
    """
    if form != "dense":
        raise ValueError("attention='flex' has no pooled slow memory; use sdpa or memory.pool=1")
    each = torch.tensor(sizes, device=valid_BT.device)
    allowed_BK = valid_BT.repeat_interleave(each, 1, output_size=sum(sizes))
    new = allowed_BK.new_ones(allowed_BK.shape[0], new_tokens)
    return Mask(dense=torch.cat([allowed_BK, new], dim=1)[:, None, None])


def frame_mask(
    mask: FrameMask,
    frames: int,
    tokens_per_frame: int,
    *,
    device: torch.device | str = "cpu",
    form: Form = "dense",
) -> Mask:
    """The token mask of a sequence of ``frames`` that attends to itself under ``mask``."""
    index = torch.arange(frames, device=device)
    return token_mask(mask(index[:, None], index[None, :]), tokens_per_frame, form)
