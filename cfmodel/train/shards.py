"""Latents of real films in training, read from shards.

The order of clips depends on the seed alone, whatever the number of ranks and workers.

Dims: F latent frames, C latent channels, X Y latent rows and columns, S text tokens, E text width.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cfmodel.config import Geometry, digest, seed_for
from cfmodel.io.shards import HINT, ClipRow, Shard, clip_name, load_index, text_name
from cfmodel.io.weights import file_sha256

OPEN_SHARDS = 32
"""Shards held open at a time: fewer than any system's limit on open files."""
SAME = ("codec", "fps", "height", "width", "text")
"""Settings that folders read together share."""

T = TypeVar("T")
Stacked = TypeVar("Stacked")


class LatentClip(NamedTuple):
    """A clip: latents (F, C, X, Y) bfloat16, its texts, and their embedding (S, E) if stored."""

    x0: Tensor
    texts: tuple[str, ...]
    text: Tensor | None


class LatentShards(Dataset[LatentClip]):
    """Clips of one or several folders of shards, in the order of their indices.

    Args:
        folders: as written by ``cfmodel prepare``, all of one codec, rate, size and text encoder.

    Attributes:
        settings: what all folders were prepared with.
        rows: what each clip is.
        films: the clips of each film, by index and in the film's order.

    Raises:
        ValueError: a folder that is unfinished or lacks a shard, folders that differ in settings,
            or no clip.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.settings: dict[str, Any] = {}
        self.rows: list[ClipRow] = []
        self.films: list[list[int]] = []
        self._shards: list[tuple[Path, Shard]] = []
        self._places: list[tuple[int, int]] = []
        self._open: OrderedDict[int, Any] = OrderedDict()
        for folder in folders:
            self._join(folder)
        if not self.rows:
            named = ", ".join(map(str, folders)) or "nothing"
            raise ValueError(f"no clip in {named}; prepare films that are long enough")

    def _join(self, folder: Path) -> None:
        index = load_index(folder)
        if not index.complete:
            raise ValueError(f"{folder} is not finished; {HINT}")
        self.settings = self.settings or index.settings
        different = [key for key in SAME if index.settings.get(key) != self.settings.get(key)]
        if different:
            raise ValueError(
                f"{folder} was prepared with another {different[0]} than the folders before it; "
                "prepare both alike, or train on one"
            )
        films: dict[str, list[int]] = {}
        for shard in index.shards:
            path = folder / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise ValueError(f"{path} is missing or not {shard.bytes} bytes; prepare it again")
            for number, row in enumerate(shard.clips):
                films.setdefault(row.film, []).append(len(self.rows))
                self.rows.append(row)
                self._places.append((len(self._shards), number))
            self._shards.append((path, shard))
        self.films.extend(films.values())

    @property
    def sha256(self) -> str:
        """What all clips and captions are: the first 12 hex digits of a hash over the shards'."""
        return digest([shard.sha256 for _, shard in self._shards])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LatentClip:
        """Clip ``index``.

        Raises:
            ValueError: its shard is damaged.
        """
        row, (shard, _) = self.rows[index], self._places[index]
        x0, text = self.latents(index, 0, row.latents), None
        if self.settings.get("text"):
            try:
                text = self._file(shard).get_tensor(text_name(row.text))
            except SafetensorError as error:
                raise self._damaged(shard, error) from error
        return LatentClip(x0, (row.text,), text)

    def latents(self, index: int, first: int, end: int) -> Tensor:
        """Latents (F, C, X, Y) of clip ``index`` from ``first`` to before ``end``; reads no other.

        Raises:
            ValueError: its shard is damaged.
        """
        shard, number = self._places[index]
        try:
            return self._file(shard).get_slice(clip_name(number))[first:end]
        except SafetensorError as error:
            raise self._damaged(shard, error) from error

    def _damaged(self, shard: int, error: Exception) -> ValueError:
        path, _ = self._shards[shard]
        return ValueError(
            f"{path} is damaged ({error}); remove {path.parent} and prepare the films again"
        )

    def _file(self, shard: int) -> Any:
        if shard not in self._open:
            try:
                path, _ = self._shards[shard]
                self._open[shard] = safe_open(path, framework="pt").__enter__()
            except (SafetensorError, OSError) as error:
                raise self._damaged(shard, error) from error
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to other processes.
        return {**self.__dict__, "_open": OrderedDict()}

    def check(self, *, codec_sha256: str, channels: int, geometry: Geometry) -> None:
        """Refuses latents of another codec, rate or size.

        The codec's hash is that of its weights with mean and spread of its latents, so it tells of
        another normalisation too.

        Raises:
            ValueError: they would not fit; the message names the first difference.
        """
        codec = self.settings["codec"]
        held = {
            **{key: self.settings[key] for key in ("fps", "height", "width")},
            "strides": list(codec["strides"]),
            "channels": codec["channels"],
            "codec": codec["sha256"],
        }
        wanted = {
            "fps": geometry.fps,
            "height": geometry.height,
            "width": geometry.width,
            "strides": list(geometry.vae_stride),
            "channels": channels,
            "codec": codec_sha256,
        }
        for key, value in wanted.items():
            if held[key] != value:
                raise ValueError(
                    f"clips were prepared with {key} {held[key]}, but this run has {value}; "
                    "prepare them with this preset, and with this codec (--codec FILE)"
                )

    def verify(self) -> list[Path]:
        """Shards whose bytes are not those that were written; reads everything."""
        return [path for path, shard in self._shards if file_sha256(path) != shard.sha256]


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
    takes: Dataset[T],
    count: int,
    stack: Callable[[Sequence[T]], Stacked],
    *,
    batch: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    first: int = 0,
) -> Iterator[Stacked]:
    """Endless batches of takes of clips, each clip once an epoch.

    Errors of input come in one line, from a worker process too.

    Args:
        takes: item ``epoch * count + k`` is the take of clip k in this epoch.
        count: clips.
        stack: makes a batch of takes.
        batch: takes of a batch, on this rank.
        seed: decides the order.
        rank: this process, from 0.
        world: processes.
        workers: processes that read; the order does not depend on how many.
        first: number of the first batch, to go on where a run stopped.
    """
    start = first * batch
    sampler = RankSampler(count, rank=rank, world=world, seed=seed, position=start)
    loader = DataLoader(
        takes,
        batch_size=batch,
        sampler=(sampler.epoch(k) * count + index for k, index in enumerate(sampler, start)),
        num_workers=workers,
        collate_fn=stack,
        multiprocessing_context="fork" if workers else None,
        # The loader seeds its workers from here instead of from the ambient generator.
        generator=torch.Generator().manual_seed(seed_for("latent-stream", seed)),
    )
    try:
        yield from loader
    except ValueError as error:
        # A worker's comes with its whole traceback as its text.
        last = str(error).strip().splitlines()[-1]
        raise ValueError(last.removeprefix(f"{ValueError.__name__}: ")) from error
