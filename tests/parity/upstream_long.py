"""VBench-Long's own scores; runs in the environment of ``cfbench vbench-env create``, with ``av``.

``python upstream_long.py PROTOCOL WEIGHTS FILM TABLES DINO OUT``: a folder of weights laid out as
the package's cache, a film, VBench-Long's tables, a checkout of facebookresearch/dino, and the JSON
file to write. DINOv2, which the package takes from the net, is timm's; DreamSim is its package's,
its networks as small as their weights. Under ``vbench-long``
clips are written as torchvision once wrote them, under ``vbench-long-index`` without loss.
"""

import functools
import importlib
import json
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import av
import torch
from upstream_vbench import archive_clip, hub_of_dino

DIMENSIONS = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness",
    "aesthetic_quality",
)  # fmt: skip
WRITERS = {
    # x264's code for AVX-512 gives the first film of a process other bytes from run to run.
    "vbench-long": ("libx264", "yuv420p", {"x264-params": "asm=avx2"}),
    "vbench-long-index": ("libx264rgb", "rgb24", {"qp": "0"}),
}


def stand_in(protocol: str) -> None:
    """Modules that VBench-Long imports and does not need here; a writer of films."""
    codec, pixels, options = WRITERS[protocol]

    def write_video(path: str, frames: Any, fps: int) -> None:
        images = torch.as_tensor(frames, dtype=torch.uint8).numpy()
        with av.open(path, "w") as container:
            stream: Any = container.add_stream(codec, rate=fps, options=options)
            stream.height, stream.width = images.shape[1:3]
            stream.pix_fmt = pixels
            for image in images:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())

    io: Any = importlib.import_module("torchvision.io")
    io.write_video = write_video
    for name, parts in {
        "moviepy": (), "moviepy.editor": ("VideoFileClip",),
        "scenedetect": ("open_video", "SceneManager", "split_video_ffmpeg"),
        "scenedetect.detectors": ("ContentDetector",),
        "scenedetect.video_splitter": ("split_video_ffmpeg",),
    }.items():  # fmt: skip
        module = types.ModuleType(name)
        for part in parts:
            setattr(module, part, None)
        sys.modules[name] = module


def stand_in_hub(cache: Path, dino: Path, work: Path) -> None:
    """Small DINO and DINOv2 where the package asks torch.hub for them."""
    (cache / "dino_model" / "facebookresearch_dino_main").mkdir()
    hub: Any = importlib.import_module("torch.hub")
    timm: Any = importlib.import_module("timm.models.vision_transformer")
    plain = hub.load

    def load(repo_or_dir: str, model: str, **_: Any) -> Any:
        if model != "dinov2_vitb14":
            return plain(hub_of_dino(cache, dino, work), "tiny", source="local")
        net = timm.VisionTransformer(
            patch_size=14, embed_dim=128, depth=2, num_heads=2, init_values=1.0, num_classes=0
        )
        net.load_state_dict(torch.load(cache / "dinov2_model" / "dinov2_vitb14_pretrain.pth"))
        return net.eval()

    hub.load = load


def small_dreamsim(cache: Path, home: Path) -> None:
    """DreamSim's own code over small weights, where VBench-Long looks for it."""
    folder = home / ".cache"
    shutil.copytree(cache / "dreamsim", folder)
    # Of DINO's own file the package reads a head that this type never asks.
    heads = [f"module.head.{name}.weight" for name in ("mlp.0", "mlp.2", "mlp.4", "last_layer")]
    heads += [f"module.head.mlp.{k}.bias" for k in (0, 2, 4)]
    torch.save(
        {"student": {name: torch.zeros(1) for name in heads}}, folder / "dino_vitb16_pretrain.pth"
    )
    package: Any = importlib.import_module("dreamsim")
    parts = "dreamsim.feature_extraction"
    vits: Any = importlib.import_module(f"{parts}.vision_transformer")
    extractor: Any = importlib.import_module(f"{parts}.extractor")

    def small(patch_size: int) -> Any:
        norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
        return vits.VisionTransformer(
            patch_size=patch_size, embed_dim=64, depth=2, num_heads=1, qkv_bias=True,
            norm_layer=norm,
        )  # fmt: skip

    for name in ("load_clip_as_dino", "load_open_clip_as_dino"):
        loader: Any = importlib.import_module(f"{parts}.{name}")
        loader.vit_base = small
    # The eleventh block is the last one of the published size.
    plain = extractor.ViTExtractor.extract_descriptors
    extractor.ViTExtractor.extract_descriptors = lambda self, batch, _=11: plain(
        self, batch, len(self.model.blocks) - 1
    )
    long: Any = importlib.import_module("vbench2_beta_long.background_consistency")
    long.dreamsim = functools.partial(package.dreamsim, device="cpu")


def scores(film: Path, tables: Path, work: Path) -> dict[str, float]:
    """Values of a film by dimension."""
    long: Any = importlib.import_module("vbench2_beta_long")
    tree = json.loads(tables.read_text(encoding="utf-8"))["tables"]
    files: dict[str, Path] = {}
    for name, rows in tree.items():
        lines = (f"{a}: {b}" for a, b in zip(rows["score"], rows["becomes"], strict=True))
        files[name] = work / f"{name}.yaml"
        files[name].write_text("\n".join(lines), encoding="utf-8")
    (work / "info.json").write_text("[]", encoding="utf-8")
    (work / "lengths.yaml").write_text("none: 2.0", encoding="utf-8")
    halves = "".join(f"w_inclip_{k}: 0.5\nw_clip2clip_{k}: 0.5\n" for k in ("sb", "bg"))
    (work / "halves.yaml").write_text(halves, encoding="utf-8")
    found: dict[str, float] = {}
    for name in DIMENSIONS:
        folder = work / name
        folder.mkdir()
        shutil.copy(film, folder / "film-0.mp4")
        bench = long.VBenchLong(torch.device("cpu"), str(work / "info.json"), str(work))
        bench.evaluate(
            str(folder), name, dimension_list=[name], local=True, mode="long_custom_input",
            use_semantic_splitting=False, static_filter_flag=False, dev_flag=True,
            clip_length_config=str(work / "lengths.yaml"), w_inclip=1.0, w_clip2clip=0.0,
            slow_fast_eval_config=str(work / "halves.yaml"), bg_clip2clip_feat_extractor="dreamsim",
            sb_clip2clip_feat_extractor="dinov2",
            bg_mapping_file_path=str(files["background_consistency"]),
            sb_mapping_file_path=str(files["subject_consistency"]),
        )  # fmt: skip
        told = json.loads((work / f"{name}_eval_results.json").read_text(encoding="utf-8"))
        found[name] = float(told[name][0])
    return found


def main() -> None:
    protocol, weights, film, tables, dino, out = sys.argv[1], *map(Path, sys.argv[2:])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cache = Path(shutil.copytree(weights, work / "cache"))
        told = {"VBENCH_CACHE_DIR": cache, "TORCH_HOME": work / "torch", "HOME": work / "home"}
        os.environ |= {name: str(path) for name, path in told.items()}
        archive_clip(cache)
        stand_in(protocol)
        stand_in_hub(cache, dino.resolve(), work)
        small_dreamsim(cache, work / "home")
        found = scores(film, tables, work)
    out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
