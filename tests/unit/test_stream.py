"""Films whose texts are asked for while they are made, on the nano family."""

from itertools import islice

import pytest
import torch

from cfmodel.pipeline import Request, load
from cfmodel.presets import preset

FIRST, SECOND = "a red ball", "a blue cube"
CHANGES_AT, CHUNKS = 9, 13
"""Past the first pass of CausVid (7 chunks) and the window of every other preset."""
PRESETS = (
    "ours", "ours memory.switch=flush", "ours memory.switch=cut", "absolute", "longlive-recache",
    "self-forcing", "rolling-forcing", "causvid",
)  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_stream_is_the_film_of_the_same_texts_at_the_same_chunks(name):
    """A switch that fires at another chunk, twice or never shows here."""
    row, *changes = name.split()
    pipeline = load(preset(f"nano/{row}", tuple(changes)), device="cpu")
    geometry = pipeline.experiment.geometry
    begins = geometry.pixel_frames(CHANGES_AT * geometry.chunk) / geometry.fps
    request = Request("a", ((FIRST, begins), (SECOND, 60.0)), 5)
    # A rolling window shrinks at a film's end, so that the film goes on for a few chunks.
    known = list(islice(pipeline.films([request], CHUNKS + 4), CHUNKS))
    texts = [FIRST] * CHANGES_AT + [SECOND] * CHUNKS
    streamed = islice(pipeline.stream(lambda chunk: texts[chunk], prompt_id="a", seed=5), CHUNKS)
    for chunk, (one, other) in enumerate(zip(streamed, known, strict=True)):
        assert torch.equal(one, other), chunk


def test_a_stream_ends_after_its_chunks_and_leaves_its_memory_to_look_at():
    pipeline = load(preset("nano"), device="cpu")
    memory, asked = pipeline.memory(1), []
    film = pipeline.stream(
        lambda chunk: (asked.append(chunk), FIRST)[1],
        prompt_id="a",
        seed=0,
        chunks=4,
        memory=memory,
    )
    assert [(part.shape[1], len(asked)) for part in film] == [(9, 1), (12, 2), (12, 3), (12, 4)]
    assert memory.frames == 12


def test_a_switch_that_cannot_be_made_is_refused_before_anything_is_made():
    recaching = load(preset("nano/longlive-recache"), device="cpu")
    recaching.attention = "flash"
    with pytest.raises(ValueError, match="use sdpa"):
        recaching.stream(lambda _: FIRST, prompt_id="a", seed=0)
