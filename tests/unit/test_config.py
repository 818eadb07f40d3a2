import dataclasses
import json
from pathlib import Path

import pytest

from cfmodel.config import (
    Geometry,
    MemoryConfig,
    ModelConfig,
    SampleConfig,
    diff,
    from_json,
    put,
    seed_for,
    vary,
)
from cfmodel.presets import (
    FAMILIES,
    LOCAL,
    STREAMED,
    ablations,
    baselines,
    describe,
    other_readings,
    other_samplers,
    ours,
    override,
    preset,
    presets,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "preset_keys.json"
NANO = ours("nano")


def keys():
    return {
        f"{family}/{name}": row.key()
        for family in FAMILIES
        for name, row in presets(family).items()
    }


def test_keys_are_golden():
    """A changed default is a visible diff; after a deliberate change, store ``keys()`` anew."""
    assert json.loads(GOLDEN.read_text()) == keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_ablation_differs_from_ours_in_one_leaf(family):
    base = ours(family)
    rows = ablations(base)
    assert [row.name for row in rows[:4]] == ["uniform-1", "uniform-2", "no-cdmd", "absolute"]
    for row in rows:
        assert len(diff(base, row)) == 1, row.name
        assert row.base == base.name


@pytest.mark.parametrize("family", FAMILIES)
def test_baselines_change_memory_alone(family):
    base = ours(family)
    rows = baselines(base)
    for row in rows:
        assert row.label != base.label
        assert {path.split(".")[0] for path, _, _ in diff(base, row)} == {"memory"}
        own = STREAMED if "longlive" in row.name else LOCAL
        expected = None if row.name == "self-forcing-pp" else own.get(family, base.weights)
        assert row.weights == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_other_readings_and_samplers_change_what_they_name(family):
    base = ours(family)
    for row in other_readings(base):
        assert {path.split(".")[0] for path, _, _ in diff(base, row)} == {"memory"}
        assert row.weights == base.weights
    for row in other_samplers(base):
        assert {path.split(".")[0] for path, _, _ in diff(base, row)} == {"memory", "sample"}
        assert row.weights == LOCAL.get(family, base.weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_labels_are_unique(family):
    rows = presets(family).values()
    assert len({row.label for row in rows}) == len({row.name for row in rows}) == len(rows)


def test_key_ignores_name_label_base_and_sees_the_rest():
    renamed = dataclasses.replace(NANO, name="x", label="y", base="z")
    assert renamed.key() == NANO.key()
    assert put(NANO, "memory.tau", 0.9).key() != NANO.key()
    assert put(NANO, "weights", "others").key() != NANO.key()


def test_retrained_row_has_no_weights_yet():
    assert vary(NANO, "train.stage", "dmd", name="a", label="A", retrain=True).weights is None
    assert vary(NANO, "memory.tau", 0.9, name="b", label="B").weights == NANO.weights


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("memory.tua", 0.9, "has no field 'tua'"),
        ("memory.tau.x", 0.9, "inside a plain value"),
        ("memory.slow", True, "expected"),
        ("memory.slow", "3", "expected"),
        ("memory.slow", 1.5, "expected"),
        ("memory.positions", "relative", "expected"),
        ("memory.tau", 0.95, "already the base's value"),
        ("sample.steps", (1.0, "x"), "expected"),
        ("memory.fast", 2, "smaller than geometry.chunk"),
    ],
)
def test_put_refuses(path, value, message):
    with pytest.raises(ValueError, match=message):
        put(NANO, path, value)


def test_put_takes_none_and_ints_for_floats():
    base = put(put(NANO, "memory.positions", "absolute"), "memory.fast", None)
    assert base.memory.capacity is None
    assert put(NANO, "sample.shift", 3).sample.shift == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_json_round_trip(family):
    for row in presets(family).values():
        assert from_json(json.loads(json.dumps(row.to_json()))) == row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 0}, "schema 0"),
        ({"extra": 1}, "unknown keys"),
        ({"family": "huge"}, "expected"),
    ],
)
def test_json_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        from_json(NANO.to_json() | change)


def test_preset_names():
    assert preset("nano") == NANO
    assert preset("nano/no-slow").memory.slow == 0
    assert preset("no-slow").family == "tiny"
    with pytest.raises(ValueError, match="no-slow"):
        preset("no-slo")


def test_overrides_make_a_custom_run():
    row = override(NANO, ("memory.tau=0.9", "memory.slow=6"))
    assert (row.memory.tau, row.memory.slow, row.base) == (0.9, 6, "ours")
    assert row.name == f"custom-{row.key()}"
    assert override(NANO, ()) is NANO
    with pytest.raises(ValueError, match="path=value"):
        override(NANO, ("memory.tau",))


def test_describe_prints_the_one_line():
    assert describe(NANO, preset("nano/no-slow")) == ["memory.slow: 12 -> 0"]


def test_paper_numbers():
    geometry, memory = Geometry(), MemoryConfig()
    assert geometry.tokens_per_frame == 30 * 52
    assert geometry.chunks_for(60) == 81
    assert geometry.pixel_frames(243) == 969
    assert memory.capacity == 21
    assert geometry.latent_seconds(memory.span_latents(geometry.chunk) or 0) == 20.25
    windows = {row.name: row.memory.capacity for row in baselines(ours("wan-1.3b"))}
    assert windows == {
        "self-forcing": 21,
        "self-forcing-pp": 21,
        "longlive-recache": 12,
        "infinity-rope-flush": 6,
        "longlive": 12,
        "longlive-3.75": 15,
        "longlive-5.25": 21,
        "longlive-6": 24,
        "longlive-9": 36,
        "longlive-12": 48,
        "infinity-rope": 6,
        "streaming-llm": 21,
        "full-context": None,
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Geometry(height=100), "does not divide"),
        (lambda: Geometry(fps=0), "positive"),
        (lambda: Geometry().chunks_for(-1), "seconds=-1"),
        (lambda: Geometry().chunks_for(float("nan")), "seconds=nan"),
        (lambda: MemoryConfig(slow=-1), "slow=-1"),
        (lambda: MemoryConfig(fast=None), "no bound"),
        (lambda: MemoryConfig(tau=2), "tau=2"),
        (lambda: SampleConfig(steps=()), "noise levels"),
        (lambda: SampleConfig(steps=(0.5, 1.0)), "falling"),
        (lambda: SampleConfig(shift=0), "positive"),
        (lambda: MemoryConfig(attend=3), "attend=3"),
        (
            lambda: MemoryConfig(fast=None, positions="window", switch="recache"),
            "no window to recache",
        ),
        (lambda: put(NANO, "sample.sampler", "rolling"), "has no slow memory"),
        (lambda: put(preset("nano/self-forcing"), "sample.sampler", "rolling"), "needs >= 12"),
        (lambda: put(preset("nano/streaming-llm"), "sample.sampler", "passes"), "sink=0"),
        (lambda: put(preset("nano/causvid"), "memory.switch", "flush"), "switch='keep'"),
        (
            lambda: ModelConfig(layers=1, width=9, heads=2, ffn=4, text_width=4, text_tokens=1),
            "even size",
        ),
    ],
)
def test_configs_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_seed_depends_on_parts_and_their_types():
    assert seed_for("p", 1) == seed_for("p", 1)
    seeds = {
        seed_for("p", 1),
        seed_for("p", "1"),
        seed_for("p", 2),
        seed_for("p1"),
        seed_for(1, "p"),
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
