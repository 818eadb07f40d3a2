import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfbench import video
from cfbench.aggregate import normaliser_bytes
from cfbench.analysis.consistency import CLIP_S
from cfbench.analysis.drift import Series
from cfbench.analysis.events import Event
from cfbench.analysis.survey import Behaviour
from cfbench.curves import CURVES
from cfbench.errors import CfError
from cfbench.extras import Extras, gather
from cfbench.findings import analyse
from cfbench.frame import build_frame, current_runs
from cfbench.packed import pack, unpack
from cfbench.page import render_page
from cfbench.progress import Reporter
from cfbench.prompts import canonical
from cfbench.readme import BEGIN, END, PICTURE, PICTURE_BEGIN, PICTURE_END, between
from cfbench.recall import Answer, Task
from cfbench.report import ReportResult, check, report, warnings_of
from cfbench.scorers.tiny.recall import ATTRIBUTES
from cfbench.sheet import HEAD_PX, SIDE_PX, choose_film, frames_at, montage
from cfbench.store import open_store
from cfbench.types import Prompt, Segment
from tests.helpers.reports import UNIT_RANGES, run, world

SKILLS = {"ours": 0.8, "no-slow": 0.6, "frozen": 0.3}


def blocks(shade: int, seconds: int = 3) -> Iterator[video.Frames]:
    film = np.full((16 * seconds, 32, 48, 3), shade, np.uint8)
    film[16:32] = 255 - shade  # the second second is another colour
    yield film


def fill_store(root: Path, skills: dict[str, float]) -> None:
    runs, scores = world(skills, prompts=3, seeds=(0,))
    with open_store(root, exists=False) as store:
        text = Prompt(id="p0", segments=(Segment(text="A cube.", seconds=60),))
        prompt_sha = store.put_bytes(canonical(text), "json")
        hashes: dict[str, str] = {}
        for shade, run_ in enumerate(runs):
            path = store.scratch("mp4")
            clip = video.encode(path, blocks(20 * shade), 16)
            store.put(path, clip.sha256, "mp4")
            hashes[run_.clip.sha256] = clip.sha256
            changed = dataclasses.replace(run_, clip=clip, prompt_sha=prompt_sha)
            store.append("runs", changed)
        for item in scores:
            store.append("scores", dataclasses.replace(item, clip_sha=hashes[item.clip_sha]))


def make(root: Path, **changes: object) -> ReportResult:
    normaliser = root / "unit.json"
    normaliser.write_bytes(normaliser_bytes("unit", clamp=True, ranges=UNIT_RANGES))
    fields: dict[str, object] = {
        "suite": "tiny",
        "command": "cfbench report",
        "commit": "abc",
        "absent": {"no-cdmd": "weights not trained yet"},
        "normaliser": normaliser,
    }
    return report(root / "store", root / "report", **{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReportResult]:
    root = tmp_path_factory.mktemp("report")
    fill_store(root / "store", SKILLS)
    readme = root / "README.md"
    picture = f"{PICTURE_BEGIN}\nold\n{PICTURE_END}\n"
    readme.write_text(f"before\n{picture}{BEGIN}\nold\n{END}\nafter\n")
    return root, make(root, readme=readme)


def test_one_call_writes_everything(made: tuple[Path, ReportResult]) -> None:
    root, result = made
    out = root / "report"
    assert (result.films, result.systems) == (9, ("frozen", "no-slow", "ours"))
    for name in (*result.files, "tables/scores.parquet", "plots/contact-sheet.png"):
        assert (out / name).stat().st_size > 0, name
    assert {"tables/ablation-long.tex", "tables/dimensions.md"} <= set(result.files)
    assert result.warnings == ()
    assert (out / "plots" / "time.pdf").is_file()


def test_page_is_static_and_its_links_exist(made: tuple[Path, ReportResult]) -> None:
    page = made[1].page.read_text(encoding="utf-8")
    assert not re.search(r"https?:", page)
    links = re.findall(r'(?:href|src)="([^"#:]+)"', page)
    assert len(links) > 15
    for link in links:
        assert not link.startswith("/")
        assert (made[1].page.parent / link).is_file(), link
    assert "weights not trained yet" in page
    assert "not VBench scores" in page


def test_readme_gets_picture_and_table(made: tuple[Path, ReportResult]) -> None:
    root, _ = made
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"before\n{PICTURE_BEGIN}\n![Films of one prompt: Label of ours, ")
    assert f"({PICTURE.as_posix()})\n{PICTURE_END}\n{BEGIN}\n<!-- commit abc; " in text
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    table = (root / "report" / "tables" / "ablation.md").read_text(encoding="utf-8")
    assert between(text, BEGIN, END, table) == text
    image = cv2.imread(str(root / PICTURE))
    assert image is not None
    # Three rows of 32 x 48 pixels at seven times, 2 pixels apart, under a head and beside labels.
    assert image.shape == (HEAD_PX + 3 * 34 - 2, SIDE_PX + 7 * 50 - 2, 3)


def test_a_readme_without_markers_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    fill_store(tmp_path / "store", {"ours": 0.4})
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    with pytest.raises(ValueError, match=r"picture:begin.*add the two lines"):
        make(tmp_path, readme=readme)
    assert readme.read_text() == f"{BEGIN}\n{END}\n"
    assert not (tmp_path / "report").exists()


def test_check_finds_an_edited_and_a_missing_table(made: tuple[Path, ReportResult]) -> None:
    root, _ = made
    out, normaliser = root / "report", root / "unit.json"
    assert check(root / "store", out, normaliser=normaliser) == []
    path = out / "tables" / "ablation.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("81.00", "91.00", 1), encoding="utf-8")
    curves = out / "tables" / "curves.csv"
    kept = curves.read_text(encoding="utf-8")
    curves.unlink()
    wrong = check(root / "store", out, normaliser=normaliser)
    path.write_text(text, encoding="utf-8")
    curves.write_text(kept, encoding="utf-8")
    assert wrong == ["tables/ablation.csv", "tables/curves.csv"]


EVENT = Event("flashback", 1.0, 2.0, 0.5)
STEADY = tuple(
    Series(name, np.arange(5) * 2.0, np.full(5, 0.5))
    for name in ("exposure", "saturation", "sharpness")
)
STILL = Behaviour(10.0, (), dynamic=False, own=None, reason="r", series=STEADY, clips=0.75)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, made: tuple[Path, ReportResult]) -> Path:
    """A report without films, with an event and answers of the recall probe."""
    tmp_path = tmp_path_factory.mktemp("whole")
    store = open_store(made[0] / "store")
    films = [run_.clip.sha256 for run_ in store.runs()]
    shares = dict.fromkeys(ATTRIBUTES, 0.5)
    answers = [
        Answer(Task(name, number, 3.0, 0, "forced", "k"), 6.0, shares, {})
        for name in ("tiny/ours", "codec-truth", "another-scene")
        for number in range(2)
    ]
    beside = Extras(
        answers=tuple(answers),
        features="tiny",
        changes={"p0": (4.0,)},
        films={sha: STILL._replace(events=(EVENT,) if sha == films[0] else ()) for sha in films},
    )
    (tmp_path / "unit.json").write_bytes((made[0] / "unit.json").read_bytes())
    (tmp_path / "store").symlink_to(made[0] / "store")
    make(tmp_path, films=False, beside=beside)
    return tmp_path / "report"


def test_a_report_without_films_is_made_again_from_its_own_inputs(whole: Path) -> None:
    normaliser = whole.parent / "unit.json"
    assert check(whole / "nowhere", whole, normaliser=normaliser) == []
    assert not (whole / "gallery").exists()
    assert not (whole / "plots" / "contact-sheet.png").exists()
    page = (whole / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:", page)
    for link in re.findall(r'(?:href|src)="([^"#:]+)"', page):
        assert (whole / link).is_file(), link
    assert "What films do" in page
    assert "Paired differences and power" in page
    assert "<caption>Similarity to the first frame</caption>" in page
    assert ",75.00," in (whole / "tables" / "behaviour.csv").read_text()
    for name in ("events", "drift"):
        assert (whole / "plots" / f"{name}.pdf").is_file()
    assert "83.64<sup>" in page  # a Total of the paper that breaks the formula
    assert "flashback,1.0,2.0,0.5," in (whole / "tables" / "events.csv").read_text()
    assert (whole / "plots" / "forgetting.pdf").is_file()


def test_every_edit_of_a_report_without_films_is_found(whole: Path) -> None:
    edits = {
        "tables/ablation.tex": lambda raw: raw.replace(b"81.0", b"91.0"),
        "plots/time.png": lambda raw: raw[:-40] + b"x" + raw[-39:],
        "index.html": lambda raw: raw + b"more",
        "extra.csv": lambda raw: b"a",
        # What follows from an edited input is found too.
        "inputs/survey.json": lambda raw: raw.replace(b"flashback", b"loop"),
    }
    for name, edit in edits.items():
        path = whole / name
        path.write_bytes(edit(path.read_bytes() if path.exists() else b""))
    follows = {
        "report.json", "tables/events.csv", "plots/events.png", "plots/events.pdf",
        *(f"tables/behaviour.{kind}" for kind in ("csv", "md", "tex")),
    }  # fmt: skip
    wrong = check(whole / "nowhere", whole, normaliser=whole.parent / "unit.json")
    assert set(wrong) == {*edits, *follows} - {"inputs/survey.json"}
    (whole / "inputs" / "records.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="make it again"):
        check(whole / "nowhere", whole, normaliser=whole.parent / "unit.json")


def test_records_come_back(tmp_path: Path, made: tuple[Path, ReportResult]) -> None:
    """Runs as they were, scores as float32; and what is packed again is the same file."""
    store = open_store(made[0] / "store")
    count = pack(store, tmp_path / "a.parquet", "tiny")
    again = unpack(tmp_path / "a.parquet", tmp_path / "again")
    assert again.runs() == current_runs(store.runs())
    assert len(again.runs()) == count > 0
    before, after = (build_frame(x.runs(), x.scores(), "tiny") for x in (store, again))
    assert after.dimensions == before.dimensions
    np.testing.assert_allclose(after.values_ND, before.values_ND, rtol=1e-6)
    assert (after.applies_ND == before.applies_ND).all()
    assert after.reasons == before.reasons
    for (sha, name), windows in before.windows.items():
        mine = after.windows[sha, name]
        assert (len(mine) == len(windows)) == (name in CURVES or not windows)
        if name in CURVES:
            assert [(w.start_s, w.end_s) for w in mine] == [(w.start_s, w.end_s) for w in windows]
    assert pack(store, tmp_path / "c.parquet", "tiny", ["ours"]) < count
    assert {run.system for run in unpack(tmp_path / "c.parquet", tmp_path / "c").runs()} == {"ours"}
    with pytest.raises(ValueError, match="no films of other"):
        pack(store, tmp_path / "c.parquet", "tiny", ["other"])
    with pytest.raises(ValueError, match="has records"):
        unpack(tmp_path / "a.parquet", tmp_path / "again")
    pack(again, tmp_path / "b.parquet", "tiny")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_films_of_several_machines_are_packed_together(
    tmp_path: Path, made: tuple[Path, ReportResult]
) -> None:
    whole = open_store(made[0] / "store")
    runs = [
        dataclasses.replace(run, environment={**run.environment, "scored_on": f"gpu {k % 2}"})
        for k, run in enumerate(current_runs(whole.runs()))
    ]
    with open_store(tmp_path / "two", exists=False) as store:
        store.append("runs", *runs)
        store.append("scores", *whole.scores())
    pack(open_store(tmp_path / "two"), tmp_path / "a.parquet", "tiny")
    assert unpack(tmp_path / "a.parquet", tmp_path / "again").runs() == runs


def test_answers_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    quiet = Reporter(quiet=True)
    with pytest.raises(CfError, match="no answers"):
        gather(tmp_path, "tiny", recall=tmp_path, survey_films=False, workers=1, reporter=quiet)


def test_events_of_a_runs_films(made: tuple[Path, ReportResult]) -> None:
    found = gather(
        made[0] / "store", "tiny", recall=None, survey_films=True, workers=1,
        reporter=Reporter(quiet=True),
    )  # fmt: skip
    assert len(found.films) == 9
    for film in found.films.values():
        assert (film.clips is None) == (film.seconds < 2 * CLIP_S)
    kinds = {event.kind for film in found.films.values() for event in film.events}
    assert kinds <= {"flashback", "freeze"}


def test_frozen_above_ours_is_a_warning(tmp_path: Path) -> None:
    fill_store(tmp_path / "store", {"ours": 0.4, "frozen": 0.9})
    normaliser = tmp_path / "unit.json"
    normaliser.write_bytes(normaliser_bytes("unit", clamp=True, ranges=UNIT_RANGES))
    analysis = analyse(
        open_store(tmp_path / "store"),
        suite="tiny",
        paper=False,
        header="h",
        absent={},
        normaliser=normaliser,
    )
    warnings = warnings_of(analysis)
    assert len(warnings) == 1
    assert "A frozen first frame scores 91.0 on Total and ours 41.0" in warnings[0]
    page = render_page(
        "{{body}}",
        tmp_path,
        analysis.all_tables,
        warnings=warnings,
        facts={"a": "<b>"},
        tier="tiny",
    )
    assert page.startswith(f'<p class="warning">{warnings[0]}</p>')
    assert "<dt>a</dt><dd>&lt;b&gt;</dd>" in page


def test_input_errors_name_the_remedy(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", exists=False) as store:
        store.append("scores", world({"ours": 0.4}, prompts=1)[1][0])
    with pytest.raises(ValueError, match="run cfbench generate"):
        make(tmp_path)
    with pytest.raises(ValueError, match="use one of"):
        make(tmp_path, suite="pixel")
    with pytest.raises(ValueError, match="no report in"):
        check(tmp_path / "store", tmp_path / "report")
    with pytest.raises(ValueError, match="add the two lines"):
        between(f"{END} {BEGIN}", BEGIN, END, "x")


def test_sheet_takes_the_frames_of_its_times(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    video.encode(path, blocks(30), 16)
    images = frames_at(path, (0.0, 1.5, 10.0))
    means = [float(image.mean()) for image in images]
    assert means == pytest.approx([30, 225, 30], abs=3)
    sheet = montage([images, images], gap=2)
    assert sheet.shape == (2 * 32 + 2, 3 * 48 + 4, 3)
    with pytest.raises(ValueError, match="expected one size"):
        montage([[images[0]], [images[0][:16]]])


def test_sheet_prefers_the_film_most_systems_have() -> None:
    runs = [run("ours", 0), run("ours", 1), run("no-slow", 1), run("ours", 2), run("no-slow", 2)]
    assert choose_film(runs) == ("p2", 0)  # p1 is of the short stratum, p2 of the long one
    assert choose_film([]) is None
