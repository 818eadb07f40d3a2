import json
from dataclasses import replace

import pytest

from cfbench.errors import CfError
from cfbench.study.answers import (
    exclusions,
    kept,
    load_answers,
    outcome,
    rater_reasons,
    repeats,
    was_watched,
)
from cfbench.study.tables import Exclusion
from tests.helpers.raters import answers, design, session, simulate, vote, write_export

PLAN = design(prompts=3)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_every_format_reads_back_the_same_records(tmp_path, kind):
    made = simulate(PLAN, raters=3, seed=0)
    found = load_answers(write_export(tmp_path, made, (kind,)))
    assert found.votes == made.votes
    assert found.sessions == made.sessions
    assert found.design == made.design


@pytest.mark.parametrize(
    ("answer", "side", "expected"),
    [
        ("left", "left", 1.0),
        ("left", "right", 0.0),
        ("right", "right", 1.0),
        ("right", "left", 0.0),
        ("tie", "left", 0.5),
        ("cannot", "right", None),
    ],
)
def test_outcome_follows_from_answer_and_side(answer, side, expected):
    assert outcome(vote("r", "c0-p0", answer, side_of_ours=side)) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair": "c0-p99"}, "not a vote of this design"),
        ({"question": "q9"}, "not a vote of this design"),
        ({"answer": "both"}, "not a vote of this design"),
        ({"comparison": "c9"}, "no comparison 'c9'"),
        ({"side_of_ours": ""}, "no side; export the study again"),
    ],
)
def test_votes_that_the_design_cannot_have_asked_for_are_refused(tmp_path, change, message):
    made = answers(PLAN, [replace(vote("r", "c0-p0"), **change)])
    with pytest.raises(CfError, match=message):
        load_answers(write_export(tmp_path, made))


def test_doubled_votes_are_refused(tmp_path):
    made = answers(PLAN, [vote("r", "c0-p0"), vote("r", "c0-p0", "right")])
    with pytest.raises(CfError, match="2 votes of r on c0-p0, q0"):
        load_answers(write_export(tmp_path, made))


def test_another_design_than_the_votes_were_given_under_is_refused(tmp_path):
    folder = write_export(tmp_path / "export", answers(PLAN, [vote("r", "c0-p0")]))
    other = tmp_path / "design.json"
    other.write_text(json.dumps(replace(PLAN, title="changed").tree()))
    with pytest.raises(CfError, match="is not the design that"):
        load_answers(folder, other)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(CfError, match=r"design.json.*--design"):
        load_answers(tmp_path)
    folder = write_export(tmp_path, answers(PLAN, [vote("r", "c0-p0")]))
    (folder / "votes.jsonl").write_text("{broken\n")
    with pytest.raises(CfError, match=r"votes\.jsonl is no JSON"):
        load_answers(folder)
    (folder / "votes.jsonl").write_text('{"session": "r"}\n')
    with pytest.raises(CfError, match="row 1: columns"):
        load_answers(folder)
    (folder / "votes.jsonl").unlink()
    with pytest.raises(CfError, match="no votes table"):
        load_answers(folder)


def test_an_attentive_rater_stays():
    assert rater_reasons(PLAN, [vote("r", "c0-p0"), vote("r", "c0-p1", "tie")]) == ()
    assert rater_reasons(PLAN, []) == ()


def test_each_rule_has_its_reason():
    check = {"kind": "instruction", "expected": "left"}
    failed = [vote("r", name, "right", **check) for name in ("i0", "i1")]
    assert rater_reasons(PLAN, failed[:1]) == ()
    assert rater_reasons(PLAN, failed) == ("failed 2 instruction checks; at most 1",)
    obvious = vote("r", "obvious", "tie", kind="obvious", expected="left")
    assert rater_reasons(PLAN, [obvious]) == ("failed 1 obvious checks; at most 0",)
    # The other questions about an obvious pair have no right answer.
    assert rater_reasons(PLAN, [replace(obvious, question="q1")]) == ()
    hasty = [vote("r", f"c0-p{p}", response_s=1.0) for p in range(3)]
    assert rater_reasons(PLAN, hasty) == ("median of 1.0 s a pair; at least 2 s",)
    away = [vote("r", "c0-p0", hidden_s=60.0)]
    assert rater_reasons(PLAN, away) == ("hidden 86% of the time; at most 50%",)
    strict = replace(PLAN, exclusion=Exclusion(least_repeat=0.5))
    again = vote("r", "repeat", "left", kind="repeat", of="c0-p0", side_of_ours="right")
    found = rater_reasons(strict, [vote("r", "c0-p0", "left"), again])
    assert found == ("repeated 0% of answers; at least 50%",)


def test_times_of_a_pair_are_counted_once_and_not_by_question():
    by_question = [
        vote("r", "c0-p0", question=f"q{q}", response_s=1.0 + q, hidden_s=1.0) for q in range(3)
    ]
    # 3 s until the last answer, of which 1 s out of sight; sums over questions would be 6 and 3.
    assert rater_reasons(PLAN, by_question) == ()


def test_exclusion_deletes_nothing_and_reports_what_it_left_out():
    made = simulate(PLAN, raters=4, seed=1, careless=1)
    unwatched = replace(made.votes[-3], watched_left_s=30.0)
    assert unwatched.kind == "main"
    made = answers(PLAN, [*made.votes[:-3], unwatched, *made.votes[-2:]])
    found = exclusions(made)
    assert dict(found.raters) == {"r00": ("failed 2 instruction checks; at most 1",)}
    assert found.unwatched == (unwatched,)
    stay = kept(made, found)
    assert {v.session for v in stay} == {"r01", "r02", "r03"}
    lost = [v for v in made.votes if v not in stay]
    assert len(lost) == 1 + sum(v.session == "r00" for v in made.votes)


def test_whoever_cannot_judge_need_not_watch():
    unseen = vote("r", "c0-p0", "cannot", watched_left_s=0.0)
    assert exclusions(answers(PLAN, [unseen])).unwatched == ()
    assert exclusions(answers(PLAN, [replace(unseen, answer="tie")])).unwatched != ()


def test_a_session_without_a_vote_is_no_reason_to_fail():
    found = exclusions(answers(PLAN, [], ["r0"]))
    assert not found.raters
    assert session("r0").session == "r0"


@pytest.mark.parametrize(("seconds", "enough"), [(57.0, True), (56.95, True), (56.8, False)])
def test_the_side_seen_less_decides_and_the_servers_slack_is_kept(seconds, enough):
    assert was_watched(PLAN, vote("r", "c0-p0", watched_right_s=seconds)) is enough


def test_repeats_compare_systems_and_not_sides():
    first = vote("r", "c0-p0", "left", side_of_ours="left")
    again = vote("r", "repeat", "right", side_of_ours="right", kind="repeat", of="c0-p0")
    assert repeats([first, again]) == [(1.0, 1.0)]
    assert repeats([first, replace(again, answer="cannot")]) == []
    assert repeats([again]) == []
