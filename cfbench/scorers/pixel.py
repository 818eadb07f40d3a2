"""A suite that needs no network: flicker, exposure and sharpness from pixels."""

from collections import defaultdict

import cv2
import numpy as np

from cfbench import video
from cfbench.types import DimensionSpec, Prompt, Score, WindowScore

VERSION = "1"
CRUSHED, BLOWN = 5, 250  # of 255
WINDOW_S = 1.0


def _spec(name: str, group: str, source: str) -> DimensionSpec:
    return DimensionSpec(
        name=name,
        group="quality" if group == "quality" else "extra",
        weight=1.0 if group == "quality" else 0.0,
        version=VERSION,
        tier="lite",
        higher_is_better=True,
        source=source,
    )


class PixelSuite:
    """Means over the scored frames of a film, and over every second of it."""

    version = VERSION
    dimensions = (
        _spec(
            "temporal_flickering",
            "quality",
            "VBench: (255 - mean absolute difference of neighbouring frames) / 255",
        ),
        _spec("exposure", "extra", f"share of pixels with luma above {CRUSHED} and below {BLOWN}"),
        _spec("sharpness", "extra", "variance of the Laplacian of luma"),
    )

    def score(self, clip: video.Clip, prompt: Prompt) -> list[Score]:
        """One score a dimension; the prompt does not matter.

        Raises:
            DecodeError: the film cannot be decoded.
        """
        values: dict[str, list[float]] = defaultdict(list)
        before: video.Frames | None = None
        for block in video.canonical(clip.blocks(), clip.scored):
            for image in block:
                luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
                values["exposure"].append(float(np.mean((luma > CRUSHED) & (luma < BLOWN))))
                values["sharpness"].append(float(cv2.Laplacian(luma, cv2.CV_64F).var()))
                if before is not None:
                    change = float(cv2.absdiff(image, before).mean())
                    values["temporal_flickering"].append((255 - change) / 255)
                before = image
        return [_score(spec, values[spec.name], clip) for spec in self.dimensions]


def load_suite(device: str) -> PixelSuite:
    """The suite; it has no networks to put on a device."""
    return PixelSuite()


def _score(spec: DimensionSpec, values: list[float], clip: video.Clip) -> Score:
    fps = clip.fps
    size = round(WINDOW_S * fps)
    windows = tuple(
        WindowScore(
            start_s=start / fps,
            end_s=min(start + size, len(values)) / fps,
            value=float(np.mean(values[start : start + size])),
        )
        for start in range(0, len(values), size)
    )
    return Score(
        clip_sha=clip.sha256,
        dimension=spec.name,
        version=spec.version,
        tier=spec.tier,
        value=float(np.mean(values)) if values else None,
        windows=windows,
        reason="" if values else "does not apply: the film has a single frame",
    )
