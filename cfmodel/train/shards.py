"""Latents of real films in training, read from shards.

The order of clips depends on the seed alone, whatever the number of ranks and workers.

Dims: B clips, F latent frames, C latent channels, X Y latent rows and columns, S text tokens, E
text width.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cfmodel.config import Geometry, seed_for
from cfmodel.io.shards import HINT, ClipRow, Shard, clip_name, load_index, text_name
from cfmodel.io.weights import file_sha256

OPEN_SHARDS = 32
"""Shards held open at a time: fewer than any system's limit on open files."""
SAME = ("codec", "fps", "height", "width", "text")
"""Settings that folders read together share."""


class LatentClip(NamedTuple):
    """A clip: latents (F, C, X, Y) bfloat16, its texts, and their embedding (S, E) if stored."""

    x0: Tensor
    texts: tuple[str, ...]
    text: Tensor | None


@dataclass
class LatentBatch:
    """Clips of equal length: ``x0`` (B, F, C, X, Y) bfloat16, and the texts of each clip.

    ``text`` (B, S, E), bfloat16, is there if the shards hold embedded captions.
    """

    x0: Tensor
    texts: list[tuple[str, ...]]
    text: Tensor | None

    def __len__(self) -> int:
        return len(self.texts)


class LatentShards(Dataset[LatentClip]):
    """Clips of one or several folders of shards, in the order of their indices.

    Args:
        folders: as written by ``cfmodel prepare``, all of one codec, rate, size and text encoder.
        latents: frames of a clip: longer ones are cut at their end, shorter ones left out; None
            takes every clip as it is.

    Raises:
        ValueError: a folder that is unfinished or lacks a shard, folders that differ in settings,
            or no clip of this length.
    """

    def __init__(self, folders: Sequence[Path], *, latents: int | None = None) -> None:
        self.settings: dict[str, Any] = {}
        self.rows: list[ClipRow] = []
        self._latents = latents
        self._shards: list[tuple[Path, Shard]] = []
        self._places: list[tuple[int, int]] = []
        self._open: OrderedDict[int, Any] = OrderedDict()
        for folder in folders:
            self._join(folder)
        if not self.rows:
            wanted = "any length" if latents is None else f"{latents} latents or more"
            raise ValueError(f"no clip of {wanted} in {', '.join(map(str, folders)) or 'nothing'}")

    def _join(self, folder: Path) -> None:
        index = load_index(folder)
        if not index.complete:
            raise ValueError(f"{folder} is not finished; {HINT}")
        self.settings = self.settings or index.settings
        different = [key for key in SAME if index.settings.get(key) != self.settings.get(key)]
        if different:
            raise ValueError(
                f"{folder} was prepared with another {different[0]} than the folders before it"
            )
        for shard in index.shards:
            path = folder / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise ValueError(f"{path} is missing or not {shard.bytes} bytes; prepare it again")
            for number, row in enumerate(shard.clips):
                if self._latents is None or row.latents >= self._latents:
                    self.rows.append(row)
                    self._places.append((len(self._shards), number))
            self._shards.append((path, shard))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LatentClip:
        """Clip ``index``.

        Raises:
            ValueError: its shard is damaged.
        """
        row, (shard, number) = self.rows[index], self._places[index]
        file = self._file(shard)
        try:
            x0 = file.get_tensor(clip_name(number))[: self._latents]
            text = file.get_tensor(text_name(row.text)) if self.settings.get("text") else None
        except SafetensorError as error:
            raise ValueError(f"{self._shards[shard][0]} is damaged ({error}); {HINT}") from error
        return LatentClip(x0, (row.text,), text)

    def _file(self, shard: int) -> Any:
        if shard not in self._open:
            path, _ = self._shards[shard]
            try:
                self._open[shard] = safe_open(path, framework="pt").__enter__()
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is damaged ({error}); {HINT}") from error
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to other processes.
        return {**self.__dict__, "_open": OrderedDict()}

    def check(self, *, codec_sha256: str, geometry: Geometry) -> None:
        """Refuses latents of another codec, rate or size.

        Raises:
            ValueError: they would not fit; the message names the first difference.
        """
        wanted = {
            "fps": geometry.fps,
            "height": geometry.height,
            "width": geometry.width,
            "codec": codec_sha256,
        }
        held = {**self.settings, "codec": self.settings["codec"]["sha256"]}
        for key, value in wanted.items():
            if held[key] != value:
                raise ValueError(
                    f"clips were prepared with {key} {held[key]}, but the preset has {value}; "
                    "prepare them with this preset"
                )

    def verify(self) -> list[Path]:
        """Shards whose bytes are not those that were written; reads everything."""
        return [path for path, shard in self._shards if file_sha256(path) != shard.sha256]


def stack_clips(clips: Sequence[LatentClip]) -> LatentBatch:
    """Clips as a batch.

    Raises:
        ValueError: they differ in length.
    """
    lengths = sorted({len(clip.x0) for clip in clips})
    if len(lengths) > 1:
        raise ValueError(f"clips of {lengths} latents in a batch; give LatentShards latents=N")
    texts = [clip.text for clip in clips if clip.text is not None]
    return LatentBatch(
        x0=torch.stack([clip.x0 for clip in clips]),
        texts=[clip.texts for clip in clips],
        text=torch.stack(texts) if texts else None,
    )


class RankSampler(Sampler[int]):
    """Endless indices of one rank: all ranks together show each index once an epoch.

    Epochs are shuffled each by itself and laid end to end; rank r of W has places r, r + W, ... of
    that sequence. So ranks stay in step where their number does not divide the clips.

    Args:
        count: clips.
        rank: this process, from 0.
        world: processes.
        seed: another seed, another order.
        position: indices that this rank has had: it goes on behind them.

    Raises:
        ValueError: no clips, or a rank outside the world.

    Example:
        >>> sampler = RankSampler(3, rank=0, world=1, seed=0)
        >>> sorted(next(indices) for indices in [iter(sampler)] for _ in range(3))
        [0, 1, 2]
    """

    def __init__(self, count: int, *, rank: int, world: int, seed: int, position: int = 0) -> None:
        if count < 1 or not 0 <= rank < world or position < 0:
            raise ValueError(
                f"count={count}, rank={rank}, world={world}, position={position}: expected "
                "count >= 1, 0 <= rank < world and position >= 0"
            )
        self.count, self.rank, self.world, self.seed = count, rank, world, seed
        self.position = position

    def epoch(self, position: int) -> int:
        """The epoch of this rank's index number ``position``."""
        return (position * self.world + self.rank) // self.count

    def __iter__(self) -> Iterator[int]:
        place, shuffled, order = self.position * self.world + self.rank, -1, Tensor()
        while True:
            epoch, at = divmod(place, self.count)
            if epoch != shuffled:
                shuffled, order = epoch, epoch_order(self.count, self.seed, epoch)
            yield int(order[at])
            place += self.world


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Indices (count,) in the order of an epoch, the same on every machine."""
    generator = torch.Generator().manual_seed(seed_for("epoch-order", seed, epoch))
    return torch.randperm(count, generator=generator)


def latent_stream(
    shards: LatentShards,
    *,
    batch: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    first: int = 0,
) -> Iterator[LatentBatch]:
    """Endless batches of one rank's clips.

    Args:
        shards: clips of equal length.
        batch: clips of a batch, on this rank.
        seed: decides the order.
        rank: this process, from 0.
        world: processes.
        workers: processes that read; the order does not depend on how many.
        first: number of the first batch, to go on where a run stopped.
    """
    sampler = RankSampler(len(shards), rank=rank, world=world, seed=seed, position=first * batch)
    loader = DataLoader(
        shards,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        collate_fn=stack_clips,
        multiprocessing_context="fork" if workers else None,
        # The loader seeds its workers from here instead of from the ambient generator.
        generator=torch.Generator().manual_seed(seed_for("latent-stream", seed)),
    )
    return iter(loader)
