"""The ``vbench`` package's own scores; runs in the environment of ``cfbench vbench-env create``.

``python upstream_vbench.py WEIGHTS FILMS DINO OUT``: a folder of weights laid out as its cache, a
folder of films with ``texts.json``, a checkout of facebookresearch/dino, the JSON file to write.
"""

import functools
import importlib
import json
import os
import runpy
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

SCORER = Path(__file__).parents[2] / "cfbench" / "data" / "upstream_score.py"
"""How the package is asked by ``cfbench score --via upstream``."""
DIMENSIONS = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness",
    "dynamic_degree", "aesthetic_quality", "imaging_quality",
    "human_action", "appearance_style", "temporal_style", "overall_consistency",
)  # fmt: skip
HUBCONF = """
import functools, sys
import torch
sys.path.insert(0, {dino!r})
import vision_transformer
def tiny(**kept):
    net = vision_transformer.VisionTransformer(
        img_size=[224], patch_size=16, embed_dim=128, depth=2, num_heads=2, mlp_ratio=4,
        qkv_bias=True, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6))
    net.load_state_dict(torch.load({weights!r}))
    return net.eval()
"""


def archive_clip(cache: Path) -> None:
    """CLIP's state dicts as archives of TorchScript, the only form that the package opens."""
    model: Any = importlib.import_module("clip.model")
    for name in ("ViT-B-32.pt", "ViT-L-14.pt"):
        path = cache / "clip_model" / name
        net = model.build_model(dict(torch.load(path))).float().eval()
        inputs = (torch.rand(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.int64))
        torch.jit.save(torch.jit.trace(net, inputs, check_trace=False), str(path))


def make_small() -> None:
    """ViCLIP and UMT of the package's own code, in the sizes of our random weights."""
    sys.modules["numpy.lib.function_base"] = types.SimpleNamespace(disp=None)  # pyright: ignore
    whole: Any = importlib.import_module("vbench.third_party.ViCLIP.viclip")
    vision: Any = importlib.import_module("vbench.third_party.ViCLIP.viclip_vision")
    text: Any = importlib.import_module("vbench.third_party.ViCLIP.viclip_text")
    whole.ViCLIP.build_vision_encoder = lambda self: vision.VisionTransformer(
        input_resolution=224, patch_size=14, width=64, layers=2, heads=1, output_dim=48
    )
    whole.ViCLIP.build_text_encoder = lambda self: text.CLIP_TEXT(48, 32, 49_408, 64, 1, 2, 0)
    action: Any = importlib.import_module("vbench.human_action")
    umt: Any = importlib.import_module("vbench.third_party.umt.models.modeling_finetune")

    def small(_: str, *, pretrained: bool, drop_block_rate: object, **kept: Any) -> Any:
        return umt.VisionTransformer(
            patch_size=16, embed_dim=64, depth=2, num_heads=1, mlp_ratio=4, qkv_bias=True,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6), **kept,
        )  # fmt: skip

    action.create_model = small


def hub_of_dino(cache: Path, dino: Path, work: Path) -> str:
    """A folder for torch.hub that gives a small DINO, of the checkout's own code."""
    hub = work / "hub"
    hub.mkdir(exist_ok=True)
    weights = cache / "dino_model" / "dino_vitbase16_pretrain.pth"
    text = HUBCONF.format(dino=str(dino), weights=str(weights))
    (hub / "hubconf.py").write_text(text, encoding="utf-8")
    return str(hub)


def named_by_text(films: Path, texts: dict[str, str], work: Path) -> dict[str, str]:
    """Copies of the films whose names are their texts, and which film each is."""
    folder = work / "named"
    folder.mkdir(exist_ok=True)
    found: dict[str, str] = {}
    for path in sorted(films.glob("*.mp4")):
        copy = folder / f"{texts[path.stem]}-0.mp4"
        shutil.copy(path, copy)
        found[str(copy)] = path.stem
    return found


def scores(films: Path, dino: Path, work: Path) -> dict[str, dict[str, float]]:
    """Values by film and dimension."""
    cache = Path(os.environ["VBENCH_CACHE_DIR"])
    hub = hub_of_dino(cache, dino, work)
    vbench: Any = importlib.import_module("vbench.utils")
    make_small()
    scorer = runpy.run_path(str(SCORER))
    told = json.loads((films / "texts.json").read_text(encoding="utf-8"))
    of = named_by_text(films, told["texts"], work)
    found: dict[str, dict[str, float]] = {}
    for name in DIMENSIONS:
        parts = (
            {"repo_or_dir": hub, "source": "local", "model": "tiny", "read_frame": False}
            if name == "subject_consistency"
            else vbench.init_submodules([name], local=True, read_frame=False)[name]
        )
        films_asked = [
            {
                "path": path,
                "prompt": told["texts"][film],
                "aux": {"appearance_style": told["styles"][film]},
            }
            for path, film in of.items()
        ]
        asked = {"dimension": name, "device": "cpu"}
        for path, row in scorer["rows"](films_asked, asked, parts).items():
            found.setdefault(of[path], {})[name] = row["value"]
    return found


def main() -> None:
    weights, films, dino, out = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cache = Path(shutil.copytree(weights, work / "cache"))
        os.environ |= {"VBENCH_CACHE_DIR": str(cache), "TORCH_HOME": str(work / "torch")}
        archive_clip(cache)
        found = scores(films, dino.resolve(), work)
    out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
