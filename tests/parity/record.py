"""Golden films from the authors' own code: ``python -m tests.parity.record --peers FOLDER``.

The folder holds a git checkout of each peer at its pinned commit. Nothing of them is changed on
disk: their modules are loaded with this geometry's sizes in place of the sizes written into them,
with SDPA for flash attention, and without text encoder and VAE.
"""

import argparse
import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, patch

import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from torch import Tensor, nn

from cfmodel.config import Geometry
from cfmodel.io.wan import to_wan
from tests.helpers.golden import (
    FOLDER,
    GEOMETRY,
    LENGTH,
    MODEL,
    REENCODED,
    SEED,
    SHIFT,
    chunk_shape,
    noise,
    student,
    text_tokens,
)

CHUNK = GEOMETRY.chunk
TOKENS = GEOMETRY.tokens_per_frame
FRAMES_A_PASS = 21
OVERLAP = 3


class Peer(NamedTuple):
    """A checkout: its folder, its commit, and the modules of it that are replaced by stubs."""

    folder: str
    commit: str
    stubs: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()


UNUSED = ("einops", "easydict", "ftfy", "omegaconf")
"""Packages that the peers import, and that nothing run here calls."""
WAN_STUBS = tuple(f"wan.modules.{name}" for name in ("attention", "vae", "t5", "tokenizers"))
CAUSVID = "causvid.models.wan"
BASE = f"{CAUSVID}.wan_base"
PEERS = {
    "self-forcing": Peer(
        "self-forcing", "33593df3e81fa3ec10239271dd2c100facac6de1",
        (*WAN_STUBS, "demo_utils.memory"), ("wan", "wan.modules", "pipeline"),
    ),
    "longlive": Peer(
        "longlive", "e52d9ef6865d843282a6b5e9d46d03b35f88929d",
        (*WAN_STUBS, "utils.memory"), ("wan", "wan.modules", "pipeline"),
    ),
    "infinity-rope": Peer(
        "infinity-rope", "63d7b84f043a2536ccb62d5171ed54dfadc0a721",
        (*WAN_STUBS, "demo_utils.memory"), ("wan", "wan.modules", "pipeline"),
    ),
    "rolling-forcing": Peer(
        "rolling-forcing", "a1477d09e85dc759a6a6728f55f77f59342ce388",
        WAN_STUBS, ("wan", "wan.modules", "pipeline"),
    ),
    "causvid": Peer(
        "causvid", "ca2115039172dfa3a02deee1534408a09680f29f",
        tuple(f"{BASE}.modules.{name}" for name in ("attention", "vae", "t5", "tokenizers")),
        ("causvid", "causvid.models", CAUSVID, BASE, f"{BASE}.modules"),
    ),
}  # fmt: skip

WRITTEN_TOKENS = Geometry().tokens_per_frame
SIZES: dict[object, object] = {
    **{frames * WRITTEN_TOKENS: frames * TOKENS for frames in (1, 2, 3, FRAMES_A_PASS)},
    "cuda": "cpu",
}
"""What their modules have written down, and what it is here."""
CACHES: dict[object, object] = {
    30: MODEL.layers,
    12: MODEL.heads,
    128: MODEL.head_dim,
    512: MODEL.text_tokens,
}
"""The same for the modules that allocate caches; elsewhere these numbers mean other things."""


class _Sizes(ast.NodeTransformer):
    def __init__(self, sizes: dict[object, object]) -> None:
        self._sizes = sizes

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        known = type(node.value) in (int, str) and node.value in self._sizes
        value: Any = self._sizes[node.value] if known else node.value
        return ast.copy_location(ast.Constant(value), node)


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        last = fullname.rpartition(".")[2]
        sizes = SIZES | (CACHES if last.endswith("inference") else {})
        tree = _Sizes(sizes).visit(ast.parse(Path(path).read_text(encoding="utf-8")))
        return compile(tree, path, "exec")


class _Stub(importlib.abc.Loader):
    """A module in which every name is a mock, but for what is given; packages find submodules."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def exec_module(self, module: ModuleType) -> None:
        def lacking(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return MagicMock(name=name)

        module.__dict__.update({"__getattr__": lacking, **self._names})


class _Finder(importlib.abc.MetaPathFinder):
    """Finds a peer's modules in its checkout, before any of the same name that is installed."""

    def __init__(self, root: Path, peer: Peer) -> None:
        self._root = root
        self._peer = peer

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        place = self._root.joinpath(*fullname.split("."))
        if fullname in self._peer.stubs or fullname in UNUSED:
            names = {"attention": attend, "flash_attention": attend}
            return importlib.util.spec_from_loader(fullname, _Stub(names))
        if place.is_dir():
            bare = fullname in self._peer.bare or not (place / "__init__.py").is_file()
            loader = _Stub({}) if bare else _Loader(fullname, str(place / "__init__.py"))
            spec = importlib.util.spec_from_loader(fullname, loader, is_package=True)
            assert spec is not None, "a package"
            spec.submodule_search_locations = [str(place)]
            return spec
        file = place.with_suffix(".py")
        if not file.is_file():
            return None
        return importlib.util.spec_from_file_location(
            fullname, file, loader=_Loader(fullname, str(file))
        )


def attend(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    """Attention of B L H D without mask; what else the peers pass changes nothing here."""
    del options
    out = nnf.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).contiguous()


class Texts(nn.Module):
    """Stands for the text encoder."""

    def forward(self, text_prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"prompt_embeds": torch.cat([text_tokens(text) for text in text_prompts])}


class Codec(nn.Module):
    """Stands for the VAE: pixels are latents."""

    def decode_to_pixel(self, latents: Tensor, use_cache: bool = False) -> Tensor:
        del use_cache
        return latents


def built(kind: Any, attention: dict[str, int]) -> Any:
    """A peer's transformer with the student's weights."""
    model = kind(
        model_type="t2v", patch_size=GEOMETRY.patch, text_len=MODEL.text_tokens,
        in_dim=MODEL.latent_channels, out_dim=MODEL.latent_channels, dim=MODEL.width,
        ffn_dim=MODEL.ffn, freq_dim=MODEL.freq_width, text_dim=MODEL.text_width,
        num_heads=MODEL.heads, num_layers=MODEL.layers, eps=MODEL.eps, **attention,
    )  # fmt: skip
    state = to_wan(student().state_dict(), MODEL, GEOMETRY, "wan")
    model.load_state_dict(state, strict=True)
    return model.eval().requires_grad_(False)


def wrapped(module: str, name: str, attention: dict[str, int], **options: Any) -> Any:
    """A peer's wrapper around its transformer, which it would read from disk."""
    wrapper = importlib.import_module(module)
    kind = wrapper.CausalWanModel

    def pretrained(*args: object, **kwargs: object) -> Any:
        del args, kwargs
        return built(kind, attention)

    with (
        patch.object(kind, "from_pretrained", pretrained),
        patch.object(wrapper.WanModel, "from_pretrained", MagicMock()),
    ):
        return getattr(wrapper, name)(**options)


def settings(steps: Sequence[int], model: dict[str, int], **more: object) -> SimpleNamespace:
    """What the peers read from YAML."""
    return SimpleNamespace(
        denoising_step_list=list(steps), warp_denoising_step=True, num_frame_per_block=CHUNK,
        independent_first_frame=False, context_noise=0, model_kwargs=SimpleNamespace(**model),
        **more,
    )  # fmt: skip


def first_noise(chunks: range) -> Tensor:
    source = noise()
    return torch.cat([source(chunk, 0, chunk_shape()) for chunk in chunks], dim=1)


def chunk_draws(chunks: range, steps: int) -> Iterator[Tensor]:
    """Fresh noise in the order in which chunk after chunk asks for it, frames as a batch."""
    source = noise()
    for chunk in chunks:
        for step in range(1, steps):
            yield source(chunk, step, chunk_shape()).flatten(0, 1)


def window_draws(chunks: int, steps: int) -> Iterator[Tensor]:
    """The same for rolling windows: each asks once a block and uses that block's frames alone."""
    source = noise()
    for window in range(chunks + steps - 1):
        blocks = range(max(0, window - steps + 1), min(chunks - 1, window) + 1)
        for block in blocks:
            step = window - block
            if step == steps - 1:
                continue
            drawn = [
                source(block, step + 1, chunk_shape()) if other == block
                else torch.zeros(chunk_shape())
                for other in blocks
            ]  # fmt: skip
            yield torch.cat(drawn, dim=1).flatten(0, 1)


class Draws:
    """In place of ``torch.randn_like``: the next of the given draws."""

    def __init__(self, draws: Iterator[Tensor]) -> None:
        self._draws = draws

    def __call__(self, like: Tensor) -> Tensor:
        drawn = next(self._draws)
        if drawn.shape != like.shape:
            raise RuntimeError(f"noise for {tuple(like.shape)}: drew {tuple(drawn.shape)}")
        return drawn


FOUR_STEPS = (1000, 750, 500, 250)


def _chunkwise(pipeline: str, name: str, model: dict[str, int], **call: Any) -> Tensor:
    args = settings(FOUR_STEPS, model, global_sink=True)
    generator = wrapped(
        "utils.wan_wrapper", "WanDiffusionWrapper", model, timestep_shift=SHIFT, is_causal=True
    )
    kind = getattr(importlib.import_module(pipeline), name)
    pipe = kind(args, device="cpu", generator=generator, text_encoder=Texts(), vae=Codec())
    draws = Draws(chunk_draws(range(LENGTH), len(FOUR_STEPS)))
    with patch.object(torch, "randn_like", draws):
        return pipe.inference(noise=first_noise(range(LENGTH)), return_latents=True, **call)[1]


def self_forcing() -> Tensor:
    model = {"local_attn_size": FRAMES_A_PASS, "sink_size": 0}
    name = "CausalInferencePipeline"
    return _chunkwise("pipeline.causal_inference", name, model, text_prompts=["a"])


def longlive() -> Tensor:
    model = {"local_attn_size": 12, "sink_size": 3}
    name = "CausalInferencePipeline"
    return _chunkwise("pipeline.causal_inference", name, model, text_prompts=["a"])


def longlive_recache() -> Tensor:
    # The first switch comes before the window is full.
    return _chunkwise(
        "pipeline.interactive_causal_inference", "InteractiveCausalInferencePipeline",
        {"local_attn_size": 12, "sink_size": 3},
        text_prompts_list=[["a"], ["b"], ["c"]], switch_frame_indices=[6, 90],
    )  # fmt: skip


def infinity_rope() -> Tensor:
    model = {"local_attn_size": 6, "sink_size": 1}
    name = "CausalInferencePipeline"
    return _chunkwise("pipeline.causal_inference", name, model, text_prompts=["a"])


def infinity_rope_scenes() -> Tensor:
    # 10, 12 and 22 chunks; the third scene is cut to.
    model = {"local_attn_size": 6, "sink_size": 1}
    script = "a[7.5s] | b[9s#] | c[30s]"
    name = "CausalInferencePipeline"
    return _chunkwise("pipeline.causal_inference", name, model, text_prompts=[script])


def rolling_forcing() -> Tensor:
    steps = (1000, 800, 600, 400, 200)
    args = settings(steps, {})
    generator = wrapped(
        "utils.wan_wrapper", "WanDiffusionWrapper", {}, timestep_shift=SHIFT, is_causal=True
    )
    kind = importlib.import_module("pipeline.rolling_forcing_inference").CausalInferencePipeline
    pipe = kind(args, device="cpu", generator=generator, text_encoder=Texts(), vae=Codec())
    with patch.object(torch, "randn_like", Draws(window_draws(LENGTH, len(steps)))):
        return pipe.inference_rolling_forcing(
            noise=first_noise(range(LENGTH)), text_prompts=["a"], return_latents=True
        )[1]


def causvid() -> Tensor:
    """Seven passes, joined as their script for long videos joins them."""
    steps = (1000, 757, 522)
    inference = importlib.import_module(f"{CAUSVID}.causal_inference")
    generator = wrapped(f"{CAUSVID}.wan_wrapper", "CausalWanDiffusionWrapper", {})
    args = settings([*steps, 0], {}, model_name="wan")
    args.warp_denoising_step = False
    makers = {
        "get_diffusion_wrapper": lambda model_name: lambda: generator,
        "get_text_encoder_wrapper": lambda model_name: Texts,
        "get_vae_wrapper": lambda model_name: Codec,
    }
    with patch.multiple(inference, **makers):
        pipe = inference.InferencePipeline(args, device="cpu")
    film: list[Tensor] = []
    start, made, whole = None, 0, FRAMES_A_PASS // CHUNK
    while made + whole - OVERLAP // CHUNK <= LENGTH:
        held = 0 if start is None else OVERLAP // CHUNK
        new = range(made, made + whole - held)
        filler = torch.zeros(1, held * CHUNK, *chunk_shape()[2:])
        with patch.object(torch, "randn_like", Draws(chunk_draws(new, len(steps)))):
            _, latents = pipe.inference(
                noise=torch.cat([filler, first_noise(new)], dim=1), text_prompts=["a"],
                start_latents=start, return_latents=True,
            )  # fmt: skip
        film.append(latents[:, held * CHUNK :])
        made += len(new)
        again = REENCODED * latents[:, -OVERLAP : -OVERLAP + 1]
        start = torch.cat([again, latents[:, -OVERLAP + 1 :]], dim=1)
    return torch.cat(film, dim=1)


FILMS = {
    "self-forcing": ("self-forcing", self_forcing),
    "longlive": ("longlive", longlive),
    "longlive-recache": ("longlive", longlive_recache),
    "infinity-rope": ("infinity-rope", infinity_rope),
    "infinity-rope-scenes": ("infinity-rope", infinity_rope_scenes),
    "rolling-forcing": ("rolling-forcing", rolling_forcing),
    "causvid": ("causvid", causvid),
}


def record(name: str, peers: Path) -> Path:
    """Runs a peer, and writes its latents with their origin. Returns the file.

    Raises:
        RuntimeError: the checkout is at another commit.
    """
    which, make = FILMS[name]
    peer = PEERS[which]
    root = (peers / peer.folder).resolve()
    head = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if head != peer.commit:
        raise RuntimeError(f"{peer.folder} is at {head}; check out {peer.commit}")
    sys.meta_path.insert(0, _Finder(root, peer))
    with torch.no_grad():
        latents = make().contiguous()
    if not math.isfinite(float(latents.abs().max())):
        raise RuntimeError(f"{name}: latents are not finite")
    origin = {
        "peer": peer.folder, "commit": peer.commit, "film": make.__name__, "seed": SEED,
        "driver": "tests/parity/record.py", "torch": torch.__version__.partition("+")[0],
        "model": vars(MODEL), "size_px": [GEOMETRY.height, GEOMETRY.width], "shift": SHIFT,
    }  # fmt: skip
    path = FOLDER / f"{name}.safetensors"
    save_file({"latents": latents}, path, {"origin": json.dumps(origin, sort_keys=True)})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True, help="folder of checkouts")
    parser.add_argument("films", nargs="*", help=f"of {', '.join(FILMS)}; all if absent")
    asked = parser.parse_args()
    for name in asked.films or FILMS:
        if len(asked.films) == 1:
            path = record(name, asked.peers)
            sys.stdout.write(f"{path}\n")
        else:
            # Peers name their packages alike, so each runs in a process of its own.
            again = [sys.executable, "-m", "tests.parity.record", "--peers", str(asked.peers), name]
            subprocess.run(again, check=True)


if __name__ == "__main__":
    main()
