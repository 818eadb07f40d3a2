"""Consistency over time: windows, means, bands and tables of films whose values are known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cfbench import video
from cfbench.analysis import consistency_page
from cfbench.analysis.consistency import (
    Consistency,
    FilmTask,
    clip_to_clip,
    consistency_of,
    curves_of,
    text_at,
    windows,
)
from cfbench.errors import CfError
from cfbench.findings import paper_folder
from cfbench.scorers import spaces
from cfbench.scorers.vbench.files import FILES
from cfbench.tables import read_paper
from cfmodel.tinyworld.film import pictures, scene_prompt
from cfmodel.tinyworld.scene import scene_from_json
from tests.helpers.vbench_data import write_weights

FPS = 2


def still(seconds: float, seed: int = 0) -> np.ndarray:
    """A picture that never changes."""
    cells = np.random.default_rng(seed).integers(0, 255, (5, 8, 3)).astype(np.uint8)
    return np.repeat(cells.repeat(16, 0).repeat(16, 1)[None], round(seconds * FPS), 0)


def task(path: Path, group: str = "ours", text: str = "a red cube") -> FilmTask:
    return FilmTask(path, group, path.stem, ((text, 60.0),), "tiny")


def test_windows_are_half_a_second_on_both_sides() -> None:
    around = windows(968, 16)
    assert [len(window) for window in around] == [17, 17, 17, 17, 17, 16]
    assert (around[0][0] / 16, around[0][-1] / 16) == (9.5, 10.5)
    assert windows(16 * 9, 16) == [[]] * 6


def test_texts_follow_their_segments() -> None:
    parts = (("a", 10.0), ("b", 10.0), ("c", 1.0))
    assert [text_at(parts, t) for t in (0, 9.9, 10, 20, 60)] == ["a", "a", "b", "c", "c"]


def test_clips_that_all_begin_alike_agree() -> None:
    same = np.tile([1.0, 0.0], (4, 1))
    assert clip_to_clip(same) == 1
    assert clip_to_clip(np.eye(2)) == 0
    assert clip_to_clip(same[:1]) is None


def test_a_film_that_never_changes_keeps_everything_and_one_that_cuts_does_not(
    tmp_path: Path,
) -> None:
    video.encode(tmp_path / "still.mp4", iter((still(22),)), FPS)
    cut = np.concatenate([still(15), still(7, seed=1)])
    video.encode(tmp_path / "cut.mp4", iter((cut,)), FPS)
    calm, torn = (consistency_of(task(tmp_path / f"{name}.mp4")) for name in ("still", "cut"))
    for measure in ("dino_first", "clip_f"):
        assert calm.curves[measure][:2] == pytest.approx((1, 1), abs=1e-2)
        assert calm.curves[measure][2:] == (None,) * 4
        first, later = torn.curves[measure][:2]
        assert first == pytest.approx(1, abs=1e-2)
        assert later is not None
        assert later < 0.9
    assert calm.clips["dino_clips"] == pytest.approx(1, abs=1e-2)
    assert torn.clips["dino_clips"] is not None
    assert torn.clips["dino_clips"] < 0.95


def test_the_right_text_is_nearer_than_another(tmp_path: Path) -> None:
    prompt = scene_prompt(3, "stay")
    right = prompt["segments"][0]["text"]
    frames = pictures(scene_from_json(prompt["scene"]), torch.arange(0, 16 * 11, 8)).numpy()
    video.encode(tmp_path / "a.mp4", iter((frames,)), FPS)
    wrong = scene_prompt(4, "stay")["segments"][0]["text"]
    values = [
        consistency_of(task(tmp_path / "a.mp4", text=t)).curves["clip_t"][0] for t in (right, wrong)
    ]
    assert values[0] is not None
    assert values[1] is not None
    assert values[0] > values[1] + 0.05


def made(level: float, *, text: bool = True) -> Consistency:
    curves = {"dino_first": (level, level, None, None, None, None)}
    if text:
        curves["clip_t"] = (level,) * 6
    return Consistency(curves, {"dino_clips": level, "clip_clips": None})


def test_bands_are_over_prompts_and_a_missing_time_is_counted() -> None:
    films = [(f"p{k % 6}", made(0.5 + 0.01 * (k % 6), text=k > 0)) for k in range(12)]
    found = curves_of("ours", films)
    mean = found["dino_first"].means[0]
    assert mean.value == pytest.approx(0.525)
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low < 0.525 < mean.high
    assert found["dino_first"].scored == (12, 12, 0, 0, 0, 0)
    assert found["clip_t"].scored == (11,) * 6
    assert "clip_f" not in found


def test_tables_have_the_papers_values_beside() -> None:
    films = [("p0", made(0.5))]
    table = consistency_page.table_of(
        "dino_first", {"ours": curves_of("ours", films)}, {"ours": consistency_page._clips(films)},
        {}, read_paper(paper_folder() / "table1.csv"), title="t", header="h",
    )  # fmt: skip
    (row,) = table.rows
    assert row.paper == (91.45, 89.25, 89.66, 87.45, 88.33, 87.89)
    assert [cell.mean.value for cell in row.cells] == [0.5, 0.5, None, None, None, None, 0.5]
    assert row.cells[2].reason == "films end before"


def test_films_of_two_folders_are_two_groups(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        video.encode(tmp_path / name / "x.mp4", iter((still(11),)), FPS)
    texts = tmp_path / "texts.csv"
    texts.write_text("film,text\nx,a red cube on grass\n")
    found = consistency_page.find_consistency(
        [tmp_path / "a", tmp_path / "b"], run=None, texts=texts, features="tiny", workers=1,
        paper={}, to=tmp_path / "out", header="h",
    )  # fmt: skip
    assert set(found["groups"]) == {"a", "b"}
    assert set(found["groups"]["a"]["curves"]) == {"dino_first", "clip_f", "clip_t"}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"consistency.pdf", "consistency-clip-t.tex", "consistency-dino-first.csv"} <= written
    assert consistency_page.consistency_told(found)["a clip to clip"].startswith("dino_clips 100")
    texts.write_text(json.dumps({"x": "a"}))
    assert consistency_page.read_texts(texts.rename(tmp_path / "t.json")) == {"x": "a"}
    with pytest.raises(ValueError, match="--texts"):
        consistency_page.read_texts(tmp_path / "none.csv")


def test_dinov2_and_clip_come_from_a_folder_of_pinned_weights(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "weights")
    (folder / FILES["dinov2"]).parent.mkdir(exist_ok=True)
    # DINO's layout is DINOv2's without the scales of its shortcuts.
    shutil.copy(folder / FILES["dino"], folder / FILES["dinov2"])
    known = spaces.load(f"reference:{folder}")
    frames = still(1)
    assert set(known) == {"dino", "clip"}
    for space in known.values():
        vectors = space.images(frames)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
        assert vectors[0] @ vectors[1] == pytest.approx(1)
    texts = known["clip"].texts
    assert texts is not None
    assert texts("a cube").shape == known["clip"].images(frames)[0].shape
    (folder / FILES["dinov2"]).unlink()
    (folder / FILES["clip-b32"]).unlink()
    spaces.load.cache_clear()
    with pytest.raises(CfError, match="no weights"):
        spaces.load(f"reference:{folder}")
    with pytest.raises(CfError, match="expected tiny"):
        spaces.load("other")
