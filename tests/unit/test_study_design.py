"""A study's films, design and assignment."""

import dataclasses
import json
import random

import av
import pytest

from cfbench.errors import CfError
from cfbench.study import assign, films, toy
from cfbench.study.assign import Counts, Item
from cfbench.study.design import DESIGN, MEDIA, SEAL, Spec, build, hash_of, load, read_spec
from cfbench.study.tables import design_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    to = tmp_path_factory.mktemp("toy")
    toy.make(to, prompts=6, spec=Spec(block_pairs=8))
    return to


@pytest.fixture(scope="module")
def design(folder):
    return load(folder / "study")[0]


def test_films_are_alike_to_the_byte_and_still_films(folder, design):
    paths = [folder / "study" / MEDIA / medium.file for medium in design.media.values()]
    films.check_alike(paths)
    assert len({medium.bytes for medium in design.media.values()}) == 1
    assert len({medium.sha256 for medium in design.media.values()}) == len(paths) == 19
    for path in paths:
        with av.open(str(path)) as film:
            assert sum(1 for _ in film.decode(video=0)) == 16


def test_films_that_differ_are_refused(folder, tmp_path, design):
    source = next((folder / "study" / MEDIA).iterdir())
    short = tmp_path / "short.mp4"
    films.make(source, short, 8)
    with pytest.raises(CfError, match=r"short\.mp4 has frames 8 instead of 16"):
        films.check_alike([source, short])


def test_a_changed_film_or_design_is_refused(folder, tmp_path, design):
    study = tmp_path / "study"
    build(folder / "run", study, Spec())
    medium = study / MEDIA / next(iter(load(study)[0].media.values())).file
    content = medium.read_bytes()
    medium.write_bytes(content[:-1] + b"x")
    with pytest.raises(CfError, match="has changed since the design was sealed"):
        films.check_whole(study / MEDIA, load(study)[0].media)
    text = (study / DESIGN).read_text().replace('"target_votes": 30', '"target_votes": 3')
    (study / DESIGN).write_text(text)
    with pytest.raises(CfError, match="has changed since it was sealed"):
        load(study)
    with pytest.raises(CfError, match="holds a study"):
        build(folder / "run", study, Spec())


def test_a_design_reads_back_as_it_was_written(folder, design):
    content = (folder / "study" / DESIGN).read_bytes()
    assert design_of(json.loads(content)) == design
    assert (folder / "study" / SEAL).read_text().strip() == hash_of(content)


def test_the_same_seed_gives_the_same_design(folder, tmp_path, design):
    again = build(folder / "run", tmp_path / "study", Spec(block_pairs=8))
    assert again == design


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"colour": 1}, "unknown keys"),
        ({"questions": [{"text": "no id"}]}, "missing"),
        ({"exclusion": {"speed": 1}}, "speed"),
        ({"comparisons": ["ours"]}, "unpack"),
        ([], "JSON object"),
    ],
)
def test_a_wrong_design_file_is_refused_in_one_line(tmp_path, tree, message):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(CfError, match=message):
        read_spec(path)


def test_a_system_without_films_is_named(folder, tmp_path):
    with pytest.raises(CfError, match="no films of causvid; it has infinity-rope, longlive, ours"):
        build(folder / "run", tmp_path / "study", Spec(comparisons=(("ours", "causvid"),)))


def raters(design, count):
    """Blocks of raters who come one after the other."""
    given, left, blocks = {}, {}, []
    for rater in range(count):
        block = assign.next_block(design, Counts(given, left), (), 0, 0, str(rater))
        for item in block:
            given[item.pair] = given.get(item.pair, 0) + 1
            left[item.pair] = left.get(item.pair, 0) + (item.side == "left")
        blocks.append(block)
    return blocks, Counts(given, left)


def test_cells_and_sides_are_balanced(design):
    mains = {pair.id: pair for pair in design.pairs if pair.kind == "main"}
    blocks, counts = raters(design, 60)
    assert max(counts.given[p] for p in mains) - min(counts.given[p] for p in mains) <= 1
    # Each rater's own halves are kept first, so a pair may lean by a few raters of 40.
    assert max(abs(counts.lean(pair)) for pair in mains) <= 4
    for block in blocks:
        shown = [item for item in block if item.pair in mains]
        cells = {(mains[item.pair].comparison, mains[item.pair].prompt) for item in shown}
        assert len(cells) == len(shown) == 8
        for comparison in design.comparisons:
            sides = [i.side for i in shown if mains[i.pair].comparison == comparison.name]
            assert abs(sides.count("left") - sides.count("right")) <= 1


def test_checks_stand_where_they_should(design):
    for block in raters(design, 40)[0]:
        kinds = [design.pair(item.pair).kind for item in block]
        assert kinds.count("instruction") == 2
        assert kinds.count("repeat") == kinds.count("obvious") == 1
        assert kinds[0] == "main"
        assert [item.order for item in block] == list(range(12))
        place = kinds.index("repeat")
        (first,) = [item for item in block if item.pair == block[place].of]
        assert first.side != block[place].side
        assert place - first.order > assign.REPEAT_AFTER
        assert assign.films(design, block[place]) == assign.films(design, first)[::-1]


def test_later_blocks_show_what_is_left_and_no_checks(design):
    first = assign.next_block(design, Counts({}, {}), (), 0, 0, "a")
    seen = {item.pair for item in first}
    second = assign.next_block(design, Counts({}, {}), seen, len(first), 1, "a")
    assert len(second) == 4
    assert not {item.pair for item in second} & seen
    assert {design.pair(item.pair).kind for item in second} == {"main"}
    seen |= {item.pair for item in second}
    assert assign.next_block(design, Counts({}, {}), seen, 16, 2, "a") == ()


def test_an_odd_rater_gets_the_side_that_the_study_lacks(design):
    pair = next(pair for pair in design.pairs if pair.kind == "main")
    many_left = Counts({pair.id: 5}, {pair.id: 5})
    assert assign.balance(design, [pair], many_left, random.Random(0)) == {pair.id: "right"}
    many_right = Counts({pair.id: 5}, {pair.id: 0})
    assert assign.balance(design, [pair], many_right, random.Random(0)) == {pair.id: "left"}


def test_sides_follow_the_item(design):
    pair = next(pair for pair in design.pairs if pair.kind == "main")
    item = Item(0, 0, pair.id, "", "right")
    assert assign.films(design, item) == (pair.other, pair.ours)
    assert dataclasses.asdict(pair)["comparison"] == "comparison-0"
