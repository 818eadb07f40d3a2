"""``cfmodel``: verbs to functions. Heavy modules are imported by the verb that needs them."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer

USAGE = 2
INCOMPLETE = 3
INTERRUPTED = 130
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""What the parser raises for options it does not know or cannot read."""

log = logging.getLogger(__name__)

_STYLE: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
app = typer.Typer(name="cfmodel", help="Makes long films, chunk by chunk, from text.", **_STYLE)
presets_app = typer.Typer(help="The named experiments: rows of the tables.", **_STYLE)
app.add_typer(presets_app, name="presets")

PresetName = Annotated[str, typer.Option("--preset", help="family, family/row or row")]
Overrides = Annotated[
    list[str], typer.Option("--set", help="change a field, as in memory.tau=0.9; repeatable")
]
Compiled = Annotated[bool, typer.Option("--compile", help="use torch.compile")]
FastWords = Annotated[
    str,
    typer.Option(
        "--fast", help="auto, off, or some of joined+compiled+gelu+recorded and fp8 or fp8-tensor"
    ),
]
AttentionName = Annotated[str, typer.Option(help="auto, sdpa, cudnn, flex or flash")]
WeightsSource = Annotated[
    str | None,
    typer.Option("--weights", help="student: file, folder or hub id; .pt#ENTRY; docs/weights.md"),
]
Base = Annotated[
    str | None, typer.Option(help="Wan's VAE and UMT5: folder or hub id; default: as published")
]
Json = Annotated[bool, typer.Option("--json", help="result as JSON on stdout")]


@app.command()
def sample(
    preset: PresetName = "tiny",
    prompt: Annotated[str | None, typer.Option(help="text of one film")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="file of prompts: .jsonl, or one text a line")
    ] = None,
    scenes: Annotated[
        Path | None,
        typer.Option(help="file of one film's scenes: JSON lines of text, seconds, maybe switch"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="length of a film; of --scenes it is the sum of theirs")
    ] = 60.0,
    seed: Annotated[int, typer.Option(help="another seed, another film")] = 0,
    after: Annotated[
        Path | None, typer.Option("--continue", help="film to go on from, for --seconds")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="picture that the film begins with, held for a chunk")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="film to write; with --prompts the folder of films")
    ] = Path("film.mp4"),
    weights: WeightsSource = None,
    base: Base = None,
    overrides: Overrides = [],  # noqa: B006  the parser copies it
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>")] = "auto",
    attention: AttentionName = "auto",
    fast: FastWords = "auto",
    as_json: Json = False,
) -> None:
    """Write films as H.264 while they are made.

    Under torchrun all processes make each film together, and the first decodes and writes it.
    """
    from cfmodel import devices, pipeline, presets
    from cfmodel import sample as samples
    from cfmodel.nn.fast import fast_of

    experiment = presets.preset(preset, tuple(overrides))
    if weights is not None:
        experiment = presets.override(experiment, (f"weights={weights}",))
    if sum(given is not None for given in (prompt, prompts, scenes)) != 1:
        raise ValueError("give one of --prompt TEXT, --prompts FILE and --scenes FILE")
    if after is not None and image is not None:
        raise ValueError("give --continue FILM or --image FILE, not both")
    if scenes is not None:
        scripts = [samples.read_scenes(scenes)]
        seconds = sum(duration for _, duration in scripts[0].segments)
    elif prompts is not None:
        scripts = samples.read_scripts(prompts, seconds)
    else:
        scripts = [samples.script_of(prompt or "", seconds)]
    experiment.geometry.chunks_for(seconds)
    paths = samples.targets(scripts, out, folder=prompts is not None)
    for warning in samples.check_scripts(scripts, experiment):
        log.warning("warning: %s", warning)
    with devices.joined(pipeline.choose_device(None if device == "auto" else device)) as place:
        if devices.world().rank:
            logging.getLogger().setLevel(logging.WARNING)
        result = samples.sample(
            experiment,
            scripts,
            paths,
            seconds=seconds,
            seed=seed,
            device=str(place),
            attention=cast(Any, attention),
            after=after,
            base=base,
            image=image,
            fast=fast_of(fast),
        )
        if devices.world().rank == 0:
            said = [f"{film['out']}: {film['frames']} frames" for film in result["films"]]
            _say(result if as_json else said)


@app.command()
def live(
    preset: PresetName = "tiny",
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="to listen on; 0 is any")] = 8000,
    seed: Annotated[int, typer.Option(help="another seed, another film")] = 0,
    sessions: Annotated[int, typer.Option(min=1, help="viewers at a time")] = 1,
    overrides: Overrides = [],  # noqa: B006  the parser copies it
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>")] = "auto",
    trial: Annotated[
        float | None, typer.Option(help="watch for these seconds without a browser; tell figures")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a film in the browser while it is made; its prompt can be changed. docs/live.md."""
    from cfmodel import pipeline, presets
    from cfmodel.live import serve as servers
    from cfmodel.live import trial as trials

    experiment = presets.preset(preset, tuple(overrides))

    def load() -> pipeline.Pipeline:
        return pipeline.load(experiment, device=None if device == "auto" else device)

    if trial is None:
        servers.serve(load, host=host, port=port, seed=seed, most=sessions)
        return
    trials.check(trial)
    with servers.served(load(), seed=seed) as address:
        result = trials.trial(address, trial)
    _say(result if as_json else [f"{name}: {value}" for name, value in result.items()])


@presets_app.command("list")
def list_presets(
    family: Annotated[
        str | None, typer.Argument(help="nano, tiny or wan-1.3b; all if absent")
    ] = None,
    as_json: Json = False,
) -> None:
    """Every row, with its label and its difference from ours."""
    from cfmodel import presets
    from cfmodel.config import diff

    if family is not None and family not in presets.FAMILIES:
        raise ValueError(f"unknown family {family!r}; try one of {', '.join(presets.FAMILIES)}")
    rows = []
    for name in presets.FAMILIES if family is None else (cast(Any, family),):
        base = presets.ours(name)
        for row in presets.presets(name).values():
            changes = "; ".join(f"{path}={value!r}" for path, _, value in diff(base, row))
            entry = {"name": f"{name}/{row.name}", "label": row.label, "changes": changes}
            rows.append({**entry, "weights": row.weights, "key": row.key()})
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{row['name']:{width}}  {row['label']:28}  {row['changes'] or '-'}"
        + ("" if row["weights"] else "  (weights not trained yet)")
        for row in rows
    ]
    _say(rows if as_json else lines)


@presets_app.command("show")
def show_preset(name: str, overrides: Overrides = [], as_json: Json = False) -> None:  # noqa: B006
    """Every field of a preset."""
    from cfmodel import presets

    experiment = presets.preset(name, tuple(overrides))
    tree = {**experiment.to_json(), "key": experiment.key()}
    _say(tree if as_json else _leaves(tree))


@presets_app.command("diff")
def diff_presets(a: str, b: str, as_json: Json = False) -> None:
    """The fields in which two presets differ."""
    from cfmodel import presets
    from cfmodel.config import diff

    first, second = presets.preset(a), presets.preset(b)
    changes = [{"field": path, "a": x, "b": y} for path, x, y in diff(first, second)]
    _say(changes if as_json else presets.describe(first, second) or ["no difference"])


@app.command()
def doctor(
    preset: PresetName = "tiny",
    weights: WeightsSource = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """What this machine has, and whether a preset can be sampled here; exit code 2 if not."""
    from cfmodel import doctor as doctors
    from cfmodel import presets

    report = doctors.diagnose(presets.preset(preset), weights=weights, base=base)
    _say(report if as_json else doctors.lines(report))
    if report["missing"]:
        raise SystemExit(USAGE)


@app.command()
def calibrate(
    prompts: Annotated[Path, typer.Option(help="file of prompts: .jsonl, or one text a line")],
    preset: PresetName = "tiny",
    limit: Annotated[int, typer.Option(help="prompts taken from the file; 0 is all")] = 12,
    seconds: Annotated[float, typer.Option(help="length of a film")] = 60.0,
    overrides: Overrides = [],  # noqa: B006  the parser copies it
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>")] = "auto",
) -> None:
    """How often memory.tau keeps a chunk, by what the camera does, and how old slots are (JSON)."""
    from cfmodel import calibrate as calibration
    from cfmodel import pipeline, presets
    from cfmodel import sample as samples

    experiment = presets.preset(preset, tuple(overrides))
    chunks = experiment.geometry.chunks_for(seconds)
    scripts = samples.read_scripts(prompts, seconds)
    scripts = scripts[:limit] if limit > 0 else scripts
    loaded = pipeline.load(experiment, device=None if device == "auto" else device)
    requests = [pipeline.Request(script.id, script.segments, 0) for script in scripts]
    observed = calibration.observe(loaded, requests, chunks)
    _say(calibration.report(observed, experiment.memory.tau))


@app.command()
def train(
    stages: Annotated[
        list[str],
        typer.Argument(help="codec decoder text chunk base teacher causal-init dmd cdmd streaming"),
    ],
    preset: PresetName = "tiny",
    out: Annotated[Path, typer.Option(help="folder of weights, metrics and checkpoints")] = Path(
        "out/train"
    ),
    assets: Annotated[
        Path | None, typer.Option(help="weights of earlier stages, where out has none")
    ] = None,
    seconds: Annotated[
        list[float], typer.Option(help="budget: once for all, or once a stage")
    ] = [],  # noqa: B006  the parser copies it
    steps: Annotated[int | None, typer.Option(help="budget of each stage, in steps")] = None,
    batch: Annotated[
        int | None, typer.Option(help="films or captions a step, over all processes")
    ] = None,
    accumulate: Annotated[
        int, typer.Option(help="micro-batches that a step's batch is cut in")
    ] = 1,
    lr: Annotated[float | None, typer.Option(help="peak learning rate")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="of the teacher in dmd, cdmd and streaming")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="compute activations twice, keep few")
    ] = False,
    compiled: Compiled = False,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="replay passes; one GPU, whole batches")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>")] = "auto",
    workers: Annotated[int, typer.Option(help="processes that sample scenes")] = 0,
    fill: Annotated[int, typer.Option(help="clips rendered before the first step")] = 2048,
    capacity: Annotated[int, typer.Option(help="clips held in the pool")] = 8192,
    clips: Annotated[int, typer.Option(help="distinct clips shown, time allowing")] = 20_480,
    render: Annotated[int, typer.Option(help="clips rendered at a time")] = 64,
    scripts: Annotated[int, typer.Option(help="scripts that films are rolled out for")] = 4096,
    films: Annotated[
        list[Path], typer.Option(help="folder of prepare, instead of the tiny world; repeatable")
    ] = [],  # noqa: B006  the parser copies it
    prompts: Annotated[
        Path | None, typer.Option(help="texts for dmd, cdmd, streaming: .jsonl, or one a line")
    ] = None,
    base: Base = None,
    init: Annotated[
        list[str],
        typer.Option(help="STAGE=SOURCE: published weights in place of a stage's; repeatable"),
    ] = [],  # noqa: B006  the parser copies it
    log_every: Annotated[int, typer.Option(help="steps from a row of metrics to the next")] = 50,
    save_every: Annotated[
        int | None, typer.Option(help="steps from a checkpoint to the next")
    ] = None,
    save_every_s: Annotated[
        float | None, typer.Option(help="the same in seconds; 300 if neither is given")
    ] = None,
    samples_every: Annotated[
        int | None, typer.Option(help="steps from a contact sheet to the next")
    ] = None,
    board: Annotated[
        list[str], typer.Option(help="tensorboard or wandb, beside metrics.jsonl; repeatable")
    ] = [],  # noqa: B006  the parser copies it
    fresh: Annotated[bool, typer.Option("--fresh", help="begin anew, whatever out holds")] = False,
    overrides: Overrides = [],  # noqa: B006  the parser copies it
    as_json: Json = False,
) -> None:
    """Train stages in order; what was stopped goes on, what is done is not done again.

    Under torchrun a stage is spread over all of its processes. Exit code 3: the loss diverged.
    """
    import torch

    from cfmodel import devices, pipeline, presets
    from cfmodel.io import weights
    from cfmodel.train import loop, run, sinks, sources

    experiment = presets.preset(preset, tuple(overrides))
    budgets = run.plan(stages, seconds, steps)
    if unknown := [name for name in board if name not in sinks.BOARDS]:
        raise ValueError(f"unknown board {unknown[0]!r}; use {' or '.join(sinks.BOARDS)}")
    if save_every is None and save_every_s is None:
        save_every_s = run.SAVE_EVERY_S
    engine = loop.Engine(
        log_every=log_every, save_every=save_every, save_every_s=save_every_s,
        samples_every=samples_every, accumulate=accumulate, checkpointing=checkpointing,
        boards=tuple(cast(Any, board)), resume=not fresh,
    )  # fmt: skip
    torch.set_float32_matmul_precision("high")
    chosen = pipeline.choose_device(None if device == "auto" else device)
    try:
        with devices.joined(chosen) as place:
            if devices.world().rank:
                logging.getLogger().setLevel(logging.WARNING)
            use = sources.Resources(
                out=out, assets=assets or weights.assets() / experiment.family, device=place,
                workers=workers, compiled=compiled, recorded=cuda_graphs, batch=batch, lr=lr,
                guidance=guidance,
                capacity=capacity, fill=fill, clips=clips, render=render, scripts=scripts,
                accumulate=accumulate, films=tuple(films), prompts=prompts, base=base,
                init=run.published(init, experiment),
            )  # fmt: skip
            records = run.run(budgets, experiment, use, engine=engine)
            if devices.world().rank == 0:
                _say(records if as_json else run.lines(records))
    except loop.DivergedError as error:
        _fail(str(error), error, code=INCOMPLETE)
    except loop.StoppedError as error:
        _fail(str(error), error, code=INTERRUPTED)
    except KeyboardInterrupt as error:
        _fail("interrupted; the last checkpoint, if any, is whole", error, code=INTERRUPTED)


@app.command("rollout-speed")
def rollout_speed(
    preset: PresetName = "wan-1.3b",
    seconds: Annotated[
        list[float], typer.Option(help="length of a film; repeatable, default 60 and 600")
    ] = [],  # noqa: B006  the parser copies it
    out: Annotated[
        Path, typer.Option(help="file of records by length; those of other lengths stay")
    ] = Path("results/speed/rollout-1.3b.json"),
    overrides: Overrides = [],  # noqa: B006  the parser copies it
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>")] = "auto",
    attention: AttentionName = "auto",
    fast: FastWords = "auto",
    as_json: Json = False,
) -> None:
    """Time of each chunk and growth of memory over long films, on random weights and texts."""
    from cfmodel import pipeline, presets
    from cfmodel import speed as speeds
    from cfmodel.nn.fast import fast_of

    made = speeds.measure(
        presets.preset(preset, tuple(overrides)),
        seconds or [60.0, 600.0],
        out,
        device=pipeline.choose_device(None if device == "auto" else device),
        attention=cast(Any, attention),
        fast=fast_of(fast),
    )
    _say(
        {name: record["summary"] for name, record in made.items()}
        if as_json
        else speeds.lines(made)
    )


@app.command()
def measure(
    preset: PresetName = "wan-1.3b",
    stage: Annotated[str, typer.Option(help="dmd or cdmd")] = "cdmd",
    out: Annotated[
        Path, typer.Option(help="file of records by name; those of other names stay")
    ] = Path("results/speed/train-1.3b.json"),
    name: Annotated[
        str | None, typer.Option(help="of the record; default: processes-<number>")
    ] = None,
    latents: Annotated[
        int | None, typer.Option(help="length of the films; default: the stage's longest")
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="iterations measured")] = 2,
    warmup: Annotated[int, typer.Option(min=0, help="iterations before them")] = 1,
    batch: Annotated[int, typer.Option(help="films an iteration, over all processes")] = 1,
    accumulate: Annotated[int, typer.Option(min=1, help="micro-batches of an iteration")] = 1,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing/--no-checkpointing", help="compute activations twice")
    ] = True,
    compiled: Compiled = False,
    overrides: Overrides = [],  # noqa: B006  the parser copies it
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>")] = "auto",
    as_json: Json = False,
) -> None:
    """Seconds and memory of an iteration of dmd or cdmd, on random weights and texts.

    Under torchrun networks are spread over all processes. Exit code 3: a part does not fit.
    """
    import torch

    from cfmodel import devices, pipeline, presets
    from cfmodel.train import measure as measures

    experiment = presets.preset(preset, tuple(overrides))
    if stage not in measures.RECIPES:
        raise ValueError(f"unknown stage {stage!r}; use {' or '.join(measures.RECIPES)}")
    trial = measures.Trial(
        stage=cast(Any, stage), latents=latents, iterations=iterations, warmup=warmup, batch=batch,
        accumulate=accumulate, checkpointing=checkpointing, compiled=compiled,
    )  # fmt: skip
    torch.set_float32_matmul_precision("high")
    chosen = pipeline.choose_device(None if device == "auto" else device)
    try:
        with devices.joined(chosen) as place:
            called = name or f"processes-{devices.world().size}"
            record = measures.run(experiment, trial, place, out, called)
            if devices.world().rank == 0:
                _say(record if as_json else measures.lines(record))
    except measures.NoRoomError as error:
        _fail(str(error), error, code=INCOMPLETE)


@app.command()
def parity(
    preset: PresetName = "wan-1.3b",
    small: Annotated[bool, typer.Option("--small", help="small sizes, for a CPU")] = False,
    frames: Annotated[int, typer.Option(min=1, help="latent frames of the films")] = 3,
    dtype: Annotated[list[str], typer.Option(help="float32 or bfloat16; repeatable")] = ["float32"],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="JSON file to write too")] = None,
    overrides: Overrides = [],  # noqa: B006  the parser copies it
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>")] = "auto",
) -> None:
    """The transformer beside diffusers' on equal random weights (JSON)."""
    from cfmodel import parity as parities
    from cfmodel import pipeline, presets
    from cfmodel.io import convert as converters
    from cfmodel.io.weights import write_atomic

    experiment = presets.preset(preset, tuple(overrides))
    for name in dtype:
        _one_of("--dtype", name, ("float32", "bfloat16"))
    where = pipeline.choose_device(None if device == "auto" else device)
    kinds = [kind for name in dtype if (kind := converters.DTYPES[cast(Any, name)]) is not None]
    record = parities.run(experiment, where, kinds, frames=frames, small=small)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    _say(record)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="file, folder or hub id; .pt#ENTRY")],
    out: Annotated[Path, typer.Option(help="safetensors file to write")],
    to: Annotated[str, typer.Option(help="cfmodel, wan or diffusers")] = "cfmodel",
    preset: PresetName = "wan-1.3b",
    lora: Annotated[str | None, typer.Option(help="adaptation to merge, a source too")] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="its alpha; the rank if it is not given")
    ] = None,
    dtype: Annotated[str, typer.Option(help="keep, float32, bfloat16 or float16")] = "keep",
    overrides: Overrides = [],  # noqa: B006  the parser copies it
    as_json: Json = False,
) -> None:
    """Rewrite a transformer's weights in another layout; see docs/weights.md."""
    from cfmodel import presets
    from cfmodel.io import convert as converters

    experiment = presets.preset(preset, tuple(overrides))
    _one_of("--to", to, converters.LAYOUTS)
    _one_of("--dtype", dtype, tuple(converters.DTYPES))
    found = converters.load_student(source, experiment, lora=lora, alpha=lora_alpha)
    sha256 = converters.write(found, out, cast(Any, to), experiment, dtype=cast(Any, dtype))
    result = {
        "out": str(out), "sha256": sha256, "layout": to, "tensors": len(found.tensors),
        "source": found.note, "source_sha256": found.sha256,
    }  # fmt: skip
    _say(result if as_json else [f"{out}: {len(found.tensors)} tensors, sha256 {sha256}"])


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="file, folder or hub id; .pt#ENTRY")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    licence: Annotated[str, typer.Option(help="of the weights, as the card names it")],
    preset: PresetName = "wan-1.3b",
    dtype: Annotated[str, typer.Option(help="keep, float32, bfloat16 or float16")] = "keep",
    overrides: Overrides = [],  # noqa: B006  the parser copies it
    as_json: Json = False,
) -> None:
    """Write a folder to share: weights for cfmodel and diffusers, and a model card."""
    from cfmodel import presets
    from cfmodel.io import convert as converters

    experiment = presets.preset(preset, tuple(overrides))
    _one_of("--dtype", dtype, tuple(converters.DTYPES))
    found = converters.load_student(source, experiment)
    files = converters.export(found, out, experiment, licence=licence, dtype=cast(Any, dtype))
    _say(files if as_json else [f"{out / name}: {sha256}" for name, sha256 in files.items()])


@app.command()
def prepare(
    source: Annotated[
        Path, typer.Argument(help="folder of films, each with a .txt beside it; or .csv or .jsonl")
    ],
    out: Annotated[Path, typer.Option(help="folder of the shards; a run goes on where it stopped")],
    preset: PresetName = "tiny",
    latents: Annotated[int, typer.Option(help="latent frames of a clip")] = 42,
    min_latents: Annotated[
        int | None, typer.Option(help="shortest clip at a film's end; default: --latents")
    ] = None,
    min_seconds: Annotated[float, typer.Option(help="shortest film")] = 10.0,
    shard_mib: Annotated[int, typer.Option(help="size of a shard")] = 256,
    root: Annotated[
        Path | None, typer.Option(help="folder of a table's files; default: the table's")
    ] = None,
    file_key: Annotated[str, typer.Option(help="a table's column of films")] = "file",
    caption_key: Annotated[str, typer.Option(help="a table's column of captions")] = "caption",
    embed: Annotated[bool, typer.Option("--embed", help="store embedded captions too")] = False,
    codec: Annotated[
        Path | None, typer.Option(help="weights of the codec; default: the bundled ones")
    ] = None,
    base: Base = None,
    part: Annotated[str, typer.Option(help="2/8 takes every eighth film from the second")] = "1/1",
    overrides: Overrides = [],  # noqa: B006  the parser copies it
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="probe films, write nothing")] = False,
    as_json: Json = False,
) -> None:
    """Encode films and captions into shards of latents; exit code 3 if films were refused."""
    from cfmodel import pipeline, presets
    from cfmodel import prepare as prepares
    from cfmodel.io.captions import list_films

    experiment = presets.preset(preset, tuple(overrides))
    cut = prepares.Cut(
        latents=latents,
        min_latents=latents if min_latents is None else min_latents,
        min_s=min_seconds,
        shard_mib=shard_mib,
        part=prepares.part_of(part),
    )
    films = list_films(source, root=root, file_key=file_key, caption_key=caption_key)
    where = pipeline.choose_device(None if device == "auto" else device)
    coder = pipeline.load_codec(experiment, device=where, file=codec, base=base)
    text = pipeline.load_text(experiment, device=where, base=base) if embed else None
    run = prepares.survey if dry_run else prepares.prepare
    try:
        result = run(films, out, experiment=experiment, cut=cut, codec=coder, text=text)
    except KeyboardInterrupt as error:
        again = "interrupted; the same command goes on behind the last whole shard"
        _fail(again, error, code=INTERRUPTED)
    _say(result if as_json else prepares.lines(result))
    if result["refused"]:
        raise SystemExit(INCOMPLETE)


def main() -> None:
    """The ``cfmodel`` script: every error of input is one line on stderr and exit code 2."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # Libraries of models tell of downloads and kernels at this level.
    for name in ("httpx", "transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        code = app(standalone_mode=False)
    except USAGE_ERROR as error:
        _fail(f"{cast(Any, error).format_message()}; see cfmodel --help", error)
    except ValueError as error:
        _fail(str(error), error)
    except ModuleNotFoundError as error:
        _fail(f"package {error.name} is not installed; pip install {error.name}", error)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        reason = error.strerror or error
        _fail(f"cannot write{where}: {reason}; free the disk or choose another --out", error)
    except (KeyboardInterrupt, typer.Abort) as error:
        sys.stderr.write("cfmodel: interrupted; the film in work was removed\n")
        raise SystemExit(INTERRUPTED) from error
    else:
        raise SystemExit(code if isinstance(code, int) else 0)


def _fail(message: str, error: BaseException, *, code: int = USAGE) -> NoReturn:
    line = " ".join(message.split())
    sys.stderr.write(f"cfmodel: {line}\n")
    raise SystemExit(code) from error


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{option} {value!r}: expected one of {', '.join(known)}")


def _say(result: Any) -> None:
    """Lines of text as they are, anything else as JSON, on stdout."""
    lines = isinstance(result, list) and all(isinstance(line, str) for line in result)
    text = "\n".join(result) if lines else json.dumps(result, sort_keys=True)
    sys.stdout.write(f"{text}\n")


def _leaves(tree: dict[str, Any], at: str = "") -> list[str]:
    return [
        line
        for key, value in tree.items()
        for line in (
            _leaves(value, f"{at}{key}.") if isinstance(value, dict) else [f"{at}{key} = {value!r}"]
        )
    ]
