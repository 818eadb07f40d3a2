"""Building blocks of the transformer, in the Wan 2.1 layout.

Dims: B batch, F frames, P tokens a frame, L tokens (F * P), K key tokens, G text groups,
S text tokens, H heads, D head dim, E width, C latent channels, X rows and Y columns of a latent.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cfmodel.nn.attention import AttentionFn
from cfmodel.nn.masks import Mask
from cfmodel.nn.rope import RotaryTable, rotate
from cfmodel.nn.spread import Spread

TIMESTEPS = 1000
SINUSOID_PERIOD = 10_000.0
MODULATIONS = 6


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, in float32, with a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x`` normalised, in its own dtype."""
        return nnf.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Affine-free LayerNorm over the last axis, float32 out."""
    return nnf.layer_norm(x.float(), x.shape[-1:], eps=eps)


def sinusoid(sigma_BF: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of timesteps 1000 * sigma, cosines then sines, float32 (B, F, width)."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=sigma_BF.device) / half
    frequencies = torch.exp(-math.log(SINUSOID_PERIOD) * exponents)
    angles = TIMESTEPS * sigma_BF.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def patchify(x_BFCXY: Tensor, patch: tuple[int, int]) -> Tensor:
    """Latents as tokens (B, F, P, C * rows * columns of a patch), channels slowest."""
    rows, columns = patch
    x = x_BFCXY.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 6).flatten(2, 3)


def unpatchify(x_BFPE: Tensor, patch: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Latents B F C X Y from the head's tokens, whose channels are fastest."""
    x = x_BFPE.unflatten(-1, (*patch, -1)).unflatten(2, grid)
    return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


class SelfAttention(nn.Module):
    """Attention among tokens and to a memory; q and k are RMS-normalised over the full width.

    ``qkv`` takes the place of ``q``, ``k`` and ``v`` once they are joined (see ``fast``).
    """

    def __init__(self, width: int, heads: int, eps: float, attention: AttentionFn) -> None:
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.norm_q = RMSNorm(width, eps)
        self.norm_k = RMSNorm(width, eps)
        self.qkv: nn.Module | None = None

    def project(self, x_BLE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both without rotary phase) and values, B L H D."""
        if self.qkv is None:
            q, k, v = self.q(x_BLE), self.k(x_BLE), self.v(x_BLE)
        else:
            q, k, v = self.qkv(x_BLE).chunk(3, -1)
        heads = (self.heads, -1)
        q_BLHD, k_BLHD = self.norm_q(q).unflatten(-1, heads), self.norm_k(k).unflatten(-1, heads)
        return q_BLHD, k_BLHD, v.unflatten(-1, heads)


class CrossAttention(nn.Module):
    """Attention to text, whose keys and values are made once a text."""

    def __init__(self, width: int, heads: int, eps: float, attention: AttentionFn) -> None:
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.norm_q = RMSNorm(width, eps)
        self.norm_k = RMSNorm(width, eps)

    def keys_values(self, text_BGSE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values B G S H D of embedded text."""
        k = self.norm_k(self.k(text_BGSE)).unflatten(-1, (self.heads, -1))
        return k, self.v(text_BGSE).unflatten(-1, (self.heads, -1))

    def queries(self, x_BLE: Tensor) -> Tensor:
        """Queries B L H D."""
        return self.norm_q(self.q(x_BLE)).unflatten(-1, (self.heads, -1))

    def attend(self, q_BLHD: Tensor, k_BGSHD: Tensor, v_BGSHD: Tensor) -> Tensor:
        """What queries find, B L H D; the G texts divide the tokens equally, in order."""
        batch, groups = k_BGSHD.shape[:2]
        # Groups fold into the batch, so no mask is needed.
        out = self.attention(
            q_BLHD.unflatten(1, (groups, -1)).flatten(0, 1),
            k_BGSHD.flatten(0, 1).to(q_BLHD.dtype),
            v_BGSHD.flatten(0, 1).to(q_BLHD.dtype),
            None,
        )
        return out.unflatten(0, (batch, groups)).flatten(1, 2)


class Own(NamedTuple):
    """A pass's own tokens in one layer, B L H D: queries, keys, values, keys without phase.

    Without ``plain_k`` nobody asked for it; without keys and values they are in the memory's room.
    """

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    plain_k: Tensor | None

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Keys and values, where there was no room for them."""
        assert self.k is not None, "they are in the memory's room"
        assert self.v is not None, "they are in the memory's room"
        return self.k, self.v


class Block(nn.Module):
    """Self-attention, text cross-attention and MLP, the first and last modulated per frame.

    With ``spread`` its tokens are a share of each frame's; keys and values are of all of them.
    """

    def __init__(
        self, width: int, heads: int, ffn: int, eps: float, attention: AttentionFn
    ) -> None:
        super().__init__()
        self.eps = eps
        self.spread: Spread | None = None
        self.modulation = nn.Parameter(torch.empty(1, MODULATIONS, width))
        self.attn = SelfAttention(width, heads, eps, attention)
        self.cross_norm = nn.LayerNorm(width, eps=eps)
        self.cross = CrossAttention(width, heads, eps, attention)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn), nn.GELU(approximate="tanh"), nn.Linear(ffn, width)
        )

    def forward(
        self,
        x_BFPE: Tensor,
        time_BF6E: Tensor,
        text: tuple[Tensor, Tensor],
        table: RotaryTable,
        mask: Mask | None,
        memory: tuple[Tensor, Tensor] | None,
        keep: bool = True,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """New tokens B F P E, and the self-attention's keys and values B L H D if they are kept.

        What lies between two attentions is one method each, which the compiler may make one
        program of (see ``fast``).

        Args:
            x_BFPE: tokens; the residual stream keeps their dtype.
            time_BF6E: projected time embedding, float32.
            text: cross-attention keys and values, B G S H D.
            table: rotary table of the tokens.
            mask: who may attend to whom, memory included.
            memory: rotated keys and values of the memory, with room for the tokens behind them,
                which is filled; values that are returned lie there. With gradients it stays as it
                is.
            keep: whether keys (without rotary phase) and values are asked for.
        """
        if memory is None or torch.is_grad_enabled():
            own = self._gathered(self.enter(x_BFPE, time_BF6E, table, None, keep), x_BFPE.shape[1])
            k, v = _joined(own, memory)
        else:
            own = self._in_room(x_BFPE, time_BF6E, table, memory, keep)
            k, v = memory
        out_BLHD = self.attn.attention(own.q.to(k.dtype), k, v, mask).to(own.q.dtype)
        x_BFPE, q_BLHD = self.cross_over(x_BFPE, time_BF6E, out_BLHD)
        x_BFPE = self.leave(x_BFPE, time_BF6E, self.cross.attend(q_BLHD, *text))
        return x_BFPE, own.plain_k, own.v if keep else None

    def _in_room(
        self,
        x_BFPE: Tensor,
        time_BF6E: Tensor,
        table: RotaryTable,
        memory: tuple[Tensor, Tensor],
        keep: bool,
    ) -> Own:
        """A pass's own tokens, whose keys and values are in the room behind those of the memory."""
        if memory[0].shape[0] == 1 and self.spread is None:
            size = x_BFPE.shape[1] * x_BFPE.shape[2]
            # Views whose strides do not tell the size of the memory, on which compiled programs
            # would depend.
            room = (memory[0][0, -size:][None], memory[1][0, -size:][None])
            return self.enter(x_BFPE, time_BF6E, table, room, keep)._replace(v=room[1])
        own = self._gathered(self.enter(x_BFPE, time_BF6E, table, None, keep), x_BFPE.shape[1])
        size = own.pair[0].shape[1]
        memory[0][:, -size:], memory[1][:, -size:] = own.pair
        return own

    def _gathered(self, own: Own, frames: int) -> Own:
        """Own queries, and keys and values of all processes."""
        if self.spread is None:
            return own
        kept = () if own.plain_k is None else (own.plain_k,)
        k, v, *plain = self.spread.whole((*own.pair, *kept), frames)
        return Own(own.q, k, v, plain[0] if plain else None)

    def _modulation(self, time_BF6E: Tensor) -> tuple[Tensor, ...]:
        return (self.modulation.float() + time_BF6E).unsqueeze(3).unbind(2)

    def enter(
        self,
        x_BFPE: Tensor,
        time_BF6E: Tensor,
        table: RotaryTable,
        room: tuple[Tensor, Tensor] | None,
        keep: bool,
    ) -> Own:
        """From the residual stream to self-attention, whose keys and values go to ``room``."""
        shift, scale, *_ = self._modulation(time_BF6E)
        h = (layer_norm(x_BFPE, self.eps) * (1 + scale) + shift).to(x_BFPE.dtype)
        q_BLHD, k_BLHD, v_BLHD = self.attn.project(h.flatten(1, 2))
        q, k, plain = rotate(q_BLHD, table), rotate(k_BLHD, table), k_BLHD if keep else None
        if room is None:
            return Own(q, k, v_BLHD, plain)
        room[0].copy_(k)
        room[1].copy_(v_BLHD)
        return Own(q, None, None, plain)

    def cross_over(
        self, x_BFPE: Tensor, time_BF6E: Tensor, out_BLHD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The residual stream after self-attention, and queries B L H D of cross-attention."""
        frames, dtype, gate = x_BFPE.shape[1], x_BFPE.dtype, self._modulation(time_BF6E)[2]
        out_BLE = self.attn.o(out_BLHD.flatten(2))
        x_BFPE = (x_BFPE + out_BLE.unflatten(1, (frames, -1)) * gate).to(dtype)
        h = nnf.layer_norm(
            x_BFPE.float(),
            x_BFPE.shape[-1:],
            self.cross_norm.weight.float(),
            self.cross_norm.bias.float(),
            self.eps,
        ).to(dtype)
        return x_BFPE, self.cross.queries(h.flatten(1, 2))

    def leave(self, x_BFPE: Tensor, time_BF6E: Tensor, out_BLHD: Tensor) -> Tensor:
        """The residual stream after cross-attention and MLP."""
        frames, dtype = x_BFPE.shape[1], x_BFPE.dtype
        *_, shift, scale, gate = self._modulation(time_BF6E)
        out_BLE = self.cross.o(out_BLHD.flatten(2))
        x_BFPE = x_BFPE + out_BLE.unflatten(1, (frames, -1)).to(dtype)
        h = (layer_norm(x_BFPE, self.eps) * (1 + scale) + shift).to(dtype)
        return (x_BFPE + self.ffn(h) * gate).to(dtype)


def _joined(own: Own, memory: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """A pass's own keys and values behind those of the memory, in new tensors."""
    k, v = own.pair
    if memory is None:
        return k, v
    held = memory[0].shape[1] - k.shape[1]
    return (
        torch.cat([memory[0][:, :held].to(k.dtype), k], dim=1),
        torch.cat([memory[1][:, :held].to(v.dtype), v], dim=1),
    )


class Head(nn.Module):
    """Modulated LayerNorm and projection to patches."""

    def __init__(self, width: int, out: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.modulation = nn.Parameter(torch.empty(1, 2, width))
        self.linear = nn.Linear(width, out)

    def forward(self, x_BFPE: Tensor, time_BFE: Tensor) -> Tensor:
        """Patches B F P (rows * columns * C) from tokens and the float32 time embedding."""
        modulation = (self.modulation.float() + time_BFE[:, :, None]).unsqueeze(3)
        shift, scale = modulation.unbind(2)
        return self.linear((layer_norm(x_BFPE, self.eps) * (1 + scale) + shift).to(x_BFPE.dtype))
