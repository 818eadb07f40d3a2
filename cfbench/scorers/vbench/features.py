"""What networks saw of films, kept on disk: looked at once, scored in any windows afterwards.

A measure of a film is known by the film's hash, its networks' hashes, how their inputs are made and
the kind of device; windows and clips are ranges of its frames. A file appears whole or not at all,
and whoever makes it makes the same one, so workers and crashes change no number.
"""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cfbench.scorers import rules
from cfbench.scorers.vbench import prep
from cfbench.scorers.vbench import watch as watching
from cfbench.scorers.vbench.files import DREAMSIM, Folder
from cfbench.scorers.vbench.watch import Film, Nets
from cfbench.store import write_atomic
from cfbench.video import Clip

log = logging.getLogger(__name__)


class Measure(NamedTuple):
    """A field of ``Film``: the weights that it needs, and the networks of ``Nets`` behind it."""

    files: tuple[str, ...] = ()
    nets: tuple[str, ...] = ()
    of_clip: bool = False


MEASURES: Mapping[str, Measure] = {
    "dino": Measure(("dino",), ("dino",)),
    "clip": Measure(("clip-b32",), ("clip_b",)),
    "style": Measure(("clip-b32",), ("style",)),
    "aesthetic": Measure(("clip-l14", "aesthetic"), ("clip_l", "aesthetic")),
    "imaging": Measure(("musiq",), ("musiq",)),
    "flicker": Measure(),
    "smooth": Measure(("amt",), ("amt",)),
    "strong": Measure(("raft",), ("raft",)),
    "opening": Measure(("dinov2",), ("dinov2",)),
    "place": Measure(DREAMSIM, ("dreamsim",)),
    "seen": Measure(("viclip",), ("viclip",), of_clip=True),
    "acts": Measure(("umt",), ("umt",), of_clip=True),
}
"""``of_clip``: of a stretch of frames, not of a frame; other stretches are other measures."""
HEADER = ("frames", "rows", "columns", "step")
DAMAGED = (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError)


class _Stored(NamedTuple):
    """A measure as it lies on disk: frames that it is known of, and its values there."""

    header: tuple[int, ...]
    at: NDArray[np.int64]
    values: NDArray[Any]


@dataclass(frozen=True)
class Features:
    """Measures of films in a folder.

    Args:
        root: the folder.
        weights: of the networks.
        device: where they run; another kind of device rounds otherwise.
    """

    root: Path
    weights: Folder
    device: torch.device

    def watch(self, clip: Clip, parts: Sequence[range], nets: Nets) -> Film:
        """``watch.watch`` of a film, as far as it is not known already; then it is.

        Args:
            clip: the film; not decoded if all is known.
            parts: frame numbers of the stretches that are scored.
            nets: what looks at it.

        Raises:
            DecodeError: the film cannot be decoded.
            CfError: the disk refuses.
        """
        asked = {
            name: self._path(clip, name, parts)
            for name, measure in MEASURES.items()
            if all(nets._asdict()[net] is not None for net in measure.nets)
        }
        step = rules.interval(clip.rate)
        known = {
            name: found
            for name, path in asked.items()
            if (found := _read(path)) is not None and _enough(name, found, parts, step)
        }
        lacking = [name for name in asked if name not in known]
        if not lacking:
            return _film(known)
        needed = {net for name in lacking for net in MEASURES[name].nets}
        left = nets._replace(**{net: None for net in nets._fields if net not in needed})
        film = watching.watch(clip.as_others(), clip.rate, parts, left, self.device)
        for name in lacking:
            _write(asked[name], _stored(film, name))
        whole = _film({**{name: _stored(film, name) for name in lacking}, **known})
        return replace(whole, frames=film.frames)

    def _path(self, clip: Clip, name: str, parts: Sequence[range]) -> Path:
        measure = MEASURES[name]
        told = [
            name, prep.VERSION, self.device.type, clip.rate,
            [self.weights.sha256(file) for file in measure.files],
            [(part.start, part.stop) for part in parts] if measure.of_clip else None,
        ]  # fmt: skip
        digits = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        return self.root / clip.sha256[:2] / clip.sha256 / f"{name}-{digits}.npz"


def _needed(name: str, frames: int, parts: Sequence[range], step: int) -> set[int]:
    """Frames that a measure has to be known of."""
    if name == "smooth":
        return {k for part in parts for k in watching.drawn_again(part)}
    if name == "strong":
        return {k for part in parts for k in watching.flown(part, step)}
    if name in ("opening", "place", "seen", "acts"):
        return {part.start for part in parts if len(part)}
    return set(range(1 if name == "flicker" else 0, frames))


def _enough(name: str, found: _Stored, parts: Sequence[range], step: int) -> bool:
    frames, rows, columns, _ = found.header
    if name in ("smooth", "strong") and min(rows, columns) < watching.SMALLEST_SIDE:
        return True
    return _needed(name, frames, parts, step) <= set(found.at.tolist())


def _stored(film: Film, name: str) -> _Stored:
    field: Any = getattr(film, name)
    rows: dict[int, Any] = field if isinstance(field, dict) else dict(enumerate(field))
    at = sorted(rows)
    header = tuple(int(getattr(film, part)) for part in HEADER)
    return _Stored(header, np.array(at, np.int64), np.array([rows[k] for k in at]))


def _film(found: Mapping[str, _Stored]) -> Film:
    """A film with these measures, as ``watch`` gives it."""
    header = next(iter(found.values())).header
    film = Film(**dict(zip(HEADER, header, strict=True)))
    for name, (_, at, values) in found.items():
        field: Any = getattr(film, name)
        rows = list(values) if values.ndim > 1 else values.tolist()
        if isinstance(field, dict):
            field.update(zip(at.tolist(), rows, strict=True))
        else:
            field.extend(rows)
    return film


def _read(path: Path) -> _Stored | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as tree:
            values = tree["values"].astype(np.float64)
            return _Stored(tuple(tree["header"].tolist()), tree["at"], values)
    except DAMAGED as error:
        log.warning("%s is damaged (%s) and will be made anew", path.name, error)
        return None


def _write(path: Path, found: _Stored) -> None:
    content = io.BytesIO()
    values = found.values
    small = values.astype(np.float32)
    # Features are float32 made float64; numbers that are not so stay whole.
    values = small if np.array_equal(small, values) else values
    np.savez(content, header=np.array(found.header), at=found.at, values=values)
    write_atomic(path, content.getvalue())
