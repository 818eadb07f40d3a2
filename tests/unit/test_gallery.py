import json
import re
from pathlib import Path

import pytest

from cfbench.frame import build_frame
from cfbench.gallery import build_gallery, gallery_data, link_films, opaque, render_gallery
from cfbench.page import fill
from cfbench.types import Prompt, Segment
from tests.helpers.reports import unit_normaliser, world

PROMPT = Prompt(
    id="p0",
    segments=(
        Segment(text="A red cube </script> stands.", seconds=20),
        Segment(text="It turns.", seconds=40),
    ),
)


def build(tmp_path: Path) -> tuple[str, Path, list[str]]:
    runs, scores = world({"ours": 0.8, "no-slow": 0.6, "frozen": 0.3}, prompts=3, seeds=(0,))
    frame = build_frame(runs, scores, "tiny")
    store = tmp_path / "store"
    store.mkdir()
    for run in runs[1:]:
        (store / f"{run.clip.sha256}.mp4").write_bytes(run.clip.sha256.encode())
    page = build_gallery(
        tmp_path / "gallery",
        frame,
        unit_normaliser(),
        prompts={"p0": PROMPT},
        labels={"ours": "Ours"},
        film_path=lambda sha: store / f"{sha}.mp4",
        tier="tiny",
        header="commit abc; command <cfbench>",
    )
    return page.read_text(encoding="utf-8"), page.parent, [run.clip.sha256 for run in runs]


def data_of(text: str) -> dict[str, list[dict[str, object]]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_page_makes_no_request_and_is_filled(tmp_path: Path) -> None:
    text, _, _ = build(tmp_path)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    assert "{{" not in text
    assert "tiny-tier scores" in text
    assert "commit abc; command &lt;cfbench&gt;" in text


def test_data_survives_any_prompt(tmp_path: Path) -> None:
    data = data_of(build(tmp_path)[0])
    prompts = {str(item["id"]): item for item in data["prompts"]}
    assert prompts["p0"]["segments"] == [
        {"text": "A red cube </script> stands.", "seconds": 20},
        {"text": "It turns.", "seconds": 40},
    ]
    assert prompts["p1"]["segments"] == [{"text": "p1", "seconds": 0}]
    assert [item["id"] for item in data["systems"]] == ["ours", "no-slow", "frozen"]
    assert [item["reference"] for item in data["systems"]] == [False, False, True]
    assert len(data["films"]) == 9


def test_films_are_linked_under_names_that_tell_nothing(tmp_path: Path) -> None:
    text, folder, shas = build(tmp_path)
    films = data_of(text)["films"]
    missing = [film for film in films if film["src"] is None]
    assert len(missing) == 1
    for film in films:
        if film["src"] is not None:
            source = str(film["src"])
            assert re.fullmatch(r"films/[0-9a-f]{20}\.mp4", source)
            assert (folder / source).read_bytes().decode() in shas
    assert opaque(shas[0]) not in shas[0]


def test_stale_films_go_and_links_repeat(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    film = tmp_path / "a.mp4"
    film.write_bytes(b"film")
    folder.mkdir()
    (folder / "old.mp4").write_bytes(b"old")
    first = link_films(folder, {"aa": film})
    assert link_films(folder, {"aa": film}) == first
    assert [path.name for path in folder.iterdir()] == [f"{opaque('aa')}.mp4"]


def test_film_scores_are_times_hundred_and_null_stays_null(tmp_path: Path) -> None:
    runs, scores = world({"ours": 0.8, "no-slow": 0.6}, prompts=1, seeds=(0,))
    kept = [item for item in scores if item.dimension != "scene"]
    frame = build_frame(runs, kept, "tiny")
    data = gallery_data(frame, unit_normaliser(), prompts={}, labels={}, sources={})
    film = next(film for film in data["films"] if film["system"] == "ours")
    assert film["scores"]["color"] == 80
    assert film["scores"]["scene"] is None
    assert film["scores"]["total"] == 80
    assert film["seconds"] == pytest.approx(969 / 16)
    page = render_gallery(data, title="t", about="a", header="h")
    assert data_of(page)["films"] == data["films"]


def test_parts_are_not_looked_into_and_must_exist() -> None:
    assert fill("a {{x}} b", {"x": "{{y}}"}) == "a {{y}} b"
    with pytest.raises(ValueError, match="template names 'z'"):
        fill("{{z}}", {"x": ""})
