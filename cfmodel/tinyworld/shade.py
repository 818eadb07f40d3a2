"""What the tiny world looks like: palettes, ground, sky and shadows, and the light on solids.

N frames, I instances, W hits, Y X rows and columns of pixels. Pictures are (N, C, Y, X).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cfmodel.tinyworld.tracks import INSTANCES, KINDS, SUBJECTS, Tracks

TAN_HALF_WIDTH = 0.8
PITCH = -0.14
FAR = 60.0
_VEHICLE = KINDS.index("vehicle")

_COLOR = (
    (0.82, 0.12, 0.12), (0.12, 0.58, 0.18), (0.14, 0.28, 0.86), (0.93, 0.82, 0.12),
    (0.56, 0.16, 0.68), (0.95, 0.48, 0.06), (0.12, 0.74, 0.78), (0.93, 0.93, 0.93),
)  # fmt: skip
_LIGHT_MARK, _DARK_MARK = (0.96, 0.95, 0.9), (0.1, 0.1, 0.12)
_DARK_MARKED = (3, 5, 6, 7)  # colours too bright for a light marking to show
# Two tones of each ground, and the wavelengths of their patterns in metres.
_GROUND = (
    ((0.30, 0.50, 0.20), (0.22, 0.41, 0.15)), ((0.84, 0.73, 0.48), (0.75, 0.62, 0.38)),
    ((0.93, 0.94, 0.97), (0.80, 0.85, 0.93)), ((0.40, 0.40, 0.43), (0.31, 0.31, 0.34)),
    ((0.55, 0.29, 0.18), (0.44, 0.21, 0.12)), ((0.50, 0.72, 0.86), (0.36, 0.60, 0.78)),
)  # fmt: skip
_WAVE = (2.6, 3.4, 4.2, 2.2, 3.0, 3.8)
# Zenith, horizon, ambient light, sun light.
_SKY = (
    ((0.26, 0.50, 0.90), (0.72, 0.85, 0.98), (0.46, 0.48, 0.52), (0.60, 0.58, 0.54)),
    ((0.55, 0.28, 0.38), (1.00, 0.62, 0.28), (0.44, 0.38, 0.36), (0.62, 0.46, 0.32)),
    ((0.03, 0.04, 0.12), (0.12, 0.14, 0.30), (0.30, 0.32, 0.40), (0.22, 0.24, 0.32)),
    ((0.60, 0.62, 0.65), (0.80, 0.81, 0.82), (0.62, 0.62, 0.63), (0.20, 0.20, 0.20)),
    ((0.50, 0.52, 0.78), (0.98, 0.72, 0.78), (0.46, 0.42, 0.48), (0.50, 0.44, 0.46)),
)  # fmt: skip
_SUN = (0.48, 0.74, -0.47)


class View(NamedTuple):
    """Camera of each frame: place (N, 3), the axes right, up, ahead (N, 3, 3), and the picture."""

    origin: Tensor
    axes: Tensor
    width: int
    height: int
    tan_x: float
    tan_y: float


def camera(tracks: Tracks, height: int, width: int) -> View:
    """The cameras of all frames."""
    yaw = tracks.camera[:, 3]
    s, c = torch.sin(yaw), torch.cos(yaw)
    sp, cp = math.sin(PITCH), math.cos(PITCH)
    zero = torch.zeros_like(s)
    right = torch.stack([c, zero, -s], -1)
    up = torch.stack([-s * sp, zero + cp, -c * sp], -1)
    ahead = torch.stack([s * cp, zero + sp, c * cp], -1)
    axes = torch.stack([right, up, ahead], 1)
    return View(
        tracks.camera[:, :3], axes, width, height, TAN_HALF_WIDTH, TAN_HALF_WIDTH * height / width
    )


def background(tracks: Tracks, view: View) -> Tensor:
    """Ground with its pattern and soft shadows, sky and haze: (N, 3, Y, X)."""
    look = tracks.look
    ray = _pixel_rays(view)
    zenith, horizon, ambient, sun = (
        _pick([row[k] for row in _SKY], look[:, 1])[..., None, None] for k in range(4)
    )
    rise = ray[:, 1:2]
    heaven = horizon + (zenith - horizon) * (rise * 2.2).clamp(0, 1) ** 0.8
    t = (-view.origin[:, 1, None, None, None] / rise.clamp(max=-1e-4)).clamp(max=FAR)
    x, z = (view.origin[:, k, None, None, None] + t * ray[:, k : k + 1] for k in (0, 2))
    tone_a, tone_b = (
        _pick([row[k] for row in _GROUND], look[:, 0])[..., None, None] for k in range(2)
    )
    mix = _pattern(look, x, z, t)
    light = ambient + sun * (_SUN[1] * (1 - 0.75 * _shadow(tracks, x, z)))
    soil = (tone_b + (tone_a - tone_b) * mix) * light
    soil = soil + (horizon - soil) * (t / FAR) ** 1.5
    # The horizon is as soft as one pixel.
    edge = (rise * view.height / (2 * view.tan_y) + 0.5).clamp(0, 1)
    return soil + (heaven - soil) * edge


def _pixel_rays(view: View) -> Tensor:
    """Unit directions (N, 3, Y, X) through the pixels' centres."""
    device = view.axes.device
    x = ((torch.arange(view.width, device=device) + 0.5) / view.width * 2 - 1) * view.tan_x
    y = (1 - (torch.arange(view.height, device=device) + 0.5) / view.height * 2) * view.tan_y
    right, up, ahead = view.axes[..., None, None].unbind(1)
    ray = x * right + (y[:, None] * up + ahead)
    # All rays of a picture have the same length as those of a camera that does not turn.
    return ray * (1 + x**2 + (y**2)[:, None]).rsqrt()


def _pick(rows: list[tuple[float, ...]], index: Tensor) -> Tensor:
    return torch.tensor(rows, device=index.device)[index.long()]


def _pattern(look: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Smooth pattern of the ground in [0, 1]: two crossed waves, fading with distance."""
    wave = torch.tensor(_WAVE, device=x.device)[look[:, 0].long()]
    a, b, turn = (look[:, k, None, None, None] for k in (2, 3, 4))
    pace = (math.tau / wave)[:, None, None, None]
    c, s = torch.cos(turn) * pace, torch.sin(turn) * pace
    u, v = c * x + s * z, c * z - s * x
    bumps = torch.sin(u + a + 0.9 * torch.sin(0.43 * v + b)) * torch.sin(0.8 * v + b)
    return 0.5 + 0.5 * bumps / (1 + (t / 9) ** 2)


def _shadow(tracks: Tracks, x: Tensor, z: Tensor) -> Tensor:
    """Darkness in [0, 1] under and behind instances: soft ellipses stretched away from the sun."""
    dark = torch.zeros_like(x)
    far = math.hypot(_SUN[0], _SUN[2])
    away_x, away_z = -_SUN[0] / far, -_SUN[2] / far
    for k in range(INSTANCES):
        size = torch.where(tracks.kind[:, k] >= 0, tracks.scale[:, k], 0.0)
        if k >= SUBJECTS:
            size = size * 1.4
        size = size[:, None, None, None]
        foot_x, lift, foot_z = tracks.position[:, k, :, None, None, None].unbind(1)
        reach = 0.45 * size + 0.8 * lift
        dx, dz = x - (foot_x + away_x * reach), z - (foot_z + away_z * reach)
        along, across = (dx * away_x + dz * away_z) / 1.5, dx * away_z - dz * away_x
        gap = (along**2 + across**2) / (0.95 * size).clamp(min=1e-3) ** 2
        dark = torch.maximum(dark, (1.35 - gap).clamp(0, 1) * (size > 0))
    return dark


class Skin(NamedTuple):
    """What a hit's colour depends on: local point and normal (3, W), the rest (W,).

    ``paint`` (3, W) is below 0 where the instance's own colour shows.
    """

    point: Tensor
    normal: Tensor
    distance: Tensor
    paint: Tensor
    frame: Tensor
    instance: Tensor


def shade(skin: Skin, tracks: Tracks) -> Tensor:
    """Colours (3, W) of hits: paint and marking, light, haze."""
    at = (skin.frame, skin.instance)
    surface = _surface(
        skin.point, skin.paint, tracks.color[at], tracks.marking[at], tracks.gait[at],
        tracks.kind[at],
    )  # fmt: skip
    return _lit(surface, skin.normal, tracks.yaw[at], tracks.look[skin.frame, 1], skin.distance)


def _surface(
    point: Tensor, paint: Tensor, color: Tensor, marking: Tensor, gait: Tensor, kind: Tensor
) -> Tensor:
    """Unlit colour of local points: body colour with its marking, or the primitive's own paint."""
    marks = [_DARK_MARK if k in _DARK_MARKED else _LIGHT_MARK for k in range(len(_COLOR))]
    body, mark = (_pick(list(rows), color).T for rows in (_COLOR, marks))
    x, y, z = point.unbind(0)
    angle = torch.atan2(z, x)
    band = (y > 0.62) & (y < 1.0)
    dots = (torch.sin(3 * angle) > 0.35) & (torch.sin(5.2 * y + 0.4) > 0.2)
    marked = ((marking == 1) & band) | ((marking == 2) & dots) | ((marking == 3) & (y > 1.18))
    body = torch.where(marked, mark, body)
    around = torch.atan2(y - 0.32, x.abs() - 0.72) + gait / 0.34 * x.sign()
    wheel = (torch.sin(2 * around) > 0.5) & (paint[0] < 0.2) & (kind == _VEHICLE)
    fixed = torch.where(wheel, 0.55, paint)
    return torch.where(paint[0] < 0, body, fixed)


def _lit(surface: Tensor, normal: Tensor, yaw: Tensor, sky: Tensor, distance: Tensor) -> Tensor:
    c, s = torch.cos(yaw), torch.sin(yaw)
    nx = normal[0] * c + normal[2] * s
    nz = normal[2] * c - normal[0] * s
    facing = (nx * _SUN[0] + normal[1] * _SUN[1] + nz * _SUN[2]).clamp(min=0)
    horizon, ambient, sun = (_pick([row[k] for row in _SKY], sky).T for k in (1, 2, 3))
    fill = 0.82 + 0.18 * normal[1]
    color = surface * (ambient * fill + sun * (1.25 * facing))
    return color + (horizon - color) * (distance / FAR).clamp(max=1) ** 1.5
