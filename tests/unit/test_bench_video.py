import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cfbench import video
from cfbench.errors import CfError
from cfbench.scorers.pixel import load_suite
from cfbench.scorers.vbench.protocol import clips
from cfbench.types import Prompt, Segment

PROMPT = Prompt(id="p", segments=(Segment(text="x", seconds=1),))


def picture(frames: int, height: int = 32, width: int = 48) -> video.Frames:
    """Smooth moving frames, (R, Y, X, 3)."""
    r, y, x = np.mgrid[:frames, :height, :width]
    planes = [120 + 80 * np.sin((x + 2 * r) / 9), 4.0 * y + 60, 100 + 60 * np.cos((y - r) / 7)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def blocks(frames: video.Frames, size: int) -> Iterator[video.Frames]:
    for start in range(0, len(frames), size):
        yield frames[start : start + size]


def decoded(path: Path) -> video.Frames:
    return np.concatenate(list(video.decode(path)))


def test_film_comes_back_close_and_whole(tmp_path: Path):
    frames = picture(57)
    info = video.encode(tmp_path / "a.mp4", blocks(frames, 12), 16)
    back = decoded(tmp_path / "a.mp4")
    assert back.shape == frames.shape
    assert np.abs(back.astype(float) - frames).mean() < 2
    # A wrong colour matrix or range shifts the mean of a channel by far more than this.
    assert np.abs((back.astype(float) - frames).mean(axis=(0, 1, 2))).max() < 0.6
    found = video.probe(tmp_path / "a.mp4")
    assert (found.frames, found.fps, found.width, found.height) == (57, 16, 48, 32)
    assert (info.sha256, info.frames, info.bytes) == (found.sha256, 57, found.bytes)


def test_others_frames_are_those_of_opencv(tmp_path: Path):
    import cv2

    rng = np.random.default_rng(0)
    frames = (picture(8).astype(int) + rng.integers(-40, 40, (8, 32, 48, 3))).clip(0, 255)
    video.encode(tmp_path / "a.mp4", [frames.astype(np.uint8)], 16)
    capture, theirs = cv2.VideoCapture(str(tmp_path / "a.mp4")), list[video.Frames]()
    while (read := capture.read())[0]:
        theirs.append(np.asarray(read[1], np.uint8)[..., ::-1])
    clip = video.stored(tmp_path / "a.mp4")
    assert np.array_equal(np.concatenate(list(clip.as_others())), np.stack(theirs))
    assert not np.array_equal(np.concatenate(list(clip.blocks())), np.stack(theirs))
    held = video.held(frames.astype(np.uint8), 16)
    assert np.array_equal(np.concatenate(list(held.as_others())), frames)


def test_a_rate_is_rounded_for_whole_numbers_alone(tmp_path: Path):
    from fractions import Fraction

    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24_000, 1001))
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for image in picture(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    clip = video.stored(tmp_path / "a.mp4")
    assert clip.fps == 24
    assert clip.rate == pytest.approx(24_000 / 1001)
    # VBench-Long cuts the rate to a whole number: clips of 2 s are 46 frames then.
    assert clips(100, clip.rate, 2)[0] == range(46)
    assert video.held(picture(2), 16).rate == 16


def test_bytes_depend_on_the_frames_alone(tmp_path: Path):
    frames = picture(30)
    first = video.encode(tmp_path / "a.mp4", blocks(frames, 7), 16)
    second = video.encode(tmp_path / "b.mp4", blocks(frames, 30), 16)
    assert first.sha256 == second.sha256
    changed = frames.copy()
    changed[20] = 255 - changed[20]
    assert video.encode(tmp_path / "c.mp4", [changed], 16).sha256 != first.sha256


def test_file_names_no_encoder_and_starts_fast(tmp_path: Path):
    video.encode(tmp_path / "a.mp4", [picture(20)], 16)
    content = (tmp_path / "a.mp4").read_bytes()
    assert b"x264" not in content
    assert b"Lav" not in content
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least one frame"),
        ([picture(2).astype(np.float32)], "expected uint8"),
        ([picture(2, height=31)], "Y and X even"),
        ([picture(2), picture(2, width=50)], "those before were"),
    ],
)
def test_bad_frames_leave_no_file(tmp_path: Path, frames, message):
    with pytest.raises(ValueError, match=message):
        video.encode(tmp_path / "a.mp4", frames, 16)
    assert list(tmp_path.iterdir()) == []


def test_film_of_a_source_that_breaks_is_removed(tmp_path: Path):
    def broken() -> Iterator[video.Frames]:
        yield picture(20)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        video.encode(tmp_path / "a.mp4", broken(), 16)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_an_input_error(tmp_path: Path):
    with pytest.raises(CfError, match="choose another --out"):
        video.encode(tmp_path / "no" / "a.mp4", [picture(2)], 16)


@pytest.mark.parametrize("content", [b"", b"not a film at all"])
def test_what_is_not_a_film_cannot_be_decoded(tmp_path: Path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(video.DecodeError, match="cannot be"):
        list(video.decode(tmp_path / "a.mp4"))
    with pytest.raises(video.DecodeError):
        video.probe(tmp_path / "missing.mp4")


def test_whole_seconds_are_scored():
    assert video.canonical_frames(969, 16) == 960
    assert video.canonical_frames(57, 16) == 48
    assert video.canonical_frames(9, 16) == 9


def test_canonical_trims_and_notices_a_short_film():
    frames = picture(20)
    kept = np.concatenate(list(video.canonical(blocks(frames, 6), 16)))
    assert np.array_equal(kept, frames[:16])
    with pytest.raises(video.DecodeError, match="breaks off after 20 of 21"):
        list(video.canonical(blocks(frames, 6), 21))


def test_a_clip_is_the_same_film_from_a_file_and_from_memory(tmp_path: Path):
    frames = picture(20)
    info = video.encode(tmp_path / "a.mp4", [frames], 16)
    file = video.stored(tmp_path / "a.mp4")
    assert (file.sha256, file.frames, file.fps, file.scored) == (info.sha256, 20, 16, 16)
    clip = video.held(decoded(tmp_path / "a.mp4"), 16)
    for _ in range(2):
        assert np.array_equal(np.concatenate(list(file.blocks())), next(clip.blocks()))
    suite = load_suite("cpu")
    scores = [{s.dimension: s.value for s in suite.score(c, PROMPT)} for c in (file, clip)]
    assert scores[0] == scores[1]
    # The hash is of the frames: of any view of them, and of nothing else.
    assert video.held(frames[::-1][::-1], 16).sha256 == video.held(frames, 16).sha256
    assert video.held(frames[::-1], 16).sha256 != video.held(frames, 16).sha256


def test_decode_is_streamed_in_blocks(tmp_path: Path):
    video.encode(tmp_path / "a.mp4", [picture(40)], 16)
    assert [len(block) for block in video.decode(tmp_path / "a.mp4", block=16)] == [16, 16, 8]


def test_pixel_suite_measures_what_it_says(tmp_path: Path):
    suite = load_suite("cpu")
    still = np.repeat(picture(1), 40, axis=0)
    flicker = still.copy()
    flicker[::2] = np.clip(flicker[::2].astype(int) + 40, 0, 255)
    values: dict[str, dict[str, float | None]] = {}
    for name, frames in {"still": still, "flicker": flicker, "moving": picture(40)}.items():
        path = tmp_path / f"{name}.mp4"
        video.encode(path, [frames], 16)
        scores = suite.score(video.stored(path), PROMPT)
        assert [score.dimension for score in scores] == [spec.name for spec in suite.dimensions]
        values[name] = {score.dimension: score.value for score in scores}
        # 40 frames are scored as 32: two seconds.
        assert [(w.start_s, w.end_s) for w in scores[1].windows] == [(0.0, 1.0), (1.0, 2.0)]
    flickering = {name: found["temporal_flickering"] or 0.0 for name, found in values.items()}
    assert flickering["still"] > 0.995 > flickering["moving"] > flickering["flicker"]


def pixel_values(path: Path) -> dict[str, float]:
    scores = load_suite("cpu").score(video.stored(path), PROMPT)
    return {score.dimension: score.value or 0.0 for score in scores}


def test_exposure_and_sharpness_of_known_pictures(tmp_path: Path):
    half = np.zeros((20, 32, 48, 3), np.uint8)
    half[:, :, 24:] = 128
    video.encode(tmp_path / "a.mp4", [half], 16)
    found = pixel_values(tmp_path / "a.mp4")
    assert abs(found["exposure"] - 0.5) < 0.05
    video.encode(tmp_path / "b.mp4", [np.full_like(half, 128)], 16)
    flat = pixel_values(tmp_path / "b.mp4")
    assert flat["exposure"] == 1.0
    assert flat["sharpness"] < 1 < found["sharpness"]


@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_every_frame_so_far_apart_whatever_the_blocks(cut):
    frames = np.arange(11, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 3), np.uint8)
    blocks = [frames[start : start + cut] for start in range(0, 11, cut)]
    clip = dataclasses.replace(video.held(frames, 16), blocks=lambda: iter(blocks))
    for step in (1, 2, 4, 20):
        assert np.array_equal(np.concatenate(list(clip.every(step))), frames[::step])
