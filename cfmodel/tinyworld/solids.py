"""Primitives that every shape and landmark is built of, and where a ray meets them.

A ray is ``o + t d`` with unit ``d``, all (M, 3) in the instance's own frame (foot at the origin,
y up, unit scale). Each function returns ``t`` (M,), infinite where there is no hit in front, and
the unit normal (M, 3). Parameters come as (M, 8).

Source: textbook ray-quadric algebra; torus by sphere tracing of its distance field.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PrimitiveKind = Literal["ellipsoid", "box", "cone", "wheel", "capsule", "torus"]

MISS = 1e9
TORUS_STEPS = 28
_NEAR = 1e-3


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

    def bound(self) -> tuple[tuple[float, float, float], float]:
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


def _first(*hits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    best, normal = hits[0]
    for t, n in hits[1:]:
        closer = t < best
        best = torch.where(closer, t, best)
        normal = torch.where(closer[:, None], n, normal)
    return best, normal


def _ahead(t: Tensor, hit: Tensor) -> Tensor:
    return torch.where(hit & (t > _NEAR), t, MISS)


def ellipsoid(o: Tensor, d: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest hit with an axis-aligned ellipsoid."""
    a, b = (o - p[:, 0:3]) / p[:, 3:6], d / p[:, 3:6]
    bb, ab, aa = (b * b).sum(-1), (a * b).sum(-1), (a * a).sum(-1)
    disc = ab * ab - bb * (aa - 1)
    t = (-ab - disc.clamp(min=0).sqrt()) / bb
    normal = torch.nn.functional.normalize((a + t[:, None] * b) / p[:, 3:6], dim=-1)
    return _ahead(t, disc > 0), normal


def box(o: Tensor, d: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest hit with an axis-aligned box."""
    inverse = 1 / torch.where(d.abs() < 1e-6, 1e-6, d)
    center = (p[:, 0:3] - o) * inverse
    reach = p[:, 3:6] * inverse.abs()
    near, axis = (center - reach).max(-1)
    far = (center + reach).amin(-1)
    side = torch.arange(3, device=o.device) == axis[:, None]
    return _ahead(near, near < far), torch.where(side, -d.sign(), 0.0)


def cone(o: Tensor, d: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest hit with a capped cone or cylinder along y."""
    x, z, y0, y1, r0, r1 = p[:, :6].unbind(-1)
    ox, oy, oz = o[:, 0] - x, o[:, 1] - y0, o[:, 2] - z
    dx, dy, dz = d.unbind(-1)
    slope = (r1 - r0) / (y1 - y0)
    rise = r0 + slope * oy
    a = dx * dx + dz * dz - (slope * dy) ** 2
    a = torch.where(a.abs() < 1e-7, 1e-7, a)
    b = ox * dx + oz * dz - slope * dy * rise
    disc = b * b - a * (ox * ox + oz * oz - rise * rise)
    root = disc.clamp(min=0).sqrt()
    sides = []
    for sign in (-1, 1):
        t = (-b + sign * root) / a
        y = oy + t * dy
        radius = r0 + slope * y
        on = (disc > 0) & (y >= 0) & (y <= y1 - y0) & (radius >= 0)
        normal = torch.stack([ox + t * dx, -slope * radius, oz + t * dz], -1)
        sides.append((_ahead(t, on), torch.nn.functional.normalize(normal, dim=-1)))
    steep = torch.where(dy.abs() < 1e-6, 1e-6, dy)
    t = (y1 - y0 - oy) / steep
    on = (ox + t * dx) ** 2 + (oz + t * dz) ** 2 < r1 * r1
    up = torch.zeros_like(o)
    up[:, 1] = 1
    return _first(*sides, (_ahead(t, on & (dy < 0)), up))


def wheel(o: Tensor, d: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest hit with a disc of some width whose axis is z."""
    order = [0, 2, 1]
    upright = torch.zeros_like(p)
    upright[:, 0], upright[:, 1] = p[:, 0], p[:, 1]
    upright[:, 2], upright[:, 3] = p[:, 2] - p[:, 4], p[:, 2] + p[:, 4]
    upright[:, 4] = upright[:, 5] = p[:, 3]
    t, normal = cone(o[:, order], d[:, order], upright)
    flat = torch.where(d[:, 2].abs() < 1e-6, 1e-6, d[:, 2])
    under = (p[:, 2] - p[:, 4] - o[:, 2]) / flat
    on = ((o[:, :2] + under[:, None] * d[:, :2] - p[:, :2]) ** 2).sum(-1) < p[:, 3] ** 2
    back = torch.zeros_like(o)
    back[:, 2] = -1
    return _first((t, normal[:, order]), (_ahead(under, on & (d[:, 2] > 0)), back))


def capsule(o: Tensor, d: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest hit with a capsule between two ends."""
    a, b, r = p[:, 0:3], p[:, 3:6], p[:, 6]
    ba, oa = b - a, o - a
    baba, bad, baoa = (ba * ba).sum(-1), (ba * d).sum(-1), (ba * oa).sum(-1)
    dd = baba - bad * bad
    dd = torch.where(dd.abs() < 1e-7, 1e-7, dd)
    mixed = baba * (d * oa).sum(-1) - baoa * bad
    disc = mixed**2 - dd * (baba * (oa * oa).sum(-1) - baoa**2 - r * r * baba)
    t = (-mixed - disc.clamp(min=0).sqrt()) / dd
    y = baoa + t * bad
    side = _ahead(t, (disc > 0) & (y > 0) & (y < baba))
    end = torch.where((y <= 0)[:, None], a, b)
    oc = o - end
    half = (oc * d).sum(-1)
    ball = half**2 - (oc * oc).sum(-1) + r * r
    tip = _ahead(-half - ball.clamp(min=0).sqrt(), ball > 0)
    tip = torch.where(side < MISS, MISS, tip)
    t = torch.minimum(side, tip)
    point = o + t.clamp(max=1e4)[:, None] * d
    along = (((point - a) * ba).sum(-1) / baba).clamp(0, 1)
    return t, (point - a - along[:, None] * ba) / r[:, None]


def torus(o: Tensor, d: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest hit with a torus tilted about z, by sphere tracing inside its bounding sphere."""
    height, ring, tube, tilt = p[:, :4].unbind(-1)
    c, s = torch.cos(tilt), torch.sin(tilt)

    def turn(v: Tensor, sine: Tensor) -> Tensor:
        return torch.stack(
            [c * v[:, 0] + sine * v[:, 1], c * v[:, 1] - sine * v[:, 0], v[:, 2]], -1
        )

    center = torch.zeros_like(o)
    center[:, 1] = height
    q, e = turn(o - center, s), turn(d, s)
    b = (q * e).sum(-1)
    disc = b * b - (q * q).sum(-1) + (ring + tube) ** 2
    root = disc.clamp(min=0).sqrt()
    t = (-b - root).clamp(min=0)
    for _ in range(TORUS_STEPS):
        x = q + t[:, None] * e
        around = (x[:, 0] ** 2 + x[:, 2] ** 2).sqrt() - ring
        t = t + ((around**2 + x[:, 1] ** 2).sqrt() - tube)
    x = q + t[:, None] * e
    flat = (x[:, 0] ** 2 + x[:, 2] ** 2).sqrt().clamp(min=1e-6)
    around = flat - ring
    gap = (around**2 + x[:, 1] ** 2).sqrt() - tube
    normal = torch.stack([x[:, 0] * around / flat, x[:, 1], x[:, 2] * around / flat], -1)
    normal = torch.nn.functional.normalize(turn(normal, -s), dim=-1)
    return _ahead(t, (disc > 0) & (gap < 0.02) & (t < -b + root)), normal


INTERSECT = {
    "ellipsoid": ellipsoid,
    "box": box,
    "cone": cone,
    "wheel": wheel,
    "capsule": capsule,
    "torus": torus,
}
