"""An experiment, loaded: text encoder, student, memory and codec, from prompts to pixel frames.

Dims: B films, R pixel frames, Y rows, X columns, G texts, S text tokens, E text width.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cfmodel.config import Attention, Experiment, Geometry, Switch
from cfmodel.io.checkpoints import student
from cfmodel.io.codec import Codec, WanCodec, random_codec, tae_codec
from cfmodel.io.text import HEADS, BytePooler, BytesText, TextEncoder
from cfmodel.io.wan_parts import BASE, umt5, wan_vae
from cfmodel.io.weights import bundled, is_known, load_into, load_weights, randomize, resolve
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.attention import AttentionFn
from cfmodel.nn.attention import resolve as resolve_attention
from cfmodel.nn.fast import Fast, quicken
from cfmodel.nn.spread import Spread
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.presets import WAN_STUDENT
from cfmodel.rollout import HashNoise
from cfmodel.samplers import Parts, roll_out
from cfmodel.scenes import switched
from cfmodel.texts import Asked, Texts

logger = logging.getLogger(__name__)

ENDLESS = 1 << 40
"""Chunks of a film that goes on until it is stopped; at 0.75 s each, 26 thousand years."""


class Request(NamedTuple):
    """A film to make. Equal requests make equal films; the last segment lasts to the end."""

    prompt_id: str
    segments: tuple[tuple[str, float], ...]
    """Texts and their seconds."""
    seed: int
    switches: tuple[Switch | None, ...] = ()
    """What the beginning of each segment does to the memory; None is ``memory.switch``."""


def segment_of(seconds: Sequence[float], chunk: int, geometry: Geometry) -> int:
    """Which segment's text a chunk has: that of the last segment begun by then.

    Segments begin at the chunk start nearest to where their seconds put them, and the last one
    lasts to the end of the film.

    Example:
        >>> [segment_of((1.5, 1.0), chunk, Geometry()) for chunk in range(4)]
        [0, 0, 1, 1]
    """

    def start(index: int) -> float:
        frames = geometry.pixel_frames(index * geometry.chunk) if index else 0
        return frames / geometry.fps

    middle = (start(chunk) + start(chunk + 1)) / 2
    begins = [0.0, *accumulate(seconds[:-1])]
    return max(index for index, begin in enumerate(begins) if index == 0 or begin < middle)


class Pipeline:
    """Makes films. Build one with ``load``.

    Attributes:
        experiment: what it was loaded from.
        weights: sha256 of student, codec and text encoder.
        device: torch's name of where it runs.
        dtype: of the student, as in ``float32``.
        attention: the backend in use; never ``auto``.
        fast: what was done to be fast.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: VideoTransformer,
        codec: Codec,
        text: TextEncoder,
        *,
        weights: dict[str, str],
        attention: str,
    ) -> None:
        self.experiment = experiment
        self.model = model
        self.codec = codec
        self.text = text
        self.weights = weights
        self.attention = attention
        self._dtype = model.patch_embed.weight.dtype
        self._device = model.patch_embed.weight.device
        self.dtype = str(self._dtype).removeprefix("torch.")
        self.device = str(self._device)
        self.fast = Fast.off()
        # One for all films: the allocator keeps memory apart for each stream.
        cuda = self._device.type == "cuda"
        self._beside = torch.cuda.Stream(self._device) if cuda else None

    def quicken(self, fast: Fast) -> None:
        """Makes the student, and where ``compiled`` Wan's decoder, fast; once, and in place.

        The compiler works when parts are first used, for a minute or so.
        """
        quicken(self.model, fast)
        if fast.compiled and isinstance(self.codec, WanCodec):
            self.codec.compile_parts()
        self.fast = fast

    def spread_over(self, spread: Spread) -> None:
        """Makes each film on several processes together; each asks for the same latents.

        Raises:
            ValueError: a frame's tokens do not divide equally.
        """
        self.model.spread_over(spread)

    def record(self) -> dict[str, str]:
        """What, beside the experiment, decides a film's bytes: device, dtype, attention, codec."""
        return {
            **({"fast": self.fast.words} if self.fast.words else {}),
            **({"processes": str(self.model.spread.size)} if self.model.spread else {}),
            "device": self.device,
            "dtype": self.dtype,
            "attention": self.attention,
            "codec": self.codec.spec.name,
            "torch": torch.__version__,
        }

    def films(
        self,
        requests: Sequence[Request],
        chunks: int,
        *,
        history: Tensor | None = None,
        memory: SlotMemory | None = None,
    ) -> Iterator[Tensor]:
        """Films made together, as (B, R, Y, X, 3) uint8 CPU tensors, one a chunk.

        The first chunk of a film holds fewer pixel frames than the others.

        Args:
            requests: one a film.
            chunks: how many are made.
            history: what the films have shown so far (see ``encode``): it is committed to the
                memory, the chunks made go on from it and are all that is returned.
            memory: as of ``latents``.

        Raises:
            ValueError: no request, no chunk, an empty or overlong text, or a history that is no
                whole number of chunks.
        """
        past = None if history is None else self.encode(history)
        latents = self.latents(requests, chunks, history=past, memory=memory)
        return self._decoded(latents, past, len(requests))

    def encode(self, frames_BRYXC: Tensor) -> Tensor:
        """Latents (B, F, C, X, Y) of the beginnings of films, cut to whole chunks.

        Args:
            frames_BRYXC: uint8 frames at the geometry's size and rate.

        Raises:
            ValueError: another size, or less than a chunk.
        """
        geometry = self.experiment.geometry
        size = (geometry.height, geometry.width)
        if tuple(frames_BRYXC.shape[2:4]) != size:
            raise ValueError(
                f"history of {tuple(frames_BRYXC.shape[2:4])} pixels: expected {size}; resize it"
            )
        stride = geometry.vae_stride[0]
        latents = 1 + (frames_BRYXC.shape[1] - 1) // stride
        whole = latents // geometry.chunk * geometry.chunk
        if not whole:
            raise ValueError(
                f"history of {frames_BRYXC.shape[1]} frames is less than a chunk; use at least "
                f"{geometry.pixel_frames(geometry.chunk)}"
            )
        return self.codec.encode(frames_BRYXC[:, : geometry.pixel_frames(whole)])

    def memory(self, batch: int) -> SlotMemory:
        """An empty memory for films made together."""
        return SlotMemory(
            self.experiment.memory,
            self.experiment.geometry,
            self.experiment.model,
            batch=batch,
            device=self._device,
            dtype=self._dtype,
        )

    def latents(
        self,
        requests: Sequence[Request],
        chunks: int,
        *,
        history: Tensor | None = None,
        memory: SlotMemory | None = None,
    ) -> Iterator[Tensor]:
        """Normalised latents (B, 3, C, X, Y) of films made together, one chunk at a time.

        Args:
            requests: one a film.
            chunks: how many are made.
            history: latents of whole chunks that are committed first and not returned.
            memory: what the films are made over, to look at it afterwards; None is a new one.

        Raises:
            ValueError: no request, no chunk, an empty or overlong text, or a history that is no
                whole number of chunks.
        """
        experiment, batch = self.experiment, len(requests)
        if not requests or chunks < 1:
            raise ValueError(f"{batch} films of {chunks} chunks: expected 1 or more of each")
        if any(not request.segments for request in requests):
            raise ValueError("a film without segments; give at least one text and its seconds")
        if history is not None and history.shape[1] % experiment.geometry.chunk:
            raise ValueError(
                f"history of {history.shape[1]} latents; expected a multiple of "
                f"{experiment.geometry.chunk}"
            )
        texts = list(dict.fromkeys(text for r in requests for text, _ in r.segments))
        tokens = dict(zip(texts, self.text.encode(texts), strict=True))
        geometry = experiment.geometry
        past = 0 if history is None else history.shape[1] // experiment.geometry.chunk
        plans = [self._changes(request, past + chunks) for request in requests]
        if any(plan != plans[0] for plan in plans):
            return self._one_by_one(requests, chunks, history, memory)
        changes = plans[0]
        parts = self._parts(
            lambda chunk: tuple(_text(request, chunk, geometry) for request in requests),
            lambda text: tokens[text],
            (lambda chunk: changes.get(chunk, "keep")) if changes else None,
            noise=HashNoise([r.prompt_id for r in requests], [r.seed for r in requests]),
            memory=memory or self.memory(batch),
        )
        split = () if history is None else history.split(experiment.geometry.chunk, 1)
        return roll_out(parts, chunks, split)

    def stream(
        self,
        ask: Callable[[int], str],
        *,
        prompt_id: str,
        seed: int,
        chunks: int = ENDLESS,
        memory: SlotMemory | None = None,
    ) -> Iterator[Tensor]:
        """One film whose texts are not known beforehand, as (1, R, Y, X, 3) uint8 CPU tensors.

        A text that differs from the one before it does what ``memory.switch`` says. Given the same
        texts at the same chunks, it is the film that ``films`` makes.

        Args:
            ask: the text of the chunk with this index; called once a chunk, in order, when that
                chunk is begun.
            prompt_id: decides the noise, with the seed.
            seed: as of a request.
            chunks: how many are made at most; nothing is kept for those to come.
            memory: as of ``latents``.

        Raises:
            ValueError: a switch that the sampler or the attention backend does not have.
        """
        experiment = self.experiment
        how = experiment.memory.switch
        self._check_switches(() if how == "keep" else (how,))
        texts = Asked(ask)
        parts = self._parts(
            lambda chunk: (texts(chunk),),
            lambda text: self.text.encode([text])[0],
            None if how == "keep" else lambda chunk: how if texts.is_new(chunk) else "keep",
            noise=HashNoise([prompt_id], [seed]),
            memory=memory or self.memory(1),
        )
        # In order: who watches wants a chunk, and the memory behind it, before the next one.
        return decoded(roll_out(parts, chunks), self.codec.decoder(1).push)

    def _parts(
        self,
        texts_at: Callable[[int], tuple[str, ...]],
        tokens_of: Callable[[str], Tensor],
        switches: Callable[[int], Switch] | None,
        *,
        noise: HashNoise,
        memory: SlotMemory,
    ) -> Parts:
        """What films are rolled out of: their texts and switches by chunk, noise and memory."""
        text_at = Texts(self.model, texts_at, tokens_of)
        begin = None
        if switches is not None:
            begin = switched(self.model, memory, text_at, switches, dtype=self._dtype)
        return Parts(
            self.experiment,
            self.model,
            memory,
            text_at,
            noise,
            batch=memory.batch,
            dtype=self._dtype,
            reencode=self._reencoded,
            begin=begin,
            recorded=self.fast.recorded and self._device.type == "cuda",
        )

    def _one_by_one(
        self,
        requests: Sequence[Request],
        chunks: int,
        history: Tensor | None,
        memory: SlotMemory | None,
    ) -> Iterator[Tensor]:
        """Films whose memories change at different chunks, side by side: none depends on another.

        Raises:
            ValueError: a memory for all of them is given.
        """
        if memory is not None:
            raise ValueError("one memory for films whose scenes begin at other times; omit it")
        films = [
            self.latents([request], chunks, history=None if history is None else history[row][None])
            for row, request in enumerate(requests)
        ]
        return (torch.cat(parts) for parts in zip(*films, strict=True))

    def _changes(self, request: Request, chunks: int) -> dict[int, Switch]:
        """What is done to a film's memory before which chunk.

        Raises:
            ValueError: a way to switch that the sampler does not have.
        """
        plan = _switches(request, chunks, self.experiment)
        self._check_switches(plan.values())
        return plan

    def _check_switches(self, switches: Collection[Switch]) -> None:
        sampler = self.experiment.sample.sampler
        if switches and sampler != "chunk":
            raise ValueError(
                f"sample.sampler={sampler!r} cannot change its memory at a new text; use switch "
                "'keep'"
            )
        if "recache" in switches and self.attention == "flash":
            raise ValueError("flash attention takes no mask, which recache needs; use sdpa")

    def _reencoded(self, film_BFCXY: Tensor) -> Tensor:
        """The last pixel frame of the first latent of a film's last chunk, as a first latent."""
        geometry = self.experiment.geometry
        decoder = self.codec.decoder(film_BFCXY.shape[0])
        frames_BRYXC = [decoder.push(x0) for x0 in film_BFCXY.split(geometry.chunk, dim=1)][-1]
        at = -1 - geometry.vae_stride[0] * (geometry.chunk - 1)
        return self.codec.encode(frames_BRYXC[:, at][:, None].cpu())

    def _decoded(
        self, latents: Iterator[Tensor], past: Tensor | None, batch: int
    ) -> Iterator[Tensor]:
        decoder = self.codec.decoder(batch)
        if past is not None:
            decoder.push(past)
        return decoded(latents, decoder.push, self._beside)


def decoded(
    latents: Iterator[Tensor],
    push: Callable[[Tensor], Tensor],
    beside: torch.cuda.Stream | None = None,
) -> Iterator[Tensor]:
    """Pixel frames on the CPU of latent chunks.

    With a stream a chunk is decoded beside the making of the next one: the first chunk is given out
    as soon as it is decoded, each later one when the next has been made.

    Args:
        latents: chunks as they are made.
        push: of a codec's decoder.
        beside: a stream of the latents' device; None gives each chunk out before the next is made.
    """
    if beside is None:
        for x0 in latents:
            yield push(x0).cpu()
        return
    waiting: _Decoding | None = None
    try:
        for index, x0 in enumerate(latents):
            made = _Decoding(x0, push, beside)
            if waiting is not None:
                yield waiting.frames()
            waiting = made
            if index == 0:
                yield made.frames()
                waiting = None
        if waiting is not None:
            yield waiting.frames()
    finally:
        # Of films that are given up in the middle nothing is freed that is still in use.
        beside.synchronize()


class _Decoding:
    """A chunk that is being decoded on a stream of its own."""

    def __init__(
        self, x0: Tensor, push: Callable[[Tensor], Tensor], stream: torch.cuda.Stream
    ) -> None:
        self._latents = x0  # kept, or its place would be given to others before it is read
        stream.wait_stream(torch.cuda.current_stream(x0.device))
        with torch.cuda.stream(stream):
            frames = push(x0)
            self._host = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
            self._host.copy_(frames, non_blocking=True)
            self._done = stream.record_event()

    def frames(self) -> Tensor:
        """Its pixel frames, on the CPU, in ordinary memory; waits for them."""
        self._done.synchronize()
        return self._host.clone()


def _switches(request: Request, chunks: int, experiment: Experiment) -> dict[int, Switch]:
    """What a film's scenes do to the memory, by their first chunk; scenes that do nothing are out.

    Raises:
        ValueError: more switches than segments.
    """
    if len(request.switches) > len(request.segments):
        raise ValueError(
            f"{len(request.switches)} switches for {len(request.segments)} segments; expected one "
            "a segment"
        )
    seconds = [duration for _, duration in request.segments]
    given: list[Switch | None] = [*request.switches, *[None] * len(request.segments)]
    segments = [segment_of(seconds, chunk, experiment.geometry) for chunk in range(chunks)]
    plan: dict[int, Switch] = {}
    for chunk in range(1, chunks):
        if segments[chunk] != segments[chunk - 1]:
            how = given[segments[chunk]] or experiment.memory.switch
            if how != "keep":
                plan[chunk] = how
    return plan


def _text(request: Request, chunk: int, geometry: Geometry) -> str:
    seconds = [duration for _, duration in request.segments]
    return request.segments[segment_of(seconds, chunk, geometry)][0]


def load(
    experiment: Experiment,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    attention: Attention = "auto",
    threads: int | None = None,
    base: str | None = None,
    fast: Fast | None = None,
) -> Pipeline:
    """An experiment's networks with their weights, ready to make films.

    Args:
        experiment: a preset, or a variation of one; its ``weights`` are an id of bundled ones or a
            source (see ``cfmodel.io.checkpoints``).
        device: as torch names it; None is CUDA when there is one.
        dtype: of the student; None is bfloat16 on CUDA, else float32.
        attention: backend; ``auto`` is decided here and can be read from the result.
        threads: torch's CPU threads, for the whole process; None leaves them.
        base: source of Wan's VAE and UMT5; None is the published one. Other families bring theirs.
        fast: what to do to be fast; None is ``Fast.default``.

    Raises:
        ValueError: weights that are not trained yet, missing or damaged; a device or backend that
            this machine lacks; sizes of codec, text encoder and model that disagree.
    """
    if experiment.weights is None:
        raise ValueError(
            f"preset {experiment.family}/{experiment.name}: this row's own weights are not trained "
            "yet; choose another row, or name a file with --set weights=PATH"
        )
    _check_sizes(experiment)
    where = choose_device(device)
    kind = dtype or (torch.bfloat16 if where.type == "cuda" else torch.float32)
    backend, attend = choose_attention(attention, where)
    if threads is not None:
        torch.set_num_threads(threads)
    if experiment.weights == WAN_STUDENT:
        raise ValueError(
            f"the weights of {experiment.family}/{experiment.name} are not bundled; name a file, a "
            "folder or a hub id with --weights (see docs/weights.md)"
        )
    # Weights of its own would be drawn for nothing, which takes a while at 1.3 B.
    with torch.device("meta"):
        model = VideoTransformer(experiment.model, experiment.geometry, attend)
    model.to_empty(device="cpu")
    student_sha256 = _load_student(model, experiment)
    codec = load_codec(experiment, device=where, base=base)
    text = load_text(experiment, device=where, base=base)
    if codec.spec.strides != experiment.geometry.vae_stride:
        raise ValueError(
            f"codec strides {codec.spec.strides}, but geometry.vae_stride="
            f"{experiment.geometry.vae_stride}; make them equal"
        )
    weights = {"student": student_sha256, "codec": codec.spec.sha256, "text": text.sha256}
    logger.info("%s on %s, %s, attention %s", experiment.name, where, kind, backend)
    model = model.to(where, kind).eval().requires_grad_(False)
    pipeline = Pipeline(experiment, model, codec, text, weights=weights, attention=backend)
    pipeline.quicken(fast or Fast.default(where, experiment.model.width))
    return pipeline


def _load_student(model: VideoTransformer, experiment: Experiment) -> str:
    """Puts an experiment's weights into its transformer. Returns their sha256."""
    name = experiment.weights
    assert name is not None, "refused by the caller"
    if is_known(name):
        known = resolve(name, experiment.family)
        if known is None:
            return randomize(model, "student")
        load_into(model, known.tensors, str(known.path))
        return known.sha256
    found = student(name, experiment.model, model.state_dict())
    logger.info("weights %s, sha256 %s", found.note, found.sha256[:12])
    load_into(model, found.tensors, str(found.path))
    return found.sha256


def load_codec(
    experiment: Experiment,
    *,
    device: torch.device | str,
    file: Path | None = None,
    base: str | None = None,
) -> Codec:
    """The codec of an experiment's family.

    Args:
        experiment: gives family and sizes.
        device: where it runs.
        file: other weights than the family's own.
        base: see ``load``.

    Raises:
        ValueError: its weights are missing or damaged.
    """
    dtype = codec_dtype(experiment, device)
    if experiment.codec.kind == "wan":
        source = str(file) if file is not None else base or BASE
        return wan_vae(source, device=device, dtype=dtype)
    if experiment.family == "nano" and file is None:
        return random_codec(experiment.codec, device=device, dtype=dtype)
    weights = bundled(f"{experiment.family}/codec") if file is None else load_weights(file)
    return tae_codec(experiment.codec, weights, device=device, dtype=dtype)


def codec_dtype(experiment: Experiment, device: torch.device | str) -> torch.dtype:
    """In what a codec runs: half precision on CUDA.

    Half the bits of float16 are mantissa, which eight-bit pixels need; bfloat16 has too few. Wan's
    VAE runs in bfloat16 all the same, as published students are sampled: float16 could overflow.
    """
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if experiment.codec.kind == "wan" else torch.float16


def load_text(
    experiment: Experiment, *, device: torch.device | str, base: str | None = None
) -> TextEncoder:
    """The text encoder of an experiment's family: float32, or UMT5 as it is stored.

    Args:
        experiment: gives family and sizes.
        device: where it runs.
        base: see ``load``.

    Raises:
        ValueError: its weights are missing or damaged.
    """
    if experiment.text.kind == "umt5":
        return umt5(base or BASE, experiment.text, device=device)
    net = BytePooler(experiment.text)
    if experiment.family == "nano":
        return BytesText(net.to(device), randomize(net, "text"))
    weights = bundled(f"{experiment.family}/text")
    kept = {name: t for name, t in weights.tensors.items() if not name.startswith(HEADS)}
    load_into(net, kept, str(weights.path))
    return BytesText(net.to(device), weights.sha256)


def choose_device(name: str | None) -> torch.device:
    """The device of a name; None is CUDA when there is one.

    Raises:
        ValueError: no such device on this machine.
    """
    cuda = torch.cuda.is_available()
    if name is None:
        return torch.device("cuda" if cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: expected cpu, cuda or cuda:<index>") from error
    if device.type == "cuda" and not cuda:
        raise ValueError(f"device {name!r}: no CUDA GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def choose_attention(name: Attention, device: torch.device) -> tuple[str, AttentionFn]:
    """Name and function of a backend that runs on the device.

    Raises:
        ValueError: unknown backend, or one that is not installed.
    """
    if name == "auto" and device.type != "cuda":
        name = "sdpa"
    try:
        return resolve_attention(name)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _check_sizes(experiment: Experiment) -> None:
    codec, model, text = experiment.codec, experiment.model, experiment.text
    if codec.latent_channels != model.latent_channels:
        raise ValueError(
            f"codec.latent_channels={codec.latent_channels}, but model.latent_channels="
            f"{model.latent_channels}; make them equal"
        )
    if (text.width, text.tokens) != (model.text_width, model.text_tokens):
        raise ValueError(
            f"text encoder gives {text.tokens} tokens of {text.width}, but the model reads "
            f"{model.text_tokens} of {model.text_width}; make them equal"
        )
