"""One bad film costs its own scores, never the run: see ``tests/helpers/bad_films.py``."""

from cfbench import scorers, video
from cfbench.types import Prompt, Segment
from tests.helpers.bad_films import fill, good, pictures, survived, written


def test_every_bad_film_has_a_reason_and_the_run_goes_on(tmp_path):
    (tmp_path / "weights").mkdir()
    fill(tmp_path / "out")
    found = survived(tmp_path / "out", f"vbench:{tmp_path / 'weights'}")
    assert (found["exit"], found["lost"]) == (3, [])
    assert found["survived"] == found["tried"] == 15
    assert set(found["scored"]) == {
        "good", "odd-size", "quotes", "tiny", "uneven-times", "unicode"
    }  # fmt: skip


def test_a_variable_frame_rate_stands_in_the_record(tmp_path):
    uneven, even = tmp_path / "uneven.mp4", tmp_path / "even.mp4"
    written(uneven, pictures(12), uneven=True)
    good(even)
    assert video.stored(even).note == ""
    suite = scorers.load(f"vbench:{tmp_path}")
    prompt = Prompt(id="none", segments=(Segment(text="none", seconds=1),))
    found = {s.dimension: s for s in suite.score(video.stored(uneven), prompt)}
    told = found["temporal_flickering"]
    assert told.value is not None
    expected = "variable frame rate (62 to 125 ms a frame); scored as if even"
    assert told.details["note"] == expected
