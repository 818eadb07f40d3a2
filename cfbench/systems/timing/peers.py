"""Generators of others, from their own checkouts, with random weights and a full memory.

Nothing of theirs is copied: their model's modules are imported from a folder, under the names that
they import each other by, and its passes are run as their own pipelines do. What they import and
do not need is stood in for; attention is PyTorch's, since theirs may not be installed.

Dims: B batch, F frames, C channels, X rows and Y columns of a latent, L K tokens, H heads, D head.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cfbench.errors import CfError
from cfmodel.config import Experiment, seed_for
from cfmodel.io.weights import fill
from cfmodel.nn.attention import cudnn, sdpa

TIMESTEPS = 1000
ROOTS = ("wan", "utils", "diffusers", "einops")
"""Top names that a checkout's modules are imported under, or that something stands in for."""


class Peer(NamedTuple):
    """A published generator: what a chunk attends to, in latents, and where its code is."""

    window: int
    sink: int
    source: str


PEERS = {
    "self-forcing": Peer(window=21, sink=0, source="guandeh17/Self-Forcing 33593df"),
    "longlive": Peer(window=12, sink=3, source="NVlabs/LongLive v1.0"),
}
NEEDED = (
    "wan/modules/attention.py",
    "wan/modules/model.py",
    "wan/modules/causal_model.py",
    "utils/scheduler.py",
)
"""Files of a checkout that are read; ``utils/debug_option.py`` too if there is one."""


def attend(
    q_BLHD: Tensor,
    k_BKHD: Tensor,
    v_BKHD: Tensor,
    q_lens: Tensor | None = None,
    k_lens: Tensor | None = None,
) -> Tensor:
    """Stands for their attention: the dtype stays, so that float32 is float32."""
    run = cudnn if q_BLHD.is_cuda and q_BLHD.dtype == torch.bfloat16 else sdpa
    return run(q_BLHD, k_BKHD, v_BKHD, None)


def _repeat(*args: Any) -> Any:
    raise CfError("einops is not installed, and this peer's code calls it; install einops")


def _module(name: str, path: Path | None = None, **names: object) -> ModuleType:
    made = ModuleType(name)
    if path is not None:
        made.__path__ = [str(path)]
    for key, value in names.items():
        setattr(made, key, value)
    return made


def _stand_ins(checkout: Path) -> dict[str, ModuleType]:
    """Packages without their ``__init__``, which imports far more, and what is not needed."""
    parts = {
        "wan": _module("wan", checkout / "wan"),
        "wan.modules": _module("wan.modules", checkout / "wan" / "modules"),
        "utils": _module("utils", checkout / "utils"),
        "utils.memory": _module(
            "utils.memory", gpu=None, get_cuda_free_memory_gb=None, DynamicSwapInstaller=None,
            log_gpu_memory=None,
        ),
        "diffusers": _module("diffusers", Path("-")),
        "diffusers.models": _module("diffusers.models", Path("-")),
        "diffusers.configuration_utils": _module(
            "diffusers.configuration_utils",
            ConfigMixin=type("ConfigMixin", (), {}), register_to_config=lambda method: method,
        ),
        "diffusers.models.modeling_utils": _module(
            "diffusers.models.modeling_utils", ModelMixin=nn.Module
        ),
    }  # fmt: skip
    if importlib.util.find_spec("einops") is None:
        parts["einops"] = _module("einops", repeat=_repeat, rearrange=_repeat)
    return parts


class Checkout:
    """A peer's modules, which are in ``sys.modules`` only while they are used.

    Raises:
        CfError: a file is missing there.
    """

    def __init__(self, folder: Path) -> None:
        lacking = [name for name in NEEDED if not (folder / name).is_file()]
        if lacking:
            raise CfError(f"{folder} lacks {', '.join(lacking)}; name a checkout of the peer")
        self._modules = _stand_ins(folder)
        with self.active():
            self.causal = importlib.import_module("wan.modules.causal_model")
            self.cross = importlib.import_module("wan.modules.model")
            self.scheduler = importlib.import_module("utils.scheduler")
        self.causal.__dict__["attention"] = attend
        self.cross.__dict__["flash_attention"] = attend

    @contextlib.contextmanager
    def active(self) -> Generator[None]:
        """Its modules under their own names; others of these names come back afterwards."""
        before = _taken_out()
        sys.modules.update(self._modules)
        try:
            yield
        finally:
            self._modules = _taken_out()
            sys.modules.update(before)


def _taken_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] in ROOTS]
    return {name: sys.modules.pop(name) for name in names}


class Theirs:
    """A peer in steady state: its cache is full, and each chunk moves its window."""

    def __init__(
        self,
        peer: Peer,
        checkout: Checkout,
        experiment: Experiment,
        *,
        device: torch.device,
        dtype: torch.dtype,
        compiled: bool = False,
    ) -> None:
        self._checkout, self._device, self._dtype = checkout, device, dtype
        self._geometry, self._config = experiment.geometry, experiment.model
        self._generator = torch.Generator(device).manual_seed(seed_for("speed", "peer"))
        tokens = experiment.geometry.tokens_per_frame
        self._frame = peer.window
        with checkout.active():
            self._model = self._built(peer)
            self._scheduler = checkout.scheduler.FlowMatchScheduler(
                shift=experiment.sample.shift, sigma_min=0.0, extra_one_step=True
            )
            self._scheduler.set_timesteps(TIMESTEPS, training=True)
        self._run: Any = torch.compile(self._model) if compiled else self._model
        times = torch.cat([self._scheduler.timesteps.cpu(), torch.zeros(1)])
        self._times = [times[TIMESTEPS - round(TIMESTEPS * s)] for s in experiment.sample.steps]
        self._sigmas = self._scheduler.sigmas.double().to(device)
        self._known = self._scheduler.timesteps.double().to(device)
        self._cache = [self._held(peer.window * tokens) for _ in range(self._config.layers)]
        self._crossed = [{"is_init": False} for _ in range(self._config.layers)]
        self._text = self._drawn(1, self._config.text_tokens, self._config.text_width)
        self.facts: dict[str, Any] = {
            "attention": "cudnn" if device.type == "cuda" else "sdpa",
            "dtype": str(dtype).removeprefix("torch."),
            "fast": "compiled" if compiled else "",
            "keys": peer.window * tokens,
            "source": peer.source,
        }

    @torch.no_grad()
    def _built(self, peer: Peer) -> nn.Module:
        config = self._config
        with self._device:
            model = self._checkout.causal.CausalWanModel(
                model_type="t2v", text_len=config.text_tokens, in_dim=config.latent_channels,
                out_dim=config.latent_channels, dim=config.width, ffn_dim=config.ffn,
                freq_dim=config.freq_width, text_dim=config.text_width, num_heads=config.heads,
                num_layers=config.layers, local_attn_size=peer.window, sink_size=peer.sink,
                eps=config.eps,
            )  # fmt: skip
        fill(
            model.named_parameters(),
            lambda _, value: self._drawn(*value.shape, dtype=torch.float32),
        )
        # Of any dtype the weights are such as bfloat16 can hold.
        return model.bfloat16().to(self._dtype).eval().requires_grad_(False)

    def _drawn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator, device=self._device)
        return drawn.bfloat16().to(dtype or self._dtype)

    def _held(self, tokens: int) -> dict[str, Tensor]:
        """A layer's cache, full, as their pipelines keep it."""
        shape = (1, tokens, self._config.heads, self._config.head_dim)
        end = torch.tensor([tokens], dtype=torch.long, device=self._device)
        return {
            "k": self._drawn(*shape), "v": self._drawn(*shape),
            "global_end_index": end, "local_end_index": end.clone(),
        }  # fmt: skip

    @torch.no_grad()
    def step(self) -> Tensor:
        """The next chunk's latents."""
        geometry = self._geometry
        size = (1, geometry.chunk, self._config.latent_channels, *geometry.latent_size)
        x0 = self._drawn(*size)
        with self._checkout.active():
            for index, at in enumerate(self._times):
                x = x0 if not index else self._noised(x0, self._drawn(*size), at)
                x0 = self._denoised(x, at)
            self._denoised(x0, torch.zeros(()))
        self._frame += geometry.chunk
        return x0

    def _noised(self, x0: Tensor, noise: Tensor, at: Tensor) -> Tensor:
        each = at * torch.ones(x0.shape[1], device=self._device)
        return self._scheduler.add_noise(x0[0], noise[0], each)[None]

    def _denoised(self, x_BFCXY: Tensor, at: Tensor) -> Tensor:
        """A pass and the clean latents that it implies, in double precision as theirs."""
        each = at * torch.ones(x_BFCXY.shape[:2], device=self._device)
        flow = self._run(
            x_BFCXY.transpose(1, 2),
            t=each,
            context=self._text,
            seq_len=self._cache[0]["k"].shape[1],
            kv_cache=self._cache,
            crossattn_cache=self._crossed,
            current_start=self._frame * self._geometry.tokens_per_frame,
        ).transpose(1, 2)
        apart = (self._known[None] - each[0][:, None].double()).abs()
        sigma = self._sigmas[apart.argmin(1)].reshape(-1, 1, 1, 1)
        return (x_BFCXY.double() - sigma * flow.double()).to(self._dtype)
