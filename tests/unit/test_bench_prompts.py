import hashlib
import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from cfbench import prompts
from cfbench.errors import CfError
from cfbench.types import Prompt, Segment

SETS = Path(__file__).resolve().parents[2] / "prompts"


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_jsonl_with_text_or_segments(tmp_path: Path):
    file = write(
        tmp_path / "a.jsonl",
        {"id": "one", "text": "a red cube"},
        {
            "id": "two",
            "segments": [{"text": "x", "seconds": 3}, {"text": "y", "seconds": 4.5}],
            "stratum": "short",
            "scene": {"k": 1},
            "source": "s",
            "licence": "l",
        },
    )
    one, two = prompts.load(file)
    assert one.text == "a red cube"
    assert two.segments == (Segment(text="x", seconds=3.0), Segment(text="y", seconds=4.5))
    assert (two.stratum, two.scene, two.source, two.licence) == ("short", {"k": 1}, "s", "l")


def test_hash_is_of_the_canonical_prompt_and_the_prompt_comes_back(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", {"id": "a", "text": "é"}, {"text": "é", "id": "b"})
    a, b = prompts.load(file)
    assert prompts.parse(prompts.canonical(a), "x") == a
    assert prompts.sha256(a) != prompts.sha256(b)
    again = write(tmp_path / "b.jsonl", {"text": "é", "id": "a"})
    assert prompts.sha256(prompts.load(again)[0]) == prompts.sha256(a)


def test_text_file_ids_do_not_depend_on_the_line(tmp_path: Path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("a cube\n\na ball\n", encoding="utf-8")
    second.write_text("new\r\na ball\r\na cube", encoding="utf-8")
    assert set(prompts.load(first)) < set(prompts.load(second))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty; write one prompt a line"),
        ("a.txt", b"\n  \n", "is empty"),
        ("a.txt", b"ok\n\xff\xfe\n", ":2: not UTF-8; save the file as UTF-8"),
        ("a.txt", b"x" * 2001, ":1: text has 2001 characters; at most 2000"),
        ("a.txt", b"x\ny\nx\n", ":3: prompt id .* is also on line 1"),
        ("a.jsonl", b'{"id": "a", "text": "x"}\n{"id":\n', ":2: not JSON .* column 7"),
        ("a.jsonl", b"[1]\n", ":1: expected a JSON object"),
        ("a.jsonl", b'{"id": "A b", "text": "x"}', "id 'A b' does not match"),
        ("a.jsonl", b'{"id": "a"}', "expected either text or segments"),
        ("a.jsonl", b'{"id": "a", "text": " "}', "text is ' '"),
        ("a.jsonl", b'{"id": "a", "text": "x", "seed": 1}', r"unknown fields \['seed'\]"),
        ("a.jsonl", b'{"id": "a", "text": "x", "stratum": "no"}', "stratum 'no'"),
        ("a.jsonl", b'{"id": "a", "text": "x", "scene": 3}', "scene is not an object"),
        ("a.jsonl", b'{"id": "a", "text": "x", "source": 3}', "source is 3"),
        ("a.jsonl", b'{"id": "a", "segments": []}', "segments is"),
        (
            "a.jsonl",
            b'{"id": "a", "segments": [{"text": "x", "seconds": -1}]}',
            "seconds=-1; use a positive number",
        ),
        ("a.jsonl", b'{"id": "a", "segments": [{"text": "x"}]}', "expected text and seconds"),
        ("a.csv", b"x", "use .jsonl or .txt"),
    ],
)
def test_bad_files_are_named_with_the_line_and_the_remedy(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(CfError, match=message) as caught:
        prompts.load(file)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_file(tmp_path: Path):
    with pytest.raises(CfError, match="no prompt file"):
        prompts.load(tmp_path / "no.jsonl")


def test_limit_of_text_is_a_parameter(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", {"id": "a", "text": "x" * 10})
    with pytest.raises(CfError, match="at most 9"):
        prompts.load(file, max_chars=9)


def made(name: str, stratum: str) -> Prompt:
    segment = Segment(text=name, seconds=1)
    return Prompt(id=name, segments=(segment,), stratum=stratum)  # pyright: ignore[reportArgumentType]


def test_selection_is_balanced_and_grows_by_appending():
    strata = ["stay"] * 5 + ["short"] * 5 + ["long"] * 2
    all_prompts = [made(f"p{n}", stratum) for n, stratum in enumerate(strata)]
    chosen = [prompts.select(all_prompts, n) for n in range(1, 13)]
    for n, some in enumerate(chosen, 1):
        assert len(some) == n
        assert some == chosen[-1][:n]
    assert [p.stratum for p in chosen[5]] == ["stay", "short", "long"] * 2
    assert len({p.id for p in chosen[-1]}) == 12
    assert [p.id for p in prompts.select(all_prompts, 3, stratified=False)] == ["p0", "p1", "p2"]
    with pytest.raises(CfError, match="the file holds 12"):
        prompts.select(all_prompts, 13)


def test_choose_takes_a_file_or_a_number(tmp_path: Path, monkeypatch):
    file = write(tmp_path / "a.jsonl", *({"id": f"p{n}", "text": "x"} for n in range(3)))
    monkeypatch.setattr(prompts, "DEFAULT_SET", file)
    assert [p.id for p in prompts.choose("2")] == ["p0", "p1"]
    assert len(prompts.choose(str(file))) == 3
    assert len(prompts.choose(str(file), 1)) == 1
    for wanted in ("0", "-1", "4"):
        with pytest.raises(CfError, match="the file holds 3"):
            prompts.choose(wanted)
    with pytest.raises(CfError, match="give one number"):
        prompts.choose("2", 1)


def test_the_standard_suite_is_read_without_importing_its_package(tmp_path, monkeypatch):
    (tmp_path / "vbench").mkdir()
    (tmp_path / "vbench" / "__init__.py").write_text("raise RuntimeError('imported')")
    rows = [
        {"prompt_en": "a cat", "dimension": ["subject_consistency"]},
        {
            "prompt_en": "a dog", "dimension": ["scene", "overall_consistency"],
            "auxiliary_info": {"scene": {"scene": {"scenery": "alley"}}},
        },
    ]  # fmt: skip
    file = tmp_path / "vbench" / "VBench_full_info.json"
    file.write_text(json.dumps(rows))
    monkeypatch.syspath_prepend(tmp_path)
    found = prompts.choose("vbench")
    assert [(p.id, p.segments[0].text) for p in found] == [
        ("vbench-0000", "a cat"), ("vbench-0001", "a dog")
    ]  # fmt: skip
    asked = {"scene": {"scene": {"scenery": "alley"}}, "overall_consistency": None}
    assert [p.vbench for p in found] == [{"subject_consistency": None}, asked]
    assert prompts.parse(prompts.canonical(found[1]), "here") == found[1]
    assert [p.id for p in prompts.choose("vbench:scene")] == ["vbench-0001"]
    with pytest.raises(CfError, match="no dimension 'none'; it has overall_consistency, scene"):
        prompts.choose("vbench:none")
    file.write_text("{")
    with pytest.raises(CfError, match=r"has no VBench_full_info\.json that can be read"):
        prompts.choose("vbench")
    monkeypatch.undo()
    if importlib.util.find_spec("vbench") is None:
        with pytest.raises(CfError, match="is not installed"):
            prompts.choose("vbench")


def test_prompts_that_vbench_does_not_score_keep_their_hashes():
    prompt = prompts.load(SETS / "tiny-test.jsonl")[0]
    assert b"vbench" not in prompts.canonical(prompt)
    with pytest.raises(CfError, match="expected an object with VBench's dimensions"):
        prompts.parse(b'{"id": "a", "text": "b", "vbench": {"beauty": null}}', "here")
    with pytest.raises(CfError, match="it names no style"):
        prompts.parse(b'{"id": "a", "text": "b", "vbench": {"appearance_style": null}}', "here")


def test_sets_are_listed_with_their_hashes():
    listed = (SETS / "README.md").read_text(encoding="utf-8")
    files = sorted(SETS.glob("*.jsonl"))
    assert len(files) == 3
    for file in files:
        assert f"`{file.name}`" in listed
        assert hashlib.sha256(file.read_bytes()).hexdigest() in listed


def test_long_prompts_are_what_their_list_says():
    found = prompts.load(SETS / "long.jsonl")
    back = [p for p in found if p.stratum == "long"]
    assert (len(found), len(back)) == (100, 34)
    assert {p.licence for p in found} == {"Apache-2.0"}
    words = [len(p.segments[0].text.split()) for p in found]
    assert min(words) >= 60
    assert max(words) <= 110
    openings = Counter(" ".join(p.segments[0].text.split()[:3]) for p in found)
    assert max(openings.values()) == 1
