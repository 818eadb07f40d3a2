import pytest

from cfbench import plan
from cfbench.errors import CfError
from cfbench.registry import Table
from cfbench.systems import describe
from cfbench.types import Prompt, Segment

SEGMENT = (Segment(text="x", seconds=1),)
PROMPTS = (
    Prompt(id="a", segments=SEGMENT, scene={"k": 1}),
    Prompt(id="b", segments=SEGMENT, scene={"k": 2}),
    Prompt(id="c", segments=SEGMENT),
)


def test_jobs_are_systems_times_prompts_times_seeds():
    todo = plan.make(describe(["nano/ours", "nano/no-slow"]), PROMPTS, seeds=2, seconds=3)
    assert len({job.id for job in todo.jobs}) == len(todo.jobs) == 2 * 3 * 2
    assert {job.chunks for job in todo.jobs} == {5}
    assert todo.jobs == plan.make(todo.specs, PROMPTS, seeds=2, seconds=3).jobs


def test_sixty_seconds_are_81_chunks_and_969_frames():
    todo = plan.make(describe(["tiny/ours"]), PROMPTS[:1], seeds=1, seconds=60)
    assert todo.jobs[0].chunks == 81
    assert todo.specs[0].frames(81) == 969


def test_id_changes_with_all_that_changes_the_film():
    def ids(system="nano/ours", prompts=PROMPTS[:1], seconds=3.0):
        return plan.make(describe([system]), prompts, seeds=1, seconds=seconds).jobs[0].id

    other = Prompt(id="a", segments=(Segment(text="y", seconds=1),), scene={"k": 1})
    found = {ids(), ids("nano/no-slow"), ids(prompts=(other,)), ids(seconds=4), ids("tiny/ours")}
    assert len(found) == 5


def test_rows_without_weights_or_scenes_are_null_with_the_reason():
    specs = describe(["nano/no-cdmd", "nano/rendered-truth"])
    todo = plan.make(specs, PROMPTS, seeds=1, seconds=3)
    assert {row.system: row.reason for row in todo.null} == {
        "no-cdmd": "weights not trained yet (stage dmd)"
    }
    # The prompt without a scene has no truth to render.
    assert [job.prompt.id for job in todo.jobs] == ["a", "b"]
    none = plan.make(specs, PROMPTS[2:], seeds=1, seconds=3)
    assert none.tree()["null"]["rendered-truth"] == "no prompt has a scene to render"
    assert none.jobs == ()


def test_all_is_every_row_of_the_family():
    names = [spec.name for spec in describe(["nano/all"])]
    assert names[0] == "ours"
    assert names[-2:] == ["rendered-truth", "frozen"]
    assert {spec.family for spec in describe(["all"])} == {"tiny"}
    assert len(set(names)) == len(names) >= 16


def test_changed_fields_make_a_custom_row():
    (spec,) = describe(["nano/ours+memory.tau=0.5+memory.slow=6"])
    assert spec.name.startswith("custom-")
    assert spec.experiment["memory"]["tau"] == 0.5
    assert spec.key != describe(["nano/ours"])[0].key


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nano/no-slw", "unknown system 'no-slw'; try one of no-slow"),
        ("rendered-trut", "try one of rendered-truth"),
        ("nanoo/ours", "unknown family 'nanoo'; try one of nano"),
        ("nano/ours+memory.slo=3", "memory.slo: MemoryConfig has no field 'slo'"),
        ("nano/ours+memory.slow", "expected path=value"),
        ("nano/ours+memory.fast=2", "use >= 3"),
        ("nano/frozen+memory.slow=3", "drop what follows"),
    ],
)
def test_unknown_systems_and_fields(address, message):
    with pytest.raises(CfError, match=message) as caught:
        describe([address])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": -1.0}, "--seconds -1.0: expected more than 0"),
        ({"seconds": 0.0}, "--seconds"),
        ({"seconds": float("nan")}, "--seconds nan"),
        ({"seconds": 1e9}, "at most 3600"),
        ({"seeds": 0}, "--seeds 0: expected 1"),
    ],
)
def test_bad_numbers(change, message):
    with pytest.raises(CfError, match=message):
        plan.make(describe(["nano/ours"]), PROMPTS, **{"seeds": 1, "seconds": 3.0, **change})


def test_systems_are_named_once_and_of_one_family():
    with pytest.raises(CfError, match="names ours twice"):
        plan.make(describe(["nano/ours", "nano/ours"]), PROMPTS, seeds=1, seconds=3)
    with pytest.raises(CfError, match="mixes the families nano, tiny"):
        plan.make(describe(["nano/ours", "tiny/ours"]), PROMPTS, seeds=1, seconds=3)
    with pytest.raises(CfError, match="no system is named"):
        plan.make([], PROMPTS, seeds=1, seconds=3)


def test_shards_part_the_jobs():
    jobs = plan.make(describe(["nano/ours"]), PROMPTS, seeds=3, seconds=3).jobs
    parts = [plan.shard(jobs, index, 4) for index in range(4)]
    assert sorted(job.id for part in parts for job in part) == sorted(job.id for job in jobs)
    with pytest.raises(CfError, match="--shard 4/4"):
        plan.shard(jobs, 4, 4)


def test_missing_is_what_is_not_done():
    jobs = plan.make(describe(["nano/ours"]), PROMPTS, seeds=1, seconds=3).jobs
    assert plan.missing(jobs, {jobs[1].id}) == (jobs[0], jobs[2])


def test_table_names_the_extra_of_what_is_not_installed(monkeypatch):
    table = Table("scorer", {"x": "no_such_package.inner:thing", "j": "json:dumps"}, "cfbench.none")
    assert table.get("j")([1]) == "[1]"
    with pytest.raises(CfError, match="install no_such_package"):
        table.get("x")
    monkeypatch.setattr("cfbench.registry.EXTRAS", {"no_such_package": "vbench"})
    with pytest.raises(CfError, match=r"pip install 'contextforcing\[vbench\]'"):
        table.get("x")
    with pytest.raises(CfError, match="unknown scorer 'jj'; try one of j"):
        table.get("jj")
