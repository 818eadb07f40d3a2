import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cfbench import video
from cfbench.aggregate import DIMENSIONS, normaliser_bytes
from cfbench.analysis.compare import Case, Comparison, compare
from cfbench.analysis.compare_page import render, write_comparison
from cfbench.curves import CURVES
from cfbench.frame import build_frame
from cfbench.prompts import canonical
from cfbench.stats import deltas, holm, prompt_differences
from cfbench.store import open_store
from cfbench.types import Prompt, RunRecord, Score, Segment
from tests.helpers.bench import cfbench
from tests.helpers.reports import UNIT_RANGES, unit_normaliser, world

GAINS = (-0.2, 0.1, 0.3, 0.0, -0.05, 0.15)  # of A over B by prompt


def records(
    prompts: int = 6, seeds: tuple[int, ...] = (0, 1)
) -> tuple[list[RunRecord], list[Score]]:
    """A differs from B by a gain a prompt, and by 0.02 more in its second seed."""
    runs, scores = world({"a": 0.5, "b": 0.5, "c": 0.1}, prompts=prompts, seeds=seeds)
    gains = {
        run.clip.sha256: GAINS[int(run.prompt_id[1:])] + 0.02 * run.seed
        for run in runs
        if run.system == "a"
    }
    changed = [
        dataclasses.replace(
            item,
            value=(item.value or 0) + gains.get(item.clip_sha, 0.0),
            windows=tuple(
                dataclasses.replace(w, value=(w.value or 0) + gains.get(item.clip_sha, 0.0))
                for w in item.windows
            ),
        )
        for item in scores
    ]
    return runs, changed


def found(**kw: int) -> Comparison:
    runs, scores = records()
    return compare(
        build_frame(runs, scores, "tiny"), unit_normaliser(), ("a", "b"), resamples=300, **kw
    )


def test_rows_are_paired_differences() -> None:
    rows = {row.name: row for row in found().rows}
    assert list(rows) == ["total", *DIMENSIONS]
    mean = float(np.mean(GAINS)) + 0.01
    for row in rows.values():
        value = row.paired.mean.value
        assert value == pytest.approx(mean)
        assert row.a is not None
        assert row.b is not None
        assert row.a - row.b == pytest.approx(mean)
        assert row.paired.mean.low is not None
        assert row.paired.mean.high is not None
        assert row.paired.mean.low < mean < row.paired.mean.high
        assert (row.paired.scored, row.paired.expected, row.paired.prompts) == (12, 12, 6)


def test_p_is_adjusted_over_dimensions_and_not_for_the_total() -> None:
    rows = {row.name: row for row in found().rows}
    p = rows["total"].paired.p
    assert p is not None
    assert rows["total"].p_holm == p
    assert rows["color"].p_holm == pytest.approx(holm([p] * len(DIMENSIONS))[0])
    total, one = rows["total"].power, rows["color"].power
    assert total is not None
    assert one is not None
    assert total.prompts == 6
    assert one.detectable > total.detectable


def test_best_and_worst_prompts() -> None:
    result = found()
    assert [case.prompt for case in result.best] == ["p2", "p5", "p1"]
    assert [case.prompt for case in result.worst] == ["p0", "p4", "p3"]
    best = result.best[0]
    assert best.difference == pytest.approx(0.31)
    assert best.seeds == 2
    assert best.totals[0] - best.totals[1] == pytest.approx(0.3 + 0.02 * best.seed)
    few = found(shown=1)
    assert ([c.prompt for c in few.best], [c.prompt for c in few.worst]) == (["p2"], ["p0"])


def test_a_single_prompt_is_best_and_there_is_no_worst() -> None:
    runs, scores = records(prompts=1, seeds=(0,))
    one = compare(build_frame(runs, scores, "tiny"), unit_normaliser(), ("a", "b"))
    assert ([case.prompt for case in one.best], one.worst) == (["p0"], ())
    assert one.rows[0].power is None


def test_curves_and_their_gap() -> None:
    result = found()
    assert [curve.system for curve in result.curves["dino_first"]] == ["a", "b"]
    (gap,) = result.gaps
    assert gap.dimension in CURVES
    for mean in gap.means:
        assert mean.value == pytest.approx(float(np.mean(GAINS)) + 0.01)


def test_films_that_only_one_has_do_not_count() -> None:
    a = {("p", 0): 0.5, ("p", 1): 0.9, ("q", 0): None, ("r", 0): 0.1}
    b = {("p", 0): 0.2, ("p", 1): 0.4, ("q", 0): 0.3, ("s", 0): 0.1}
    assert deltas(a, b) == pytest.approx({("p", 0): 0.3, ("p", 1): 0.5})
    assert prompt_differences(a, b) == pytest.approx([0.4])
    assert len(prompt_differences({}, b)) == 0


@pytest.mark.parametrize(
    ("systems", "words"),
    [(("a", "a"), "with itself"), (("a", "x"), "no films of 'x'; the run has a, b, c")],
)
def test_systems_are_checked(systems: tuple[str, str], words: str) -> None:
    runs, scores = records()
    with pytest.raises(ValueError, match=words):
        compare(build_frame(runs, scores, "tiny"), unit_normaliser(), systems)


def test_unscored_films_are_named() -> None:
    runs, _ = records()
    with pytest.raises(ValueError, match="share no scored prompt"):
        compare(build_frame(runs, [], "tiny"), unit_normaliser(), ("a", "b"))


def blocks(shade: int) -> Iterator[video.Frames]:
    yield np.full((16, 32, 48, 3), shade, np.uint8)


def fill_store(root: Path) -> None:
    runs, scores = records(seeds=(0,))
    prompt = Prompt(id="p2", segments=(Segment(text="A <red> cube & a tower.", seconds=60),))
    with open_store(root, exists=False) as store:
        sha = store.put_bytes(canonical(prompt), "json")
        hashes: dict[str, str] = {}
        for shade, run in enumerate(runs):
            path = store.scratch("mp4")
            clip = video.encode(path, blocks(12 * shade), 16)
            store.put(path, clip.sha256, "mp4")
            hashes[run.clip.sha256] = clip.sha256
            store.append("runs", dataclasses.replace(run, clip=clip, prompt_sha=sha))
        for item in scores:
            store.append("scores", dataclasses.replace(item, clip_sha=hashes[item.clip_sha]))


class Tags(HTMLParser):
    """Every tag must be closed in order; void ones never are."""

    void = frozenset(("meta", "link", "img", "br", "input"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    fill_store(root / "store")
    (root / "unit.json").write_bytes(normaliser_bytes("unit", clamp=True, ranges=UNIT_RANGES))
    write_comparison(
        root / "store", root / "page", ("a", "b"), tier="tiny",
        normaliser=root / "unit.json", header="commit abc; <command>",
    )  # fmt: skip
    return root


def test_page_is_whole_and_makes_no_request(made: Path) -> None:
    text = (made / "page" / "index.html").read_text(encoding="utf-8")
    assert "{{" not in text
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert (tags.seen.count("article"), tags.seen.count("video")) == (6, 12)
    links = re.findall(r'(?:href|src)="([^"#:]+)"', text)
    assert len(links) >= 16
    for link in links:
        assert (made / "page" / link).is_file(), link
    assert "A &lt;red&gt; cube &amp; a tower." in text
    assert "commit abc; &lt;command&gt;" in text
    assert "Power: 6 prompts find" in text


def test_films_that_are_gone_are_named(tmp_path: Path) -> None:
    runs, scores = records(prompts=2, seeds=(0,))
    result = compare(build_frame(runs, scores, "tiny"), unit_normaliser(), ("a", "b"))
    text = render(result, ("A", "B"), to=tmp_path, tier="tiny", prompts={}, sources={}, header="")
    assert text.count("this film is not in the store") == 4
    assert "2 prompts are too few for an interval" in text
    assert "<img" not in text
    assert isinstance(result.best[0], Case)


def test_verb(made: Path) -> None:
    options = ("--out", made / "store", "--to", made / "again", "--normaliser", made / "unit.json")
    done = cfbench("compare", "a", "b", *options, "--json")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert tree["best"] == ["p2", "p5", "p1"]
    assert tree["rows"]["total"]["value"] == pytest.approx(float(np.mean(GAINS)))
    assert (made / "again" / "curves.png").is_file()
    wrong = cfbench("compare", "a", "nobody", *options)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "no films of 'nobody'" in wrong.stderr
