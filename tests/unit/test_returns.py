"""What films show again: shots, marks and the curve, on films whose returns are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from cfbench import video
from cfbench.analysis import returns
from cfbench.analysis.features import trace
from cfbench.errors import CfError

FPS = 8


def place(number: int, seconds: float) -> np.ndarray:
    """A still place of its own with a little grain."""
    rng = np.random.default_rng(number)
    cells = rng.integers(40, 216, (4, 6, 3)).repeat(12, 0).repeat(12, 1)
    grain = np.random.default_rng(100 + number).normal(0, 2, (round(seconds * FPS), 48, 72, 3))
    return (cells + grain).clip(0, 255).astype(np.uint8)


def film(*parts: tuple[int, float]) -> np.ndarray:
    return np.concatenate([place(number, seconds) for number, seconds in parts])


A = film((0, 2), (1, 3), (2, 3), (0, 2))
B = film((5, 2), (6, 3), (7, 3), (8, 2))


def test_shots_end_at_cuts() -> None:
    found = returns.shots(trace(video.held(A, FPS)))
    assert [tuple(shot) for shot in found] == [(0, 2), (2, 5), (5, 8), (8, 10)]


def test_a_turn_of_the_camera_is_no_cut() -> None:
    wide = np.concatenate([place(k, 1 / FPS)[0] for k in range(4)], axis=1)
    panned = np.stack([wide[:, 3 * k : 3 * k + 72] for k in range(64)])
    assert len(returns.shots(trace(video.held(panned, FPS)))) == 1


def test_a_place_that_comes_back_is_found_and_stands_out_from_chance() -> None:
    films = {name: trace(video.held(frames, FPS)) for name, frames in (("a", A), ("b", B))}
    found = {(each.film, each.again.start_s): each for each in returns.from_shots(films)}
    back = found["a", 8.0]
    assert (tuple(back.first), back.absent_s) == ((0, 2), 6.0)
    assert back.likeness > 0.95
    assert back.chance is not None
    assert back.chance < 0.6
    assert found["b", 8.0].likeness < 0.6


def marks(tmp_path: Path, text: str, name: str = "marks.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


HEAD = "film,first_start_s,first_end_s,again_start_s,again_end_s\n"


def test_marks_are_read_from_both_kinds_of_file(tmp_path: Path) -> None:
    found = returns.read_marks(marks(tmp_path, HEAD + "a.mp4,0,2,8,10\n"))
    assert found == [returns.Mark("a.mp4", returns.Stretch(0, 2), returns.Stretch(8, 10))]
    rows = [{"film": "a.mp4", **dict(zip(returns.COLUMNS, (0, 2, 8, 10), strict=True))}]
    assert returns.read_marks(marks(tmp_path, json.dumps(rows), "marks.json")) == found


@pytest.mark.parametrize("text", ["film\na\n", HEAD, HEAD + "a,5,2,8,10\n", HEAD + "a,x,2,8,10\n"])
def test_marks_that_do_not_fit_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="--marks"):
        returns.read_marks(marks(tmp_path, text))


def test_marks_need_their_film() -> None:
    films = {"x/a.mp4": trace(video.held(A, FPS))}
    mark = returns.Mark("b.mp4", returns.Stretch(0, 2), returns.Stretch(8, 10))
    with pytest.raises(ValueError, match="0 films are called so"):
        returns.from_marks(films, [mark])
    late = mark._replace(film="a.mp4", again=returns.Stretch(80, 90))
    with pytest.raises(ValueError, match="past the film's end"):
        returns.from_marks(films, [late])


def test_curve_of_files(tmp_path: Path) -> None:
    for name, frames in (("a", A), ("b", B)):
        video.encode(tmp_path / f"{name}.mp4", iter((frames,)), FPS)
    text = HEAD + "a,0,2,8,10\nb,0,2,8,10\n"
    tree = returns.find_returns(
        [tmp_path], marks=marks(tmp_path, text), feature="", workers=1, plot=tmp_path / "curve"
    )
    (row,) = tree["curve"]
    assert (row["absent_s"], row["returns"], row["films"]) == (6.0, 2, 2)
    likeness = {Path(r["film"]).stem: r["likeness"] for r in tree["returns"]}
    assert likeness["a"] > 0.95 > 0.6 > likeness["b"]
    assert (tmp_path / "curve.pdf").is_file()
    assert "2 returns of 2 films" in next(iter(returns.returns_told(tree).values()))
    found = returns.find_returns([tmp_path], marks=None, feature="", workers=1, plot=None)
    assert found["source"] == "shots"
    alone = film((0, 2), (1, 2))
    video.encode(tmp_path / "a.mp4", iter((alone,)), FPS)
    with pytest.raises(CfError, match="nothing again"):
        returns.find_returns([tmp_path / "a.mp4"], marks=None, feature="", workers=1, plot=None)
