"""One bad film costs its own scores, never the run: see ``tests/helpers/bad_films.py``."""

from tests.helpers.bad_films import fill, survived


def test_every_bad_film_has_a_reason_and_the_run_goes_on(tmp_path):
    (tmp_path / "weights").mkdir()
    fill(tmp_path / "out")
    found = survived(tmp_path / "out", f"vbench:{tmp_path / 'weights'}")
    assert (found["exit"], found["lost"]) == (3, [])
    assert found["survived"] == found["tried"] == 15
    assert set(found["scored"]) == {
        "good", "odd-size", "quotes", "tiny", "uneven-times", "unicode"
    }  # fmt: skip
