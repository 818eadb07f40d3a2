"""The video transformer: one forward, bidirectional, masked, or against a memory.

Dims: B batch, F frames, P tokens a frame, L tokens (F * P), K key tokens, G text groups,
S text tokens, H heads, D head dim, E width, C latent channels, X rows and Y columns of a latent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cfmodel.config import Geometry, ModelConfig, seed_for
from cfmodel.nn.attention import AttentionFn, KVView, PreparedView, mask_form, sdpa
from cfmodel.nn.layers import MODULATIONS, Block, Head, patchify, sinusoid, unpatchify
from cfmodel.nn.masks import Form, Mask
from cfmodel.nn.prepare import Preparer, turn
from cfmodel.nn.rope import RotaryTable
from cfmodel.nn.spread import Spread

EMBED_STD = 0.02


class TextKV(NamedTuple):
    """Cross-attention keys and values of G texts, one tensor B G S H D a layer."""

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]

    @property
    def groups(self) -> int:
        """How many texts."""
        return self.k[0].shape[1]

    def select(self, groups: int | slice | Tensor) -> "TextKV":
        """Some of the texts, in the order asked for.

        Args:
            groups: one index, a slice, or int64 indices (B, new G), a row for each sample.
        """
        if isinstance(groups, Tensor):
            rows = torch.arange(groups.shape[0], device=groups.device)[:, None]
            return TextKV(
                tuple(k[rows, groups] for k in self.k), tuple(v[rows, groups] for v in self.v)
            )
        kept = slice(groups, groups + 1) if isinstance(groups, int) else groups
        if isinstance(groups, int) and not 0 <= groups < self.groups:
            raise ValueError(f"text group {groups}: expected 0 to {self.groups - 1}")
        return TextKV(tuple(k[:, kept] for k in self.k), tuple(v[:, kept] for v in self.v))


class Output(NamedTuple):
    """What a pass returns: the flow, and every layer's un-rotated keys and values if asked for."""

    v_BFCXY: Tensor
    kv: list[tuple[Tensor, Tensor]] | None


def _fill_normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    if not parameter.is_meta:
        parameter.copy_(torch.empty(parameter.shape).normal_(std=std, generator=generator))


class VideoTransformer(nn.Module):
    """Text-conditioned flow model over latent frames, in the Wan 2.1 text-to-video layout.

    Raises:
        ValueError: the patch is not one frame deep.

    Source: Wan 2.1 T2V; deviations: the timestep is per frame, the patch embedding is a linear
    layer over flattened patches (the same numbers), and attention may read a memory.
    """

    def __init__(
        self, config: ModelConfig, geometry: Geometry, attention: AttentionFn = sdpa
    ) -> None:
        super().__init__()
        if geometry.patch[0] != 1:
            raise ValueError(f"geometry.patch={geometry.patch}: expected one frame deep, (1, h, w)")
        self.config = config
        self.geometry = geometry
        self.attention = attention
        self.patch = geometry.patch[1:]
        self.grid = geometry.grid
        patch_size = config.latent_channels * self.patch[0] * self.patch[1]
        width = config.width
        self.patch_embed = nn.Linear(patch_size, width)
        self.time_embed = nn.Sequential(
            nn.Linear(config.freq_width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.time_project = nn.Sequential(nn.SiLU(), nn.Linear(width, MODULATIONS * width))
        self.text_embed = nn.Sequential(
            nn.Linear(config.text_width, width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width),
        )
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.ffn, config.eps, attention)
            for _ in range(config.layers)
        )
        self.head = Head(width, patch_size, config.eps)
        self.preparer = Preparer(geometry, config.head_dim)
        self.spread: Spread | None = None
        self.reset_parameters()

    def spread_over(self, spread: Spread) -> None:
        """Shares the tokens of every pass out among processes, which then run all passes together.

        Each gives and returns whole frames; without gradients.

        Raises:
            ValueError: a frame's tokens do not divide equally.
        """
        spread.check(self.geometry.tokens_per_frame)
        self.spread = spread
        for block in self.blocks:
            assert isinstance(block, Block), "a transformer is made of blocks"
            block.spread = spread

    def compile_parts(self) -> None:
        """Has the compiler make one program of each block, and one of the rotation of keys.

        All blocks are one piece of code, so this compiles once. It is for training; sampling has
        ``cfmodel.nn.fast``.
        """
        for block in self.blocks:
            block.compile()
        self.preparer.turn = torch.compile(turn)

    @property
    def mask_form(self) -> Form:
        """The form in which masks for this model are built."""
        return mask_form(self.attention)

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Draw new weights: Xavier for linear layers, zero for the output, so that v starts at 0.

        The same seed gives the same weights on every device; on ``meta`` nothing is drawn.
        """
        generator = torch.Generator().manual_seed(seed_for("transformer", seed))
        embeds = {*self.text_embed, *self.time_embed}
        for module in self.modules():
            if isinstance(module, nn.Linear):
                fan_out, fan_in = module.weight.shape
                std = EMBED_STD if module in embeds else (2 / (fan_in + fan_out)) ** 0.5
                _fill_normal(module.weight, std, generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Block | Head):
                _fill_normal(module.modulation, self.config.width**-0.5, generator)
        nn.init.zeros_(self.head.linear.weight)

    def text_kv(self, tokens_BGSE: Tensor) -> TextKV:
        """Every layer's cross-attention keys and values of encoded text.

        Args:
            tokens_BGSE: text encoder's output for G texts a sample; E is ``config.text_width``.
        """
        text_BGSE = self.text_embed(tokens_BGSE)
        pairs = [block.cross.keys_values(text_BGSE) for block in self.blocks]  # pyright: ignore
        return TextKV(tuple(k for k, _ in pairs), tuple(v for _, v in pairs))

    def prepare(self, views: Sequence[KVView]) -> list[PreparedView]:
        """Every layer's view made ready for all passes of a chunk: its keys are rotated once.

        Args:
            views: what the memory lets each layer read.

        Raises:
            ValueError: keys and positions of a view disagree in number, or pooled frames with
                attention that has no mask for them.
        """
        return self.preparer.views(views, self.mask_form)

    def forward(
        self,
        x_BFCXY: Tensor,
        sigma_BF: Tensor,
        text: TextKV,
        *,
        positions: Tensor | None = None,
        mask: Mask | None = None,
        context: Sequence[PreparedView] | None = None,
        return_kv: bool = False,
    ) -> Output:
        """The flow of every frame.

        Args:
            x_BFCXY: noisy latents; their dtype is that of the residual stream.
            sigma_BF: noise level of every frame in [0, 1], float32.
            text: texts, whose number divides F.
            positions: temporal rotary indices (F,) or (B, F); None is 0..F-1. With a context they
                come from the memory instead.
            mask: which frames see which; None is bidirectional.
            context: the memory, one prepared view a layer.
            return_kv: also return keys (without rotary phase) and values, for the memory; with a
                context and without gradients, values lie in its room until the next pass.

        Raises:
            ValueError: both a context and a mask or positions, or sizes that do not fit.
        """
        frames = x_BFCXY.shape[1]
        self._check(frames, x_BFCXY, text, context, positions is not None or mask is not None)
        patches_BFPE = patchify(x_BFCXY, self.patch)
        if self.spread is not None:
            patches_BFPE = self.spread.mine(patches_BFPE)
        x_BFPE = self.patch_embed(patches_BFPE).to(x_BFCXY.dtype)
        time_BFE, time_BF6E = self._time(sigma_BF)
        if positions is None:
            positions = torch.arange(frames, device=x_BFCXY.device)
        table = self.preparer.table(positions) if context is None else context[0].query_table
        shares = _Shares(self.spread, frames)
        memory = None
        kv = []
        for layer, block in enumerate(self.blocks):
            if context is not None:
                view = context[layer]
                table, mask, memory = view.query_table, view.mask, (view.k_BKHD, view.v_BKHD)
            rows = shares.of(table, mask)
            x_BFPE, k_BLHD, v_BLHD = block(
                x_BFPE, time_BF6E, (text.k[layer], text.v[layer]), *rows, memory, return_kv
            )
            if return_kv:
                kv.append((k_BLHD, v_BLHD))
        out_BFPE = self.head(x_BFPE, time_BFE)
        if self.spread is not None:
            (out_BLE,) = self.spread.whole([out_BFPE.flatten(1, 2)], frames)
            out_BFPE = out_BLE.unflatten(1, (frames, -1))
        v_BFCXY = unpatchify(out_BFPE, self.patch, self.grid)
        return Output(v_BFCXY, kv if return_kv else None)

    def _check(
        self,
        frames: int,
        x_BFCXY: Tensor,
        text: TextKV,
        context: Sequence[PreparedView] | None,
        placed: bool,
    ) -> None:
        if frames % text.groups:
            raise ValueError(f"{text.groups} texts do not divide {frames} frames equally")
        expected = (self.config.latent_channels, *self.geometry.latent_size)
        if x_BFCXY.shape[2:] != expected:
            raise ValueError(f"latents {tuple(x_BFCXY.shape[2:])}: expected {expected} a frame")
        if context is not None and placed:
            raise ValueError("positions or mask with a context: the memory decides both; omit them")
        if context is not None and len(context) != self.config.layers:
            raise ValueError(f"{len(context)} views for {self.config.layers} layers")

    def _time(self, sigma_BF: Tensor) -> tuple[Tensor, Tensor]:
        # Modulation multiplies the residual stream, so it stays out of autocast.
        with torch.autocast(sigma_BF.device.type, enabled=False):
            dtype = self.patch_embed.weight.dtype
            time_BFE = self.time_embed(sinusoid(sigma_BF, self.config.freq_width).to(dtype))
            time_BF6E = self.time_project(time_BFE).unflatten(-1, (MODULATIONS, -1))
            return time_BFE.float(), time_BF6E.float()


class _Shares:
    """Tables and masks of a process's own tokens; layers that share one share its part too."""

    def __init__(self, spread: Spread | None, frames: int) -> None:
        self._spread, self._frames = spread, frames
        self._tables: dict[int, RotaryTable] = {}

    def of(self, table: RotaryTable, mask: Mask | None) -> tuple[RotaryTable, Mask | None]:
        """Those of a layer."""
        if self._spread is None:
            return table, mask
        if id(table) not in self._tables:
            self._tables[id(table)] = self._spread.table(table, self._frames)
        return self._tables[id(table)], self._spread.mask(mask, self._frames)
