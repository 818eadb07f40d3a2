"""Batched analytic ray caster: tracks in, pixels and ground truth out.

N frames, I instances, M (ray, primitive) pairs. Every primitive is tested only against the rays of
the screen rectangle of its bounding sphere, so the work follows what is in view. Solids are
sampled on a grid ``OVERSAMPLING`` times finer than the pixels, ground and sky once a pixel (they
are smooth).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cfmodel.tinyworld.solids import INTERSECT, MISS, SOLIDS, PrimitiveKind
from cfmodel.tinyworld.tracks import INSTANCES, KINDS, SUBJECTS, Tracks

OVERSAMPLING = 2
TAN_HALF_WIDTH = 0.8
PITCH = -0.14
FAR = 60.0
_PARAMETERS = 8
_VEHICLE = KINDS.index("vehicle")
_Step = Callable[..., Any]

_COLOR = (
    (0.82, 0.12, 0.12), (0.12, 0.58, 0.18), (0.14, 0.28, 0.86), (0.93, 0.82, 0.12),
    (0.56, 0.16, 0.68), (0.95, 0.48, 0.06), (0.12, 0.74, 0.78), (0.93, 0.93, 0.93),
)  # fmt: skip
_LIGHT_MARK, _DARK_MARK = (0.96, 0.95, 0.9), (0.1, 0.1, 0.12)
_DARK_MARKED = (3, 5, 6, 7)  # colours too bright for a light marking to show
# Two tones of each ground, and the wavelength of its pattern in metres.
_GROUND = (
    ((0.30, 0.50, 0.20), (0.22, 0.41, 0.15), 2.6), ((0.84, 0.73, 0.48), (0.75, 0.62, 0.38), 3.4),
    ((0.93, 0.94, 0.97), (0.80, 0.85, 0.93), 4.2), ((0.40, 0.40, 0.43), (0.31, 0.31, 0.34), 2.2),
    ((0.55, 0.29, 0.18), (0.44, 0.21, 0.12), 3.0), ((0.50, 0.72, 0.86), (0.36, 0.60, 0.78), 3.8),
)  # fmt: skip
# Zenith, horizon, ambient light, sun light.
_SKY = (
    ((0.26, 0.50, 0.90), (0.72, 0.85, 0.98), (0.46, 0.48, 0.52), (0.60, 0.58, 0.54)),
    ((0.55, 0.28, 0.38), (1.00, 0.62, 0.28), (0.44, 0.38, 0.36), (0.62, 0.46, 0.32)),
    ((0.03, 0.04, 0.12), (0.12, 0.14, 0.30), (0.30, 0.32, 0.40), (0.22, 0.24, 0.32)),
    ((0.60, 0.62, 0.65), (0.80, 0.81, 0.82), (0.62, 0.62, 0.63), (0.20, 0.20, 0.20)),
    ((0.50, 0.52, 0.78), (0.98, 0.72, 0.78), (0.46, 0.42, 0.48), (0.50, 0.44, 0.46)),
)  # fmt: skip
_SUN = (0.48, 0.74, -0.47)


class Rendered(NamedTuple):
    """``rgb`` (N, 3, Y, X) in [0, 1]; ``truth`` if asked for."""

    rgb: Tensor
    truth: "Truth | None"


@dataclass
class Truth:
    """Per frame and instance: ``visible`` (N, I) is the share of its whole silhouette in view.

    ``box`` (N, I, 4) is left, top, right, bottom in [0, 1] of what is in view, zeros if nothing;
    ``coverage`` (N, I) the share of the picture's pixels.
    """

    visible: Tensor
    box: Tensor
    coverage: Tensor


class _View(NamedTuple):
    """Camera of each frame: place and the axes right, up, forward, each (N, 3)."""

    origin: Tensor
    axes: Tensor
    width: int
    height: int
    tan_x: float
    tan_y: float


class _Pairs(NamedTuple):
    """A ray of the fine grid against a primitive: frame, cell of the grid, primitive, instance."""

    frame: Tensor
    cell: Tensor
    row: Tensor


def render(
    tracks: Tracks, height: int, width: int, *, truth: bool = False, compiled: bool = False
) -> Rendered:
    """Renders N frames on the device where the tracks are.

    Args:
        tracks: poses of N frames.
        height: pixels.
        width: pixels.
        truth: also measure visibility and boxes.
        compiled: fuse the arithmetic with torch.compile, for many calls on a GPU.
    """
    step = _compiled if compiled else _plain
    view = _camera(tracks, height, width)
    background = step(_background)(tracks.look, tracks.position, tracks.scale, tracks.kind, view)
    n, fine = len(tracks), height * width * OVERSAMPLING**2
    depth = torch.full((n * fine,), MISS, device=background.device)
    hits: list[_Hits] = []
    silhouette = None
    if truth:
        silhouette = torch.zeros(n, INSTANCES, fine, dtype=torch.bool, device=depth.device)
    for kind, table in _primitives(tracks).items():
        pairs = _pairs(table, view)
        distance, point, normal = step(_trace[kind])(_ray_table(table, view, tracks), pairs, view)
        keep = (distance < MISS).nonzero().squeeze(-1)
        row, cell = pairs.row[keep], pairs.cell[keep]
        found = _Hits(table.frame[row], cell, table.instance[row], distance[keep], point[keep],
                      normal[keep], table.paint[row])  # fmt: skip
        depth.scatter_reduce_(0, found.frame * fine + cell, found.distance, "amin")
        if silhouette is not None:
            silhouette[found.frame, found.instance, cell] = True
        hits.append(found)
    rgb, owner = _composite(hits, depth, tracks, background, step)
    measured = None
    if silhouette is not None:
        measured = _measure(silhouette, owner, tracks, view)
    return Rendered(rgb.clamp(0, 1), measured)


def _plain(function: _Step) -> _Step:
    return function


@functools.cache
def _compiled(function: _Step) -> _Step:
    return torch.compile(function, dynamic=True)


def _camera(tracks: Tracks, height: int, width: int) -> _View:
    yaw = tracks.camera[:, 3]
    s, c = torch.sin(yaw), torch.cos(yaw)
    sp, cp = math.sin(PITCH), math.cos(PITCH)
    zero = torch.zeros_like(s)
    right = torch.stack([c, zero, -s], -1)
    up = torch.stack([-s * sp, zero + cp, -c * sp], -1)
    ahead = torch.stack([s * cp, zero + sp, c * cp], -1)
    axes = torch.stack([right, up, ahead], 1)
    return _View(
        tracks.camera[:, :3], axes, width, height, TAN_HALF_WIDTH, TAN_HALF_WIDTH * height / width
    )


def _pixel_rays(view: _View) -> Tensor:
    """Unit directions (N, Y, X, 3) through the pixels' centres."""
    device = view.axes.device
    x = ((torch.arange(view.width, device=device) + 0.5) / view.width * 2 - 1) * view.tan_x
    y = (1 - (torch.arange(view.height, device=device) + 0.5) / view.height * 2) * view.tan_y
    right, up, ahead = (view.axes[:, k, None, None] for k in range(3))
    ray = x[None, None, :, None] * right + y[None, :, None, None] * up + ahead
    return torch.nn.functional.normalize(ray, dim=-1)


def _background(look: Tensor, position: Tensor, scale: Tensor, kind: Tensor, view: _View) -> Tensor:
    """Ground with its pattern and soft shadows, sky and haze: (N, Y, X, 3)."""
    device = look.device
    ray = _pixel_rays(view)
    sky = look[:, 1].long()
    zenith, horizon, ambient, sun = (
        torch.tensor([row[k] for row in _SKY], device=device)[sky][:, None, None] for k in range(4)
    )
    lift = (ray[..., 1:2] * 2.2).clamp(0, 1) ** 0.8
    heaven = horizon + (zenith - horizon) * lift
    down = ray[..., 1].clamp(max=-1e-4)
    t = (-view.origin[:, 1, None, None] / down).clamp(max=FAR)
    point = view.origin[:, None, None] + t[..., None] * ray
    ground = look[:, 0].long()
    tone_a, tone_b = (
        torch.tensor([row[k] for row in _GROUND], device=device)[ground][:, None, None]
        for k in range(2)
    )
    mix = _pattern(look, point[..., 0], point[..., 2], t)[..., None]
    light = ambient + sun * _SUN[1] * (1 - 0.75 * _shadow(position, scale, kind, point)[..., None])
    soil = (tone_a * mix + tone_b * (1 - mix)) * light
    haze = ((t / FAR).clamp(max=1) ** 1.5)[..., None]
    soil = soil + (horizon - soil) * haze
    # The horizon is as soft as one pixel.
    edge = (ray[..., 1:2] * view.height / (2 * view.tan_y) + 0.5).clamp(0, 1)
    return soil * (1 - edge) + heaven * edge


def _pattern(look: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Smooth pattern of the ground in [0, 1]: two crossed waves, fading with distance."""
    device = x.device
    wave = torch.tensor([row[2] for row in _GROUND], device=device)[look[:, 0].long()]
    a, b, turn = (look[:, k, None, None] for k in (2, 3, 4))
    c, s = torch.cos(turn), torch.sin(turn)
    u = (c * x + s * z) * (math.tau / wave)[:, None, None]
    v = (c * z - s * x) * (math.tau / wave)[:, None, None]
    bumps = torch.sin(u + a + 0.9 * torch.sin(0.43 * v + b)) * torch.sin(0.8 * v + b)
    return 0.5 + 0.5 * bumps / (1 + (t / 9) ** 2)


def _shadow(position: Tensor, scale: Tensor, kind: Tensor, point: Tensor) -> Tensor:
    """Darkness in [0, 1] under and behind instances: soft ellipses stretched away from the sun."""
    dark = torch.zeros_like(point[..., 0])
    away = torch.tensor([-_SUN[0], -_SUN[2]], device=point.device)
    away = away / away.norm()
    for k in range(INSTANCES):
        size = torch.where(kind[:, k] >= 0, scale[:, k], 0.0)
        if k >= SUBJECTS:
            size = size * 1.4
        foot = position[:, k]
        lift = foot[:, 1]
        offset = point[..., [0, 2]] - foot[:, None, None, [0, 2]]
        offset = offset - (away * (0.45 * size + 0.8 * lift)[:, None])[:, None, None]
        along = (offset * away).sum(-1) / 1.5
        across = offset[..., 0] * away[1] - offset[..., 1] * away[0]
        radius = (0.95 * size)[:, None, None].clamp(min=1e-3)
        gap = (along**2 + across**2) / radius**2
        dark = torch.maximum(dark, (1.35 - gap).clamp(0, 1) * (size > 0)[:, None, None])
    return dark


class _Table(NamedTuple):
    """Primitives of one kind over all frames, one a row."""

    frame: Tensor
    instance: Tensor
    numbers: Tensor
    center: Tensor
    radius: Tensor
    paint: Tensor


def _primitives(tracks: Tracks) -> dict[PrimitiveKind, _Table]:
    """Rows of primitives by kind, with world bounding spheres. ``paint`` is < 0 for the body."""
    device = tracks.camera.device
    rows: dict[PrimitiveKind, list[_Table]] = {}
    for index, name in enumerate(KINDS):
        frame, instance = (tracks.kind == index).nonzero(as_tuple=True)
        if not len(frame):
            continue
        scale = tracks.scale[frame, instance]
        for solid in SOLIDS[name]:
            numbers = torch.zeros(len(frame), _PARAMETERS, device=device)
            numbers[:, : len(solid.numbers)] = torch.tensor(solid.numbers, device=device)
            if solid.swing:
                numbers[:, 3] += solid.swing * torch.sin(6 * tracks.gait[frame, instance])
            middle, radius = solid.bound()
            center = _to_world(torch.tensor(middle, device=device), tracks, frame, instance)
            color = (-1.0, -1.0, -1.0) if solid.paint == "body" else solid.paint
            paint = torch.tensor(color, device=device).expand(len(frame), 3)
            table = _Table(frame, instance, numbers, center, radius * scale, paint)
            rows.setdefault(solid.kind, []).append(table)
    return {
        kind: _Table(*(torch.cat(column) for column in zip(*tables, strict=True)))
        for kind, tables in rows.items()
    }


def _to_world(local: Tensor, tracks: Tracks, frame: Tensor, instance: Tensor) -> Tensor:
    yaw, scale = tracks.yaw[frame, instance], tracks.scale[frame, instance]
    c, s = torch.cos(yaw), torch.sin(yaw)
    x = local[..., 0] * c + local[..., 2] * s
    z = local[..., 2] * c - local[..., 0] * s
    turned = torch.stack([x, local[..., 1].expand_as(x), z], -1)
    return tracks.position[frame, instance] + turned * scale[:, None]


def _pairs(table: _Table, view: _View) -> _Pairs:
    """Fine-grid cells inside the screen rectangle of each primitive's bounding sphere."""
    wide, high = view.width * OVERSAMPLING, view.height * OVERSAMPLING
    offset = table.center - view.origin[table.frame]
    x, y, z = (view.axes[table.frame] * offset[:, None]).sum(-1).unbind(-1)
    near = (z - table.radius).clamp(min=0.2)
    seen = z + table.radius > 0.3

    def span(v: Tensor, tan: float, cells: int) -> tuple[Tensor, Tensor]:
        low = torch.minimum(
            (v - table.radius) / near, (v - table.radius) / (z + table.radius).clamp(min=0.2)
        )
        high = torch.maximum(
            (v + table.radius) / near, (v + table.radius) / (z + table.radius).clamp(min=0.2)
        )
        low = ((low / tan + 1) / 2 * cells).floor().clamp(0, cells)
        high = ((high / tan + 1) / 2 * cells).ceil().clamp(0, cells)
        return low.long(), (high - low).long() * seen

    left, columns = span(x, view.tan_x, wide)
    top, lines = span(-y, view.tan_y, high)
    count = columns * lines
    row = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    rank = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    line = top[row] + rank // columns[row]
    column = left[row] + rank % columns[row]
    return _Pairs(table.frame[row], line * wide + column, row)


class _RayTable(NamedTuple):
    """What the rays of each primitive need: the camera in its instance's frame, and its numbers."""

    offset: Tensor
    turn: Tensor
    scale: Tensor
    axes: Tensor
    numbers: Tensor


def _ray_table(table: _Table, view: _View, tracks: Tracks) -> _RayTable:
    frame, instance = table.frame, table.instance
    yaw = tracks.yaw[frame, instance]
    return _RayTable(
        view.origin[frame] - tracks.position[frame, instance],
        torch.stack([torch.cos(yaw), torch.sin(yaw)], -1),
        tracks.scale[frame, instance],
        view.axes[frame],
        table.numbers,
    )


def _tracer(intersect: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
    """World distance, local point and local normal of every pair against one kind of solid."""

    def trace(table: _RayTable, pairs: _Pairs, view: _View) -> tuple[Tensor, Tensor, Tensor]:
        wide, high = view.width * OVERSAMPLING, view.height * OVERSAMPLING
        x = ((pairs.cell % wide + 0.5) / wide * 2 - 1) * view.tan_x
        y = (1 - (pairs.cell // wide + 0.5) / high * 2) * view.tan_y
        axes, scale = table.axes[pairs.row], table.scale[pairs.row]
        ray = x[:, None] * axes[:, 0] + y[:, None] * axes[:, 1] + axes[:, 2]
        ray = ray / ray.square().sum(-1, keepdim=True).sqrt()
        c, s = table.turn[pairs.row].unbind(-1)

        def turn(v: Tensor) -> Tensor:
            return torch.stack([v[:, 0] * c - v[:, 2] * s, v[:, 1], v[:, 2] * c + v[:, 0] * s], -1)

        origin = turn(table.offset[pairs.row]) / scale[:, None]
        ray = turn(ray)
        t, normal = intersect(origin, ray, table.numbers[pairs.row])
        distance = torch.where(t < MISS, t * scale, MISS)
        return distance, origin + t[:, None] * ray, normal

    return trace


_trace = {kind: _tracer(intersect) for kind, intersect in INTERSECT.items()}


class _Hits(NamedTuple):
    """Pairs that met: where, whose, how far, local point and normal, and the paint (< 0: body)."""

    frame: Tensor
    cell: Tensor
    instance: Tensor
    distance: Tensor
    point: Tensor
    normal: Tensor
    paint: Tensor


def _composite(
    hits: list[_Hits],
    depth: Tensor,
    tracks: Tracks,
    background: Tensor,
    step: Callable[[_Step], _Step],
) -> tuple[Tensor, Tensor]:
    """Composites the nearest hits over the background; also which instance owns each cell."""
    n, high, wide = background.shape[:3]
    fine = high * wide * OVERSAMPLING**2
    device = background.device
    color_F3 = torch.zeros(n * fine, 3, device=device)
    owner = torch.full((n * fine,), -1, dtype=torch.long, device=device)
    for hit in hits:
        index = hit.frame * fine + hit.cell
        win = (hit.distance <= depth[index]).nonzero().squeeze(-1)
        near = _Hits(*(column[win] for column in hit))
        color_F3[index[win]] = step(_shade)(
            near, tracks.look, tracks.yaw, tracks.gait, tracks.color, tracks.marking, tracks.kind
        )
        owner[index[win]] = near.instance

    def pool(x: Tensor) -> Tensor:
        k = OVERSAMPLING
        return x.view(n, high, k, wide, k, -1).mean((2, 4))

    cover = pool((owner >= 0).float())
    rgb = pool(color_F3) + background * (1 - cover)
    return rgb.permute(0, 3, 1, 2), owner.view(n, fine)


def _shade(
    hit: _Hits,
    look: Tensor,
    yaw: Tensor,
    gait: Tensor,
    color: Tensor,
    marking: Tensor,
    kind: Tensor,
) -> Tensor:
    """Colour of hits: paint and marking, light, haze."""
    at = (hit.frame, hit.instance)
    surface = _surface(hit.point, hit.paint, color[at], marking[at], gait[at], kind[at])
    return _lit(surface, hit.normal, yaw[at], look[hit.frame, 1].long(), hit.distance)


def _surface(
    point: Tensor, paint: Tensor, color: Tensor, marking: Tensor, gait: Tensor, kind: Tensor
) -> Tensor:
    """Unlit colour of local points: body colour with its marking, or the primitive's own paint."""
    device = point.device
    body = torch.tensor(_COLOR, device=device)[color]
    marks = [_DARK_MARK if k in _DARK_MARKED else _LIGHT_MARK for k in range(len(_COLOR))]
    mark = torch.tensor(marks, device=device)[color]
    y = point[:, 1]
    angle = torch.atan2(point[:, 2], point[:, 0])
    band = (y > 0.62) & (y < 1.0)
    dots = (torch.sin(3 * angle) > 0.35) & (torch.sin(5.2 * y + 0.4) > 0.2)
    cap = y > 1.18
    marked = ((marking == 1) & band) | ((marking == 2) & dots) | ((marking == 3) & cap)
    body = torch.where(marked[:, None], mark, body)
    around = torch.atan2(y - 0.32, point[:, 0].abs() - 0.72) + gait / 0.34 * point[:, 0].sign()
    wheel = (torch.sin(2 * around) > 0.5) & (paint[:, 0] < 0.2) & (kind == _VEHICLE)
    fixed = torch.where(wheel[:, None], 0.55, paint)
    return torch.where(paint[:, :1] < 0, body, fixed)


def _lit(surface: Tensor, normal: Tensor, yaw: Tensor, sky: Tensor, distance: Tensor) -> Tensor:
    device = surface.device
    c, s = torch.cos(yaw), torch.sin(yaw)
    nx = normal[:, 0] * c + normal[:, 2] * s
    nz = normal[:, 2] * c - normal[:, 0] * s
    facing = (nx * _SUN[0] + normal[:, 1] * _SUN[1] + nz * _SUN[2]).clamp(min=0)
    horizon, ambient, sun = (
        torch.tensor([row[k] for row in _SKY], device=device)[sky] for k in (1, 2, 3)
    )
    fill = 0.82 + 0.18 * normal[:, 1:2]
    color = surface * (ambient * fill + sun * 1.25 * facing[:, None])
    haze = ((distance / FAR).clamp(max=1) ** 1.5)[:, None]
    return color + (horizon - color) * haze


def _measure(silhouette: Tensor, owner: Tensor, tracks: Tracks, view: _View) -> Truth:
    n, cells = owner.shape
    device = owner.device
    wide = view.width * OVERSAMPLING
    high = view.height * OVERSAMPLING
    mine = owner[:, None] == torch.arange(INSTANCES, device=device)[None, :, None]
    seen, whole = mine.sum(-1).float(), silhouette.sum(-1).float()
    grid = mine.view(n, INSTANCES, high, wide)
    box = torch.stack([*_extent(grid.any(2), wide), *_extent(grid.any(3), high)], -1)[
        ..., [0, 2, 1, 3]
    ]
    visible = seen / whole.clamp(min=1) * _inside(tracks, view)
    return Truth(visible, box, seen / cells)


def _extent(present: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and last-plus-one present index along the last axis, in [0, 1]; zeros if none."""
    any_ = present.any(-1)
    first = present.float().argmax(-1)
    last = size - present.flip(-1).float().argmax(-1)
    return torch.where(any_, first / size, 0.0), torch.where(any_, last / size, 0.0)


def _inside(tracks: Tracks, view: _View) -> Tensor:
    """Share (N, I) of an instance's projected bounding spheres' extent that is inside the frame."""
    device = tracks.camera.device
    n = len(tracks)
    low = torch.full((n, INSTANCES, 2), MISS, device=device)
    high = torch.full((n, INSTANCES, 2), -MISS, device=device)
    for table in _primitives(tracks).values():
        offset = table.center - view.origin[table.frame]
        x, y, z = (view.axes[table.frame] * offset[:, None]).sum(-1).unbind(-1)
        z = z.clamp(min=0.2)
        at = torch.stack([x / z / view.tan_x, y / z / view.tan_y], -1)
        reach = torch.stack([table.radius / z / view.tan_x, table.radius / z / view.tan_y], -1)
        index = (table.frame * INSTANCES + table.instance)[:, None].expand(-1, 2)
        low.view(-1, 2).scatter_reduce_(0, index, at - reach, "amin")
        high.view(-1, 2).scatter_reduce_(0, index, at + reach, "amax")
    full = (high - low).clamp(min=1e-6)
    part = high.clamp(max=1) - low.clamp(min=-1)
    return (part / full).clamp(0, 1).prod(-1)
