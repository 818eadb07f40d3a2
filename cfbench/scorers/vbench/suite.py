"""VBench's dimensions over films, with networks whose weights are the user's: tier ``reference``.

Values equal those of the ``vbench`` package with the same weights, film by film. A dimension whose
weights are not there is null, and so is every one that a prompt of VBench's suite does not ask for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cfbench.aggregate import QUALITY, SEMANTIC
from cfbench.scorers import rules
from cfbench.scorers.vbench import again, protocol, watch
from cfbench.scorers.vbench.features import Features
from cfbench.scorers.vbench.files import DREAMSIM, FILES, Folder
from cfbench.scorers.vbench.protocol import Protocol
from cfbench.scorers.vbench.toolbox import Toolbox
from cfbench.scorers.vbench.watch import Film, Nets
from cfbench.types import DimensionSpec, Prompt, Score
from cfbench.video import Clip, DecodeError

RULES_VERSION = "3"
CUSTOM = "custom"
SHORT = f"does not apply: too few frames, or frames below {watch.SMALLEST_SIDE} pixels"
NOT_ASKED = "does not apply: not one of the prompt's dimensions in VBench's suite"
ELSEWHERE = "computed by the vbench package alone; run cfbench score --via upstream"
NEEDS: Mapping[str, tuple[str, ...]] = {
    "subject_consistency": ("dino",),
    "background_consistency": ("clip-b32",),
    "temporal_flickering": (),
    "motion_smoothness": ("amt",),
    "dynamic_degree": ("raft",),
    "aesthetic_quality": ("clip-l14", "aesthetic"),
    "imaging_quality": ("musiq",),
    "human_action": ("umt",),
    "appearance_style": ("clip-b32", "bpe"),
    "temporal_style": ("viclip", "bpe"),
    "overall_consistency": ("viclip", "bpe"),
}
"""Files that each dimension needs."""
BETWEEN: Mapping[str, tuple[str, ...]] = {
    "subject_consistency": ("dinov2",),
    "background_consistency": DREAMSIM,
}
"""Files of the networks that compare a film's clips with each other."""
PROMPT_FREE = tuple(QUALITY)
SOURCES: Mapping[str, str] = {
    "subject_consistency": "VBench: DINO ViT-B/16 features, frame before and first frame",
    "background_consistency": "VBench: CLIP ViT-B/32 features, frame before and first frame",
    "temporal_flickering": "VBench: mean absolute difference of neighbouring frames",
    "motion_smoothness": "VBench: odd frames drawn again by AMT-S",
    "dynamic_degree": "VBench: RAFT flow of frames 1/8 s apart",
    "aesthetic_quality": "VBench: LAION's linear head on CLIP ViT-L/14",
    "imaging_quality": "VBench: MUSIQ trained on SPAQ, longer side 512",
    "human_action": "VBench: the action is among UMT's five best classes, at 0.85 or more",
    "appearance_style": "VBench: CLIP ViT-B/32, frames against the style's name",
    "temporal_style": "VBench: ViCLIP, 8 frames against the prompt",
    "overall_consistency": "VBench: ViCLIP, 8 frames against the prompt",
}
ACTIONS_SHOWN, ACTION_LIMIT, ACTION_DIGITS = 5, 0.85, 4
CLIP_PERCENT = 100.0


def specs(
    version: str,
    folder: Folder,
    files: Callable[[str], Sequence[str]],
    source: Callable[[str], str],
) -> tuple[DimensionSpec, ...]:
    """VBench's sixteen dimensions, with the first digits of their weights' hashes.

    Args:
        version: of the rules or the program.
        folder: of the weights.
        files: what a dimension needs.
        source: where it comes from.

    Raises:
        CfError: weights are others than they were.
    """

    def digits(name: str) -> str:
        return folder.sha256(name)[:6] if folder.has(name) else "none"

    return tuple(
        DimensionSpec(
            name=name,
            group="quality" if name in QUALITY else "semantic",
            weight=weight,
            version=".".join([version, *map(digits, files(name))]),
            tier="reference",
            higher_is_better=True,
            source=source(name) or "VBench: not computed here",
        )
        for name, weight in {**QUALITY, **SEMANTIC}.items()
    )


@dataclass
class VBenchSuite:
    """Scores films with the weights of a folder.

    Args:
        folder: of the weights.
        device: where networks run, in float32.
        rule: whether films are scored whole or in clips.
        kept: folder in which measures of films are kept, or None; clips that are encoded again
            are measured anew.
    """

    folder: Folder
    device: torch.device
    rule: Protocol = protocol.WHOLE
    kept: Path | None = None
    _tools: Toolbox | None = field(default=None, repr=False)

    @property
    def tools(self) -> Toolbox:
        """Its networks."""
        if self._tools is None:
            self._tools = Toolbox(self.folder, self.device)
        return self._tools

    @property
    def version(self) -> str:
        """Of the rules, and of how films are cut."""
        return RULES_VERSION + self.rule.name.removeprefix(protocol.WHOLE.name)

    @property
    def dimensions(self) -> tuple[DimensionSpec, ...]:
        """All sixteen; a version names the rules and the first digits of the weights' hashes.

        Raises:
            CfError: weights are others than they were.
        """
        return specs(self.version, self.folder, self._files, lambda name: SOURCES.get(name, ""))

    def score(self, clip: Clip, prompt: Prompt) -> list[Score]:
        """One score a dimension.

        Raises:
            DecodeError: the film cannot be decoded.
            CfError: weights are damaged.
        """
        parts, told = (range(clip.frames),), self.rule.name
        details: dict[str, Any] = {"frames": clip.frames}
        if clip.note:
            details["note"] = clip.note
        if self.rule.cuts:
            seconds = protocol.clip_seconds(prompt.vbench or ())
            parts = protocol.clips(clip.frames, clip.rate, seconds)
            details |= {"clips": len(parts), "clip_s": seconds}
        elif prompt.vbench is None:
            told = CUSTOM
        details["protocol"] = told
        values = self._values(clip, parts, self._asked(prompt), prompt)
        return [
            Score(
                clip_sha=clip.sha256,
                dimension=spec.name,
                version=spec.version,
                tier=spec.tier,
                value=values.get(spec.name),
                reason="" if values.get(spec.name) is not None else self._reason(spec.name, prompt),
                details=details,
            )
            for spec in self.dimensions
        ]

    def _asked(self, prompt: Prompt) -> frozenset[str]:
        """Dimensions that this film is scored in, as far as there are weights."""
        wanted = PROMPT_FREE if prompt.vbench is None else tuple(prompt.vbench)
        return frozenset(
            name
            for name in wanted
            if name in NEEDS and all(self.folder.has(file) for file in self._files(name))
        )

    def _files(self, name: str) -> tuple[str, ...]:
        more = BETWEEN[name] if self.rule.cuts and name in BETWEEN else ()
        return tuple(dict.fromkeys((*NEEDS.get(name, ()), *more)))

    def _reason(self, name: str, prompt: Prompt) -> str:
        wanted = PROMPT_FREE if prompt.vbench is None else tuple(prompt.vbench)
        if name not in wanted:
            return NOT_ASKED
        if name not in NEEDS:
            return ELSEWHERE
        lacking = [FILES[file] for file in self._files(name) if not self.folder.has(file)]
        return f"no weights {', '.join(lacking)}" if lacking else SHORT

    def _nets(self, asked: frozenset[str], *, between: bool = False) -> Nets:
        def given(dimensions: Sequence[str], file: str) -> Any:
            return self.tools.net(file) if asked.intersection(dimensions) else None

        firsts = Nets()
        if self.rule.cuts:
            firsts = Nets(
                dinov2=given(("subject_consistency",), "dinov2"),
                dreamsim=self.tools.dreamsim() if "background_consistency" in asked else None,
            )
        if between:
            return firsts
        if self.rule.encodes:
            firsts = Nets()
        return firsts._replace(
            dino=given(("subject_consistency",), "dino"),
            clip_b=given(("background_consistency",), "clip-b32"),
            clip_l=given(("aesthetic_quality",), "clip-l14"),
            aesthetic=given(("aesthetic_quality",), "aesthetic"),
            musiq=given(("imaging_quality",), "musiq"),
            amt=given(("motion_smoothness",), "amt"),
            raft=given(("dynamic_degree",), "raft"),
            style=given(("appearance_style",), "clip-b32"),
            viclip=given(("temporal_style", "overall_consistency"), "viclip"),
            umt=given(("human_action",), "umt"),
        )

    def _values(
        self, clip: Clip, parts: Sequence[range], asked: frozenset[str], prompt: Prompt
    ) -> dict[str, float | None]:
        """Values by dimension: means over clips, consistencies fused."""
        nets, found = self._nets(asked), list[dict[str, float | None]]()
        if self.rule.encodes:
            openings, fps = list[Any](), int(clip.rate)
            for frames in again.cut(clip.as_others(), parts):
                shown = again.encoded_again(frames, fps)
                openings.append(shown[0])
                film = watch.watch(iter((shown,)), fps, (range(len(shown)),), nets, self.device)
                found.append(self._measured(film, range(len(shown)), asked, prompt))
            seen = len(found) == len(parts)
            firsts = self._openings(openings, fps, asked)
        else:
            firsts = self._watched(clip, parts, nets)
            seen = firsts.frames == clip.frames
            found = [self._measured(firsts, part, asked, prompt) for part in parts]
        if not seen:
            raise DecodeError(f"has other frames than the {clip.frames} that it names")
        values = {name: _mean([row[name] for row in found]) for name in asked}
        between = _between(firsts) if self.rule.cuts else {}
        for name in asked.intersection(between):
            within = values[name]
            if within is not None:
                values[name] = protocol.fused(within, between[name], name)
        return values

    def _watched(self, clip: Clip, parts: Sequence[range], nets: Nets) -> Film:
        if self.kept is None:
            return watch.watch(clip.as_others(), clip.rate, parts, nets, self.device)
        return Features(self.kept, self.folder, self.device).watch(clip, parts, nets)

    def _openings(self, images: list[Any], fps: int, asked: frozenset[str]) -> Film:
        """The film of the clips' first frames, encoded once more."""
        if len(images) < 2:
            return Film()
        shown = again.encoded_again(np.stack(images), fps)
        each = [range(k, k + 1) for k in range(len(shown))]
        nets = self._nets(asked, between=True)
        return watch.watch(iter((shown,)), fps, each, nets, self.device)

    def _measured(
        self, film: Film, clip: range, asked: frozenset[str], prompt: Prompt
    ) -> dict[str, float | None]:
        """Values of one clip by dimension; None where nothing was seen."""
        values = measured(film, clip)
        if "appearance_style" in asked:
            style = self.tools.text("clip-b32")(style_of(prompt))
            scale = self.tools.scale("clip-b32") / CLIP_PERCENT
            near = [_cosine(row, style) * scale for row in film.style[clip.start : clip.stop]]
            values["appearance_style"] = _mean(near)
        if asked.intersection(("temporal_style", "overall_consistency")):
            text, seen = self.tools.text("viclip")(prompt.text), film.seen.get(clip.start)
            near = None if seen is None else _cosine(seen, text)
            values |= {"temporal_style": near, "overall_consistency": near}
        if "human_action" in asked:
            acts = film.acts.get(clip.start)
            label = action_of(prompt.text)
            values["human_action"] = None if acts is None else float(shows(acts, label))
        return values


def _between(film: Film) -> dict[str, float | None]:
    """Consistencies of the clips' first frames; None where there is one alone, or no network."""
    return {
        "subject_consistency": _consistent([film.opening[k] for k in sorted(film.opening)]),
        "background_consistency": _consistent([film.place[k] for k in sorted(film.place)]),
    }


def style_of(prompt: Prompt) -> str:
    """The name of a style that a prompt of VBench's asks for."""
    return str((prompt.vbench or {})["appearance_style"]["appearance_style"])


def action_of(text: str) -> str:
    """The class of an action that a text names; upstream takes it from the file's name.

    Example:
        >>> action_of("A person is riding a bike")
        'riding a bike'
    """
    return text.lower().split("-")[0].split("person is ")[-1].split("_")[0]


def shows(acts: rules.Floats, label: str) -> bool:
    """Whether an action is among the five best classes, with a probability of at least 0.85."""
    best = np.argsort(-acts)[:ACTIONS_SHOWN]
    names = _actions()
    return any(
        round(float(acts[k]), ACTION_DIGITS) >= ACTION_LIMIT and names[k] == label for k in best
    )


@cache
def _actions() -> list[str]:
    file = resources.files("cfbench") / "data" / "kinetics-400.txt"
    return file.read_text(encoding="utf-8").split("\n")


def _mean(values: Sequence[float | None] | rules.Floats) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _cosine(a: rules.Floats, b: rules.Floats) -> float:
    """Similarity of a feature to one of unit length."""
    return float(a @ b / np.linalg.norm(a))


def _consistent(features: Sequence[rules.Floats]) -> float | None:
    if len(features) < 2:
        return None
    rows = np.stack(features)
    return _mean(rules.consistency(rows / np.linalg.norm(rows, axis=1, keepdims=True)))


def measured(film: Film, clip: range) -> dict[str, float | None]:
    """Values of a clip in the dimensions that need no prompt; None where nothing was seen."""

    def like(differences: Mapping[int, float], frames: range) -> float | None:
        known = [differences[k] for k in frames if k in differences]
        return float(rules.likeness(np.array(known)).mean()) if known else None

    pairs = watch.flown(clip, film.step)
    dynamic = None
    if len(pairs) and all(k in film.strong for k in pairs):
        strong = np.array([film.strong[k] for k in pairs])
        moving = rules.moves(strong, film.rows, film.columns)
        dynamic = float(rules.is_dynamic(moving, len(pairs) + 1))
    here = slice(clip.start, clip.stop)
    return {
        "subject_consistency": _consistent(film.dino[here]),
        "background_consistency": _consistent(film.clip[here]),
        "temporal_flickering": like(film.flicker, clip[1:]),
        "motion_smoothness": like(film.smooth, watch.drawn_again(clip)),
        "dynamic_degree": dynamic,
        "aesthetic_quality": _mean(film.aesthetic[here]),
        "imaging_quality": _mean(film.imaging[here]),
    }
