"""One decode of a film, and everything that the dimensions are made from.

R frames of the film, S sampled frames at 2 a second, P pairs of frames at 8 a second.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfbench import video
from cfbench.scorers import rules
from cfbench.scorers.tiny import formulas
from cfbench.scorers.tiny.formulas import Floats
from cfbench.scorers.tiny.nets import HEIGHT, WIDTH
from cfbench.scorers.tiny.read import Readings, decode, join, pixels
from cfbench.scorers.tiny.weights import Networks
from cfmodel.io.codec import Codec

SAMPLES_PER_S = 2
PAIRS_PER_S = 8
PIECE_FRAMES, PIECE_EVERY_S = 17, 4
BLOCK = 32

Frames = NDArray[np.uint8]
_NONE: Frames = np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)


@dataclass
class Film:
    """Measures of a film. ``stored`` frames exist, the first ``frames`` of them are scored.

    ``sampled`` (S,) are the indices of the frames that were read, past ``frames`` too; ``flicker``
    has one value a pair of neighbours; ``smoothness``, ``strong`` and ``median_flow`` (P,) one for
    each odd frame between two even ones; ``edges`` (S,) one a sampled frame; ``latent_std`` one a
    piece, every ``PIECE_EVERY_S`` seconds.
    """

    pixels: Frames
    stored: int
    frames: int
    fps: int
    sampled: NDArray[np.int64]
    readings: Readings
    features: Floats
    images: Floats
    imaging: Floats
    aesthetic: Floats
    edges: Floats
    latent_std: Floats
    flicker: Floats
    smoothness: Floats
    strong: Floats
    median_flow: Floats

    @property
    def at_s(self) -> Floats:
        """When the sampled frames are shown."""
        return self.sampled / self.fps

    @property
    def end_s(self) -> float:
        """End of the scored part."""
        return self.frames / self.fps


def whole(clip: video.Clip) -> Frames:
    """All frames of a film at the tiny world's size.

    Raises:
        DecodeError: the film cannot be decoded.
    """
    blocks = [sized(block) for block in clip.blocks()]
    # Frames that are held already are not copied.
    frames = blocks[0] if len(blocks) == 1 else np.concatenate([_NONE, *blocks])
    if not len(frames) or len(frames) < clip.scored:
        raise video.DecodeError(f"breaks off after {len(frames)} of {clip.frames} frames")
    return frames


def sized(block: Frames) -> Frames:
    """Frames (R, Y, X, 3) at the tiny world's size."""
    if block.shape[1:3] == (HEIGHT, WIDTH):
        return block
    size = (WIDTH, HEIGHT)
    return np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in block])


@torch.inference_mode()
def watch(frames: Frames, limit: int, fps: int, nets: Networks, codec: Codec) -> Film:
    """Everything that is measured of a film's frames (R, 80, 128, 3)."""
    device = next(nets.reader.parameters()).device
    sampled = np.arange(0, len(frames), max(1, fps // SAMPLES_PER_S))
    readings: list[Readings] = []
    features: list[Tensor] = []
    images: list[Tensor] = []
    imaging: list[Tensor] = []
    for start in range(0, len(sampled), BLOCK):
        block = torch.from_numpy(frames[sampled[start : start + BLOCK]]).to(device)
        x = pixels(block).contiguous(memory_format=torch.channels_last)
        readings.append(decode(nets.reader(x)))
        features.append(nets.features(x))
        images.append(nets.dual.images(x))
        imaging.append(nets.imaging(x).sigmoid())
    seen = join(readings)
    picked = frames[sampled]
    luma = (picked @ np.array([0.299, 0.587, 0.114])) / 255
    smoothness, strong, median = flow_measures(frames[:limit], max(1, fps // PAIRS_PER_S))
    return Film(
        pixels=frames,
        stored=len(frames),
        frames=limit,
        fps=fps,
        sampled=sampled,
        readings=seen,
        features=_array(features),
        images=_array(images),
        imaging=_array(imaging),
        aesthetic=formulas.aesthetic(
            luma,
            seen.box[:, 0].cpu().numpy().astype(np.float64),
            seen.score[:, 0].cpu().numpy() > 0,
        ),
        edges=formulas.edges(luma),
        latent_std=latent_std(frames[:limit], fps, codec),
        flicker=rules.flicker(frames[:limit]),
        smoothness=smoothness,
        strong=strong,
        median_flow=median,
    )


def latent_std(frames: Frames, fps: int, codec: Codec) -> Floats:
    """Spread of the normalised latents of short pieces of a film, one every ``PIECE_EVERY_S``.

    A piece's first latent holds one frame where the others hold four, and does not count. Rendered
    films have about 1, whatever they show; a film that drifts leaves it, up or down.
    """
    starts = np.arange(0, len(frames) - PIECE_FRAMES + 1, PIECE_EVERY_S * fps)
    if not len(starts):
        return np.zeros(0)
    pieces = frames[starts[:, None] + np.arange(PIECE_FRAMES)]
    latents_BFCXY = codec.encode(torch.from_numpy(pieces))[:, 1:]
    return latents_BFCXY.flatten(1).std(1).cpu().numpy().astype(np.float64)


def _array(parts: list[Tensor]) -> Floats:
    return torch.cat(parts).cpu().numpy().astype(np.float64)


def flow_measures(frames: Frames, step: int) -> tuple[Floats, Floats, Floats]:
    """Smoothness, strong flow and median flow of successive pairs ``step`` frames apart.

    Smoothness is ``(255 - mean absolute error) / 255`` of the frame halfway, drawn again from its
    two neighbours by their flow. (VBench uses AMT-S and RAFT; here both are OpenCV's DIS flow.)
    A film without motion has exactly smoothness 1.
    """
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in frames]
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    rows, columns = frames.shape[1:3]
    x, y = np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32))
    smooth, strong, median = [], [], []
    for start in range(0, len(frames) - step, step):
        flow = dis.calc(grey[start], grey[start + step], np.zeros((rows, columns, 2), np.float32))
        size = np.hypot(flow[..., 0], flow[..., 1])
        strong.append(rules.strong_flow(size))
        median.append(float(np.median(size)))
        if step >= 2:
            half = flow / 2
            a = cv2.remap(
                frames[start],
                x - half[..., 0],
                y - half[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            b = cv2.remap(
                frames[start + step],
                x + half[..., 0],
                y + half[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            drawn = cv2.addWeighted(a, 0.5, b, 0.5, 0)
            error = float(cv2.absdiff(drawn, frames[start + step // 2]).mean())
            smooth.append((255 - error) / 255)
    return np.array(smooth), np.array(strong), np.array(median)


@torch.inference_mode()
def window_motion(
    film: Film, starts: list[int], length: int, nets: Networks
) -> list[tuple[int, int, int]]:
    """Subject motion, camera and direction, as indices, of windows that begin at given frames.

    Args:
        film: the film.
        starts: first frames.
        length: frames of a window at 8 a second.
        nets: the networks.
    """
    device = next(nets.motion.parameters()).device
    step = max(1, film.fps // PAIRS_PER_S)
    found: list[tuple[int, int, int]] = []
    for first in range(0, len(starts), 8):
        index = np.array(starts[first : first + 8])[:, None] + step * np.arange(length)
        block = torch.from_numpy(film.pixels[index.ravel()]).to(device)
        out = nets.motion(pixels(block).unflatten(0, index.shape))
        heads = (head.argmax(1).tolist() for head in (out.motion, out.camera, out.direction))
        found += list(zip(*heads, strict=True))
    return found
