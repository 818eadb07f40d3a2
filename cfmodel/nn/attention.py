"""Attention behind one signature, and the types in which memory and network exchange keys.

Dims: B batch, F frames of the new chunk, T frames in memory, L query tokens, K key tokens,
H heads, D head dim.
"""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from cfmodel.config import Attention
from cfmodel.nn.masks import Form, Mask
from cfmodel.nn.rope import RotaryTable

logger = logging.getLogger(__name__)

AttentionFn = Callable[[Tensor, Tensor, Tensor, Mask | None], Tensor]
"""(q_BLHD, k_BKHD, v_BKHD, mask) -> out_BLHD"""

FLASH_MODULE = "flash_attn.cute"
FLASH_APART = 0.05
"""How far flash-attn-4 may be from PyTorch's attention on unit Gaussians in bfloat16."""
CUDNN_CAPABILITY = (9, 0)
"""From this generation of GPUs on, cuDNN's attention is the fastest of PyTorch's."""
PREFERRED = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True)
class KVView:
    """What one layer may attend to; read-only and valid until the memory's next ``commit``.

    Args:
        k_BKHD: keys without rotary phase, tokens of T frames, frames in any order.
        v_BKHD: values.
        positions_BT: temporal rotary index of each memory frame, int64, B or 1 rows.
        query_positions_BF: the same for the frames about to be generated.
        valid_BT: which frames a sample really holds; None when all samples hold all of them.
        pool: rows and columns of tokens of which each token of the last ``pooled`` frames is a
            mean.
        pooled: see ``pool``.
        span: all positions are below it; None if that is not known.
        turned_BKHD: where the rotated keys go, with room for the tokens of a pass behind them;
            None if the memory has no place for them.
        roomy_v_BKHD: the values with the same room behind them; None if there is none.
        settled: views of later chunks will have the same sizes, in the same place.
    """

    k_BKHD: Tensor
    v_BKHD: Tensor
    positions_BT: Tensor
    query_positions_BF: Tensor
    valid_BT: Tensor | None = None
    pool: int = 1
    pooled: int = 0
    span: int | None = None
    turned_BKHD: Tensor | None = None
    roomy_v_BKHD: Tensor | None = None
    settled: bool = False


class PreparedView(NamedTuple):
    """A view made ready for all passes of a chunk: keys rotated, query table and mask built.

    Behind its keys and values is room for those of the pass itself, which it fills, so that
    attention reads one tensor of each.
    """

    k_BKHD: Tensor
    v_BKHD: Tensor
    query_table: RotaryTable
    mask: Mask | None
    settled: bool = False


@dataclass(frozen=True)
class ChunkKV:
    """Keys (without rotary phase) and values of one finished chunk, a tensor B L H D a layer.

    ``first_frame`` is the absolute index of the chunk's first latent frame.
    """

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    first_frame: int


def sdpa(q_BLHD: Tensor, k_BKHD: Tensor, v_BKHD: Tensor, mask: Mask | None) -> Tensor:
    """PyTorch's scaled dot-product attention.

    Raises:
        RuntimeError: the mask was built for FlexAttention.
    """
    dense = None
    if mask is not None:
        dense = mask.dense
        if dense is None:
            raise RuntimeError("sdpa got a block mask; build the mask with form='dense'")
    out_BHLD = nnf.scaled_dot_product_attention(
        q_BLHD.transpose(1, 2), k_BKHD.transpose(1, 2), v_BKHD.transpose(1, 2), attn_mask=dense
    )
    return out_BHLD.transpose(1, 2)


def cudnn(q_BLHD: Tensor, k_BKHD: Tensor, v_BKHD: Tensor, mask: Mask | None) -> Tensor:
    """``sdpa`` by cuDNN, or by the next of PyTorch's kernels that takes these inputs."""
    with sdpa_kernel(PREFERRED, set_priority=True):
        return sdpa(q_BLHD, k_BKHD, v_BKHD, mask)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def flex(q_BLHD: Tensor, k_BKHD: Tensor, v_BKHD: Tensor, mask: Mask | None) -> Tensor:
    """FlexAttention: block-sparse masks without a dense L x K tensor.

    Raises:
        RuntimeError: the mask is dense.
    """
    block = None
    if mask is not None:
        block = mask.block
        if block is None:
            raise RuntimeError("flex got a dense mask; build the mask with form='block'")
    # Eager flex builds the whole score matrix: too much on CUDA, and fused in a compiled caller.
    eager = torch.compiler.is_compiling() or not q_BLHD.is_cuda
    attend = flex_attention if eager else _compiled_flex()
    out_BHLD = attend(
        q_BLHD.transpose(1, 2), k_BKHD.transpose(1, 2), v_BKHD.transpose(1, 2), block_mask=block
    )
    return out_BHLD.transpose(1, 2)  # pyright: ignore[reportAttributeAccessIssue]


def flash_available() -> bool:
    """Whether flash-attn-4 is installed."""
    try:
        return importlib.util.find_spec(FLASH_MODULE) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def _flash_kernel() -> Callable[..., Any]:
    if not flash_available():
        raise RuntimeError(
            "attention='flash' needs flash-attn-4, which is not installed; "
            "install the extra [flash] or use attention='sdpa'"
        )
    return importlib.import_module(FLASH_MODULE).flash_attn_func


def flash(q_BLHD: Tensor, k_BKHD: Tensor, v_BKHD: Tensor, mask: Mask | None) -> Tensor:
    """flash-attn-4, for unmasked attention on recent CUDA devices.

    Raises:
        RuntimeError: the extra [flash] is not installed, or a mask is given.
    """
    if mask is not None:
        raise RuntimeError(
            "flash attention takes no mask; use attention='sdpa' or 'flex' for masked training and "
            "for batches whose films hold different numbers of frames"
        )
    # It returns the output alone or before the sums of exponentials, as versions differ.
    out = _flash_kernel()(q_BLHD, k_BKHD, v_BKHD)
    return out[0] if isinstance(out, tuple | list) else out


def mask_form(attention: AttentionFn) -> Form:
    """The form of mask that an attention function reads."""
    return "block" if attention is flex else "dense"


def _best() -> Attention:
    if not torch.cuda.is_available():
        return "sdpa"
    if flash_available() and _flash_works():
        return "flash"
    return "cudnn" if torch.cuda.get_device_capability() >= CUDNN_CAPABILITY else "sdpa"


def _flash_works() -> bool:
    """Whether flash-attn-4, whose signatures change, gives what PyTorch's own gives."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (1, 256, 2, 128)
    q, k, v = (
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        for _ in range(3)
    )
    try:
        found = flash(q, k, v, None)
    except (ImportError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        logger.warning("flash-attn-4 is installed but not used: %s", error)
        return False
    return torch.allclose(found, sdpa(q, k, v, None), atol=FLASH_APART, rtol=FLASH_APART)


def resolve(name: Attention) -> tuple[str, AttentionFn]:
    """The attention function of a name, and the name to record.

    ``auto`` is decided here, once: flash where flash-attn-4 is present and works, else cudnn on
    the GPUs that it is fastest on, else sdpa.

    Raises:
        RuntimeError: flash is asked for and not installed.
        ValueError: unknown name.
    """
    match name:
        case "auto":
            chosen = _best()
            logger.info("attention='auto' resolved to %r", chosen)
            return resolve(chosen)
        case "sdpa":
            return name, sdpa
        case "cudnn":
            return name, cudnn
        case "flex":
            return name, flex
        case "flash":
            _flash_kernel()
            return name, flash
        case _:
            raise ValueError(f"attention={name!r}: expected auto, sdpa, cudnn, flex or flash")
