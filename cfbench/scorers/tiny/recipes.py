"""How each network of the tiny tier is trained: what is rendered, its loss, its held-out figures.

U units of a batch: frames, windows, clips or scenes, as the recipe has it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cfbench.scorers.tiny import samples
from cfbench.scorers.tiny.damage import Codec, damages, degrade, uniform
from cfbench.scorers.tiny.nets import CAMERAS, MotionOutput, ReaderOutput
from cfbench.scorers.tiny.read import decode, targets
from cfbench.scorers.tiny.samples import Sampler
from cfmodel.tinyworld.render import render
from cfmodel.tinyworld.scene import MOTIONS
from cfmodel.tinyworld.tracks import Tracks

Batch = dict[str, Tensor]
Forward = Callable[..., Any]
HEIGHT, WIDTH = 80, 128
CLEAR = 0.6
SEEN = 0.3
# Root mean square error at which the imaging target has fallen to 1/e.
IMAGING_FALL = 0.05


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One network's training: ``items`` are rendered every ``every`` steps into ``pool`` units."""

    sampler: Sampler
    prepare: Callable[[Tracks, Batch], Batch]
    loss: Callable[[Forward, Batch, torch.Generator, Codec | None], dict[str, Tensor]]
    figures: Callable[[nn.Module, Iterator[Batch], torch.Generator, Codec | None], dict[str, float]]
    items: int
    every: int
    pool: int
    batch: int
    lr: float


def to_uint8(rgb: Tensor) -> Tensor:
    """Frames in [0, 1] as bytes."""
    return (rgb * 255 + 0.5).to(torch.uint8)


def floats(frames: Tensor) -> Tensor:
    """Bytes as frames in [0, 1]."""
    return frames.float() / 255


def reader_prepare(tracks: Tracks, labels: Batch) -> Batch:
    """Frames and the reader's targets."""
    rgb, truth = render(tracks, HEIGHT, WIDTH, truth=True)
    if truth is None:
        raise RuntimeError("the renderer measured nothing; it was asked for truth")
    return {"frames": to_uint8(rgb), **targets(tracks, truth)}


def reader_loss(
    forward: Forward, batch: Batch, generator: torch.Generator, codec: Codec | None
) -> dict[str, Tensor]:
    """Focal loss of the centres, attributes at the cells that own them, and the scene's."""
    out: ReaderOutput = forward(degrade(floats(batch["frames"]), generator))
    parts = {
        "heat": _focal(out.heat.squeeze(1), batch["heat"], batch["ignored"]),
        "ground": nnf.cross_entropy(out.ground, batch["ground"], label_smoothing=0.02),
        "sky": nnf.cross_entropy(out.sky, batch["sky"], label_smoothing=0.02),
    }
    known = (batch["landmark"] >= 0).float()
    landmark = nnf.binary_cross_entropy_with_logits(
        out.landmark, batch["landmark"].clamp(min=0), reduction="none"
    )
    parts["landmark"] = 2 * (landmark * known).mean()
    owned = batch["owned"]
    mass = owned.sum().clamp(min=1)
    for name in ("shape", "color", "marking"):
        cell = nnf.cross_entropy(
            getattr(out, name), batch[name], reduction="none", label_smoothing=0.02
        )
        parts[name] = (cell * owned).sum() / mass
    rows, columns = owned.shape[1:]
    x = (torch.arange(columns, device=owned.device) + 0.5) / columns
    y = (torch.arange(rows, device=owned.device) + 0.5) / rows
    centre = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)]).repeat(2, 1, 1)
    off = nnf.smooth_l1_loss(out.box + centre, batch["box"], reduction="none", beta=0.02).sum(1)
    parts["box"] = 4 * (off * owned).sum() / mass
    share = nnf.binary_cross_entropy_with_logits(
        out.share.squeeze(1), batch["share"].clamp(0, 1), reduction="none"
    )
    parts["share"] = (share * owned).sum() / mass
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def _focal(logits: Tensor, heat: Tensor, ignored: Tensor) -> Tensor:
    """Penalty-reduced focal loss over cells, a mean over positives."""
    p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    positive = heat >= 0.999
    hit = -torch.log(p) * (1 - p) ** 2
    miss = -torch.log(1 - p) * p**2 * (1 - heat) ** 4 * ~ignored
    return torch.where(positive, hit, miss).sum() / positive.sum().clamp(min=1)


@torch.no_grad()
def reader_figures(
    net: nn.Module, batches: Iterator[Batch], generator: torch.Generator, codec: Codec | None
) -> dict[str, float]:
    """Accuracy on clean and degraded frames whose main subject is at least 60 % in view."""
    right: dict[str, list[Tensor]] = {}
    for batch in batches:
        clean = floats(batch["frames"])
        for name, frames in (("", clean), ("_degraded", degrade(clean, generator))):
            seen = decode(net(frames))
            clear = batch["main_visible"] >= CLEAR
            found = clear & (seen.score[:, 0] > 0)
            rows = {
                f"{k}": found & (getattr(seen, k)[:, 0] == batch[f"main_{k}"])
                for k in ("shape", "color", "marking")
            }
            rows = {k: v[clear] for k, v in rows.items()}
            rows |= {k: (getattr(seen, k) == batch[k])[clear] for k in ("ground", "sky")}
            rows["found"] = found[clear]
            rows["quiet"] = (seen.score[:, 0] == 0)[batch["heat"].amax((1, 2)) == 0]
            known = batch["landmark"] >= 0
            rows["landmark"] = ((seen.landmark > 0.5) == (batch["landmark"] > 0.5))[known]
            rows["share_error"] = (seen.share[:, 0] - batch["main_visible"]).abs()[found]
            rows["box_error"] = (seen.box[:, 0] - batch["main_box"]).abs().mean(1)[found]
            for key, value in rows.items():
                right.setdefault(key + name, []).append(value.float())
    return {key: float(torch.cat(values).mean()) for key, values in right.items()}


def motion_prepare(tracks: Tracks, labels: Batch) -> Batch:
    """Windows; a motion counts only where the main subject is in view all the time."""
    rgb, truth = render(tracks, HEIGHT, WIDTH, truth=True)
    if truth is None:
        raise RuntimeError("the renderer measured nothing; it was asked for truth")
    seen = truth.visible[:, 0].unflatten(0, (-1, samples.WINDOW)).amin(1) >= SEEN
    motion = torch.where(seen, labels["motion"], -1)
    frames = to_uint8(rgb).unflatten(0, (-1, samples.WINDOW))
    return {"frames": frames, **labels, "motion": motion}


def motion_loss(
    forward: Forward, batch: Batch, generator: torch.Generator, codec: Codec | None
) -> dict[str, Tensor]:
    """Cross-entropies; half of the windows are cut to 12 frames. One look for a whole window."""
    frames = batch["frames"]
    if float(uniform(1, generator)) < 0.5:
        start = int(uniform(1, generator, 0, 5))
        frames = frames[:, start : start + 12]
    u, t = frames.shape[:2]
    # One tall picture a window, so that all of its frames get the same look.
    tall = floats(frames).transpose(1, 2).flatten(2, 3)
    x = degrade(tall, generator, 0.7, melt=False).unflatten(2, (t, -1)).transpose(1, 2)
    flip = uniform(u, generator) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1, 1), x.flip(-1), x)
    out: MotionOutput = forward(x)
    direction = torch.where(
        flip & (batch["direction"] >= 0), 1 - batch["direction"], batch["direction"]
    )
    parts = {
        "motion": _masked(out.motion, batch["motion"]),
        "camera": _masked(out.camera, batch["camera"]),
        "direction": 0.5 * _masked(out.direction, direction),
    }
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def _masked(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy over labels that are not -1."""
    each = nnf.cross_entropy(logits, label.clamp(min=0), reduction="none", label_smoothing=0.02)
    known = (label >= 0).float()
    return (each * known).sum() / known.sum().clamp(min=1)


@torch.no_grad()
def motion_figures(
    net: nn.Module, batches: Iterator[Batch], generator: torch.Generator, codec: Codec | None
) -> dict[str, float]:
    """Recall of every class, the confusion in per cent, and accuracies at 12 frames."""
    heads = {"motion": MOTIONS, "camera": CAMERAS, "direction": ("left", "right")}
    table = {name: torch.zeros(len(kinds), len(kinds)) for name, kinds in heads.items()}
    short: dict[str, list[Tensor]] = {name: [] for name in heads}
    for batch in batches:
        x = floats(batch["frames"])
        out, cut = net(x), net(x[:, 4:])
        for name in heads:
            label = batch[name]
            known = label >= 0
            guess = getattr(out, name).argmax(1)[known].cpu()
            for truth, said in zip(label[known].cpu(), guess, strict=True):
                table[name][truth, said] += 1
            short[name].append((getattr(cut, name).argmax(1) == label)[known].float())
    figures: dict[str, float] = {}
    for name, kinds in heads.items():
        share = table[name] / table[name].sum(1, keepdim=True).clamp(min=1)
        figures[name] = float(table[name].trace() / table[name].sum().clamp(min=1))
        figures[f"{name}_12"] = float(torch.cat(short[name]).mean())
        for a, kind in enumerate(kinds):
            for b, said in enumerate(kinds):
                if a == b or share[a, b] >= 0.01:
                    figures[f"{name}:{kind}>{said}"] = round(float(share[a, b]), 4)
    return figures


def dual_prepare(tracks: Tracks, labels: Batch) -> Batch:
    """Frames with their captions' bytes."""
    return {"frames": to_uint8(render(tracks, HEIGHT, WIDTH).rgb), **labels}


def dual_loss(
    forward: Forward, batch: Batch, generator: torch.Generator, codec: Codec | None
) -> dict[str, Tensor]:
    """Contrast of frames and captions; other captions of a frame's own scene count for nothing."""
    image, text, scale = forward(degrade(floats(batch["frames"]), generator), batch["text"])
    logits = image @ text.T * scale.exp().clamp(max=50)
    same = batch["scene"][:, None] == batch["scene"][None]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -1e4)
    own = torch.arange(len(logits), device=logits.device)
    loss = (nnf.cross_entropy(logits, own) + nnf.cross_entropy(logits.T, own)) / 2
    right = (logits.argmax(1) == own).float().mean()
    return {"loss": loss, "right": right, "scale": scale.exp().detach()}


@torch.no_grad()
def dual_figures(
    net: nn.Module, batches: Iterator[Batch], generator: torch.Generator, codec: Codec | None
) -> dict[str, float]:
    """Mean cosine of own and of other captions, and how often the own is nearer than another's."""
    own, other, wins = [], [], []
    for batch in batches:
        image, text, _ = net(floats(batch["frames"]), batch["text"])
        cosine = image @ text.T
        apart = batch["scene"][:, None] != batch["scene"][None]
        mine = cosine.diagonal()
        own.append(mine)
        other.append(cosine[apart])
        wins.append((mine[:, None] > cosine)[apart].float())
    return {
        "own": float(torch.cat(own).mean()),
        "other": float(torch.cat(other).mean()),
        "nearer": float(torch.cat(wins).mean()),
    }


def imaging_prepare(tracks: Tracks, labels: Batch) -> Batch:
    """Short clips."""
    frames = to_uint8(render(tracks, HEIGHT, WIDTH).rgb)
    return {"frames": frames.unflatten(0, (-1, samples.CLIP))}


def _damaged(
    clips: Tensor, severity: Tensor, generator: torch.Generator, codec: Codec | None
) -> Tensor:
    """Middle frames, the kinds of damage in turn over equal parts of the batch."""
    kinds = list(damages(codec).values())
    count = min(len(kinds), len(clips))
    parts = zip(clips.chunk(count), severity.chunk(count), kinds, strict=False)
    return torch.cat([kind(clip, part, generator) for clip, part, kind in parts])


def _quality(frames: Tensor, clean: Tensor) -> Tensor:
    """Target in (0, 1]: 1 without damage, falling with the error."""
    error = (frames - clean).square().mean((1, 2, 3)).sqrt()
    return torch.exp(-error / IMAGING_FALL)


def imaging_loss(
    forward: Forward, batch: Batch, generator: torch.Generator, codec: Codec | None
) -> dict[str, Tensor]:
    """Clean above mildly above badly damaged, and each near its measured quality."""
    clips = floats(batch["frames"])
    clean = clips[:, samples.CLIP // 2]
    worse = uniform(len(clips), generator, 0.15, 1.0)
    mild = worse * uniform(len(clips), generator, 0.05, 0.7)
    frames = [clean, *(_damaged(clips, s, generator, codec) for s in (mild, worse))]
    tinted = torch.cat([x.clamp(0, 1) for x in frames])
    logits = forward(tinted)
    goal = torch.cat([_quality(x, clean) for x in frames])
    near = nnf.binary_cross_entropy_with_logits(logits, goal)
    best, middle, worst = logits.chunk(3)
    rank = nnf.softplus(middle - best) + nnf.softplus(worst - middle)
    right = ((best > middle).float() + (middle > worst).float()).mean() / 2
    return {"loss": near + rank.mean(), "near": near, "right": right}


@torch.no_grad()
def imaging_figures(
    net: nn.Module, batches: Iterator[Batch], generator: torch.Generator, codec: Codec | None
) -> dict[str, float]:
    """Mean score of clean frames and of each damage at three severities; clean ranked above."""
    scores: dict[str, list[Tensor]] = {}
    for batch in batches:
        clips = floats(batch["frames"])
        clean = net(clips[:, samples.CLIP // 2]).sigmoid()
        scores.setdefault("clean", []).append(clean)
        for name, damage in damages(codec).items():
            for severity in (0.2, 0.5, 1.0):
                bad = net(damage(clips, torch.full_like(clean, severity), generator)).sigmoid()
                scores.setdefault(f"{name}:{severity}", []).append(bad)
                scores.setdefault(f"{name}:{severity}:below", []).append((bad < clean).float())
    return {key: float(torch.cat(values).mean()) for key, values in scores.items()}


def features_prepare(tracks: Tracks, labels: Batch) -> Batch:
    """Frames of a scene and its twin; ``group`` is -1 where the main subject is half in view."""
    rgb, truth = render(tracks, HEIGHT, WIDTH, truth=True)
    if truth is None:
        raise RuntimeError("the renderer measured nothing; it was asked for truth")
    seen = truth.visible[:, 0]
    group = labels["place"] * 2 + (seen >= SEEN)
    group = torch.where((seen > 0.02) & (seen < SEEN), -1, group)
    each = 2 * 3 * samples.PER_GROUP
    twin = torch.arange(len(group), device=group.device) % each >= each // 2
    group = torch.where(group >= 0, group + 4 * twin, -1)
    return {
        "frames": to_uint8(rgb).unflatten(0, (-1, each)),
        "group": group.unflatten(0, (-1, each)),
    }


def features_loss(
    forward: Forward, batch: Batch, generator: torch.Generator, codec: Codec | None
) -> dict[str, Tensor]:
    """Supervised contrast: frames of one place, subject and presence attract, all others repel."""
    vectors = forward(degrade(floats(batch["frames"].flatten(0, 1)), generator, 0.6))
    group = batch["group"]
    group = torch.where(
        group >= 0, group + 8 * torch.arange(len(group), device=group.device)[:, None], -1
    )
    group = group.flatten()
    logits = vectors @ vectors.T / 0.1
    self_ = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(self_ | (group[None] < 0), -1e4)
    mates = (group[:, None] == group[None]) & ~self_ & (group[:, None] >= 0)
    logp = logits - logits.logsumexp(1, keepdim=True)
    count = mates.sum(1)
    each = -(logp * mates).sum(1) / count.clamp(min=1)
    has = count > 0
    right = mates.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)[has].float().mean()
    return {"loss": (each * has).sum() / has.sum().clamp(min=1), "right": right}


@torch.no_grad()
def features_figures(
    net: nn.Module, batches: Iterator[Batch], generator: torch.Generator, codec: Codec | None
) -> dict[str, float]:
    """Mean cosine within a group, to the twin, to other groups of the scene, to other scenes."""
    found: dict[str, list[Tensor]] = {}
    for batch in batches:
        group = batch["group"]
        v = net(floats(batch["frames"].flatten(0, 1))).unflatten(0, group.shape)
        inside = torch.einsum("uae,ube->uab", v, v)
        a, b = group[:, :, None], group[:, None]
        known = (a >= 0) & (b >= 0) & (inside < 0.99999)
        found.setdefault("same", []).append(inside[known & (a == b)])
        found.setdefault("twin", []).append(inside[known & (a != b) & (a % 4 == b % 4)])
        found.setdefault("elsewhere", []).append(inside[known & (a // 4 == b // 4) & (a != b)])
        across = torch.einsum("uae,ube->uab", v, v.roll(1, 0))
        found.setdefault("others", []).append(across.flatten())
    return {key: float(torch.cat(values).mean()) for key, values in found.items()}


def recipes() -> dict[str, Recipe]:
    """All recipes by the network's name."""
    return {
        "reader": Recipe(
            sampler=samples.frames_item, prepare=reader_prepare, loss=reader_loss,
            figures=reader_figures, items=64, every=2, pool=16384, batch=512, lr=3e-3,
        ),
        "motion": Recipe(
            sampler=samples.windows_item, prepare=motion_prepare, loss=motion_loss,
            figures=motion_figures, items=24, every=2, pool=3072, batch=64, lr=2e-3,
        ),
        "dual": Recipe(
            sampler=samples.captions_item, prepare=dual_prepare, loss=dual_loss,
            figures=dual_figures, items=96, every=2, pool=16384, batch=512, lr=2e-3,
        ),
        "imaging": Recipe(
            sampler=samples.clips_item, prepare=imaging_prepare, loss=imaging_loss,
            figures=imaging_figures, items=48, every=4, pool=4096, batch=192, lr=2e-3,
        ),
        "features": Recipe(
            sampler=samples.twins_item, prepare=features_prepare, loss=features_loss,
            figures=features_figures, items=28, every=2, pool=1024, batch=56, lr=2e-3,
        ),
    }  # fmt: skip
