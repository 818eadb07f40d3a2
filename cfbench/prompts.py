"""Prompt sets: read, check, hash and choose from ``prompts/*.jsonl`` and plain text files."""

import hashlib
import importlib.util
import itertools
import json
import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast, get_args

from cfbench.aggregate import DIMENSIONS
from cfbench.errors import CfError
from cfbench.types import Prompt, RunRecord, Segment, Stratum

log = logging.getLogger(__name__)

ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")
MAX_CHARS = 2000
MAX_FILE_BYTES = 64 << 20
FILM_SECONDS = 60.0
VBENCH, VBENCH_LIST = "vbench", "VBench_full_info.json"
FIRST = ("tiny-long-2000041", "tiny-short-2000007", "tiny-stay-2000027")
"""Prompts of ``DEFAULT_SET`` that a number takes first: each asks for every dimension, so that
even one film a system has a Total."""
DEFAULT_SET = Path(__file__).resolve().parents[1] / "prompts" / "tiny-test.jsonl"


def load(path: Path, *, max_chars: int = MAX_CHARS) -> tuple[Prompt, ...]:
    """All prompts of a file, in order.

    ``.jsonl``: one object a line with ``id``, ``segments`` (a list of ``text`` and ``seconds``) or
    ``text``, and optionally ``stratum``, ``scene``, ``source``, ``licence``. ``.txt``: one text a
    line; ids come from the text, so that adding a line changes no other prompt.

    Args:
        path: the file.
        max_chars: longest text of a segment.

    Raises:
        CfError: no such file, nothing in it, not UTF-8, bad JSON, an unknown or missing field, a
            text that is empty or too long, an id that is used twice. The message has the line.
    """
    texts = _lines(path)
    if path.suffix == ".jsonl":
        prompts = [_from_json(text, f"{path}:{line}", max_chars) for line, text in texts]
    elif path.suffix == ".txt":
        prompts = [_from_text(text, f"{path}:{line}", max_chars) for line, text in texts]
    else:
        raise CfError(f"{path}: unknown kind of prompt file; use .jsonl or .txt")
    if not prompts:
        raise CfError(f"{path} holds no prompt; write one a line")
    seen: dict[str, int] = {}
    for (line, _), prompt in zip(texts, prompts, strict=True):
        if prompt.id in seen:
            raise CfError(
                f"{path}:{line}: prompt id {prompt.id!r} is also on line {seen[prompt.id]}; "
                "give each prompt its own"
            )
        seen[prompt.id] = line
    return tuple(prompts)


def choose(wanted: str, limit: int = 0, *, max_chars: int = MAX_CHARS) -> tuple[Prompt, ...]:
    """The prompts that ``--prompts`` and ``--limit`` ask for.

    Args:
        wanted: a file, a number of prompts of the set in ``DEFAULT_SET``, or ``vbench`` or
            ``vbench:<dimension>`` for the standard suite (see ``vbench_suite``).
        limit: how many, balanced over strata; 0 is all.
        max_chars: longest text of a segment.

    Raises:
        CfError: as ``load`` and ``select``; or a number both here and as limit.
    """
    if wanted.lstrip("-").isdigit():
        if limit:
            raise CfError(f"--prompts {wanted} with --limit {limit}: give one number")
        found = load(DEFAULT_SET, max_chars=max_chars)
        first = [prompt for name in FIRST for prompt in found if prompt.id == name]
        return select([*first, *(p for p in found if p.id not in FIRST)], int(wanted))
    suite, _, dimension = wanted.partition(":")
    if suite == VBENCH and not Path(wanted).exists():
        found = vbench_suite(dimension)
    else:
        found = load(Path(wanted), max_chars=max_chars)
    return select(found, limit) if limit else found


def vbench_suite(dimension: str = "") -> tuple[Prompt, ...]:
    """The prompts of VBench's standard suite, out of the installed ``vbench`` package.

    The package itself is not imported. Ids are ``vbench-<place in its list>``.

    Args:
        dimension: only those that this dimension is scored on; empty is all.

    Raises:
        CfError: the package is not installed or has another layout, or no such dimension.
    """
    spec = importlib.util.find_spec(VBENCH)
    if spec is None or not spec.submodule_search_locations:
        raise CfError("the package vbench is not installed; pip install vbench --no-deps")
    path = Path(spec.submodule_search_locations[0]) / VBENCH_LIST
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
        told = [
            (str(row["prompt_en"]), {str(k): _aux(row, k) for k in row["dimension"]})
            for row in rows
        ]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CfError(f"the installed vbench has no {VBENCH_LIST} that can be read") from error
    known = sorted({name for _, names in told for name in names})
    if dimension and dimension not in known:
        raise CfError(f"VBench has no dimension {dimension!r}; it has {', '.join(known)}")
    return tuple(
        Prompt(
            id=f"vbench-{number:04d}",
            segments=(Segment(text=text, seconds=FILM_SECONDS),),
            vbench=names,
            source="VBench standard suite",
            licence="Apache-2.0",
        )
        for number, (text, names) in enumerate(told)
        if not dimension or dimension in names
    )


def _aux(row: dict[str, Any], dimension: str) -> Any:
    """What VBench's list says of a dimension beside the text, or None."""
    return row.get("auxiliary_info", {}).get(dimension)


def canonical(prompt: Prompt) -> bytes:
    """The prompt as canonical JSON: the bytes that are hashed and stored."""
    tree = asdict(prompt)
    if prompt.vbench is None:
        # Prompts that were stored before there was this field keep their hashes.
        del tree["vbench"]
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(prompt: Prompt) -> str:
    """Hash of the canonical prompt."""
    return hashlib.sha256(canonical(prompt)).hexdigest()


def parse(content: bytes, where: str) -> Prompt:
    """The prompt of canonical JSON.

    Raises:
        CfError: not a prompt.
    """
    return _from_json(content.decode(), where, MAX_FILE_BYTES)


def stored(runs: Iterable[RunRecord], path_of: Callable[[str], Path]) -> dict[str, Prompt]:
    """Prompts of films by id; one that is not in the store is left out, with a warning.

    Args:
        runs: the films.
        path_of: where the prompt of a hash lies.
    """
    hashes = {run.prompt_id: run.prompt_sha for run in runs}
    found: dict[str, Prompt] = {}
    for name, sha in hashes.items():
        path = path_of(sha)
        if path.is_file():
            found[name] = parse(path.read_bytes(), path.name)
        else:
            log.warning("prompt %s is not in the store; shown by its id", name)
    return found


def select(prompts: Sequence[Prompt], n: int, *, stratified: bool = True) -> tuple[Prompt, ...]:
    """The first ``n`` prompts, taking strata in turn; a longer choice begins with a shorter one.

    Raises:
        CfError: ``n`` is not between 1 and the number of prompts.
    """
    if not 1 <= n <= len(prompts):
        raise CfError(f"{n} prompts are asked for; the file holds {len(prompts)}, use 1 to that")
    if not stratified:
        return tuple(prompts[:n])
    strata: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        strata.setdefault(prompt.stratum, []).append(prompt)
    turns = itertools.zip_longest(*strata.values())
    balanced = [prompt for turn in turns for prompt in turn if prompt is not None]
    return tuple(balanced[:n])


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CfError(
                f"{path} has {size} bytes, more than {MAX_FILE_BYTES}; split it into several files"
            )
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CfError(f"no prompt file {path}; name an existing .jsonl or .txt") from error
    except OSError as error:
        raise CfError(f"cannot read {path}: {error.strerror}; name a readable file") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise CfError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from error
    found = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise CfError(f"{path} is empty; write one prompt a line")
    return found


def _from_text(text: str, where: str, max_chars: int) -> Prompt:
    name = f"p-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    segment = Segment(text=_text(text, where, max_chars), seconds=FILM_SECONDS)
    return Prompt(id=name, segments=(segment,))


def _from_json(text: str, where: str, max_chars: int) -> Prompt:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise CfError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line"
        ) from error
    if not isinstance(tree, dict):
        raise CfError(f"{where}: expected a JSON object with id and text")
    tree = cast(dict[str, Any], tree)
    known = {field.name for field in fields(Prompt)} | {"text"}
    if unknown := sorted(set(tree) - known):
        raise CfError(f"{where}: unknown fields {unknown}; known are {sorted(known)}")
    if ("text" in tree) == ("segments" in tree):
        raise CfError(f"{where}: expected either text or segments")
    name = tree.get("id")
    if not isinstance(name, str) or not ID.fullmatch(name):
        raise CfError(f"{where}: id {name!r} does not match {ID.pattern}; use such an id")
    raw = tree.get("segments", [{"text": tree.get("text"), "seconds": FILM_SECONDS}])
    if not isinstance(raw, list) or not raw:
        raise CfError(f"{where}: segments is {raw!r}; expected a list of text and seconds")
    stratum = tree.get("stratum", "")
    if stratum not in get_args(Stratum):
        raise CfError(f"{where}: stratum {stratum!r}; use one of {get_args(Stratum)}")
    scene = tree.get("scene")
    if scene is not None and not isinstance(scene, dict):
        raise CfError(f"{where}: scene is not an object; leave it out or give the scene's JSON")
    return Prompt(
        id=name,
        segments=tuple(_segment(part, where, max_chars) for part in cast(list[Any], raw)),
        stratum=stratum,
        scene=cast(dict[str, Any] | None, scene),
        vbench=_asked(tree.get("vbench"), where),
        source=_word(tree, "source", where),
        licence=_word(tree, "licence", where),
    )


def _asked(asked: Any, where: str) -> dict[str, Any] | None:
    if asked is None:
        return None
    if not (isinstance(asked, dict) and set(asked) <= set(DIMENSIONS)):
        raise CfError(f"{where}: vbench is {asked!r}; expected an object with VBench's dimensions")
    style = asked.get("appearance_style", {"appearance_style": ""})
    if not (isinstance(style, dict) and isinstance(style.get("appearance_style"), str)):
        raise CfError(f"{where}: vbench.appearance_style is {style!r}; it names no style")
    return cast(dict[str, Any], asked)


def _segment(part: Any, where: str, max_chars: int) -> Segment:
    if not isinstance(part, dict) or set(cast(dict[str, Any], part)) != {"text", "seconds"}:
        raise CfError(f"{where}: a segment is {part!r}; expected text and seconds")
    seconds = part["seconds"]
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not math.isfinite(seconds) or seconds <= 0:
        raise CfError(f"{where}: segment seconds={seconds!r}; use a positive number")
    return Segment(text=_text(part["text"], where, max_chars), seconds=float(seconds))


def _text(text: Any, where: str, max_chars: int) -> str:
    if not isinstance(text, str) or not text.strip():
        raise CfError(f"{where}: text is {text!r}; write what the film shows")
    if control := sorted({char for char in text if unicodedata.category(char) == "Cc"}):
        raise CfError(f"{where}: text holds control characters {control}; remove them")
    if len(text) > max_chars:
        raise CfError(f"{where}: text has {len(text)} characters; at most {max_chars} are taken")
    return text


def _word(tree: dict[str, Any], field: str, where: str) -> str:
    value = tree.get(field, "")
    if not isinstance(value, str):
        raise CfError(f"{where}: {field} is {value!r}; expected text")
    return value
