"""Times one dimension of the ``vbench`` package; in its environment, not in ours.

``python upstream_speed.py JOB.json TOLD.json``. A job: ``dimension``, ``device``, ``threads``,
``weights`` (a folder laid out as the package's cache), ``dino`` (a checkout of
facebookresearch/dino), ``films``, and ``stub``: networks that cost nothing take the place of the
real ones. Told: seconds and memory of the package's pass over the films, without loading networks.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

PASSES = {
    "subject_consistency": "subject_consistency",
    "background_consistency": "background_consistency",
    "temporal_flickering": "temporal_flickering",
    "motion_smoothness": "motion_smoothness",
    "dynamic_degree": "dynamic_degree",
    "aesthetic_quality": "laion_aesthetic",
    "imaging_quality": "technical_quality",
}
"""The function of each module that goes over the films, networks ready."""
HUBCONF = """
import sys
import torch
sys.path.insert(0, {dino!r})
import vision_transformer
def native(**kept):
    net = vision_transformer.vit_base(patch_size=16, num_classes=0)
    net.load_state_dict(torch.load({weights!r}))
    return net.eval()
"""
PERCENT = ("imaging_quality",)
PERIOD_S = 0.005
GIB = 2**30
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


class Peak:
    """Most bytes in memory beyond those at the start, looked at every few milliseconds."""

    def __init__(self, device: str) -> None:
        self._device, self._done = device, threading.Event()
        # What loading gave back to the allocator is no part of the start.
        ctypes.CDLL(None).malloc_trim(0)
        self._start = self._most = resident()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._card = self._on_card(reset=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(PERIOD_S):
            self._most = max(self._most, resident())

    def _on_card(self, *, reset: bool = False) -> int:
        if not self._device.startswith("cuda"):
            return 0
        cuda: Any = importlib.import_module("torch").cuda
        if reset:
            cuda.reset_peak_memory_stats()
            return cuda.memory_allocated()
        return cuda.max_memory_allocated()

    def told(self) -> dict[str, float]:
        """GiB beyond the start, of the host and of the card."""
        return {
            "extra_gib": (self._most - self._start) / GIB,
            "card_extra_gib": (self._on_card() - self._card) / GIB,
        }


def timed(device: str, work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What work gives, and what it took."""
    wait: Callable[[], None] = lambda: None  # noqa: E731
    if device.startswith("cuda"):
        wait = importlib.import_module("torch").cuda.synchronize
    wait()
    with Peak(device) as peak:
        start, busy = time.perf_counter(), time.process_time()
        found = work()
        wait()
        took = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - busy,
        }
    return found, {**took, **peak.told()}


def free(name: str, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a pass is given, with networks that cost nothing; their answers have the right form."""
    import torch

    def few(x: Any) -> Any:
        return x[:, :, 0, :4].flatten(1).float()

    whole = types.SimpleNamespace(encode_image=few, eval=lambda: None)
    if name == "subject_consistency":
        return (few, *parts[1:])
    if name == "background_consistency":
        return (whole, *parts[1:])
    if name == "aesthetic_quality":

        class Head(torch.nn.Module):
            def forward(self, x: Any) -> Any:
                return x[:, :1]

        return (Head(), whole, *parts[2:])
    if name == "imaging_quality":
        return (lambda x: x[0, 0, 0, 0], *parts[1:])
    if name == "motion_smoothness":
        parts[0].model = lambda a, b, *_, **__: {"imgt_pred": a}
    if name == "dynamic_degree":
        parts[0].model = lambda a, b, **_: (None, a[:, :2])
    return parts


def stand_in(weights: Path) -> None:
    """What the package asks for that is not there: a part of setuptools, CLIP as an archive."""
    if importlib.util.find_spec("pkg_resources") is None:
        module: Any = types.ModuleType("pkg_resources")
        module.packaging = importlib.import_module("packaging")
        importlib.import_module("packaging.version")
        sys.modules["pkg_resources"] = module

    def load(path: str, device: Any, **_: Any) -> tuple[Any, None]:
        import torch

        build: Any = importlib.import_module("clip.model").build_model
        net = build(torch.load(path, map_location="cpu")).to(device)
        return (net.float() if str(device) == "cpu" else net), None

    if (weights / "clip_model").is_dir():
        importlib.import_module("clip").load = load  # pyright: ignore[reportAttributeAccessIssue]


def submodules(name: str, job: dict[str, Any], folder: Path) -> Any:
    """What the package's computation is told of its networks."""
    if name != "subject_consistency":
        utils: Any = importlib.import_module("vbench.utils")
        return utils.init_submodules([name], local=True, read_frame=False)[name]
    weights = Path(job["weights"]) / "dino_model" / "dino_vitbase16_pretrain.pth"
    text = HUBCONF.format(dino=job["dino"], weights=str(weights))
    (folder / "hubconf.py").write_text(text, encoding="utf-8")
    return {"repo_or_dir": str(folder), "source": "local", "model": "native", "read_frame": False}


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time, memory and values of a job."""
    import torch

    torch.set_num_threads(job["threads"])
    name, device = job["dimension"], torch.device(job["device"])
    stand_in(Path(job["weights"]))
    module: Any = importlib.import_module(f"vbench.{name}")
    real = getattr(module, PASSES[name])
    took = dict[str, float]()

    def measured(*parts: Any, **more: Any) -> Any:
        given = free(name, parts) if job["stub"] else parts
        found, numbers = timed(job["device"], lambda: real(*given, **more))
        took.update(numbers)
        return found

    setattr(module, PASSES[name], measured)
    info = [{"prompt_en": "none", "dimension": [name], "video_list": job["films"]}]
    (folder / "info.json").write_text(json.dumps(info), encoding="utf-8")
    begin = time.perf_counter()
    compute = getattr(module, f"compute_{name}")
    _, rows = compute(str(folder / "info.json"), device, submodules(name, job, folder))
    scale = 100 if name in PERCENT else 1
    values = {Path(row["video_path"]).stem: float(row["video_results"]) / scale for row in rows}
    loading = time.perf_counter() - begin - took["seconds"]
    return {**took, "load_s": loading, "values": values, "torch": torch.__version__}


def main() -> None:
    """Runs a job and writes what it took."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        told = run(job, Path(folder))
    Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
