"""Where everything is in every pixel frame: a scene's script played into tensors."""

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from cfmodel.tinyworld.scene import (
    COLORS,
    FPS,
    GROUNDS,
    LANDMARKS,
    MARKINGS,
    PLACE_DISTANCE,
    SHAPES,
    SKIES,
    SUBJECTS,
    Event,
    Scene,
    Subject,
    chunk_start,
)

CAMERA_HEIGHT = 1.7
EXIT_DISTANCE = 7.0
INSTANCES = SUBJECTS + 2
KINDS: tuple[str, ...] = (*SHAPES, *LANDMARKS)


@dataclass
class Tracks:
    """Poses of camera and instances in N pixel frames (instances: three subjects, two landmarks).

    ``camera`` (N, 4) is x, y, z, yaw; ``position`` (N, I, 3) the foot of an instance; ``yaw``,
    ``scale`` and ``gait`` (distance walked) are (N, I); ``kind`` indexes ``KINDS`` and is -1 where
    there is no instance; ``look`` (N, 5) is ground, sky and the texture's three numbers.
    """

    camera: Tensor
    position: Tensor
    yaw: Tensor
    scale: Tensor
    gait: Tensor
    kind: Tensor
    color: Tensor
    marking: Tensor
    look: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __getitem__(self, index: slice | Tensor) -> Self:
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    def __len__(self) -> int:
        return self.camera.shape[0]


def stack(tracks: list[Tracks]) -> Tracks:
    """Frames of several films, one after the other."""
    return Tracks(*(torch.cat([getattr(t, f.name) for t in tracks]) for f in fields(Tracks)))


def play(scene: Scene, frames: Tensor) -> Tracks:
    """Tracks of the given pixel frames (N,), int64, of a film of the scene."""
    n = len(frames)
    time_N = frames.double() / FPS
    event_N, u_N = _locate(scene.script, frames)
    script = _Script(scene, event_N, u_N)
    camera = _camera(scene, script)
    position = torch.zeros(n, INSTANCES, 3, dtype=torch.float64)
    yaw = torch.zeros(n, INSTANCES, dtype=torch.float64)
    scale = torch.ones(n, INSTANCES, dtype=torch.float64)
    gait = torch.zeros(n, INSTANCES, dtype=torch.float64)
    kind = torch.full((INSTANCES,), -1)
    color = torch.zeros(INSTANCES, dtype=torch.long)
    marking = torch.zeros(INSTANCES, dtype=torch.long)
    for k, subject in enumerate(scene.subjects):
        bearing = scene.places[subject.place].bearing
        local = _subject(subject, time_N, script if k == 0 else None)
        position[:, k] = _place_to_world(bearing, local.lateral, local.height, local.depth)
        yaw[:, k], gait[:, k] = local.yaw + bearing, local.gait
        scale[:, k] = subject.size
        kind[k] = SHAPES.index(subject.shape)
        color[k], marking[k] = COLORS.index(subject.color), MARKINGS.index(subject.marking)
    zero = torch.zeros(n, dtype=torch.float64)
    for p, place in enumerate(scene.places):
        k = SUBJECTS + p
        position[:, k] = _place_to_world(
            place.bearing, zero + place.lateral, zero, zero + place.distance - PLACE_DISTANCE
        )
        yaw[:, k] = place.bearing + place.heading
        kind[k] = len(SHAPES) + LANDMARKS.index(place.landmark)
    look = torch.tensor([GROUNDS.index(scene.ground), SKIES.index(scene.sky), *scene.texture])
    return Tracks(
        camera=camera.float(),
        position=position.float(),
        yaw=yaw.float(),
        scale=scale.float(),
        gait=gait.float(),
        kind=kind.expand(n, -1),
        color=color.expand(n, -1),
        marking=marking.expand(n, -1),
        look=look.float().expand(n, -1),
    )


def _locate(script: tuple[Event, ...], frames: Tensor) -> tuple[Tensor, Tensor]:
    """Event index of each frame, and how far through the event it is, in [0, 1)."""
    starts, chunk = [], 0
    for event in script:
        starts.append(chunk_start(chunk))
        chunk += event.chunks
    edges = torch.tensor([*starts, chunk_start(chunk)])
    index = torch.searchsorted(edges, frames.contiguous(), right=True) - 1
    index = index.clamp(max=len(script) - 1)
    u = (frames - edges[index]).double() / (edges[index + 1] - edges[index])
    return index, u.clamp(max=1)


class _Script:
    """Per-frame values of the script: which event, how far through, its side and amount."""

    def __init__(self, scene: Scene, event_N: Tensor, u_N: Tensor) -> None:
        self.u = u_N
        self.ease = u_N * u_N * (3 - 2 * u_N)
        kinds = [event.kind for event in scene.script]
        self._at = {kind: torch.tensor([k == kind for k in kinds])[event_N] for kind in set(kinds)}
        self._none = torch.zeros_like(u_N, dtype=torch.bool)
        self.side = torch.tensor([float(e.side) for e in scene.script])[event_N].double()
        self.amount = torch.tensor([e.amount for e in scene.script])[event_N].double()

    def at(self, kind: str) -> Tensor:
        return self._at.get(kind, self._none)


def _camera(scene: Scene, script: _Script) -> Tensor:
    """Camera x, y, z, yaw. It looks along (sin yaw, 0, cos yaw), a little downwards."""
    home, away = scene.places[0].bearing, scene.places[1].bearing
    turn = torch.where(script.at("pan-away"), script.ease, 0.0)
    turn = torch.where(script.at("away"), 1.0, turn)
    turn = torch.where(script.at("pan-back"), 1 - script.ease, turn)
    swing = script.side * script.amount * torch.sin(math.tau * script.u)
    orbit = torch.where(script.at("orbit"), swing, 0.0)
    near = script.amount * torch.sin(math.pi * script.u) ** 2
    reach = PLACE_DISTANCE * (1 - torch.where(script.at("dolly"), near, 0.0))
    angle = home + orbit
    x = PLACE_DISTANCE * math.sin(home) - reach * torch.sin(angle)
    z = PLACE_DISTANCE * math.cos(home) - reach * torch.cos(angle)
    y = torch.full_like(x, CAMERA_HEIGHT)
    return torch.stack([x, y, z, angle + (away - home) * turn], -1)


@dataclass
class _Local:
    """A subject in its place's frame: right of the centre, above the ground, beyond the centre."""

    lateral: Tensor
    height: Tensor
    depth: Tensor
    yaw: Tensor
    gait: Tensor


def _subject(subject: Subject, t: Tensor, script: _Script | None) -> _Local:
    zero = torch.zeros_like(t)
    lateral, height, depth, yaw, gait = zero, zero, zero, zero + subject.heading, zero
    match subject.motion:
        case "walk":
            angle = 0.9 * t + subject.phase
            lateral = 1.35 * torch.sin(angle)
            yaw, gait = _face(torch.cos(angle)), lateral
        case "circle":
            angle = 1.1 * t + subject.phase
            lateral, depth = 0.75 * torch.sin(angle), 0.75 * torch.cos(angle) - 0.1
            yaw, gait = angle, 0.75 * angle
        case "hop":
            height = 0.6 * torch.sin(2.6 * t + subject.phase).abs()
        case "spin":
            yaw = subject.heading + 1.8 * t
        case "still":
            pass
    if script is not None:
        lateral, depth, yaw, gait = _leave(script, lateral, depth, yaw, gait)
    return _Local(
        lateral=lateral + subject.lateral,
        height=height,
        depth=depth + subject.depth,
        yaw=yaw,
        gait=gait,
    )


def _face(velocity: Tensor) -> Tensor:
    """Yaw of a walker: 0 to the right, pi to the left, turning through the viewer between."""
    return math.pi / 2 * (1 - torch.tanh(5 * velocity))


def _leave(
    script: _Script, lateral: Tensor, depth: Tensor, yaw: Tensor, gait: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The main subject's walk out of view and back, on top of its own motion, which fades."""
    out = torch.where(script.at("exit"), script.ease, 0.0)
    out = torch.where(script.at("absent"), 1.0, out)
    out = torch.where(script.at("enter"), 1 - script.ease, out)
    leaving = script.at("exit") | script.at("absent") | script.at("enter")
    walked = EXIT_DISTANCE * script.side * out
    goes_right = torch.where(script.at("enter"), -script.side, script.side)
    turn = (4 * torch.minimum(script.u, 1 - script.u)).clamp(max=1)
    turn = turn * turn * (3 - 2 * turn)
    ahead = _face(goes_right)
    # Shortest way round, so that nobody spins on leaving.
    gap = torch.remainder(ahead - yaw + math.pi, math.tau) - math.pi
    yaw = torch.where(leaving, yaw + gap * torch.where(script.at("absent"), 1.0, turn), yaw)
    return lateral * (1 - out) + walked, depth * (1 - out), yaw, gait + walked


def _place_to_world(bearing: float, lateral: Tensor, height: Tensor, depth: Tensor) -> Tensor:
    """World x, y, z of a point given in the frame of a place ``PLACE_DISTANCE`` from the hub."""
    s, c = math.sin(bearing), math.cos(bearing)
    far = PLACE_DISTANCE + depth
    return torch.stack([far * s + lateral * c, height, far * c - lateral * s], -1)
