"""Presets of the model package as systems, and the devices to run them on."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from cfbench import video
from cfbench.errors import CfError
from cfbench.plan import SystemSpec
from cfbench.provenance import process_peak_gib
from cfbench.registry import unknown
from cfbench.systems import KINDS, SYSTEMS
from cfbench.types import Job, Prompt

if TYPE_CHECKING:
    from cfmodel.config import Experiment, Family
    from cfmodel.pipeline import Pipeline

DECODED_BEFORE = 24
"""Latents of a history that are decoded; the small codec's decoder looks back by fewer than 9."""
NOT_TRAINED = "weights not trained yet"


class CfSystem:
    """One preset, loaded.

    Args:
        experiment: the preset.
        device: as torch names it.
        attention: backend, or auto.

    Raises:
        CfError: the weights are missing or damaged.
    """

    def __init__(self, experiment: "Experiment", device: str, attention: str) -> None:
        from cfmodel.config import Attention
        from cfmodel.pipeline import load

        backends: dict[str, Attention] = {name: name for name in get_args(Attention)}
        if attention not in backends:
            raise unknown("attention", attention, backends)
        settle(device)
        self._device = device
        try:
            self.pipeline: Pipeline = load(experiment, device=device, attention=backends[attention])
        except (ValueError, FileNotFoundError) as error:
            raise CfError(f"cannot load {experiment.family}/{experiment.name}: {error}") from error
        self.experiment = experiment
        self.weights = dict(self.pipeline.weights)
        self.facts = {
            "device": device_name(device),
            "dtype": self.pipeline.dtype,
            "attention": self.pipeline.attention,
            "codec": self.pipeline.codec.spec.name,
        }
        if self.pipeline.fast.words:
            self.facts["fast"] = self.pipeline.fast.words

    def films(self, jobs: Sequence[Job]) -> Iterator[video.Frames]:
        """Films of jobs of equal length, made together: blocks (B, R, Y, X, 3), one a chunk."""
        return self.begun(jobs, jobs[0].chunks)

    def begun(self, jobs: Sequence[Job], chunks: int) -> Iterator[video.Frames]:
        """The first chunks of the jobs' films, as ``films``."""
        import torch

        from cfmodel.pipeline import Request

        requests = [
            Request(
                job.prompt.id, tuple((s.text, s.seconds) for s in job.prompt.segments), job.seed
            )
            for job in jobs
        ]
        try:
            for frames_BRYXC in self.pipeline.films(requests, chunks):
                yield frames_BRYXC.numpy()
        except torch.OutOfMemoryError:
            # What is cached may be what the next attempt lacks.
            torch.cuda.empty_cache()
            raise

    def continued(
        self,
        prompt_id: str,
        segments: tuple[tuple[str, float], ...],
        seed: int,
        history: video.Frames | None,
        chunks: int,
        *,
        encoded: dict[str, Any] | None = None,
    ) -> video.Frames:
        """Frames (R, Y, X, 3) that the preset makes after a history of them, or from nothing.

        Args:
            prompt_id: part of the noise's seed.
            segments: texts and seconds of the whole film.
            seed: of the noise.
            history: frames (R, Y, X, 3) that are committed first.
            chunks: to make.
            encoded: latents of this history by codec, for several systems; filled where lacking.
        """
        import torch

        from cfmodel.pipeline import Request

        pipeline, past = self.pipeline, None
        if history is not None:
            known: dict[str, Any] = {} if encoded is None else encoded
            codec = pipeline.codec.spec.sha256
            if codec not in known:
                known[codec] = pipeline.encode(torch.from_numpy(history)[None])
            past = known[codec]
        made = pipeline.latents([Request(prompt_id, segments, seed)], chunks, history=past)
        decoder = pipeline.codec.decoder(1)
        if past is not None:
            # What a frame looks like depends on a few latents before it, so the rest can be spared.
            decoder.push(past[:, -DECODED_BEFORE:])
        return np.concatenate([decoder.push(part)[0].cpu().numpy() for part in made])

    def peak_gib(self) -> float:
        """Most memory used so far: of the GPU, or of the process."""
        return peak_gib(self._device)


class Preset:
    """Factory of the presets: ``family/row`` with changed fields after ``+``."""

    def experiment(self, address: str) -> "Experiment":
        """The experiment behind an address.

        Raises:
            CfError: unknown family, row or field.
        """
        from cfmodel import presets

        name, *overrides = address.split("+")
        family, row = split(name)
        table = presets.presets(family)
        if row not in table:
            known = [*table, *(key for key in SYSTEMS.targets() if key not in KINDS)]
            raise unknown("system", row, known)
        try:
            return presets.override(table[row], tuple(overrides))
        except ValueError as error:
            raise CfError(f"system {address!r}: {error}") from error

    def describe(self, address: str) -> SystemSpec:
        """What the address stands for."""
        experiment = self.experiment(address)
        stage = experiment.train.stage
        return SystemSpec(
            address=address,
            family=experiment.family,
            name=experiment.name,
            label=experiment.label,
            key=experiment.key(),
            experiment=experiment.to_json(),
            shape=experiment.geometry,
            absent="" if experiment.weights else f"{NOT_TRAINED} (stage {stage})",
        )

    def rows(self, prefix: str) -> list[str]:
        """Addresses of every row of a family (``tiny/`` or empty): presets, then the references.

        Raises:
            CfError: unknown family.
        """
        from cfmodel import presets

        family, _ = split(f"{prefix}ours")
        references = [name for name in SYSTEMS.entries if name not in KINDS]
        return [f"{prefix}{row}" for row in [*presets.presets(family), *references]]

    def check_prompts(self, address: str, prompts: Sequence[Prompt]) -> list[str]:
        """One warning about prompts that the family's model was not trained on, if any.

        Raises:
            CfError: a text that is longer than the text encoder takes.
        """
        return check_prompts(self.experiment(address), prompts)

    def load(self, address: str, device: str, attention: str) -> CfSystem:
        """The preset, loaded."""
        return CfSystem(self.experiment(address), device, attention)


PRESET = Preset()


def check_prompts(experiment: "Experiment", prompts: Sequence[Prompt]) -> list[str]:
    """One warning about prompts that the experiment's model was not trained on, if any.

    Raises:
        CfError: a text that is longer than the text encoder takes.
    """
    from cfmodel.sample import Script, check_scripts

    strange: list[str] = []
    for prompt in prompts:
        segments = tuple((part.text, part.seconds) for part in prompt.segments)
        try:
            strange += check_scripts([Script(id=prompt.id, segments=segments)], experiment)[:1]
        except ValueError as error:
            raise CfError(f"prompt {prompt.id}: {error}") from error
    if not strange:
        return []
    return [f"{len(strange)} of {len(prompts)} prompts: {strange[0]}"]


def split(name: str) -> "tuple[Family, str]":
    """Family and row of ``family/row``, ``row`` (of the default family) or ``family`` (ours).

    Raises:
        CfError: unknown family.
    """
    from cfmodel import presets

    families: dict[str, Family] = {family: family for family in presets.FAMILIES}
    head, slash, row = name.partition("/")
    if not slash:
        return (families[name], "ours") if name in families else (presets.DEFAULT_FAMILY, name)
    if head not in families:
        raise unknown("family", head, families)
    return families[head], row


def devices(wanted: str, workers: int) -> list[str]:
    """The device of each worker process.

    Args:
        wanted: ``auto`` (every GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:<index>``.
        workers: processes; 0 is one a GPU, or one a core.

    Raises:
        CfError: no such device.
    """
    import os

    import torch

    if workers < 0:
        raise CfError(f"--workers {workers}: expected 0 (choose) or more")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not count):
        found, default = ["cpu"], len(os.sched_getaffinity(0))
    elif wanted in ("auto", "cuda") and count:
        found, default = [f"cuda:{index}" for index in range(count)], count
    elif wanted in {f"cuda:{index}" for index in range(count)}:
        found, default = [wanted], 1
    else:
        raise CfError(f"--device {wanted}: this machine has cpu and {count} CUDA GPUs; use auto")
    return [found[index % len(found)] for index in range(workers or default)]


def settle(device: str) -> None:
    """Make sums of this process independent of the number of cores.

    One CPU thread: a film is then the same on any number of workers.
    """
    import torch

    torch.set_num_threads(1)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)


def device_name(device: str) -> str:
    """``cpu``, or the name of the GPU: which of several equal GPUs made a film is not recorded."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def peak_gib(device: str) -> float:
    """Most memory used so far: of the GPU, or of the process."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**30
    return process_peak_gib()
