"""The design of a study: made from the films of a run, sealed by its hash, read back whole."""

import hashlib
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cfbench import prompts as prompt_sets
from cfbench.errors import CfError
from cfbench.store import open_store, write_atomic
from cfbench.study import films
from cfbench.study.tables import (
    VERSION,
    Analysis,
    Comparison,
    Design,
    Exclusion,
    Pair,
    Plan,
    Question,
    StudyPrompt,
    design_of,
)
from cfbench.types import RunRecord
from cfbench.video import canonical_frames

log = logging.getLogger(__name__)

DESIGN, SEAL, SECRET, MEDIA = "design.json", "design.sha256", "secret.key", "media"
QUESTIONS = (
    Question(id="aesthetics", text="Which film is more aesthetic?"),
    Question(id="prompt-match", text="Which film matches the text better?"),
    Question(
        id="consistency",
        text="Which film keeps its subject and background more consistent over time?",
    ),
)
CONSENT = (
    "You will watch pairs of short computer-made films and say which of the two you prefer. "
    "Taking part is voluntary: you may stop at any time by closing the page. We store your answers "
    "and how you watched (seconds, replays, time the page was hidden), under a random number; no "
    "name and no network address. The answers may be published without anything that points to "
    "you. You must be at least 18 years old."
)
CHECK_TEXT = "This is an attention check. Whatever you think of the films, please choose {}."
WORDS = {"left": "Left", "right": "Right", "tie": "About equal"}
WORKED = (
    (
        "One of these two films has lost its detail. Whoever is asked which is more aesthetic "
        "would choose the other one.",
        "left",
    ),
    (
        "These two films are the same. Where no difference matters to you, choose About equal.",
        "tie",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a design file may say; everything has a default.

    ``comparisons`` are pairs of systems of the run, ours first. ``seconds`` of each film are shown,
    0 being all whole seconds that the shortest has. ``prompts`` are ids, none being all that the
    run has films of.
    """

    title: str = "Which film do you prefer?"
    seed: int = 0
    comparisons: tuple[tuple[str, str], ...] = (("ours", "longlive"), ("ours", "infinity-rope"))
    questions: tuple[Question, ...] = QUESTIONS
    prompts: tuple[str, ...] = ()
    seconds: int = 0
    block_pairs: int = 8
    target_votes: int = 30
    max_sessions: int = 1000
    stop: str = (
        "when every cell has its target votes, or the greatest number of raters was admitted"
    )
    consent: str = CONSENT
    exclusion: Exclusion = field(default_factory=Exclusion)
    analysis: Analysis = field(default_factory=Analysis)


def read_spec(path: Path) -> Spec:
    """The specification in a JSON file.

    Raises:
        CfError: no such file, bad JSON, an unknown key, or a value of the wrong kind.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise CfError(f"{path}: expected a JSON object")
        unknown = set(tree) - {item.name for item in fields(Spec)}
        if unknown:
            raise CfError(f"{path}: unknown keys {sorted(unknown)}")
        made: dict[str, Any] = dict(tree)
        if "comparisons" in tree:
            made["comparisons"] = tuple((ours, base) for ours, base in tree["comparisons"])
        if "questions" in tree:
            made["questions"] = tuple(Question(**item) for item in tree["questions"])
        if "prompts" in tree:
            made["prompts"] = tuple(tree["prompts"])
        for name, kind in (("exclusion", Exclusion), ("analysis", Analysis)):
            if name in tree:
                made[name] = kind(**tree[name])
        return Spec(**made)
    except OSError as error:
        raise CfError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise CfError(f"{path}: {error}") from error


def build(run: Path, to: Path, spec: Spec) -> Design:
    """Make a study's folder from the films of a run: films, design, seal, secret.

    Args:
        run: folder of ``cfbench run``.
        to: folder to make; must not hold a study.
        spec: what the study is to be.

    Raises:
        CfError: a study is there already, or the run lacks films that the study needs.
    """
    check_spec(spec)
    if (to / DESIGN).exists():
        raise CfError(f"{to} holds a study; a design is never changed, choose another folder")
    store = open_store(run)
    runs = [record for record in store.runs() if record.clip.is_stored]
    found = chosen_films(runs, spec)
    texts = prompt_sets.stored(runs, lambda sha: store.path(sha, "json"))
    lacking = sorted({prompt for _, prompt, _ in found} - set(texts))
    if lacking:
        raise CfError(f"the run does not hold the text of {', '.join(lacking)}")
    frames = frames_shown(list(found.values()), spec.seconds)
    (to / MEDIA).mkdir(parents=True, exist_ok=True)
    names = {key: _name(spec.seed, *key) for key in found}
    for key, record in found.items():
        log.info("film %d of %d", list(found).index(key) + 1, len(found))
        films.make(store.path(record.clip.sha256, "mp4"), _file(to, names[key]), frames)
    pairs = main_pairs(spec, found, names)
    whole = pairs[-1].ours
    source = next(found[key] for key, name in names.items() if name == whole)
    spoilt = _name(spec.seed, "spoilt")
    films.make(store.path(source.clip.sha256, "mp4"), _file(to, spoilt), frames, degraded=True)
    paths = [_file(to, name) for name in (*names.values(), spoilt)]
    films.pad(paths)
    films.check_alike(paths)
    design = Design(
        version=VERSION, seed=spec.seed, title=spec.title,
        systems={record.system: record.label for record in found.values()},
        comparisons=comparisons(spec), questions=spec.questions,
        prompts=tuple(
            StudyPrompt(
                id=prompt, text=texts[prompt].text, strata={"return": texts[prompt].stratum}
            )
            for prompt in sorted({key[1] for key in found})
        ),
        pairs=(*pairs, *checks(spec, pairs, spoilt)),
        training=training(spec, pairs[-1], spoilt),
        media={path.stem: films.describe(path) for path in paths},
        plan=Plan(
            block_pairs=spec.block_pairs, target_votes=spec.target_votes,
            max_sessions=spec.max_sessions, stop=spec.stop,
        ),
        exclusion=spec.exclusion, analysis=spec.analysis, consent=spec.consent,
    )  # fmt: skip
    seal(design, to)
    return design


def check_spec(spec: Spec) -> None:
    """Refuse a specification that makes no study.

    Raises:
        CfError: saying what is wrong.
    """
    ids = [question.id for question in spec.questions]
    if not ids or len(set(ids)) < len(ids):
        raise CfError(f"questions {ids}: expected at least one, each with an id of its own")
    if not spec.comparisons or any(ours == base for ours, base in spec.comparisons):
        raise CfError("a study compares two different systems at least")
    if min(spec.block_pairs, spec.target_votes, spec.max_sessions) < 1 or spec.seconds < 0:
        raise CfError("block_pairs, target_votes and max_sessions are at least 1, seconds 0")


def chosen_films(runs: Sequence[RunRecord], spec: Spec) -> dict[tuple[str, str, int], RunRecord]:
    """Films by (system, prompt, seed): those that every system of the study has.

    Raises:
        CfError: a system without films, or no prompt and seed that all have.
    """
    systems = sorted({name for pair in spec.comparisons for name in pair})
    by_key = {(run.system, run.prompt_id, run.seed): run for run in runs}
    has = {
        name: {(prompt, seed) for system, prompt, seed in by_key if system == name}
        for name in systems
    }
    for name in systems:
        if not has[name]:
            known = ", ".join(sorted({run.system for run in runs}))
            raise CfError(f"the run has no films of {name}; it has {known or 'none'}")
    shared = set[tuple[str, int]].intersection(*has.values())
    if spec.prompts:
        shared = {(prompt, seed) for prompt, seed in shared if prompt in spec.prompts}
    if not shared:
        raise CfError("there is no prompt and seed that all systems of the study have a film of")
    return {
        (name, prompt, seed): by_key[name, prompt, seed]
        for name in systems
        for prompt, seed in sorted(shared)
    }


def frames_shown(runs: Sequence[RunRecord], seconds: int) -> int:
    """Pixel frames of every film of the study.

    Raises:
        CfError: films of several rates or sizes, or shorter than asked.
    """
    shapes = {(run.clip.fps, run.clip.width, run.clip.height) for run in runs}
    if len(shapes) > 1:
        raise CfError(f"films differ in frame rate or size: {sorted(shapes)}; compare equal ones")
    ((fps, _, _),) = shapes
    most = min(canonical_frames(run.clip.frames, fps) for run in runs)
    if seconds * fps > most:
        raise CfError(f"the shortest film has {most / fps:g} s; expected at least {seconds}")
    return seconds * fps or most


def comparisons(spec: Spec) -> tuple[Comparison, ...]:
    """Comparisons of a specification, under names that say nothing of their systems."""
    return tuple(
        Comparison(name=f"comparison-{index}", ours=ours, baseline=base)
        for index, (ours, base) in enumerate(spec.comparisons)
    )


def main_pairs(
    spec: Spec,
    found: Mapping[tuple[str, str, int], RunRecord],
    names: Mapping[tuple[str, str, int], str],
) -> tuple[Pair, ...]:
    """One pair for each comparison, prompt and seed."""
    places = sorted({(prompt, seed) for _, prompt, seed in found})
    return tuple(
        Pair(
            id=_name(spec.seed, comparison.name, prompt, seed)[:12],
            comparison=comparison.name, prompt=prompt, kind="main",
            ours=names[comparison.ours, prompt, seed],
            other=names[comparison.baseline, prompt, seed],
        )
        for comparison in comparisons(spec)
        for prompt, seed in places
    )  # fmt: skip


def checks(spec: Spec, pairs: Sequence[Pair], spoilt: str) -> tuple[Pair, ...]:
    """Two instructions, a repetition and an obvious pair."""
    first, last = pairs[0], pairs[-1]
    told = [
        Pair(
            id=f"instruction-{answer}", comparison="", prompt=first.prompt, kind="instruction",
            ours=first.ours, other=first.other, expected=answer,
            instruction=CHECK_TEXT.format(WORDS[answer]),
        )
        for answer in ("right", "left")
    ]  # fmt: skip
    return (
        *told,
        Pair(id="repeat", comparison="", prompt="", kind="repeat", ours="", other=""),
        Pair(
            id="obvious", comparison="", prompt=last.prompt, kind="obvious", ours=last.ours,
            other=spoilt,
        ),
    )  # fmt: skip


def training(spec: Spec, pair: Pair, spoilt: str) -> tuple[Pair, ...]:
    """Two worked examples: a film beside its degraded copy, and a film beside itself."""
    return tuple(
        Pair(
            id=f"training-{index}", comparison="", prompt=pair.prompt, kind="obvious",
            ours=pair.ours, other=other, instruction=text, expected=answer,
        )
        for index, (other, (text, answer)) in enumerate(
            zip((spoilt, pair.ours), WORKED, strict=True)
        )
    )  # fmt: skip


def seal(design: Design, to: Path) -> None:
    """Write design, its hash, and a secret that signs what raters are given."""
    content = json.dumps(design.tree(), indent=1, sort_keys=True, ensure_ascii=False).encode()
    write_atomic(to / SECRET, secrets.token_bytes(32))
    (to / SECRET).chmod(0o600)
    write_atomic(to / DESIGN, content + b"\n")
    write_atomic(to / SEAL, hash_of(content + b"\n").encode() + b"\n")


def hash_of(content: bytes) -> str:
    """What seals a design."""
    return hashlib.sha256(content).hexdigest()


def load(folder: Path) -> tuple[Design, str]:
    """A sealed design and its hash.

    Raises:
        CfError: there is none, or it has been changed.
    """
    try:
        content = (folder / DESIGN).read_bytes()
        sealed = (folder / SEAL).read_text(encoding="ascii").strip()
    except OSError as error:
        raise CfError(f"no study in {folder}; run cfbench study build first") from error
    if hash_of(content) != sealed:
        raise CfError(f"{folder / DESIGN} has changed since it was sealed; build a new study")
    return design_of(json.loads(content)), sealed


def load_secret(folder: Path) -> bytes:
    """The study's secret.

    Raises:
        CfError: it is missing.
    """
    try:
        return (folder / SECRET).read_bytes()
    except OSError as error:
        raise CfError(f"cannot read {folder / SECRET}: {error.strerror}") from error


def _name(seed: int, *parts: object) -> str:
    text = "\x1f".join(map(str, ("study", seed, *parts)))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _file(to: Path, name: str) -> Path:
    return to / MEDIA / f"{name}.mp4"
