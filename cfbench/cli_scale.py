"""Verbs about many GPUs, hosts and films: cost, faults, progress."""

from pathlib import Path
from typing import Annotated

import typer

from cfbench.errors import INCOMPLETE, CfError
from cfbench.options import (
    OUT_DEFAULT,
    SYSTEMS_DEFAULT,
    Json,
    Limit,
    Out,
    Prompts,
    Seconds,
    Seeds,
    Systems,
)
from cfbench.output import say

Rounds = Annotated[int, typer.Option(help="kills, of nodes and of drivers in turn")]
Repeats = Annotated[int, typer.Option(help="pairs of runs")]
Work = Annotated[Path, typer.Option(help="folder of the trial")]
TrialPrompts = Annotated[str, typer.Option(help="as of generate")]
TrialSystems = Annotated[str, typer.Option(help="as of generate")]
TrialSeconds = Annotated[float, typer.Option(help="length of a film")]
TrialSeeds = Annotated[int, typer.Option(help="films a prompt")]
Seed = Annotated[int, typer.Option(help="of what is drawn")]
SpeedFile = Annotated[Path | None, typer.Option(help="list of figures with measured rates")]
Rate = Annotated[
    list[str] | None, typer.Option(help="STAGE=FRAMES_PER_S of a GPU; make or score; repeatable")
]


def plan(
    prompts: Prompts,
    systems: Systems = SYSTEMS_DEFAULT,
    limit: Limit = 0,
    seeds: Seeds = 1,
    seconds: Seconds = 60.0,
    out: Out = OUT_DEFAULT,
    gpus: Annotated[int, typer.Option(help="say what it costs on so many; 0 does not")] = 0,
    speed: SpeedFile = None,
    rate: Rate = None,
    as_json: Json = False,
) -> None:
    """Which films a run asks for, which are missing, which rows stay null and why."""
    from cfbench.run import make_plan, planned

    todo = make_plan(systems, prompts, limit, seeds, seconds)
    found = planned(todo, out)
    if gpus:
        from cfbench import cost

        found["cost"] = cost.cost(cost.parts_of(todo), cost.rates(speed, rate or []), gpus)
    say(found, as_json)


def plan_paper(
    gpus: Annotated[str, typer.Option(help="numbers of GPUs")] = "8,64,512",
    speed: SpeedFile = None,
    rate: Rate = None,
    mtbf_h: Annotated[float, typer.Option(help="hours between failures of a GPU")] = 5000.0,
    slow_share: Annotated[float, typer.Option(help="of workers that are slow")] = 0.02,
    slow_factor: Annotated[float, typer.Option(help="how many times slower")] = 2.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What all of the paper's tables cost; slow workers and failures are simulated."""
    from cfbench import cost

    machines = cost.Machines(mtbf_h=mtbf_h, slow_share=slow_share, slow_factor=slow_factor)
    counts = _numbers("--gpus", gpus)
    say(cost.worked_paper(cost.rates(speed, rate or []), counts, machines, seed=seed), as_json)


def status(
    out: Out = OUT_DEFAULT,
    watch: Annotated[float, typer.Option(help="seconds between two looks; 0 is one look")] = 0.0,
    as_json: Json = False,
) -> None:
    """How far a run is over all of its hosts: done, failed, running by worker, rate, time left."""
    import time

    from cfbench.status import status as look
    from cfbench.store import open_store

    if watch < 0:
        raise CfError(f"--watch {watch}: expected seconds, or 0 for one look")
    found = look(open_store(out))
    say(found, as_json)
    while watch and found["left"] > found["failed"]:
        time.sleep(watch)
        found = look(open_store(out))
        say(found, as_json)


def speed_scale(
    sizes: Annotated[str, typer.Option(help="numbers of jobs and of score rows")] = (
        "10000,100000,1000000"
    ),
    to: Annotated[Path, typer.Option(help="JSON file to write")] = Path("results/speed/scale.json"),
    scratch: Annotated[Path, typer.Option(help="folder for made-up stores")] = Path("out/scale"),
    as_json: Json = False,
) -> None:
    """Times planning, status and a table over made-up stores of growing size."""
    import json

    from cfbench.scale import speed_scale as measure
    from cfbench.store import write_atomic

    found = measure(_numbers("--sizes", sizes), scratch)
    found = {f"n{size}": steps for size, steps in found.items()}
    write_atomic(to, (json.dumps(found, indent=2, sort_keys=True) + "\n").encode())
    say(found, as_json)


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise CfError(f"{option} {text!r}: expected whole numbers, as in 8,64")
    return [int(part) for part in parts]


def trial_faults(
    out: Work = Path("out/trial-faults"),
    rounds: Rounds = 20,
    prompts: TrialPrompts = "4",
    systems: TrialSystems = "nano/ours,nano/rendered-truth",
    seconds: TrialSeconds = 1.0,
    seeds: TrialSeeds = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Kills nodes and drivers of a Ray test cluster in mid-run and compares what was made."""
    from cfbench import trial

    work = trial.Work(prompts=prompts, systems=systems, seconds=seconds, seeds=seeds)
    found = trial.trial_faults(work, out, rounds=rounds, seed=seed)
    say(found, as_json)
    if wrong := found["clips_lost"] + found["clips_changed"] + found["clips_twice"]:
        raise CfError(f"{wrong} films are lost, changed or counted twice", INCOMPLETE)


def trial_overhead(
    out: Work = Path("out/trial-overhead"),
    repeats: Repeats = 5,
    prompts: TrialPrompts = "4",
    systems: TrialSystems = "nano/ours",
    seconds: TrialSeconds = 8.0,
    seeds: TrialSeeds = 2,
    as_json: Json = False,
) -> None:
    """Times a film with one Ray worker beside one local worker, start-up left out."""
    from cfbench import trial

    work = trial.Work(prompts=prompts, systems=systems, seconds=seconds, seeds=seeds)
    say(trial.ray_overhead(work, out, repeats=repeats), as_json)
