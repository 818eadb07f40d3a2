"""VBench's prompt-free dimensions over whole films: protocol ``custom``, tier ``reference``.

Values equal those of the ``vbench`` package with the same weights, film by film. A dimension whose
weights are not there is null; Quality, Semantic and Total need more than these dimensions and are
never told of them alone.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from cfbench.aggregate import QUALITY
from cfbench.scorers import rules
from cfbench.scorers.vbench.files import FILES, Folder
from cfbench.scorers.vbench.nets import raft, vit
from cfbench.scorers.vbench.nets.amt import AmtS
from cfbench.scorers.vbench.nets.musiq import Musiq
from cfbench.scorers.vbench.watch import Film, Nets, watch
from cfbench.types import DimensionSpec, Prompt, Score
from cfbench.video import Clip

RULES_VERSION = "1"
PROTOCOL = "custom"
SHORT = "does not apply: film too short"
NEEDS: Mapping[str, tuple[str, ...]] = {
    "subject_consistency": ("dino",),
    "background_consistency": ("clip-b32",),
    "temporal_flickering": (),
    "motion_smoothness": ("amt",),
    "dynamic_degree": ("raft",),
    "aesthetic_quality": ("clip-l14", "aesthetic"),
    "imaging_quality": ("musiq",),
}
"""Files that each dimension needs."""
SOURCES: Mapping[str, str] = {
    "subject_consistency": "VBench: DINO ViT-B/16 features, frame before and first frame",
    "background_consistency": "VBench: CLIP ViT-B/32 features, frame before and first frame",
    "temporal_flickering": "VBench: mean absolute difference of neighbouring frames",
    "motion_smoothness": "VBench: odd frames drawn again by AMT-S",
    "dynamic_degree": "VBench: RAFT flow of frames 1/8 s apart",
    "aesthetic_quality": "VBench: LAION's linear head on CLIP ViT-L/14",
    "imaging_quality": "VBench: MUSIQ trained on SPAQ, longer side 512",
}


@dataclass
class VBenchSuite:
    """Scores films with the weights of a folder.

    Args:
        folder: of the weights.
        device: where networks run, in float32.
    """

    folder: Folder
    device: torch.device
    _nets: Nets | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def version(self) -> str:
        """Of the rules."""
        return RULES_VERSION

    @property
    def dimensions(self) -> tuple[DimensionSpec, ...]:
        """What it measures; a version names the rules and the first digits of the weights' hashes.

        Raises:
            CfError: weights are others than they were.
        """
        return tuple(
            DimensionSpec(
                name=name,
                group="quality",
                weight=QUALITY[name],
                version=".".join([RULES_VERSION, *map(self._digits, files)]),
                tier="reference",
                higher_is_better=True,
                source=SOURCES[name],
            )
            for name, files in NEEDS.items()
        )

    def _digits(self, name: str) -> str:
        return self.folder.sha256(name)[:6] if self.folder.has(name) else "none"

    def score(self, clip: Clip, prompt: Prompt) -> list[Score]:
        """One score a dimension, over all frames; the prompt does not matter.

        Raises:
            DecodeError: the film cannot be decoded.
            CfError: weights are damaged.
        """
        del prompt
        film = watch(clip.blocks(), clip.fps, self._loaded(), self.device)
        values, details = measured(film), {"protocol": PROTOCOL, "frames": film.frames}
        return [
            Score(
                clip_sha=clip.sha256,
                dimension=spec.name,
                version=spec.version,
                tier=spec.tier,
                value=values[spec.name],
                reason="" if values[spec.name] is not None else self._reason(spec.name),
                details=details,
            )
            for spec in self.dimensions
        ]

    def _reason(self, name: str) -> str:
        lacking = [FILES[file] for file in NEEDS[name] if not self.folder.has(file)]
        return f"no weights {', '.join(lacking)}" if lacking else SHORT

    def _loaded(self) -> Nets:
        with self._lock:
            if self._nets is None:
                self._nets = load_nets(self.folder, self.device)
            return self._nets


def load_nets(folder: Folder, device: torch.device) -> Nets:
    """The networks whose weights are there, float32, without TF32.

    Raises:
        CfError: a file is damaged.
        ValueError: a file holds another network's weights.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def built(name: str, make: Callable[[Any], Any]) -> Any:
        if not folder.has(name):
            return None
        try:
            net: nn.Module = make(folder.tensors(name))
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{FILES[name]} does not fit: {reason}") from error
        return net.to(device).eval().requires_grad_(False)

    def filled(net: nn.Module) -> Callable[[Any], nn.Module]:
        def fill(tensors: Any) -> nn.Module:
            net.load_state_dict(tensors)
            return net

        return fill

    def head(tensors: Any) -> nn.Module:
        return filled(nn.Linear(tensors["weight"].shape[1], 1))(tensors)

    return Nets(
        dino=built("dino", vit.dino),
        clip_b=built("clip-b32", vit.clip),
        clip_l=built("clip-l14", vit.clip),
        aesthetic=built("aesthetic", head),
        musiq=built("musiq", filled(Musiq())),
        amt=built("amt", filled(AmtS())),
        raft=built("raft", raft.raft),
    )


def measured(film: Film) -> dict[str, float | None]:
    """Values by dimension; None where nothing was seen."""

    def mean(values: Sequence[float] | rules.Floats) -> float | None:
        return float(np.mean(values)) if len(values) else None

    def consistent(features: list[rules.Floats]) -> float | None:
        if len(features) < 2:
            return None
        rows = np.stack(features)
        return mean(rules.consistency(rows / np.linalg.norm(rows, axis=1, keepdims=True)))

    def like(differences: Sequence[float]) -> float | None:
        return float(rules.likeness(np.array(differences)).mean()) if differences else None

    dynamic = None
    if film.strong:
        moving = rules.moves(np.array(film.strong), film.rows, film.columns)
        dynamic = float(rules.is_dynamic(moving, len(film.strong) + 1))
    return {
        "subject_consistency": consistent(film.dino),
        "background_consistency": consistent(film.clip),
        "temporal_flickering": like(film.flicker),
        "motion_smoothness": like(film.smooth),
        "dynamic_degree": dynamic,
        "aesthetic_quality": mean(film.aesthetic),
        "imaging_quality": mean(film.imaging),
    }
