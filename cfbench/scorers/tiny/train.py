"""Trains the tiny tier's networks: ``python -m cfbench.scorers.tiny.train``."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

from cfbench.scorers.tiny.damage import Codec
from cfbench.scorers.tiny.nets import NETS
from cfbench.scorers.tiny.recipes import Batch, Recipe, recipes
from cfbench.scorers.tiny.samples import Item, endless, gather
from cfmodel.config import seed_for
from cfmodel.io.codec import TaeCodec, tae_codec
from cfmodel.io.weights import load_weights
from cfmodel.presets import preset
from cfmodel.train.loop import Trainable, train
from cfmodel.train.pool import Ring

logger = logging.getLogger(__name__)

CPU_SHARE = 16
HELD_OUT_BATCHES = 8


class Stage:
    """The training of one network; see ``cfmodel.train.loop.Strategy``."""

    def __init__(
        self,
        name: str,
        *,
        device: torch.device,
        workers: int = 0,
        compiled: bool = False,
        codec: Codec | None = None,
    ) -> None:
        self.name, self.device, self.codec = name, device, codec
        self.recipe = _scaled(recipes()[name], device)
        # The worker processes are forked before the device is first used.
        self.stream: Iterator[Item] = endless(
            self.recipe.sampler, items=self.recipe.items, stream=f"scorer-{name}", workers=workers
        )
        first = next(self.stream)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed_for("scorer-weights", name) % 2**31)
            net = NETS[name]()
        net = net.to(device)
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
        self.net = Trainable(net, lr=self.recipe.lr, ema=0.995, warmup=100, weight_decay=0.02)
        self.module = torch.compile(net) if compiled else net
        self.generator = torch.Generator(device).manual_seed(seed_for("scorer-noise", name) % 2**31)
        self.pool = Ring(self.recipe.pool)
        self.pool.put(self._prepared(first))
        while self.pool.filled < min(2 * self.recipe.batch, self.recipe.pool):
            self.pool.put(self._prepared(next(self.stream)))

    @torch.no_grad()
    def _prepared(self, item: Item) -> Batch:
        tracks, labels = item
        labels = {name: x.to(self.device) for name, x in labels.items()}
        return self.recipe.prepare(tracks.to(self.device), labels)

    def _forward(self, *inputs: Tensor) -> Any:
        # Only the network runs in bf16: damage to pictures must be exact, or it marks them all.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.module(*inputs)

    def step(self, step: int, progress: float) -> Mapping[str, Tensor]:
        """Renders fresh units every few steps, and trains on a draw from the pool."""
        if step % self.recipe.every == 0:
            self.pool.put(self._prepared(next(self.stream)))
        batch = self.pool.draw(self.recipe.batch, self.generator)
        parts = self.recipe.loss(self._forward, batch, self.generator, self.codec)
        norm = self.net.update(parts["loss"], progress)
        return {name: value.detach() for name, value in parts.items()} | {"norm": norm}

    def evaluate(self) -> Mapping[str, float]:
        """Figures of the averaged weights on scenes of the held-out stream, in fp32."""
        net = self.net.ema.eval()
        items, stream = self.recipe.items, f"heldout-scorer-{self.name}"
        batches = (
            self._prepared(gather(self.recipe.sampler, stream, k * items, items))
            for k in range(HELD_OUT_BATCHES)
        )
        generator = torch.Generator(self.device).manual_seed(0)
        return self.recipe.figures(net, batches, generator, self.codec)

    def save(self, out: Path, record: dict[str, Any]) -> Iterable[Path]:
        """Writes ``<name>.safetensors``: bf16 weights, the record as JSON metadata."""
        path = out / f"{self.name}.safetensors"
        tensors = {
            key: value.to(torch.bfloat16).cpu().contiguous()
            for key, value in self.net.ema.state_dict().items()
            if value.is_floating_point()
        }
        partial = path.with_suffix(".part")
        save_file(
            tensors, partial, {"record": json.dumps(record), "net": self.name, "version": "1"}
        )
        partial.replace(path)
        return [path]


def _scaled(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe, with small batches where there is no GPU."""
    if device.type == "cuda":
        return recipe
    items = max(recipe.items // CPU_SHARE, 2)
    batch = max(recipe.batch // CPU_SHARE, 8)
    return replace(recipe, items=items, batch=batch, pool=max(recipe.pool // CPU_SHARE, 4 * batch))


def load_codec(path: Path, device: torch.device) -> TaeCodec:
    """The tiny autoencoder stored at ``path``, fp32.

    Raises:
        ValueError: the file does not hold its weights.
    """
    weights, config = load_weights(path), preset("tiny/ours").codec
    return tae_codec(config, weights, device=device, dtype=torch.float32)


def main(
    nets: Annotated[
        list[str], typer.Argument(help="reader, motion, dual, imaging, features, or all")
    ],
    out: Annotated[Path, typer.Option(help="folder for weights and records")],
    seconds: Annotated[float, typer.Option(help="budget of each network")] = 120.0,
    workers: Annotated[int, typer.Option(help="processes that play scenes")] = 2,
    compiled: Annotated[bool, typer.Option("--compile", help="compile the networks")] = False,
    codec: Annotated[
        Path | None, typer.Option(help="tiny codec, for damage in its latents")
    ] = None,
) -> None:
    """Trains networks one after the other."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    names = list(NETS) if nets == ["all"] else nets
    if unknown := [name for name in names if name not in NETS]:
        raise typer.BadParameter(f"unknown networks {unknown}; use {', '.join(NETS)} or all")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    loaded = load_codec(codec, device).net if codec is not None else None
    for name in names:
        stage = Stage(name, device=device, workers=workers, compiled=compiled, codec=loaded)
        record = train(stage, out, seconds=seconds)
        typer.echo(json.dumps({name: record["evaluation"]}, indent=1))


if __name__ == "__main__":
    typer.run(main)
