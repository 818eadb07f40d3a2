"""Building blocks of the transformer, in the Wan 2.1 layout.

Dims: B batch, F frames, P tokens a frame, L tokens (F * P), K key tokens, G text groups,
S text tokens, H heads, D head dim, E width, C latent channels, X rows and Y columns of a latent.
"""

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cfmodel.nn.attention import AttentionFn
from cfmodel.nn.masks import Mask
from cfmodel.nn.rope import RotaryTable, rotate

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
    """Attention among tokens and to a memory; q and k are RMS-normalised over the full width."""

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

    def forward(
        self,
        x_BLE: Tensor,
        table: RotaryTable,
        mask: Mask | None,
        memory: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output B L E, and this pass's own keys (without rotary phase) and values, B L H D.

        ``memory`` is rotated keys and values B K H D, attended to before the tokens themselves.
        """
        q_BLHD = self.norm_q(self.q(x_BLE)).unflatten(-1, (self.heads, -1))
        k_BLHD = self.norm_k(self.k(x_BLE)).unflatten(-1, (self.heads, -1))
        v_BLHD = self.v(x_BLE).unflatten(-1, (self.heads, -1))
        keys, values = rotate(k_BLHD, table), v_BLHD
        if memory is not None:
            keys = torch.cat([memory[0].to(keys.dtype), keys], dim=1)
            values = torch.cat([memory[1].to(values.dtype), values], dim=1)
        out_BLHD = self.attention(rotate(q_BLHD, table), keys, values, mask)
        return self.o(out_BLHD.flatten(2)), k_BLHD, v_BLHD


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

    def forward(self, x_BLE: Tensor, k_BGSHD: Tensor, v_BGSHD: Tensor) -> Tensor:
        """Output B L E; the G texts divide the tokens equally, in order."""
        batch, groups = k_BGSHD.shape[:2]
        q_BLHD = self.norm_q(self.q(x_BLE)).unflatten(-1, (self.heads, -1))
        # Groups fold into the batch, so no mask is needed.
        out = self.attention(
            q_BLHD.unflatten(1, (groups, -1)).flatten(0, 1),
            k_BGSHD.flatten(0, 1).to(q_BLHD.dtype),
            v_BGSHD.flatten(0, 1).to(q_BLHD.dtype),
            None,
        )
        return self.o(out.unflatten(0, (batch, groups)).flatten(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, text cross-attention and MLP, the first and last modulated per frame."""

    def __init__(
        self, width: int, heads: int, ffn: int, eps: float, attention: AttentionFn
    ) -> None:
        super().__init__()
        self.eps = eps
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New tokens B F P E, and the self-attention's keys and values B L H D.

        Args:
            x_BFPE: tokens; the residual stream keeps their dtype.
            time_BF6E: projected time embedding, float32.
            text: cross-attention keys and values, B G S H D.
            table: rotary table of the tokens.
            mask: who may attend to whom, memory included.
            memory: rotated keys and values of the memory.
        """
        frames, dtype = x_BFPE.shape[1], x_BFPE.dtype
        modulation = (self.modulation.float() + time_BF6E).unsqueeze(3)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.unbind(2)
        h = (layer_norm(x_BFPE, self.eps) * (1 + scale) + shift).to(dtype)
        out_BLE, k_BLHD, v_BLHD = self.attn(h.flatten(1, 2), table, mask, memory)
        x_BFPE = (x_BFPE + out_BLE.unflatten(1, (frames, -1)) * gate).to(dtype)
        h = nnf.layer_norm(
            x_BFPE.float(),
            x_BFPE.shape[-1:],
            self.cross_norm.weight.float(),
            self.cross_norm.bias.float(),
            self.eps,
        ).to(dtype)
        x_BFPE = x_BFPE + self.cross(h.flatten(1, 2), *text).unflatten(1, (frames, -1)).to(dtype)
        h = (layer_norm(x_BFPE, self.eps) * (1 + ffn_scale) + ffn_shift).to(dtype)
        x_BFPE = (x_BFPE + self.ffn(h) * ffn_gate).to(dtype)
        return x_BFPE, k_BLHD, v_BLHD


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
