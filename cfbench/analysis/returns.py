"""What real films show again: how like its first showing, by how long it was gone.

Which stretches belong together is told by marks (a user's), or found from shots: each shot is held
against the most similar of those before it that it does not follow directly. T samples of a film,
E width of an embedding.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfbench import video
from cfbench.analysis.features import Floats, Trace, pixel_features, trace
from cfbench.analysis.watch import feature_named, films_in, look
from cfbench.errors import CfError
from cfbench.progress import Reporter
from cfbench.stats import mean_interval

COLUMNS = ("first_start_s", "first_end_s", "again_start_s", "again_end_s")
EDGES_S = (2.0, 4.5, 9.0, 14.5, 20.5, 32.0)
"""Between the absences 1, 3, 6, 12, 17, 24 and 40 s of the forced histories."""
AROUND_S = 1.0
SUDDEN, LEAST = 4.0, 0.25
"""A cut changes this many times as much as is usual around it, and at least by so much."""
SHORTEST_S = 0.5


class Stretch(NamedTuple):
    """From one second of a film to another."""

    start_s: float
    end_s: float


class Mark(NamedTuple):
    """Two stretches of a film that should show the same; ``film`` is a file name or a path."""

    film: str
    first: Stretch
    again: Stretch


class Return(NamedTuple):
    """Something shown again.

    Attributes:
        film: path.
        first: when it was shown.
        again: when it was shown again.
        absent_s: seconds in between.
        likeness: cosine of the mean embeddings of both stretches.
        chance: the same with what other films, or other marks, showed first; None without any.
    """

    film: str
    first: Stretch
    again: Stretch
    absent_s: float
    likeness: float
    chance: float | None


class WatchTask(NamedTuple):
    """A film to look at through a feature."""

    path: Path
    feature: str

    def __str__(self) -> str:
        return str(self.path)


def trace_of(task: WatchTask) -> Trace:
    """What a film looks like."""
    return trace(video.stored(task.path), feature_named(task.feature) or pixel_features)


def read_marks(path: Path) -> list[Mark]:
    """Marks of a CSV file with a head, or of a JSON list of objects, of the same names.

    Raises:
        ValueError: no such file, a missing column, or times that are none or out of order.
    """
    if not path.is_file():
        raise ValueError(f"--marks {path}: no such file")
    text = path.read_text(encoding="utf-8")
    try:
        is_json = path.suffix == ".json"
        rows = json.loads(text) if is_json else list(csv.DictReader(text.splitlines()))
        marks = [_mark(row) for row in rows]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"--marks {path}: {error}; expected film, {', '.join(COLUMNS)} in each row"
        ) from error
    if not marks:
        raise ValueError(f"--marks {path}: no row")
    return marks


def _mark(row: Mapping[str, Any]) -> Mark:
    a, b, c, d = (float(row[name]) for name in COLUMNS)
    if not 0 <= a < b <= c < d:
        raise ValueError(f"{row['film']}: {a:g} to {b:g} s and {c:g} to {d:g} s are out of order")
    return Mark(str(row["film"]), Stretch(a, b), Stretch(c, d))


def shots(film: Trace) -> list[Stretch]:
    """Stretches between cuts: sudden changes that are large beside those within a second."""
    steps = np.linalg.norm(np.diff(film.vectors_TE, axis=0), axis=1)
    around, cuts = max(2, round(AROUND_S * film.rate)), [0]
    for at, step in enumerate(steps):
        near = np.concatenate([steps[max(0, at - around) : at], steps[at + 1 : at + 1 + around]])
        usual = float(np.median(near)) if len(near) else 0.0
        if step >= LEAST and step >= SUDDEN * usual:
            cuts.append(at + 1)
    cuts.append(len(film.vectors_TE))
    found = [Stretch(a / film.rate, b / film.rate) for a, b in pairwise(cuts)]
    return [shot for shot in found if shot.end_s - shot.start_s >= SHORTEST_S]


def seen(film: Trace, part: Stretch) -> Floats:
    """Mean embedding of a stretch, of unit length (E,).

    Raises:
        ValueError: the film has no sample there.
    """
    first, last = (round(second * film.rate) for second in part)
    vectors = film.vectors_TE[first : max(last, first + 1)]
    if not len(vectors):
        raise ValueError(f"{part.start_s:g} to {part.end_s:g} s is past the film's end")
    mean = vectors.mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def from_marks(films: Mapping[str, Trace], marks: Sequence[Mark]) -> list[Return]:
    """Returns that a user marked.

    Raises:
        ValueError: a mark's film is none of these, or ends before.
    """
    paths = [_path(films, mark) for mark in marks]
    both = [
        (seen(films[path], mark.first), seen(films[path], mark.again))
        for path, mark in zip(paths, marks, strict=True)
    ]
    found: list[Return] = []
    for k, (path, mark) in enumerate(zip(paths, marks, strict=True)):
        others = [
            float(both[k][1] @ first)
            for i, (first, _) in enumerate(both)
            if (paths[i], marks[i].first) != (path, mark.first)
        ]
        chance = float(np.mean(others)) if others else None
        found.append(_return(path, mark.first, mark.again, float(both[k][0] @ both[k][1]), chance))
    return found


def _path(films: Mapping[str, Trace], mark: Mark) -> str:
    named = [path for path in films if mark.film in (path, Path(path).name, Path(path).stem)]
    if len(named) != 1:
        raise ValueError(f"mark of {mark.film!r}: {len(named)} films are called so; expected one")
    return named[0]


def from_shots(films: Mapping[str, Trace]) -> list[Return]:
    """Shots and the most similar of those before them that they do not follow directly.

    Their chance is the same choice among as many shots of another film, on average over films: the
    best of many is like anything to some degree.
    """
    parts = {path: shots(film) for path, film in films.items()}
    vectors = {path: [seen(films[path], shot) for shot in parts[path]] for path in films}
    found: list[Return] = []
    for path, mine in vectors.items():
        for at in range(2, len(mine)):
            likes = [float(mine[at] @ earlier) for earlier in mine[: at - 1]]
            best = int(np.argmax(likes))
            others = [
                max(float(mine[at] @ vector) for vector in theirs[: at - 1])
                for other, theirs in vectors.items()
                if other != path and len(theirs) >= at - 1
            ]
            chance = float(np.mean(others)) if others else None
            first, again = parts[path][best], parts[path][at]
            found.append(_return(path, first, again, likes[best], chance))
    return found


def _return(
    path: str, first: Stretch, again: Stretch, likeness: float, chance: float | None
) -> Return:
    return Return(path, first, again, again.start_s - first.end_s, likeness, chance)


def curve(found: Sequence[Return]) -> list[dict[str, Any]]:
    """Likeness and chance by absence, with 95 % intervals over films; empty bins are left out."""
    edges = (0.0, *EDGES_S, np.inf)
    rows: list[dict[str, Any]] = []
    for low, high in pairwise(edges):
        mine = [each for each in found if low <= each.absent_s < high]
        if not mine:
            continue
        films = [each.film for each in mine]
        chance = np.array([np.nan if e.chance is None else e.chance for e in mine], np.float64)
        rows.append(
            {
                "absent_s": float(np.mean([each.absent_s for each in mine])),
                "from_s": low,
                "to_s": None if np.isinf(high) else high,
                "likeness": mean_interval(np.array([e.likeness for e in mine]), films)._asdict(),
                "chance": mean_interval(chance, films)._asdict(),
                "returns": len(mine),
                "films": len(set(films)),
            }
        )
    return rows


def find_returns(
    paths: Sequence[Path], *, marks: Path | None, feature: str, workers: int, plot: Path | None
) -> dict[str, Any]:
    """The forgetting curve of films, from marks or from shots.

    Args:
        paths: films and folders of films.
        marks: file of marks, or None: shots are found.
        feature: ``module:function``, or empty for pixels.
        workers: processes.
        plot: where to draw the curve (.pdf and .png), or None.

    Raises:
        CfError: no film, an unknown feature, films that cannot be decoded, or nothing shown again.
        ValueError: marks that do not fit.
    """
    films = films_in(paths)
    feature_named(feature)
    given = None if marks is None else read_marks(marks)
    tasks = [WatchTask(path, feature) for path in films]
    with Reporter() as reporter:
        seen_films = look(tasks, trace_of, workers=workers, reporter=reporter)
    traces = {str(path): film for path, film in zip(films, seen_films, strict=True)}
    found = from_shots(traces) if given is None else from_marks(traces, given)
    if not found:
        raise CfError(f"{len(films)} films show nothing again; expected three shots or --marks")
    rows = curve(found)
    tree = {
        "source": "shots" if given is None else "marks",
        "films": len(films),
        "curve": rows,
        "returns": [
            {**each._asdict(), "first": list(each.first), "again": list(each.again)}
            for each in found
        ],
    }
    if plot is not None:
        from cfbench.analysis.draw import return_curve

        return_curve(plot, found, rows)
    return tree


def returns_told(found: Mapping[str, Any]) -> dict[str, str]:
    """The curve in words."""
    told: dict[str, str] = {}
    for row in found["curve"]:
        chance = row["chance"]["value"]
        beside = "no chance known" if chance is None else f"chance {chance:.3f}"
        upper = "on" if row["to_s"] is None else f"to {row['to_s']:g} s"
        told[f"from {row['from_s']:g} {upper}"] = (
            f"likeness {row['likeness']['value']:.3f}, {beside}, {row['returns']} returns of "
            f"{row['films']} films"
        )
    return told
