"""Reading films: rates, sizes, turned and squeezed pictures, and films that break off."""

import math
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfmodel.io.film import CLOCK_S, FilmError, crop_box, frames, probe

LEVELS = 200
"""Pictures are told apart by their grey, which goes round after so many."""
H264_NOISE = 4.0


def grey(number):
    return 20 + number % LEVELS


def write(path, pictures, *, fps, times=None, aspect=None, options=None, pixels="yuv444p"):
    """An MP4 of RGB pictures; ``times`` are in ticks of 1 / fps."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": "4", "bf": "2", **(options or {})}
        )
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def plain(count, height=48, width=64):
    return [np.full((height, width, 3), grey(number), np.uint8) for number in range(count)]


@pytest.mark.parametrize(
    ("fps", "count"),
    [(16, 33), (8, 17), (24, 48), (25, 31), (Fraction(30000, 1001), 61), (60, 130), (12, 1)],
)
def test_a_film_at_another_rate(tmp_path, fps, count):
    path = write(tmp_path / "a.mp4", plain(count), fps=fps)
    shown = list(frames(path, fps=16, height=32, width=32))
    # The newest picture that has begun by k / 16 s, give or take the clock's half millisecond.
    due = [Fraction(k, 16) for k in range(math.ceil(count / fps * 16))]
    expected = [math.floor((at + CLOCK_S) * fps) for at in due]
    assert [frame.source for frame in shown] == expected
    for frame in shown:
        assert frame.rgb_YXC.shape == (32, 32, 3)
        assert abs(frame.rgb_YXC.mean() - grey(frame.source)) < H264_NOISE
    info = probe(path)
    assert info.seconds == pytest.approx(count / fps, abs=1e-3)
    assert info.fps == pytest.approx(float(fps))
    assert (info.height, info.width) == (48, 64)


def test_times_decide_not_numbers(tmp_path):
    times = [0, 1, 2, 9, 10, 16, 17]
    path = write(tmp_path / "a.mp4", plain(7), fps=16, times=times)
    shown = [frame.source for frame in frames(path, fps=16, height=32, width=32)]
    assert shown == [0, 1, 2, 2, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 5, 6]


def test_times_that_jump_are_refused(tmp_path):
    path = write(tmp_path / "a.mp4", plain(3), fps=16, times=[0, 1, 16_000])
    shown = frames(path, fps=16, height=32, width=32)
    assert next(shown).source == 0
    with pytest.raises(FilmError, match=r"one picture for 999.9 s; expected 5 at most"):
        list(shown)


def bands(height, width, *, across):
    """Red, green, blue bands of equal size, side by side or one above the other."""
    picture = np.zeros((height, width, 3), np.uint8)
    size = width if across else height
    for band in range(3):
        part = slice(band * size // 3, (band + 1) * size // 3)
        picture[(slice(None), part) if across else (part, slice(None))][..., band] = 200
    return picture


@pytest.mark.parametrize(
    ("shape", "across", "size"),
    [((61, 183), True, (32, 32)), ((150, 50), False, (16, 16)), ((20, 60), True, (64, 64))],
)
def test_the_centre_is_kept_whatever_the_size(tmp_path, shape, across, size):
    path = write(tmp_path / "a.mp4", [bands(*shape, across=across)] * 2, fps=16)
    shown = next(iter(frames(path, fps=16, height=size[0], width=size[1]))).rgb_YXC
    assert shown.shape == (*size, 3)
    # Only the middle third is left, with a pixel of its neighbours where sizes do not divide.
    inner = shown[4:-4, 4:-4].reshape(-1, 3)
    assert np.abs(inner.mean(0) - (0, 200, 0)).max() < 2 * H264_NOISE
    assert inner.std(0).max() < 2 * H264_NOISE


def test_squeezed_pixels_are_stretched(tmp_path):
    """Of 60 x 60 pixels that are twice as wide as high, half the columns make a square."""
    picture = bands(60, 60, across=True)
    path = write(tmp_path / "a.mp4", [picture] * 2, fps=16, aspect=Fraction(2, 1))
    shown = next(iter(frames(path, fps=16, height=32, width=32))).rgb_YXC
    # Columns 15-45 of 60 are a sixth red, two thirds green, a sixth blue.
    green = (shown[16, :, 1] > 100).mean()
    assert green == pytest.approx(2 / 3, abs=2 / 32)


def test_turned_films_are_upright(tmp_path):
    """A phone's film: pixels lie on their side, and a matrix in the track header turns them."""
    path = write(tmp_path / "a.mp4", [bands(48, 48, across=True)] * 2, fps=16)
    data = path.read_bytes()
    one, zero, last = (1 << 16).to_bytes(4), bytes(4), (1 << 30).to_bytes(4)
    matrix = one + zero * 3 + one + zero * 3 + last
    # A quarter turn clockwise: a = d = 0, b = 1, c = -1.
    turned = zero + one + zero + (-(1 << 16)).to_bytes(4, signed=True) + zero * 4 + last
    at = data.index(matrix, data.index(b"tkhd"))
    path.write_bytes(data[:at] + turned + data[at + len(turned) :])
    shown = next(iter(frames(path, fps=16, height=48, width=48))).rgb_YXC
    colours = [shown[row, 24].argmax() for row in (8, 24, 40)]
    assert colours == [0, 1, 2]
    assert np.ptp(shown[8, :, 0]) < 2 * H264_NOISE


@given(height=st.integers(1, 4000), width=st.integers(1, 4000), aspect=st.floats(0.2, 5.0))
def test_crop_boxes_are_centred_and_inside(height, width, aspect):
    top, left, rows, columns = crop_box((height, width), aspect)
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    assert rows == height or columns == width
    assert 0 <= height - rows - 2 * top <= 1
    assert 0 <= width - columns - 2 * left <= 1


@pytest.fixture(scope="module")
def long_film(tmp_path_factory):
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 255, (32, 32, 3), np.uint8) for _ in range(64)]
    path = tmp_path_factory.mktemp("film") / "long.mp4"
    return write(path, pictures, fps=16, options={"g": "8"})


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
def test_truncated_films_are_found_without_decoding(long_film, tmp_path, share):
    data = long_film.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(FilmError, match="truncated: breaks off after"):
        probe(path)


@pytest.mark.parametrize("data", [b"", b"no film at all", bytes(5000)])
def test_what_is_no_film(tmp_path, data):
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    for read in (probe, lambda path: list(frames(path, fps=16, height=32, width=32))):
        with pytest.raises(FilmError, match=r"^cannot be decoded: [^/]*$"):
            read(path)


def test_films_without_pictures(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.rate = 16_000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(FilmError, match="has no video stream"):
        probe(path)
    with pytest.raises(FilmError, match="cannot be decoded: No such file"):
        probe(tmp_path / "none.mp4")


def test_damage_shows_when_it_is_reached(long_film, tmp_path):
    data = bytearray(long_film.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    probe(path)
    shown = []
    with pytest.raises(FilmError, match="cannot be decoded"):
        shown.extend(frames(path, fps=16, height=32, width=32))
    whole = list(frames(long_film, fps=16, height=32, width=32))
    assert all(
        np.array_equal(a.rgb_YXC, b.rgb_YXC) for a, b in zip(shown[:16], whole, strict=False)
    )
