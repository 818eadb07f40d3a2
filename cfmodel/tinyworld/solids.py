"""Primitives that every shape and landmark is built of, and where a ray meets them.

A ray is ``o + t d`` with unit ``d``, all (3, M) in the instance's own frame (foot at the origin,
y up, unit scale), component first, so that every sum runs over whole rows. Parameters come as
(8, M). A distance ``t`` (M,) is ``MISS`` where there is no hit in front; normals are (3, M).

Source: textbook ray-quadric algebra; torus by sphere tracing of its distance field.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Vector = tuple[float, float, float]
PrimitiveKind = Literal["ellipsoid", "box", "cone", "wheel", "capsule", "torus"]

MISS = 1e9
TORUS_STEPS = 28
_NEAR = 1e-3
_RIM = 1e-4  # a point this near to a flat end belongs to it


@dataclass(frozen=True)
class Primitive:
    """A solid: ``numbers`` are its parameters, ``paint`` how it takes colour.

    ellipsoid: centre (3), radii (3). box: centre (3), half sizes (3). cone: x, z, foot y, top y,
    foot radius, top radius. wheel: centre (3), radius, half width (axis along z). capsule: end a
    (3), end b (3), radius. torus: centre height, ring radius, tube radius, tilt.
    ``paint``: "body" is the instance's colour and marking; else a fixed colour.
    ``swing``: a capsule's end b moves along x by this times sin(gait), for legs.
    """

    kind: PrimitiveKind
    numbers: tuple[float, ...]
    paint: Literal["body"] | tuple[float, float, float] = "body"
    swing: float = 0.0

    def extent(self) -> tuple[Vector, Vector]:
        """Centre and half sizes of an axis-aligned box around the solid."""
        n = self.numbers
        match self.kind:
            case "ellipsoid" | "box":
                return (n[0], n[1], n[2]), (n[3], n[4], n[5])
            case "cone":
                wide = max(n[4], n[5])
                return (n[0], (n[2] + n[3]) / 2, n[1]), (wide, (n[3] - n[2]) / 2, wide)
            case "wheel":
                return (n[0], n[1], n[2]), (n[3], n[3], n[4])
            case "capsule":
                x, y, z = (abs(a - b) / 2 + n[6] for a, b in zip(n[:3], n[3:6], strict=True))
                return self.bound()[0], (x + abs(self.swing), y, z)
            case "torus":
                across, up = abs(math.cos(n[3])), abs(math.sin(n[3]))
                return (0.0, n[0], 0.0), (n[1] * across + n[2], n[1] * up + n[2], n[1] + n[2])

    def bound(self) -> tuple[Vector, float]:
        """Centre and radius of a sphere around the solid."""
        n = self.numbers
        match self.kind:
            case "ellipsoid":
                return (n[0], n[1], n[2]), max(n[3:6])
            case "box":
                return (n[0], n[1], n[2]), math.hypot(*n[3:6])
            case "cone":
                half = (n[3] - n[2]) / 2
                return (n[0], n[2] + half, n[1]), math.hypot(half, max(n[4], n[5]))
            case "wheel":
                return (n[0], n[1], n[2]), math.hypot(n[3], n[4])
            case "capsule":
                middle = tuple((a + b) / 2 for a, b in zip(n[:3], n[3:6], strict=True))
                reach = math.dist(n[:3], n[3:6]) / 2 + n[6] + abs(self.swing)
                return (middle[0], middle[1], middle[2]), reach
            case "torus":
                return (0.0, n[0], 0.0), n[1] + n[2]


_DARK = (0.13, 0.13, 0.15)
_STONE = (0.62, 0.6, 0.56)
_ROOF = (0.5, 0.2, 0.16)
_LEAF = (0.1, 0.32, 0.14)
_WOOD = (0.36, 0.25, 0.16)


def _legs() -> tuple[Primitive, ...]:
    return tuple(
        Primitive("capsule", (x, 0.75, z, x, 0.1, z, 0.13), swing=0.22 * sign)
        for x, z, sign in ((-0.5, -0.2, 1), (-0.5, 0.2, -1), (0.5, -0.2, -1), (0.5, 0.2, 1))
    )


def _wheels() -> tuple[Primitive, ...]:
    return tuple(
        Primitive("wheel", (x, 0.32, z, 0.34, 0.12), _DARK)
        for x in (-0.72, 0.72)
        for z in (-0.55, 0.55)
    )


SOLIDS: dict[str, tuple[Primitive, ...]] = {
    "sphere": (Primitive("ellipsoid", (0, 0.85, 0, 0.85, 0.85, 0.85)),),
    "box": (Primitive("box", (0, 0.78, 0, 0.74, 0.78, 0.74)),),
    "cylinder": (Primitive("cone", (0, 0, 0, 1.7, 0.62, 0.62)),),
    "cone": (Primitive("cone", (0, 0, 0, 1.85, 0.95, 0.0)),),
    "capsule": (Primitive("capsule", (0, 0.48, 0, 0, 1.37, 0, 0.48)),),
    "ring": (Primitive("torus", (0.86, 0.62, 0.24, 0.75)),),
    "animal": (
        Primitive("capsule", (-0.5, 0.92, 0, 0.5, 0.92, 0, 0.38)),
        Primitive("ellipsoid", (1.0, 1.32, 0, 0.34, 0.32, 0.3)),
        Primitive("ellipsoid", (1.32, 1.24, 0, 0.2, 0.15, 0.16)),
        Primitive("capsule", (-0.82, 1.05, 0, -1.12, 1.5, 0, 0.1)),
        *_legs(),
    ),
    "vehicle": (
        Primitive("box", (0, 0.62, 0, 1.2, 0.32, 0.56)),
        Primitive("box", (-0.12, 1.2, 0, 0.62, 0.3, 0.5)),
        *_wheels(),
    ),
    "tower": (
        Primitive("cone", (0, 0, 0, 4.0, 0.95, 0.75), _STONE),
        Primitive("cone", (0, 0, 4.0, 5.5, 1.15, 0.0), _ROOF),
    ),
    "arch": (
        Primitive("box", (-1.6, 1.6, 0, 0.42, 1.6, 0.42), _STONE),
        Primitive("box", (1.6, 1.6, 0, 0.42, 1.6, 0.42), _STONE),
        Primitive("box", (0, 3.55, 0, 2.1, 0.38, 0.46), _STONE),
    ),
    "tree": (
        Primitive("cone", (0, 0, 0, 2.2, 0.32, 0.26), _WOOD),
        Primitive("ellipsoid", (0, 3.2, 0, 1.5, 1.35, 1.5), _LEAF),
        Primitive("ellipsoid", (0.75, 2.5, 0.2, 0.95, 0.85, 0.95), _LEAF),
    ),
    "rock": (
        Primitive("ellipsoid", (0, 0.6, 0, 2.1, 1.5, 1.4), (0.42, 0.4, 0.42)),
        Primitive("ellipsoid", (1.7, 0.3, 0, 1.1, 0.9, 1.0), (0.42, 0.4, 0.42)),
    ),
    "house": (
        Primitive("box", (0, 1.1, 0, 1.7, 1.1, 1.2), (0.8, 0.74, 0.62)),
        Primitive("cone", (0, 0, 2.15, 3.8, 2.3, 0.0), _ROOF),
    ),
    "mast": (
        Primitive("cone", (0, 0, 0, 5.0, 0.15, 0.12), (0.75, 0.75, 0.78)),
        Primitive("box", (0.85, 4.4, 0, 0.8, 0.5, 0.06), (0.72, 0.16, 0.3)),
    ),
}


def _ahead(t: Tensor, hit: Tensor) -> Tensor:
    return torch.where(hit & (t > _NEAR), t, MISS)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _unit(v: Tensor) -> Tensor:
    return torch.nn.functional.normalize(v, dim=0)


def _ellipsoid(o: Tensor, d: Tensor, p: Tensor) -> Tensor:
    a, b = (o - p[0:3]) / p[3:6], d / p[3:6]
    bb, ab, aa = _dot(b, b), _dot(a, b), _dot(a, a)
    disc = ab * ab - bb * (aa - 1)
    return _ahead((-ab - disc.clamp(min=0).sqrt()) / bb, disc > 0)


def _ellipsoid_normal(q: Tensor, p: Tensor) -> Tensor:
    return _unit((q - p[0:3]) / p[3:6].square())


def _box(o: Tensor, d: Tensor, p: Tensor) -> Tensor:
    inverse = 1 / torch.where(d.abs() < 1e-6, 1e-6, d)
    center = (p[0:3] - o) * inverse
    reach = p[3:6] * inverse.abs()
    near, far = (center - reach).amax(0), (center + reach).amin(0)
    return _ahead(near, near < far)


def _box_normal(q: Tensor, p: Tensor) -> Tensor:
    u = (q - p[0:3]) / p[3:6]
    side = torch.arange(3, device=q.device)[:, None] == u.abs().argmax(0)
    return torch.where(side, u.sign(), 0.0)


def _cone(o: Tensor, d: Tensor, p: Tensor) -> Tensor:
    """A capped cone or cylinder along y."""
    x, z, y0, y1, r0, r1 = p[:6].unbind(0)
    ox, oy, oz = o[0] - x, o[1] - y0, o[2] - z
    dx, dy, dz = d.unbind(0)
    slope = (r1 - r0) / (y1 - y0)
    rise = r0 + slope * oy
    a = dx * dx + dz * dz - (slope * dy) ** 2
    a = torch.where(a.abs() < 1e-7, 1e-7, a)
    b = ox * dx + oz * dz - slope * dy * rise
    disc = b * b - a * (ox * ox + oz * oz - rise * rise)
    root = disc.clamp(min=0).sqrt()
    best = _cap(ox, oy, oz, d, y1 - y0, r1)
    for sign in (-1, 1):
        t = (-b + sign * root) / a
        y = oy + t * dy
        on = (disc > 0) & (y >= 0) & (y <= y1 - y0) & (r0 + slope * y >= 0)
        best = torch.minimum(best, _ahead(t, on))
    return best


def _cap(ox: Tensor, oy: Tensor, oz: Tensor, d: Tensor, height: Tensor, radius: Tensor) -> Tensor:
    t = (height - oy) / torch.where(d[1].abs() < 1e-6, 1e-6, d[1])
    on = (ox + t * d[0]) ** 2 + (oz + t * d[2]) ** 2 < radius * radius
    return _ahead(t, on & (d[1] < 0))


def _cone_normal(q: Tensor, p: Tensor) -> Tensor:
    x, z, y0, y1, r0, r1 = p[:6].unbind(0)
    slope = (r1 - r0) / (y1 - y0)
    radius = r0 + slope * (q[1] - y0)
    side = _unit(torch.stack([q[0] - x, -slope * radius, q[2] - z]))
    up = q.new_tensor([0.0, 1.0, 0.0])[:, None]
    return torch.where((q[1] > y1 - _RIM) & (r1 > 0), up, side)


def _wheel(o: Tensor, d: Tensor, p: Tensor) -> Tensor:
    """A disc of some width whose axis is z."""
    order = [0, 2, 1]
    low, high = p[2] - p[4], p[2] + p[4]
    upright = torch.stack([p[0], p[1], low, high, p[3], p[3]])
    under = (low - o[2]) / torch.where(d[2].abs() < 1e-6, 1e-6, d[2])
    on = ((o[:2] + under * d[:2] - p[:2]) ** 2).sum(0) < p[3] ** 2
    return torch.minimum(_cone(o[order], d[order], upright), _ahead(under, on & (d[2] > 0)))


def _wheel_normal(q: Tensor, p: Tensor) -> Tensor:
    aside = q[2] - p[2]
    flat = torch.stack([torch.zeros_like(aside), torch.zeros_like(aside), aside.sign()])
    round_ = _unit(torch.stack([q[0] - p[0], q[1] - p[1], torch.zeros_like(aside)]))
    return torch.where(aside.abs() > p[4] - _RIM, flat, round_)


def _capsule(o: Tensor, d: Tensor, p: Tensor) -> Tensor:
    a, b, r = p[0:3], p[3:6], p[6]
    ba, oa = b - a, o - a
    baba, bad, baoa = _dot(ba, ba), _dot(ba, d), _dot(ba, oa)
    dd = baba - bad * bad
    dd = torch.where(dd.abs() < 1e-7, 1e-7, dd)
    mixed = baba * _dot(d, oa) - baoa * bad
    disc = mixed**2 - dd * (baba * (_dot(oa, oa) - r * r) - baoa**2)
    t = (-mixed - disc.clamp(min=0).sqrt()) / dd
    y = baoa + t * bad
    side = _ahead(t, (disc > 0) & (y > 0) & (y < baba))
    oc = o - torch.where(y <= 0, a, b)
    half = _dot(oc, d)
    ball = half**2 - _dot(oc, oc) + r * r
    tip = _ahead(-half - ball.clamp(min=0).sqrt(), ball > 0)
    return torch.where(side < MISS, side, tip)


def _capsule_normal(q: Tensor, p: Tensor) -> Tensor:
    a, ba = p[0:3], p[3:6] - p[0:3]
    along = (_dot(q - a, ba) / _dot(ba, ba)).clamp(0, 1)
    return (q - a - along * ba) / p[6]


def _tilted(v: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return torch.stack([c * v[0] + s * v[1], c * v[1] - s * v[0], v[2]])


def _torus(o: Tensor, d: Tensor, p: Tensor) -> Tensor:
    """A torus tilted about z, by sphere tracing inside its bounding sphere."""
    height, ring, tube, tilt = p[:4].unbind(0)
    c, s = torch.cos(tilt), torch.sin(tilt)
    q, e = _tilted(torch.stack([o[0], o[1] - height, o[2]]), c, s), _tilted(d, c, s)
    b = _dot(q, e)
    disc = b * b - _dot(q, q) + (ring + tube) ** 2
    root = disc.clamp(min=0).sqrt()
    t = (-b - root).clamp(min=0)
    gap = t
    for _ in range(TORUS_STEPS + 1):
        x = q + t * e
        gap = (((x[0] ** 2 + x[2] ** 2).sqrt() - ring) ** 2 + x[1] ** 2).sqrt() - tube
        t = t + gap
    t = t - gap
    return _ahead(t, (disc > 0) & (gap < 0.02) & (t < -b + root))


def _torus_normal(q: Tensor, p: Tensor) -> Tensor:
    height, ring, _, tilt = p[:4].unbind(0)
    c, s = torch.cos(tilt), torch.sin(tilt)
    x = _tilted(torch.stack([q[0], q[1] - height, q[2]]), c, s)
    flat = (x[0] ** 2 + x[2] ** 2).sqrt().clamp(min=1e-6)
    near = (flat - ring) / flat
    return _tilted(_unit(torch.stack([x[0] * near, x[1], x[2] * near])), c, -s)


class Surface(NamedTuple):
    """How a kind of primitive is met: distance along rays, and the unit normal at points of it."""

    distance: Callable[[Tensor, Tensor, Tensor], Tensor]
    normal: Callable[[Tensor, Tensor], Tensor]


INTERSECT: dict[PrimitiveKind, Surface] = {
    "ellipsoid": Surface(_ellipsoid, _ellipsoid_normal),
    "box": Surface(_box, _box_normal),
    "cone": Surface(_cone, _cone_normal),
    "wheel": Surface(_wheel, _wheel_normal),
    "capsule": Surface(_capsule, _capsule_normal),
    "torus": Surface(_torus, _torus_normal),
}
