"""The dimensions of the tiny tier, after VBench's names and rules; their numbers are not VBench's.

S sampled frames (2 a second), P pairs of frames (8 a second).

VBench's consistency, flicker and smoothness are best in a film that never moves. Here a moment of
a film counts 0 in those four where its text names a motion and the film stands still.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cfbench.aggregate import QUALITY, SEMANTIC
from cfbench.scorers import rules
from cfbench.scorers.tiny import formulas, semantic
from cfbench.scorers.tiny.expect import Expectation, expect
from cfbench.scorers.tiny.formulas import Flags, Floats
from cfbench.scorers.tiny.semantic import Case, Verdict
from cfbench.scorers.tiny.watch import (
    PAIRS_PER_S,
    PIECE_EVERY_S,
    SAMPLES_PER_S,
    Film,
    watch,
    whole,
)
from cfbench.scorers.tiny.weights import Networks
from cfbench.types import DimensionSpec, Prompt, Score, WindowScore
from cfbench.video import Clip
from cfmodel.config import digest
from cfmodel.io.codec import Codec

RULES_VERSION = "3"
TIMES_S: tuple[float, ...] = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0)
HALF_S = 5.0

SOURCES: Mapping[str, str] = {
    "subject_consistency": "VBench's formula on our place features, subject due; stalled 0",
    "background_consistency": "VBench's formula on our text-aligned features; stalled 0",
    "temporal_flickering": "VBench: (255 - mean absolute difference) / 255; stalled 0",
    "motion_smoothness": "VBench's rule with OpenCV DIS flow instead of AMT-S; stalled 0",
    "dynamic_degree": "VBench's rule with OpenCV DIS flow instead of RAFT",
    "aesthetic_quality": "a rule of clarity, contrast and framing, see formulas.aesthetic",
    "imaging_quality": "our network that ranks rendered frames above damaged ones",
    "object_class": "share of frames with the named class where due, without it where gone",
    "multiple_objects": "share of frames with both named classes",
    "human_action": "share of 2 s windows with the named motion of the subject",
    "color": "share of frames whose subject has the named colour; a missing one is wrong",
    "spatial_relationship": "share of frames with the second subject on the named side",
    "scene": "share of frames with the named ground and landmark",
    "appearance_style": "share of frames with the named sky",
    "temporal_style": "share of windows with the named camera motion, mean over segments",
    "overall_consistency": "cosine of frames and their segment's caption, our dual encoder",
    "attr_shape": "class read right where the subject is 60 % in view",
    "attr_color": "colour read right where the subject is 60 % in view",
    "attr_ground": "ground read right where the subject is 60 % in view",
    "attr_sky": "sky read right where the subject is 60 % in view",
    "dino_first": "cosine to the first frame, place features, subject due",
    "clip_f": "cosine to the first frame, text-aligned features, subject due",
    "clip_t": "cosine to the segment's caption",
    "visible_share": "share of the tallest subject in view, where one is due",
    "flow_median": "median flow in pixels between frames 1/8 s apart",
    "sharpness": "mean step of luma between neighbouring pixels",
    "latent_std": "spread of the codec's normalised latents, in pieces of 17 frames",
}
OF_CODEC = ("latent_std",)


def specs(version: str, codec_version: str) -> tuple[DimensionSpec, ...]:
    """All dimensions; versions name rules and networks, and rules and codec."""
    rows: list[DimensionSpec] = []
    for name, source in SOURCES.items():
        group: Literal["quality", "semantic", "extra"] = (
            "quality" if name in QUALITY else "semantic" if name in SEMANTIC else "extra"
        )
        rows.append(
            DimensionSpec(
                name=name,
                group=group,
                weight={**QUALITY, **SEMANTIC}.get(name, 0.0),
                version=codec_version if name in OF_CODEC else version,
                tier="tiny",
                higher_is_better=True,
                source=source,
            )
        )
    return tuple(rows)


@dataclass
class TinySuite:
    """Scores films of the tiny world with networks that were trained on its truth.

    ``codec`` is what the latents' spread is measured with, the same for all systems.
    """

    nets: Networks
    codec: Codec
    _asked: tuple[tuple[str, int, int], Expectation] | None = field(default=None, repr=False)

    @property
    def version(self) -> str:
        """Of the rules and of the networks."""
        return f"{RULES_VERSION}.{digest(self.nets.hashes)[:6]}"

    @property
    def dimensions(self) -> tuple[DimensionSpec, ...]:
        """What the suite measures."""
        return specs(self.version, f"{RULES_VERSION}.{self.codec.spec.sha256[:6]}")

    def score(self, clip: Clip, prompt: Prompt) -> list[Score]:
        """One score a dimension.

        Raises:
            DecodeError: the film cannot be decoded.
            ValueError: the prompt's scene is of another version of the world.
        """
        film = watch(whole(clip), clip.scored, clip.fps, self.nets, self.codec)
        case = semantic.case(film, self._expect(prompt, film), self.nets)
        verdicts = {**quality(case), **semantics(case), **extras(case)}
        return [
            self._score(spec, verdicts[spec.name], film, clip.sha256) for spec in self.dimensions
        ]

    def _expect(self, prompt: Prompt, film: Film) -> Expectation:
        # Films of one prompt come one after the other; its script is played once.
        key = (digest([s.text for s in prompt.segments]) + prompt.id, film.stored, film.fps)
        last = self._asked
        if last is None or last[0] != key:
            end_s = film.stored / film.fps
            # One assignment, as another thread may look at the same time.
            last = self._asked = key, expect(prompt, film.sampled, film.fps, end_s)
        return last[1]

    def _score(self, spec: DimensionSpec, verdict: Verdict, film: Film, sha: str) -> Score:
        value, rows = verdict.value, verdict.windows
        if verdict.values is not None:
            inside = film.sampled < film.frames
            kept = verdict.values[inside]
            kept = kept[~np.isnan(kept)]
            if value is None and len(kept):
                value = float(kept.mean())
            if rows is None:
                step = 1 / SAMPLES_PER_S
                at_s = film.at_s[inside]
                rows = formulas.windows(verdict.values[inside], at_s, step_s=step, end_s=film.end_s)
        return Score(
            clip_sha=sha,
            dimension=spec.name,
            version=spec.version,
            tier=spec.tier,
            value=value,
            windows=rows or (),
            reason="" if value is not None else verdict.reason or "does not apply: film too short",
            details=verdict.details,
        )


def quality(c: Case) -> dict[str, Verdict]:
    """The seven quality dimensions."""
    film, inside = c.film, c.scored
    subject = np.full(len(film.sampled), np.nan)
    due = c.asked.main >= semantic.EXPECTED
    seen = (c.score[:, 0] > 0) & np.isnan(c.asked.main)
    rows = np.flatnonzero((due | seen) & inside)
    subject[rows[1:]] = rules.consistency(film.features[rows])
    background = np.full(len(film.sampled), np.nan)
    background[1:] = rules.consistency(film.images)
    alive = _alive(c)
    moving = rules.moves(film.strong, *film.pixels.shape[1:3])
    sampled = len(moving) + 1
    dynamic = float(rules.is_dynamic(moving, sampled)) if len(moving) else None
    return {
        "subject_consistency": Verdict(
            values=subject * alive, reason="does not apply: no subject is due"
        ),
        "background_consistency": Verdict(values=background * alive),
        "temporal_flickering": _line(film.flicker, film, film.fps, alive),
        "motion_smoothness": _line(film.smoothness, film, PAIRS_PER_S, alive),
        "dynamic_degree": Verdict(
            value=dynamic,
            windows=_line(moving.astype(np.float64), film, PAIRS_PER_S).windows,
            reason="" if len(moving) else "does not apply: film too short",
            details={"pairs": len(moving), "moving": int(moving.sum())},
        ),
        "aesthetic_quality": Verdict(values=film.aesthetic),
        "imaging_quality": Verdict(values=film.imaging),
    }


def _alive(c: Case) -> Floats:
    """0 at the sampled frames that should show a motion and stand still, 1 at the others."""
    pairs_s = (np.arange(len(c.film.strong)) + 0.5) / PAIRS_PER_S
    stalled = formulas.stalled(c.film.strong, pairs_s, c.film.at_s)
    return np.where(c.asked.moving & stalled, 0.0, 1.0)


def _line(values: Floats, film: Film, per_s: float, alive: Floats | None = None) -> Verdict:
    """A verdict from values at a steady rate, each times ``alive`` of the frame sampled before."""
    if not len(values):
        return Verdict(reason="does not apply: film too short")
    at_s = np.arange(len(values)) / per_s
    if alive is not None:
        values = values * alive[np.searchsorted(film.at_s, at_s, side="right") - 1]
    rows = formulas.windows(values, at_s, step_s=1 / per_s, end_s=film.end_s)
    return Verdict(value=float(values.mean()), windows=rows)


def semantics(c: Case) -> dict[str, Verdict]:
    """The nine semantic dimensions."""
    action, style = semantic.motions(c)
    similar = np.where(c.asked.settled, semantic.text_similarity(c), np.nan)
    return {
        "object_class": semantic.object_class(c),
        "multiple_objects": semantic.multiple_objects(c),
        "human_action": action,
        "color": semantic.color(c),
        "spatial_relationship": semantic.spatial_relationship(c),
        "scene": semantic.scene(c),
        "appearance_style": semantic.appearance_style(c),
        "temporal_style": style,
        "overall_consistency": Verdict(values=similar),
    }


def extras(c: Case) -> dict[str, Verdict]:
    """Attribute reads, curves over time, and what explains the rest."""
    film = c.film
    share = np.where(c.score[:, 0] > 0, c.share[:, 0], 0.0)
    due, gone = c.asked.main >= semantic.EXPECTED, c.asked.main < semantic.EXPECTED
    return {
        **semantic.attributes(c),
        "dino_first": _curve(film.features @ film.features[0], film, gone),
        "clip_f": _curve(film.images @ film.images[0], film, gone),
        "clip_t": _curve(semantic.text_similarity(c), film),
        "visible_share": Verdict(
            values=np.where(due, share, np.nan), reason="does not apply: no subject is due"
        ),
        "flow_median": _line(film.median_flow, film, PAIRS_PER_S),
        "sharpness": Verdict(values=film.edges),
        "latent_std": _line(film.latent_std, film, 1 / PIECE_EVERY_S),
    }


def _curve(values: Floats, film: Film, gone: Flags | None = None) -> Verdict:
    """Means of the 10 s around 10, 20, ..., 60 s; the last window reads the untrimmed film.

    Frames in which the script hides the subject, ``gone``, are left out of what is compared with
    the first frame: there the rendered truth itself shows something else.
    """
    if gone is not None:
        values = np.where(gone, np.nan, values)
    times = [t for t in TIMES_S if t <= film.end_s + 1e-6]
    rows: tuple[WindowScore, ...] = formulas.around(values, film.at_s, times, HALF_S)
    if not rows:
        return Verdict(windows=(), reason="does not apply: the film is shorter than 10 s")
    mean = float(np.mean([row.value for row in rows if row.value is not None]))
    return Verdict(value=mean, windows=rows)
