"""Stage ``text``: the byte encoder learns which attributes a caption names, and of whom."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cfmodel.config import Experiment, seed_for
from cfmodel.io.text import HEADS, BytePooler, byte_ids
from cfmodel.tinyworld.caption import Mentions, caption, parse, sample_mentions
from cfmodel.tinyworld.scene import (
    COLORS,
    EVENTS,
    GROUNDS,
    LANDMARKS,
    MARKINGS,
    MOTIONS,
    SHAPES,
    SKIES,
    Scene,
    sample_scene,
)
from cfmodel.train.state import Trainable, write_weights

# Class 0 of every head is "not said".
VOCABULARY: dict[str, tuple[object, ...]] = {
    "shape": SHAPES,
    "color": COLORS,
    "marking": MARKINGS,
    "motion": MOTIONS,
    "second_shape": SHAPES,
    "second_color": COLORS,
    "side": (-1, 1),
    "ground": GROUNDS,
    "sky": SKIES,
    "landmark": LANDMARKS,
    "event": EVENTS,
    "toward": (-1, 1),
}
BINDING = ("shape", "color", "second_shape", "second_color")
HELD_OUT_ONE_IN = 10
HELD_OUT_CAPTIONS = 4096


def held_out_pair(scene: Scene) -> bool:
    """Whether this combination of two subjects' shapes and colours is kept from training."""
    pair = [f"{s.color} {s.shape}" for s in scene.subjects if s.place == 0]
    return len(pair) > 1 and seed_for("held-out-pair", *pair) % HELD_OUT_ONE_IN == 0


def labels_of(text: str, scene: Scene, event_toward: int) -> list[int]:
    """Class of every head for a caption: 0 for what it does not say."""
    named = parse(text)
    row = []
    for head, values in VOCABULARY.items():
        value = event_toward or None if head == "toward" else getattr(named, head)
        row.append(0 if value is None else 1 + values.index(value))
    return row


def toward(scene: Scene, event_index: int) -> int:
    """Direction that an event's sentence may name: -1 left, 1 right, 0 none."""
    event = scene.script[event_index]
    away = 1 if scene.places[1].bearing > 0 else -1
    match event.kind:
        case "pan-away":
            return away
        case "pan-back":
            return -away
        case "exit" | "enter":
            return event.side
        case _:
            return 0


def sample_caption(seed: int, *, held_out: bool) -> tuple[str, list[int]]:
    """A caption and its labels; with ``held_out`` unseen sentence forms and combinations."""
    number = seed
    while True:
        scene = sample_scene(number, chunks=24)
        if held_out_pair(scene) == held_out:
            break
        number += 1
    rng = random.Random(seed)
    mentions = sample_mentions(rng)
    if held_out:
        mentions = Mentions(
            **{**vars(mentions), "color": True, "second": True, "second_color": True}
        )
    index = rng.randrange(len(scene.script))
    text = caption(scene, scene.script[index], mentions, rng, held_out=held_out)
    return text, labels_of(text, scene, toward(scene, index))


class _Captions(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    def __init__(self, batch: int, first: int) -> None:
        self.batch, self.first = batch, first

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        torch.set_num_threads(1)
        info = get_worker_info()
        number = self.first + (info.id if info else 0)
        while True:
            yield _collate(
                [
                    sample_caption(seed_for("text", number * self.batch + k), held_out=False)
                    for k in range(self.batch)
                ]
            )
            number += info.num_workers if info else 1


def _collate(rows: list[tuple[str, list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = byte_ids([text for text, _ in rows])
    return ids, mask, torch.tensor([labels for _, labels in rows])


class TextStage:
    """Cross-entropy of every attribute head on endless captions."""

    name = "text"

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device,
        *,
        batch: int = 256,
        workers: int = 0,
        compiled: bool = False,
        lr: float = 1e-3,
    ) -> None:
        self.experiment, self.device = experiment, device
        heads = {name: 1 + len(values) for name, values in VOCABULARY.items()}
        self.net = BytePooler(experiment.text, heads).to(device)
        self.trainable = Trainable(self.net, lr=lr, ema=0.995, warmup=200)
        self._forward: Any = torch.compile(self.net, dynamic=True) if compiled else self.net
        self._batch, self._workers, self._batches = batch, workers, 0
        self._stream: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None

    @property
    def captions(self) -> int:
        """Captions shown."""
        return self._batches * self._batch

    def _next(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._stream is None:
            loader = DataLoader(
                _Captions(self._batch, self._batches),
                batch_size=None,
                num_workers=self._workers,
                prefetch_factor=4 if self._workers else None,
                multiprocessing_context="fork" if self._workers else None,
            )
            self._stream = iter(loader)
        self._batches += 1
        return next(self._stream)

    def begin(self) -> None:
        """Nothing to fill."""

    def step(self, step: int, progress: float) -> Mapping[str, Tensor]:
        """One update on fresh captions."""
        ids, mask, labels = (x.to(self.device, non_blocking=True) for x in self._next())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            tokens = self._forward(ids, mask)
            logits = self.net.classify(tokens)
        losses = [
            nnf.cross_entropy(logits[name].float(), labels[:, k])
            for k, name in enumerate(VOCABULARY)
        ]
        loss = torch.stack(losses).sum()
        norm = self.trainable.update(loss, progress)
        return {"loss": loss.detach(), "norm": norm}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out share of captions with both subjects bound right, and of each head."""
        net: Any = self.trainable.ema.eval()
        right = []
        few = 256 if self.device.type == "cpu" else HELD_OUT_CAPTIONS
        for start in range(0, few, 256):
            rows = [
                sample_caption(seed_for("text-held-out", start + k), held_out=True)
                for k in range(256)
            ]
            ids, mask, labels = (x.to(self.device) for x in _collate(rows))
            logits = net.classify(net(ids, mask))
            right.append(
                torch.stack(
                    [logits[n].argmax(-1) == labels[:, k] for k, n in enumerate(VOCABULARY)], 1
                )
            )
        hits = torch.cat(right)
        bound = hits[:, [list(VOCABULARY).index(name) for name in BINDING]].all(1)
        each = {name: hits[:, k].float().mean().item() for k, name in enumerate(VOCABULARY)}
        return {"binding": bound.float().mean().item(), "captions": float(self.captions), **each}

    def save(self, out: Path, record: dict[str, Any]) -> list[Path]:
        """Writes the averaged encoder, without the heads; the record tells what these read."""
        path = out / "text.safetensors"
        kept = {k: v for k, v in self.trainable.export().items() if not k.startswith(HEADS)}
        write_weights(path, kept, config=self.experiment.to_json(), record=record)
        return [path]

    def trainables(self) -> dict[str, Trainable]:
        """The encoder and its heads."""
        return {"net": self.trainable}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the place in the stream."""
        return {"batches": self._batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self._batches, self._stream = state["batches"], None
