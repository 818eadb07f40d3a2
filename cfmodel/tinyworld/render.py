"""Batched analytic ray caster: tracks in, pixels and ground truth out.

N frames, I instances, R primitives, M (ray, primitive) pairs, W hits that are seen, Y X rows and
columns. A primitive is tested only against the rays of the screen rectangle around it, so the work
follows what is in view; normals and colours are made only for what is nearest. Solids are sampled
on a grid ``OVERSAMPLING`` times finer than the pixels, ground and sky once a pixel (they are
smooth).
"""

import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cfmodel.tinyworld.shade import Skin, View, background, camera, shade
from cfmodel.tinyworld.solids import INTERSECT, MISS, SOLIDS, Primitive, PrimitiveKind, Surface
from cfmodel.tinyworld.tracks import INSTANCES, KINDS, Tracks

OVERSAMPLING = 2
_NEAR = 0.2
_PARAMETERS = 8
_CORNERS = tuple(itertools.product((-1.0, 1.0), repeat=3))
# Rows of a ray table: origin, the directions of right, up and ahead, scale, parameters.
_ORIGIN, _RIGHT, _UP, _AHEAD, _SCALE, _NUMBERS = 0, 3, 6, 9, 12, 13


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


def render(tracks: Tracks, height: int, width: int, *, truth: bool = False) -> Rendered:
    """Renders N frames on the device where the tracks are.

    Args:
        tracks: poses of N frames.
        height: pixels.
        width: pixels.
        truth: also measure visibility and boxes.
    """
    view = camera(tracks, height, width)
    tables = _primitives(tracks, view)
    hits = [_meet(table, INTERSECT[kind], view) for kind, table in tables.items()]
    n, fine = len(tracks), height * width * OVERSAMPLING**2
    depth = torch.full((n * fine,), MISS, device=view.origin.device)
    for hit in hits:
        depth.scatter_reduce_(0, hit.cell, hit.distance, "amin")
    seen = [_nearest(hit, depth, view) for hit in hits]
    owner = torch.full((n * fine,), -1, dtype=torch.int8, device=depth.device)
    solid = torch.zeros(3, n * fine, device=depth.device)
    for cell, skin in seen:
        owner[cell] = skin.instance.to(torch.int8)
        solid[:, cell] = shade(skin, tracks)
    rgb = _pool(solid, view).transpose(0, 1)
    rgb = rgb + background(tracks, view) * (1 - _pool((owner >= 0).float()[None], view)[0][:, None])
    measured = None
    if truth:
        silhouette = torch.zeros(n, INSTANCES, fine, dtype=torch.bool, device=depth.device)
        for hit in hits:
            frame, instance = hit.table.frame[hit.row], hit.table.instance[hit.row]
            silhouette[frame, instance, hit.cell - frame * fine] = True
        measured = _measure(silhouette, owner.view(n, fine), tables.values(), view)
    return Rendered(rgb.clamp(0, 1).contiguous(), measured)


def _pool(grid_CM: Tensor, view: View) -> Tensor:
    """Means (C, N, Y, X) over the cells of each pixel."""
    k = OVERSAMPLING
    return grid_CM.view(len(grid_CM), -1, view.height, k, view.width, k).mean((3, 5))


class _Table(NamedTuple):
    """Primitives of one kind over all frames, one a row.

    ``paint`` (R, 3) is below 0 for the body; ``center`` and ``radius`` are of a sphere around the
    primitive, ``corners`` (8, R, 3) of a box around it, in the world; ``rays`` (21, R) is what a
    ray needs to be taken into the instance's own frame, and the primitive's parameters.
    """

    frame: Tensor
    instance: Tensor
    paint: Tensor
    center: Tensor
    radius: Tensor
    corners: Tensor
    rays: Tensor


class _Parts(NamedTuple):
    """Primitives of one kind over all sorts of instances (S): what no pose changes.

    ``middle`` is the centre of the sphere of ``radius`` around a primitive, ``corners`` (8, S, 3)
    those of a box, in the instance's own frame.
    """

    sort: Tensor
    numbers: Tensor
    swing: Tensor
    paint: Tensor
    middle: Tensor
    radius: Tensor
    corners: Tensor


@functools.cache
def _parts(device: torch.device) -> dict[PrimitiveKind, _Parts]:
    rows: dict[PrimitiveKind, list[tuple[int, Primitive]]] = {}
    for sort, name in enumerate(KINDS):
        for solid in SOLIDS[name]:
            rows.setdefault(solid.kind, []).append((sort, solid))
    return {kind: _gathered(found, device) for kind, found in rows.items()}


def _gathered(found: list[tuple[int, Primitive]], device: torch.device) -> _Parts:
    solids = [solid for _, solid in found]
    padded = [(*s.numbers, *[0.0] * (_PARAMETERS - len(s.numbers))) for s in solids]
    extents = torch.tensor([s.extent() for s in solids])
    corners = extents[:, 0] + torch.tensor(_CORNERS)[:, None] * extents[:, 1]
    columns = (
        torch.tensor([sort for sort, _ in found]),
        torch.tensor(padded),
        torch.tensor([s.swing for s in solids]),
        torch.tensor([(-1.0, -1.0, -1.0) if s.paint == "body" else s.paint for s in solids]),
        torch.tensor([s.bound()[0] for s in solids]),
        torch.tensor([s.bound()[1] for s in solids]),
        corners,
    )
    return _Parts(*(column.to(device) for column in columns))


def _primitives(tracks: Tracks, view: View) -> dict[PrimitiveKind, _Table]:
    """Rows of primitives by kind; kinds that no instance has are left out."""
    tables: dict[PrimitiveKind, _Table] = {}
    for kind, parts in _parts(tracks.camera.device).items():
        frame, instance, part = (tracks.kind[..., None] == parts.sort).nonzero(as_tuple=True)
        if len(frame):
            tables[kind] = _table(tracks, view, parts, (frame, instance, part))
    return tables


def _table(
    tracks: Tracks, view: View, parts: _Parts, rows: tuple[Tensor, Tensor, Tensor]
) -> _Table:
    frame, instance, part = rows
    yaw, scale = tracks.yaw[frame, instance], tracks.scale[frame, instance]
    position, axes = tracks.position[frame, instance], view.axes[frame]
    c, s = torch.cos(yaw), torch.sin(yaw)

    def local(v: Tensor) -> list[Tensor]:
        x, y, z = v.unbind(-1)
        return [x * c - z * s, y, z * c + x * s]

    def world(v: Tensor) -> Tensor:
        x, y, z = v.unbind(-1)
        turned = torch.stack([x * c + z * s, y, z * c - x * s], -1)
        return position + turned * scale[:, None]

    origin = local((view.origin[frame] - position) / scale[:, None])
    rays = [*origin, *local(axes[:, 0]), *local(axes[:, 1]), *local(axes[:, 2]), scale]
    numbers = parts.numbers[part].T.contiguous()
    numbers[3] += parts.swing[part] * torch.sin(6 * tracks.gait[frame, instance])
    return _Table(
        frame=frame,
        instance=instance,
        paint=parts.paint[part],
        center=world(parts.middle[part]),
        radius=parts.radius[part] * scale,
        corners=world(parts.corners[:, part]),
        rays=torch.cat([torch.stack(rays), numbers]),
    )


class _Hits(NamedTuple):
    """Pairs that met: cell of the grid of all frames, row of the table, how far in the world."""

    cell: Tensor
    row: Tensor
    distance: Tensor
    table: _Table
    surface: Surface


def _meet(table: _Table, surface: Surface, view: View) -> _Hits:
    cell, row = _pairs(table, view)
    rays = table.rays.index_select(1, row)
    t = surface.distance(*_rays(rays, cell, view), rays[_NUMBERS:])
    met = (t < MISS).nonzero().squeeze(-1)
    fine = view.height * view.width * OVERSAMPLING**2
    row = row[met]
    return _Hits(
        table.frame[row] * fine + cell[met], row, t[met] * rays[_SCALE, met], table, surface
    )


def _rays(rays: Tensor, cell: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Origins and unit directions (3, M) of cells' rays in the frames of their rows' instances."""
    wide, high = view.width * OVERSAMPLING, view.height * OVERSAMPLING
    line = cell // wide
    x = ((cell - line * wide + 0.5) / wide * 2 - 1) * view.tan_x
    y = (1 - (line + 0.5) / high * 2) * view.tan_y
    d = x * rays[_RIGHT:_UP] + y * rays[_UP:_AHEAD] + rays[_AHEAD:_SCALE]
    return rays[_ORIGIN:_RIGHT], d * (1 + x * x + y * y).rsqrt()


def _nearest(hit: _Hits, depth: Tensor, view: View) -> tuple[Tensor, Skin]:
    """Cells that this kind of primitive is nearest in, and what is seen there."""
    won = (hit.distance <= depth[hit.cell]).nonzero().squeeze(-1)
    cell, row, distance = hit.cell[won], hit.row[won], hit.distance[won]
    table = hit.table
    rays = table.rays.index_select(1, row)
    o, d = _rays(rays, cell % (view.height * view.width * OVERSAMPLING**2), view)
    point = o + distance / rays[_SCALE] * d
    normal = hit.surface.normal(point, rays[_NUMBERS:])
    paint = table.paint[row].T
    return cell, Skin(point, normal, distance, paint, table.frame[row], table.instance[row])


def _pairs(table: _Table, view: View) -> tuple[Tensor, Tensor]:
    """Cells of the fine grid of its frame, and row (M,), for every row's screen rectangle."""
    wide, high = view.width * OVERSAMPLING, view.height * OVERSAMPLING
    (left, right), (top, bottom) = (
        _span(table, view, axis, tan, cells)
        for axis, tan, cells in ((0, view.tan_x, wide), (1, -view.tan_y, high))
    )
    columns, lines = (right - left).clamp(min=0), (bottom - top).clamp(min=0)
    count = columns * lines
    row = torch.repeat_interleave(
        torch.arange(len(count), device=count.device, dtype=torch.int32), count
    )
    start = (count.cumsum(0) - count).to(torch.int32)
    rank = torch.arange(len(row), device=row.device, dtype=torch.int32)
    rank = rank - start.index_select(0, row)
    across = columns.to(torch.int32).index_select(0, row)
    line = rank // across
    corner = (top * wide + left).to(torch.int32).index_select(0, row)
    return corner + line * wide + rank - line * across, row


def _span(table: _Table, view: View, axis: int, tan: float, cells: int) -> tuple[Tensor, Tensor]:
    """First and past-the-last cell along a screen axis that a row may cover.

    Bounds are those of the sphere and of the box around it; a box that reaches behind the camera
    has none.
    """
    origin, ahead = view.origin[table.frame], view.axes[table.frame, 2]
    aside = view.axes[table.frame, axis] / tan
    depth, at = (
        ((table.corners - origin) * ahead).sum(-1),
        ((table.corners - origin) * aside).sum(-1),
    )
    cut = depth.amin(0) < _NEAR
    at = at / depth.clamp(min=_NEAR)
    z, v = ((table.center - origin) * ahead).sum(-1), ((table.center - origin) * aside).sum(-1)
    far, near = (z + table.radius).clamp(min=_NEAR), (z - table.radius).clamp(min=_NEAR)
    reach = table.radius / abs(tan)
    low = torch.minimum((v - reach) / near, (v - reach) / far)
    high = torch.maximum((v + reach) / near, (v + reach) / far)
    low = torch.maximum(low, torch.where(cut, -1.0, at.amin(0)))
    high = torch.minimum(high, torch.where(cut, 1.0, at.amax(0)))
    first = ((low + 1) / 2 * cells).floor().clamp(0, cells).long()
    last = ((high + 1) / 2 * cells).ceil().clamp(0, cells).long()
    return first, torch.where(z + table.radius > _NEAR, last, first)


def _measure(silhouette: Tensor, owner: Tensor, tables: Iterable[_Table], view: View) -> Truth:
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
    visible = seen / whole.clamp(min=1) * _inside(tables, n, view)
    return Truth(visible, box, seen / cells)


def _extent(present: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and last-plus-one present index along the last axis, in [0, 1]; zeros if none."""
    any_ = present.any(-1)
    first = present.float().argmax(-1)
    last = size - present.flip(-1).float().argmax(-1)
    return torch.where(any_, first / size, 0.0), torch.where(any_, last / size, 0.0)


def _inside(tables: Iterable[_Table], n: int, view: View) -> Tensor:
    """Share (N, I) of an instance's projected bounding spheres' extent that is inside the frame."""
    device = view.origin.device
    low = torch.full((n, INSTANCES, 2), MISS, device=device)
    high = torch.full((n, INSTANCES, 2), -MISS, device=device)
    for table in tables:
        offset = table.center - view.origin[table.frame]
        x, y, z = (view.axes[table.frame] * offset[:, None]).sum(-1).unbind(-1)
        z = z.clamp(min=_NEAR)
        at = torch.stack([x / z / view.tan_x, y / z / view.tan_y], -1)
        reach = torch.stack([table.radius / z / view.tan_x, table.radius / z / view.tan_y], -1)
        index = (table.frame * INSTANCES + table.instance)[:, None].expand(-1, 2)
        low.view(-1, 2).scatter_reduce_(0, index, at - reach, "amin")
        high.view(-1, 2).scatter_reduce_(0, index, at + reach, "amax")
    full = (high - low).clamp(min=1e-6)
    part = high.clamp(max=1) - low.clamp(min=-1)
    return (part / full).clamp(0, 1).prod(-1)
