"""Films of a store scored by the ``vbench`` package, in its own environment: a second opinion."""

import json
import logging
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from cfbench import scorers
from cfbench.errors import CfError
from cfbench.progress import Reporter
from cfbench.score import UNREADABLE, Film, Outcome, missing, prompt_in
from cfbench.scorers.vbench.suite import CUSTOM, NOT_ASKED, PROMPT_FREE, action_of
from cfbench.scorers.vbench.upstream import TOOL, UpstreamSuite
from cfbench.store import LocalStore, open_store
from cfbench.types import DimensionSpec, Failure, Prompt, RunRecord, Score
from cfbench.video import DecodeError

log = logging.getLogger(__name__)

SUITE = "vbench-upstream"
GAVE = "the package gave "
DROPPED = f"{GAVE}no score for this film"
DINO_CHECKOUT = Path("dino_model") / "facebookresearch_dino_main"
LAST_LINES = 3


def score(root: Path, folder: str, env: Path, *, device: str, reporter: Reporter) -> Outcome:
    """Scores what lacks the package's scores, one process a dimension; start it again to go on.

    A film that the package fails on gets a null with its error and is tried again next time; so
    does every film of a dimension whose process fails.

    Args:
        root: the store.
        folder: of the weights; empty is where the package keeps them.
        env: of ``cfbench vbench-env create``.
        device: where the package runs.
        reporter: shows how far it is.

    Raises:
        CfError: no store, no such environment, films that are not stored.
    """
    python = env / "bin" / "python"
    if not python.exists():
        raise CfError(f"{env} is no environment; make it with cfbench vbench-env create --to {env}")
    suite: UpstreamSuite = scorers.SUITES.get(SUITE)(device, folder)
    store = open_store(root)
    runs = store.runs()
    if any(not run.clip.is_stored for run in runs):
        raise CfError(f"{root} holds films whose frames were not kept; the package needs files")
    by_sha = {run.clip.sha256: run for run in runs}
    specs = {spec.name: spec for spec in suite.dimensions}
    films = missing(runs, store.scores(), suite.dimensions)
    lacking = {name: [film for film in films if name in film.dimensions] for name in specs}
    told = {film.sha: _prompt(store, film) for film in films}
    reporter.phase(f"scores ({TOOL})", sum(map(len, lacking.values())))
    failed, done = list[Failure](), 0
    with store:
        store.check_writable()
        for name, of_dimension in lacking.items():
            if of_dimension:
                found = _dimension(specs[name], of_dimension, told, store, python, suite, device)
                store.append("scores", *found)
                bad = [s for s in found if UNREADABLE in s.details]
                news = [_failure(score, by_sha[score.clip_sha]) for score in bad]
                store.append("failures", *news)
                failed += news
                done += len(of_dimension)
                reporter.update(done)
    broken = {failure.id for failure in failed}
    return Outcome(
        scored=len(films) - len(broken), present=len(by_sha) - len(films), failed=tuple(failed)
    )


def _prompt(store: LocalStore, film: Film) -> Prompt | str:
    """A film's prompt, or why it cannot be read."""
    try:
        return prompt_in(store.path(film.prompt_sha, "json"))
    except DecodeError as error:
        return f"the film {error}"


def _dimension(
    spec: DimensionSpec, films: Sequence[Film], prompts: Mapping[str, Prompt | str],
    store: LocalStore, python: Path, suite: UpstreamSuite, device: str,
) -> list[Score]:  # fmt: skip
    """One score a film."""
    asked = {
        film.sha: prompt
        for film in films
        if isinstance(prompt := prompts[film.sha], Prompt) and _wants(prompt, spec.name)
    }
    told = {f.sha: {"reason": p} for f in films if isinstance(p := prompts[f.sha], str)}
    if asked:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            paths = {sha: _named(sha, prompt, spec, store, work) for sha, prompt in asked.items()}
            rows = [
                {
                    "path": str(paths[sha]),
                    "prompt": prompt.text,
                    "aux": (prompt.vbench or {}).get(spec.name),
                }
                for sha, prompt in asked.items()
            ]
            answer = _run(python, spec.name, rows, suite.folder.root, device, work)
            told |= {sha: _number(answer.get(str(path))) for sha, path in paths.items()}
    return [_score(spec, film, prompts[film.sha], told.get(film.sha)) for film in films]


def _number(told: dict[str, Any] | None) -> dict[str, Any]:
    """A finite value or a reason."""
    if told is None:
        return {"reason": DROPPED}
    if "value" in told and not math.isfinite(told["value"]):
        return {"reason": f"{GAVE}{told['value']}"}
    return told


def _score(
    spec: DimensionSpec, film: Film, prompt: Prompt | str, told: Mapping[str, Any] | None
) -> Score:
    details: dict[str, Any] = {"tool": TOOL}
    if isinstance(prompt, Prompt):
        details["protocol"] = CUSTOM if prompt.vbench is None else "vbench"
    reason = NOT_ASKED if told is None else str(told.get("reason", ""))
    if told is not None and "value" not in told and not reason.startswith(GAVE):
        details[UNREADABLE] = True
    return Score(
        clip_sha=film.sha,
        dimension=spec.name,
        version=spec.version,
        tier=spec.tier,
        value=None if told is None else told.get("value"),
        reason=reason,
        details=details,
    )


def _wants(prompt: Prompt, name: str) -> bool:
    return name in (PROMPT_FREE if prompt.vbench is None else prompt.vbench)


def _named(sha: str, prompt: Prompt, spec: DimensionSpec, store: LocalStore, work: Path) -> Path:
    """A link to a film; the package reads an action out of the file's name."""
    name = f"person is {action_of(prompt.text)}" if spec.name == "human_action" else "film"
    folder = work / sha
    folder.mkdir()
    link = folder / f"{name.replace('/', ' ')}-0.mp4"
    link.symlink_to(store.path(sha, "mp4").absolute())
    return link


def _run(
    python: Path, name: str, films: list[dict[str, Any]], weights: Path, device: str, work: Path
) -> dict[str, dict[str, Any]]:
    """What the package says, by path; a reason for every film where it says nothing."""
    script = resources.files("cfbench") / "data" / "upstream_score.py"
    local = name != "subject_consistency" or (weights / DINO_CHECKOUT).is_dir()
    asked, told = work / "asked.json", work / "told.json"
    tree = {"dimension": name, "device": device, "local": local, "films": films}
    asked.write_text(json.dumps(tree), encoding="utf-8")
    environment = {**os.environ, "VBENCH_CACHE_DIR": str(weights.absolute())}
    with resources.as_file(script) as file:
        words = [str(python.absolute()), str(file), str(asked), str(told)]
        ended = subprocess.run(
            words, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    if ended.returncode == 0 and told.is_file():
        return json.loads(told.read_text(encoding="utf-8"))
    last = " ".join(ended.stderr.strip().splitlines()[-LAST_LINES:])[-300:]
    log.warning("%s: the vbench package failed: %s", name, last)
    return {film["path"]: {"reason": f"the vbench package failed: {last}"} for film in films}


def _failure(score: Score, run: RunRecord) -> Failure:
    return Failure(
        stage="score", id=score.clip_sha, system=run.system, prompt_id=run.prompt_id, seed=run.seed,
        reason=f"{score.dimension}: {score.reason}", attempts=1,
    )  # fmt: skip
