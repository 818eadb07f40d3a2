"""Films on disk: frames, atomicity, a full disk; contact sheets."""

import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from cfmodel.video import FilmWriter, contact_sheet

ROOT = Path(__file__).resolve().parents[2]


def ramp(count, height=32, width=48):
    levels = np.linspace(40, 200, count, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def read(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_frames_come_back(tmp_path):
    path, frames = tmp_path / "v.mp4", ramp(21)
    with FilmWriter(path, fps=16, height=32, width=48) as writer:
        for part in (frames[:9], frames[9:]):
            writer.write(part)
            assert not path.exists()
    found = read(path)
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).mean() < 4
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 16
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_equal_films_are_equal_files(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        with FilmWriter(tmp_path / name, fps=16, height=32, width=48) as writer:
            writer.write(ramp(8))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def interrupted(path, frames):
    with FilmWriter(path, fps=16, height=32, width=48) as writer:
        writer.write(frames)
        raise KeyboardInterrupt


@pytest.mark.parametrize("written", [0, 5])
def test_a_failed_film_leaves_nothing_and_keeps_the_old_one(written, tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, ramp(5)[:written])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


FULL_DISK = """
import resource, pathlib, sys
import numpy as np
from cfmodel.video import FilmWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3)).astype(np.uint8)
try:
    with FilmWriter(pathlib.Path(sys.argv[1]), fps=16, height=64, width=64) as writer:
        writer.write(noise)
except OSError as error:
    sys.exit(f"OSError {error.errno}")
"""


def test_a_full_disk_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "v.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "OSError" in done.stderr
    assert not list(tmp_path.iterdir())


def test_misfits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="even sizes"):
        FilmWriter(tmp_path / "v.mp4", fps=16, height=31, width=48)
    with (
        pytest.raises(ValueError, match="expected"),
        FilmWriter(tmp_path / "v.mp4", fps=16, height=32, width=48) as writer,
    ):
        writer.write(ramp(2, 16, 16))
    with (
        pytest.raises(OSError, match="No such file"),
        FilmWriter(tmp_path / "none" / "v.mp4", fps=16, height=32, width=48),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_contact_sheet(tmp_path):
    contact_sheet(ramp(5), tmp_path / "s.png", columns=3)
    sheet = cv2.imread(str(tmp_path / "s.png"))
    assert sheet is not None
    assert sheet.shape == (64, 144, 3)
    assert (sheet[0, 0] == 40).all()
    assert (sheet[-1, -1] == 255).all()
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet(ramp(1)[:0], tmp_path / "s.png")
