"""The ``vbench`` package's own scores; runs in the environment of ``cfbench vbench-env create``.

``python upstream_vbench.py WEIGHTS FILMS DINO OUT``: a folder of weights laid out as its cache, a
folder of films, a checkout of facebookresearch/dino, and the JSON file to write.
"""

import importlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

DIMENSIONS = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness",
    "dynamic_degree", "aesthetic_quality", "imaging_quality",
)  # fmt: skip
PERCENT = ("imaging_quality",)
"""Told per film as 0 to 100, in total as 0 to 1."""
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


def scores(films: Path, dino: Path, work: Path) -> dict[str, dict[str, float]]:
    """Values by film and dimension."""
    cache = Path(os.environ["VBENCH_CACHE_DIR"])
    hub = work / "hub"
    hub.mkdir()
    weights = cache / "dino_model" / "dino_vitbase16_pretrain.pth"
    text = HUBCONF.format(dino=str(dino), weights=str(weights))
    (hub / "hubconf.py").write_text(text, encoding="utf-8")
    vbench: Any = importlib.import_module("vbench.utils")
    found: dict[str, dict[str, float]] = {}
    for name in DIMENSIONS:
        rows = [
            {"prompt_en": path.stem, "dimension": [name], "video_list": [str(path)]}
            for path in sorted(films.glob("*.mp4"))
        ]
        info = work / "info.json"
        info.write_text(json.dumps(rows), encoding="utf-8")
        parts = (
            {"repo_or_dir": str(hub), "source": "local", "model": "tiny", "read_frame": False}
            if name == "subject_consistency"
            else vbench.init_submodules([name], local=True, read_frame=False)[name]
        )
        compute = getattr(importlib.import_module(f"vbench.{name}"), f"compute_{name}")
        _, videos = compute(str(info), torch.device("cpu"), parts)
        for row in videos:
            value = float(row["video_results"]) / (100 if name in PERCENT else 1)
            found.setdefault(Path(row["video_path"]).stem, {})[name] = value
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
