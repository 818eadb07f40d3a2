"""A transformer made fast for sampling: joined projections, compiled parts, eight-bit layers.

What is done in place cannot be undone: the model is then for sampling, and its state dict is no
checkpoint.

Dims: L tokens, E inputs, O outputs of a linear layer.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cfmodel.nn.layers import Block, Head
from cfmodel.nn.prepare import turn
from cfmodel.nn.transformer import VideoTransformer

Linear = Literal["exact", "fp8", "fp8-tensor"]

FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0
TINY = 1e-12
WIDE = 1024
"""From this width on compiling pays: a narrower model is done before the compiler is."""


@dataclass(frozen=True, kw_only=True)
class Fast:
    """Choices for sampling; the first four change nothing but rounding.

    Args:
        joined: one matrix product for queries, keys and values.
        compiled: one program for each part of a block between its attentions.
        gelu: the MLP's activation in the epilogue of its matrix product.
        recorded: passes replayed as CUDA graphs once the memory is full.
        linear: ``exact``, or blocks' layers in eight bits with a scale a token and output
            (``fp8``) or a tensor (``fp8-tensor``), which changes films.
    """

    joined: bool = True
    compiled: bool = True
    gelu: bool = True
    recorded: bool = True
    linear: Linear = "exact"

    @classmethod
    def off(cls) -> "Fast":
        """Nothing of it."""
        return cls(joined=False, compiled=False, gelu=False, recorded=False)

    @classmethod
    def default(cls, device: torch.device, width: int) -> "Fast":
        """All that is exact, on CUDA, for a model of this width; else nothing."""
        return cls() if device.type == "cuda" and width >= WIDE else cls.off()

    @property
    def words(self) -> str:
        """What is on, for records; empty if nothing."""
        flags = {
            "joined": self.joined, "compiled": self.compiled, "gelu": self.gelu,
            "recorded": self.recorded, self.linear: self.linear != "exact",
        }  # fmt: skip
        return "+".join(name for name, is_on in flags.items() if is_on)


def fast_of(words: str) -> Fast | None:
    """The choices of a text as in ``Fast.words``; None of ``auto``, nothing of ``off``.

    Raises:
        ValueError: an unknown word, or two kinds of linear layers.

    Example:
        >>> fast_of("joined+fp8").words
        'joined+fp8'
    """
    if words == "auto":
        return None
    flags = {"joined", "compiled", "gelu", "recorded"}
    asked = set() if words == "off" else set(words.split("+"))
    kinds = asked & {"fp8", "fp8-tensor"}
    if asked - flags - kinds or len(kinds) > 1:
        raise ValueError(
            f"fast={words!r}: expected auto, off, or some of {'+'.join(sorted(flags))} and fp8 or "
            "fp8-tensor"
        )
    return Fast(
        joined="joined" in asked,
        compiled="compiled" in asked,
        gelu="gelu" in asked,
        recorded="recorded" in asked,
        linear="fp8" if "fp8" in kinds else "fp8-tensor" if kinds else "exact",
    )


@torch.library.custom_op("cfmodel::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight_OE: Tensor, bias_O: Tensor) -> Tensor:
    """A linear layer and the tanh form of GELU; on CUDA in one kernel, rounded once."""
    if not x.is_cuda:
        return nnf.gelu(nnf.linear(x, weight_OE, bias_O), approximate="tanh")
    flat = torch._addmm_activation(  # pyright: ignore[reportPrivateUsage]
        bias_O, x.flatten(0, -2), weight_OE.t(), use_gelu=True
    )
    return flat.unflatten(0, x.shape[:-1])


@linear_gelu.register_fake
def _(x: Tensor, weight_OE: Tensor, bias_O: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight_OE.shape[0]))


class LinearGelu(nn.Module):
    """A linear layer with GELU in its epilogue; takes over another's weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``x`` through both."""
        return linear_gelu(x, self.weight, self.bias)


def to_fp8(x_LE: Tensor, by_row: bool) -> tuple[Tensor, Tensor]:
    """Eight-bit numbers (e4m3), and scales (L, 1) or () to multiply them with, float32."""
    x = x_LE.float()
    most = x.abs().amax(-1, keepdim=True) if by_row else x.abs().amax()
    scale = most.clamp(min=TINY) / FP8_MOST
    return (x / scale).clamp(-FP8_MOST, FP8_MOST).to(FP8), scale


class Fp8Linear(nn.Module):
    """A linear layer whose inputs and weights have eight bits, scaled as they come.

    With ``by_row`` each token and each output has a scale, else each tensor.
    """

    def __init__(self, linear: nn.Linear, by_row: bool) -> None:
        super().__init__()
        weight, scale = to_fp8(linear.weight.detach(), by_row)
        self.by_row = by_row
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous() if by_row else scale)
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (..., E) through the layer, in its own dtype."""
        small, scale = to_fp8(x.flatten(0, -2), self.by_row)
        return self.multiply(small, scale, x.dtype).unflatten(0, x.shape[:-1])

    def multiply(self, x_LE: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """The product with eight-bit numbers and their scales, (L, O) in ``dtype``."""
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        mine = self.get_buffer("scale")
        if x_LE.is_cuda:
            return torch._scaled_mm(  # pyright: ignore[reportPrivateUsage]
                x_LE, weight.t(), scale_a=scale, scale_b=mine, bias=bias, out_dtype=dtype,
                use_fast_accum=True,
            )  # fmt: skip
        return ((x_LE.float() @ weight.float().t()) * scale * mine + bias.float()).to(dtype)


@torch.no_grad()
def quicken(model: VideoTransformer, fast: Fast) -> None:
    """Makes a model fast, in place: on its device, in its dtype, without gradients.

    ``recorded`` is not of the model but of its passes (``cfmodel.passes``).
    """
    for block in model.blocks:
        assert isinstance(block, Block), "a transformer is made of blocks"
        if fast.joined:
            _join(block)
        if fast.linear != "exact":
            _shrink(block, by_row=fast.linear == "fp8")
        elif fast.gelu:
            first = block.ffn[0]
            assert isinstance(first, nn.Linear), "not made fast twice"
            block.ffn = nn.Sequential(LinearGelu(first), block.ffn[2])
    if fast.compiled:
        _compile(model)


def _join(block: Block) -> None:
    attn = block.attn
    parts = (attn.q, attn.k, attn.v)
    with torch.device("meta"):
        joined = nn.Linear(attn.q.in_features, 3 * attn.q.out_features)
    joined.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
    attn.qkv = joined
    del attn.q, attn.k, attn.v


def _shrink(block: Block, *, by_row: bool) -> None:
    names = ("attn.qkv", "attn.q", "attn.k", "attn.v", "attn.o", "cross.q", "cross.o")
    found = dict(block.named_modules())
    for name in (*names, "ffn.0", "ffn.2"):
        linear = found.get(name)
        if isinstance(linear, nn.Linear):
            block.set_submodule(name, Fp8Linear(linear, by_row))


def _compile(model: VideoTransformer) -> None:
    """One program of each part of a block, shared by all blocks; of the head, and of rotation."""
    enter = torch.compile(Block.enter, fullgraph=True)
    cross_over = torch.compile(Block.cross_over, fullgraph=True)
    leave = torch.compile(Block.leave, fullgraph=True)
    for block in model.blocks:
        assert isinstance(block, Block), "a transformer is made of blocks"
        block.enter = partial(enter, block)
        block.cross_over = partial(cross_over, block)
        block.leave = partial(leave, block)
    model.head.forward = partial(torch.compile(Head.forward, fullgraph=True), model.head)
    model.preparer.turn = torch.compile(turn)
