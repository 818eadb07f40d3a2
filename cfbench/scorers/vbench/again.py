"""A film's clips as VBench-Long scores them: cut out, encoded again, read back.

R frames, Y rows, X columns.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfbench import video

Frames = NDArray[np.uint8]


def cut(blocks: Iterator[Frames], clips: Sequence[range]) -> Iterator[Frames]:
    """The frames (R, Y, X, 3) of each clip in turn; what no later clip needs is let go.

    Args:
        blocks: frames in order.
        clips: frame numbers, by beginning.
    """
    held, first = list[Frames](), 0
    waiting = list(clips)
    for block in blocks:
        held += list(block)
        while waiting and first + len(held) >= waiting[0].stop:
            clip = waiting.pop(0)
            yield np.stack(held[clip.start - first : clip.stop - first])
            gone = (waiting[0].start if waiting else clip.stop) - first
            held, first = held[gone:], first + gone


def encoded_again(frames: Frames, fps: int) -> Frames:
    """What is left of frames (R, Y, X, 3) after H.264 with x264's own settings.

    Source: VBench-Long cuts films with torchvision's ``write_video``, whose settings these are:
    constant rate factor 23, half the colour resolution.
    """
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps, options=video.SAME_EVERYWHERE)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for image in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        return np.concatenate(list(video.decode(path, exact=False)))
