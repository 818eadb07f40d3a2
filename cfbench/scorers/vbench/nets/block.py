"""The block that all transformers here are made of, and names of published weights made ours.

Dims: B sequences, L tokens, E width.
"""

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)

HEAD_DIM = 64
"""Of every network here: CLIP's, DINO's, ViCLIP's and UMT's."""
CLIP_BLOCK = (
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.qkv."),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"blocks.\1.proj."),
    (r"transformer\.resblocks\.(\d+)\.ln_(\d)\.", r"blocks.\1.norm\2."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.fc1."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.fc2."),
)
"""Names of a block's weights as CLIP has them."""


class Block(nn.Module):
    """Self-attention and MLP, each after a norm and with a shortcut.

    Args:
        width: E.
        hidden: width of the MLP.
        eps: of the norms.
        quick: CLIP's approximation of GELU instead of GELU.
        causal: tokens see those before them and themselves.
    """

    def __init__(
        self, width: int, hidden: int, eps: float, *, quick: bool, causal: bool = False
    ) -> None:
        super().__init__()
        self.quick, self.causal = quick, causal
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_BLE: Tensor) -> Tensor:
        """The next tokens (B, L, E)."""
        parts = self.qkv(self.norm1(x_BLE)).chunk(3, dim=-1)
        return self._attended(x_BLE, *parts)

    def first(self, x_BLE: Tensor) -> Tensor:
        """The next first token alone (B, 1, E): all that is read of a last block."""
        q, k, v = self.qkv(self.norm1(x_BLE)).chunk(3, dim=-1)
        return self._attended(x_BLE[:, :1], q[:, :1], k, v)

    def _attended(self, x_BLE: Tensor, *qkv: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for part in qkv)
        seen = nnf.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x_BLE = x_BLE + self.proj(seen.transpose(1, 2).flatten(2))
        hidden = self.fc1(self.norm2(x_BLE))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick else nnf.gelu(hidden)
        return x_BLE + self.fc2(hidden)


def renamed(tensors: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Weights under our names, float32; the first rule (pattern, ours) that fits a name counts."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        for pattern, ours in rules:
            if re.match(pattern, name):
                name = re.sub(f"^{pattern}", ours, name, count=1)
                break
        found[name] = value.float()
    return found


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights whose names begin so, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def depth(found: Mapping[str, Tensor]) -> int:
    """Blocks that weights under our names have."""
    return len({name.split(".")[1] for name in found if name.startswith("blocks.")})


@contextmanager
def fitting() -> Generator[None]:
    """Around what reads sizes off weights: weights of another network are a ValueError."""
    try:
        yield
    except (KeyError, RuntimeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"weights are of another network ({reason})") from error


def filled(make: Callable[[], Net], found: Mapping[str, Tensor]) -> Net:
    """The network that ``make`` gives, without weights of its own, with these.

    Raises:
        RuntimeError: they are of another one.
    """
    with torch.device("meta"):
        net = make()
    net.load_state_dict(found, assign=True)
    net.eval().requires_grad_(False)
    return net
