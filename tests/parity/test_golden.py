"""Films of our presets are those of the authors' own code, past every eviction of their memories.

Goldens are made by ``make golden PEERS=FOLDER`` (tests/parity/record.py).
"""

import dataclasses

import pytest

from tests.helpers.golden import CASES, FOLDER, film, read
from tests.parity.compare import difference

TOLERANCE = 1e-4
"""Ours embeds timesteps in float32, theirs in float64: measured 1.3e-5 to 2.2e-5, whatever the
length. Films of a wrong memory differ by 2e-3 and more, see below."""
CHUNKS = 40


@pytest.mark.parametrize("name", CASES)
def test_films_equal_the_authors(name):
    golden = read(name)
    assert golden.latents.shape[1] >= 3 * CHUNKS
    assert len(golden.about["commit"]) == 40
    assert difference(name) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("self-forcing", "fast", 18),
        ("longlive", "positions", "window"),
        ("infinity-rope", "positions", "absolute"),
        ("rolling-forcing", "commit_reads", "all"),
        ("rolling-forcing", "attend", 18),
        ("causvid", "fast", 18),
    ],
)
def test_goldens_depend_on_what_they_pin(name, field, value):
    golden = read(name).latents
    other = film(CASES[name], **{field: value})
    shared = min(other.shape[1], golden.shape[1])
    assert float((other[:, :shared] - golden[:, :shared]).abs().max()) > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["longlive-recache", "infinity-rope-scenes"])
def test_goldens_depend_on_how_scenes_begin(name):
    golden, case = read(name).latents, CASES[name]
    kept = tuple((text, chunk, "keep") for text, chunk, _ in case.texts)
    other = film(dataclasses.replace(case, texts=kept))
    assert float((other - golden).abs().max()) > 10 * TOLERANCE


def test_every_golden_is_used():
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(CASES)
