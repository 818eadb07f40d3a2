"""Two systems that bound the scale: the rendered truth, and our own first frame, frozen."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cfbench import video
from cfbench.errors import CfError
from cfbench.plan import SystemSpec
from cfbench.systems import cf
from cfbench.types import Job, Prompt

if TYPE_CHECKING:
    from cfmodel.config import Experiment

REPEAT_BLOCK = 64


class RenderedTruthSystem:
    """Renders a prompt's scene: what a perfect film of it would be."""

    def __init__(self, base: "Experiment", device: str) -> None:
        # The renderer is cheap; on the CPU its films are the same on every machine type.
        cf.settle(device)
        self._geometry = base.geometry
        self.weights: dict[str, str] = {}
        self.facts = {"device": "cpu", "dtype": "float32", "attention": "none"}

    def films(self, jobs: Sequence[Job]) -> Iterator[video.Frames]:
        """Rendered films of jobs of equal length, in blocks (B, R, Y, X, 3).

        Raises:
            ValueError: a prompt has no scene, or one of another version of the world.
        """
        total = self._geometry.pixel_frames(jobs[0].chunks * self._geometry.chunk)
        for blocks in zip(*(self._film(job, total) for job in jobs), strict=True):
            yield np.stack(blocks)

    def _film(self, job: Job, total: int) -> Iterator[video.Frames]:
        from cfmodel.tinyworld.film import film

        if job.prompt.scene is None:
            raise ValueError(f"prompt {job.prompt.id} has no scene; use a tiny-world prompt set")
        for block in film(job.prompt.scene, total, self._geometry.height, self._geometry.width):
            yield block.numpy()

    def peak_gib(self) -> float:
        """Most memory of the process so far."""
        return cf.peak_gib("cpu")


class FrozenSystem:
    """Repeats the first frame of our film: no motion, nothing lost. Scores must see through it."""

    def __init__(self, base: "Experiment", device: str, attention: str) -> None:
        self._ours = cf.CfSystem(base, device, attention)
        self.weights = self._ours.weights
        self.facts = self._ours.facts

    def films(self, jobs: Sequence[Job]) -> Iterator[video.Frames]:
        """The first frames of our films of the jobs, repeated in blocks (B, R, Y, X, 3)."""
        geometry = self._ours.experiment.geometry
        total = geometry.pixel_frames(jobs[0].chunks * geometry.chunk)
        first = next(self._ours.begun(jobs, 1))[:, :1]
        for start in range(0, total, REPEAT_BLOCK):
            yield np.repeat(first, min(REPEAT_BLOCK, total - start), axis=1)

    def peak_gib(self) -> float:
        """Most memory used so far."""
        return self._ours.peak_gib()


class RenderedTruth:
    """Factory of the rendered truth of a family."""

    def describe(self, address: str) -> SystemSpec:
        """What the address stands for."""
        return _spec(address, "rendered-truth", "Rendered truth", needs_scene=True)

    def check_prompts(self, address: str, prompts: Sequence[Prompt]) -> list[str]:
        """No warning: scenes are rendered, whatever the text says."""
        return []

    def load(self, address: str, device: str, attention: str) -> RenderedTruthSystem:
        """The renderer."""
        return RenderedTruthSystem(_base(address), device)


class Frozen:
    """Factory of the frozen first frame of a family."""

    def describe(self, address: str) -> SystemSpec:
        """What the address stands for."""
        return _spec(address, "frozen", "Frozen first frame", needs_scene=False)

    def check_prompts(self, address: str, prompts: Sequence[Prompt]) -> list[str]:
        """As of our preset."""
        return cf.check_prompts(_base(address), prompts)

    def load(self, address: str, device: str, attention: str) -> FrozenSystem:
        """Our preset, loaded, of which one chunk is made."""
        return FrozenSystem(_base(address), device, attention)


RENDERED_TRUTH = RenderedTruth()
FROZEN = Frozen()


def _base(address: str) -> "Experiment":
    from cfmodel import presets

    if "+" in address:
        raise CfError(
            f"system {address!r}: a reference has no fields to change; drop what follows +"
        )
    return presets.ours(cf.split(address)[0])


def _spec(address: str, name: str, label: str, *, needs_scene: bool) -> SystemSpec:
    base = _base(address)
    tree: dict[str, Any] = {
        "name": name,
        "family": base.family,
        "geometry": base.to_json()["geometry"],
        # Truth is rendered from the scene alone; a frozen film depends on all of ours.
        "of": None if needs_scene else base.key(),
    }
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return SystemSpec(
        address=address,
        family=base.family,
        name=name,
        label=label,
        key=hashlib.sha256(text.encode()).hexdigest()[:12],
        experiment=tree,
        shape=base.geometry,
        needs_scene=needs_scene,
        absent="" if needs_scene or base.weights else cf.NOT_TRAINED,
    )
