"""What a long film takes, end to end: time of each chunk, and memory that must not grow with it.

Weights and texts are random, which changes neither what is computed nor how much; the codec is the
family's own, and frames go to the encoder as they come.

Dims: G texts, S text tokens, E text width.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from cfmodel.config import Attention, Experiment, seed_for
from cfmodel.io.codec import Codec, WanCodec, random_codec
from cfmodel.io.weights import fill, write_atomic
from cfmodel.nn.attention import AttentionFn
from cfmodel.nn.fast import Fast
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.pipeline import Pipeline, Request, choose_attention, codec_dtype
from cfmodel.video import FilmWriter

logger = logging.getLogger(__name__)

GIB = 2**30
SHARE = 10
"""Films are compared in tenths: the last with the second, since in the first the memory fills."""
STATM = Path("/proc/self/statm")
TEXT = "random"


class RandomText:
    """Stands for a text encoder: numbers of its output's shape that depend on the text alone."""

    sha256 = ""

    def __init__(self, tokens: int, width: int) -> None:
        self._shape = (tokens, width)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Random encodings (G, S, E), float32."""
        drawn = [
            torch.randn(
                self._shape, generator=torch.Generator().manual_seed(seed_for("speed", text))
            )
            for text in texts
        ]
        return torch.stack(drawn)


def random_pipeline(
    experiment: Experiment,
    *,
    device: torch.device,
    attention: Attention = "auto",
    fast: Fast | None = None,
) -> Pipeline:
    """A pipeline of an experiment's sizes with random weights, bfloat16 on CUDA.

    Raises:
        ValueError: a backend that is not installed.
    """
    backend, attend = choose_attention(attention, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = random_student(experiment, attend, device=device, dtype=dtype)
    text = RandomText(experiment.model.text_tokens, experiment.model.text_width)
    codec = random_codec_of(experiment, device)
    pipeline = Pipeline(experiment, model, codec, text, weights={}, attention=backend)
    pipeline.quicken(fast or Fast.default(device, experiment.model.width))
    return pipeline


@torch.no_grad()
def random_student(
    experiment: Experiment, attend: AttentionFn, *, device: torch.device, dtype: torch.dtype
) -> VideoTransformer:
    """A student with random weights of the size that ``randomize`` gives them.

    They are drawn on the device: at 1.3 B a CPU takes a minute for that.
    """
    with torch.device("meta"):
        model = VideoTransformer(experiment.model, experiment.geometry, attend)
    model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed_for("speed", "student"))
    fill(
        model.state_dict().items(),
        lambda _, value: torch.empty_like(value).normal_(generator=generator),
    )
    return model.eval().requires_grad_(False)


def random_codec_of(experiment: Experiment, device: torch.device) -> Codec:
    """The codec of a preset with random weights."""
    dtype = codec_dtype(experiment, device)
    if experiment.codec.kind == "tae":
        return random_codec(experiment.codec, device=device, dtype=dtype)
    from diffusers import AutoencoderKLWan

    # Its default sizes are those of Wan 2.1.
    vae = AutoencoderKLWan()
    return WanCodec(vae.requires_grad_(False), sha256="", device=device, dtype=dtype)


def host_gib() -> float | None:
    """Memory of this process that is in RAM; None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    import resource

    resident_pages = int(STATM.read_text(encoding="ascii").split()[1])
    return resident_pages * resource.getpagesize() / GIB


def gpu_gib(device: torch.device) -> float | None:
    """Memory of the device that this process has reserved; None on a CPU."""
    return torch.cuda.memory_reserved(device) / GIB if device.type == "cuda" else None


def tenths(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The second and the last tenth of a film's values.

    Raises:
        ValueError: fewer than twenty values.

    Example:
        >>> tenths(range(30))
        (range(3, 6), range(27, 30))
    """
    size = len(values) // SHARE
    if size < 2:
        raise ValueError(f"{len(values)} chunks are too few to compare tenths; use more seconds")
    return values[size : 2 * size], values[-size:]


def growth(values: Sequence[float | None]) -> float | None:
    """Mean of the last tenth less mean of the second; None if a value is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    second, last = tenths(known)
    return fmean(last) - fmean(second)


def summary(rows: Mapping[str, Sequence[Any]]) -> dict[str, float | None]:
    """What a film's chunks say: median milliseconds of two tenths and their ratio, and growth.

    Args:
        rows: ``ms``, ``gpu_gib`` and ``host_gib`` of every chunk.
    """
    second, last = tenths(rows["ms"])
    return {
        "second_tenth_ms": median(second),
        "last_tenth_ms": median(last),
        "ms_ratio": median(last) / median(second),
        "gpu_growth_gib": growth(rows["gpu_gib"]),
        "host_growth_gib": growth(rows["host_gib"]),
    }


def run(
    pipeline: Pipeline,
    seconds: float,
    *,
    film: Path,
    tell: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Makes a film and returns what each of its chunks took.

    A chunk is encoded while the next one is made, and waited for before the one after it.

    Args:
        pipeline: from ``random_pipeline``.
        seconds: length of the film, at least 20 chunks.
        film: the mp4 that is written.
        tell: called with the record so far after every tenth of the film.

    Raises:
        ValueError: too few chunks.
    """
    experiment, device = pipeline.experiment, torch.device(pipeline.device)
    geometry = experiment.geometry
    chunks = geometry.chunks_for(seconds)
    tenths(range(chunks))
    memory = pipeline.memory(1)
    rows: dict[str, list[Any]] = {"ms": [], "gpu_gib": [], "host_gib": []}
    record: dict[str, Any] = {"chunks": chunks, "rows": rows, "state": "running"}
    request = Request(TEXT, ((TEXT, seconds),), 0)
    size = {"height": geometry.height, "width": geometry.width}
    with (
        FilmWriter(film, fps=geometry.fps, **size) as writer,
        ThreadPoolExecutor(max_workers=1) as encoder,
    ):
        written: Future[None] | None = None
        began = time.perf_counter()
        for frames_BRYXC in pipeline.films([request], chunks, memory=memory):
            if written is not None:
                written.result()
            written = encoder.submit(writer.write, frames_BRYXC[0].numpy())
            # Frames are on the host, so the device has been waited for.
            now = time.perf_counter()
            rows["ms"].append(round(1000 * (now - began), 3))
            rows["gpu_gib"].append(_rounded(gpu_gib(device)))
            rows["host_gib"].append(_rounded(host_gib()))
            if len(rows["ms"]) % (chunks // SHARE) == 0:
                tell(record)
            began = time.perf_counter()
        if written is not None:
            written.result()
    return {
        **record,
        "state": "done",
        "pixel_frames": writer.frames,
        "frames_per_s": writer.frames / (sum(rows["ms"]) / 1000),
        "slots": len(memory.slots(0)),
        "film_bytes": film.stat().st_size,
        "summary": summary(rows),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def measure(
    experiment: Experiment,
    lengths_s: Sequence[float],
    out: Path,
    *,
    device: torch.device,
    attention: Attention = "auto",
    fast: Fast | None = None,
) -> dict[str, Any]:
    """Films of several lengths, each under its seconds in the file ``out``, whose others stay.

    The file is written after every tenth of a film, so that a run which ends early leaves what it
    knew.

    Raises:
        ValueError: a length too short to compare tenths, or a backend that is not installed.
    """
    for seconds in lengths_s:
        tenths(range(experiment.geometry.chunks_for(seconds)))
    pipeline = random_pipeline(experiment, device=device, attention=attention, fast=fast)
    cuda = device.type == "cuda"
    about = {
        "preset": f"{experiment.family}/{experiment.name}",
        "experiment": experiment.to_json(),
        **pipeline.record(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
    }
    told: dict[str, Any] = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {}

    def save(name: str, record: dict[str, Any]) -> None:
        made[name] = {**about, **record}
        text = json.dumps({**told, **made}, indent=1, sort_keys=True)
        write_atomic(out, f"{text}\n".encode())
        logger.info("%s: %d of %d chunks", name, len(record["rows"]["ms"]), record["chunks"])

    for seconds in lengths_s:
        name = f"{seconds:g}s"
        with TemporaryDirectory() as folder:
            tell = partial(save, name)
            save(name, run(pipeline, seconds, film=Path(folder) / "film.mp4", tell=tell))
    return made


def lines(made: Mapping[str, Any]) -> list[str]:
    """Records as lines of text."""
    told: list[str] = []
    for name, record in made.items():
        found = record["summary"]
        told.append(
            f"{name}: {record['chunks']} chunks, {record['frames_per_s']:.2f} frames/s, "
            f"{found['second_tenth_ms']:.1f} then {found['last_tenth_ms']:.1f} ms a chunk "
            f"(ratio {found['ms_ratio']:.4f}), GPU {_gib(found['gpu_growth_gib'])}, host "
            f"{_gib(found['host_growth_gib'])}"
        )
    return told


def _gib(value: float | None) -> str:
    return "not known" if value is None else f"{value:+.3f} GiB"
