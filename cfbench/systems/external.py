"""Programs of others as systems: a manifest says what runs, and films come back as files.

An address is the path of a manifest, which ends in ``.toml``; see docs/external.md. The program
runs in its own environment: from its checkout at a pinned commit, with the variables of the
manifest alone. Whatever differs from the manifest is refused.
"""

import hashlib
import json
import math
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args, get_type_hints

import numpy as np

from cfbench import video
from cfbench.errors import CfError
from cfbench.plan import SystemSpec
from cfbench.provenance import children_peak_gib
from cfbench.store import sha256_of
from cfbench.systems import cf
from cfbench.types import Job, Prompt

_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
GIT_TIMEOUT_S = 60
TOLD = 300
"""Characters of what a failed program said that are told."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of the films: one pixel frame is a chunk, so films are as long as asked for."""

    height: int
    width: int
    fps: int

    @property
    def chunk(self) -> int:
        """One: programs are asked for pixel frames."""
        return 1

    def chunks_for(self, seconds: float) -> int:
        """Pixel frames that cover ``seconds``."""
        return math.ceil(seconds * self.fps)

    def pixel_frames(self, latent_frames: int) -> int:
        """The same number: nothing is known of latents."""
        return latent_frames


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a program is and how it is run.

    Args:
        name: row of tables.
        label: what tables call it.
        family: whose prompts it is asked, and whose rows it stands beside.
        source: where the checkout comes from.
        licence: of the program.
        commit: 40 hex digits that the checkout must be at, unchanged.
        checkout: folder of the checkout, relative to the manifest.
        command: program and arguments, run in the checkout; ``{request}``, ``{film}`` and
            ``{device}`` are replaced.
        geometry: rows, columns and rate of its films.
        timeout_s: longest time for a film.
        environment: all variables that it gets, but ``PATH``, which is the system's default.
        weights: sha256 of files, by path in the checkout.
    """

    name: str
    label: str
    family: str
    source: str
    licence: str
    commit: str
    checkout: str
    command: tuple[str, ...]
    geometry: Geometry
    timeout_s: float = 3600.0
    environment: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        CfError: no such file, no TOML, or a field that is missing, unknown or of another type.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CfError(f"cannot read manifest {path}: {error.strerror}; check --systems") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CfError(f"manifest {path} is no TOML: {error}") from error
    try:
        manifest = _build(Manifest, tree)
        _check(manifest)
    except ValueError as error:
        raise CfError(f"manifest {path}: {error}; see docs/external.md") from error
    return manifest


def _build(kind: Any, tree: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    given = (MISSING, MISSING)
    needed = {f.name for f in fields(kind) if (f.default, f.default_factory) == given}
    if unknown := sorted(set(tree) - set(hints)):
        raise ValueError(f"unknown {', '.join(unknown)}")
    if missing := sorted(needed - set(tree)):
        raise ValueError(f"lacks {', '.join(missing)}")
    return kind(**{name: _value(name, hints[name], value) for name, value in tree.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    args = get_args(hint)
    if hint is Geometry and isinstance(value, dict):
        return _build(Geometry, value)
    if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if args == (str, ...) and isinstance(value, list) and all(isinstance(x, str) for x in value):
        return tuple(value)
    if args == (str, str) and isinstance(value, dict):
        table: dict[str, Any] = value
        if all(isinstance(x, str) for x in table.values()):
            return table
    raise ValueError(f"{name}={value!r}: expected {hint}")


def _check(manifest: Manifest) -> None:
    size = manifest.geometry
    rules = (
        (_ID.fullmatch(manifest.name), f"name={manifest.name!r}: expected up to 40 of a-z 0-9 . -"),
        (_COMMIT.fullmatch(manifest.commit), f"commit={manifest.commit!r}: expected 40 hex digits"),
        (manifest.licence, "licence is empty"),
        (manifest.command, "command is empty"),
        ("{film}" in " ".join(manifest.command), "command does not say where {film} goes"),
        (min(size.height, size.width, size.fps) > 0, "geometry: expected positive sizes"),
        (manifest.timeout_s > 0, "timeout_s: expected a positive number"),
    )
    for holds, words in rules:
        if not holds:
            raise ValueError(words)


def _tree(manifest: Manifest) -> dict[str, Any]:
    size = manifest.geometry
    return {
        **{key: value for key, value in vars(manifest).items() if key != "geometry"},
        "command": list(manifest.command),
        "geometry": {"height": size.height, "width": size.width, "fps": size.fps},
    }


class ExternalSystem:
    """A program, checked against its manifest.

    Args:
        manifest: what it should be.
        home: folder of the manifest.
        device: as torch names it.

    Raises:
        CfError: the checkout is at another commit or changed, or a weights file is another.
    """

    def __init__(self, manifest: Manifest, home: Path, device: str) -> None:
        self._manifest = manifest
        self._root = home / manifest.checkout
        self._device = device
        where = f"system {manifest.name!r}"
        head = _git(self._root, "rev-parse", "HEAD")
        if head != manifest.commit:
            raise CfError(
                f"{where}: checkout is at {head or 'no commit'}, but the manifest pins "
                f"{manifest.commit}; check that commit out"
            )
        if _git(self._root, "status", "--porcelain", "--untracked-files=no"):
            raise CfError(f"{where}: the checkout has changes; undo them, or commit and pin them")
        for name, expected in manifest.weights.items():
            file = self._root / name
            found = sha256_of(file) if file.is_file() else "missing"
            if found != expected:
                raise CfError(f"{where}: {name} is {found}, but the manifest pins {expected}")
        self.weights = dict(manifest.weights)
        self.facts = {
            "device": cf.device_name(device),
            "commit": manifest.commit,
            "licence": manifest.licence,
        }

    def films(self, jobs: Sequence[Job]) -> Iterator[video.Frames]:
        """Films of jobs of equal length, one after the other: blocks (B, R, Y, X, 3).

        Raises:
            RuntimeError: the program failed, or its film is not as the manifest says.
        """
        with TemporaryDirectory() as folder:
            paths = [self._film(job, Path(folder) / f"{at}.mp4") for at, job in enumerate(jobs)]
            for blocks in zip(*(video.decode(path) for path in paths), strict=True):
                yield np.stack(blocks)

    def _film(self, job: Job, path: Path) -> Path:
        manifest, size = self._manifest, self._manifest.geometry
        request = path.with_suffix(".json")
        asked = {
            "prompt_id": job.prompt.id,
            "segments": [{"text": s.text, "seconds": s.seconds} for s in job.prompt.segments],
            "seed": job.seed,
            "frames": job.chunks,
            "height": size.height,
            "width": size.width,
            "fps": size.fps,
        }
        request.write_text(json.dumps(asked, sort_keys=True), encoding="utf-8")
        places = {"{request}": str(request), "{film}": str(path), "{device}": self._device}
        words = [_filled(word, places) for word in manifest.command]
        where = f"{manifest.name} on prompt {job.prompt.id}"
        try:
            done = subprocess.run(
                words, cwd=self._root, env={"PATH": os.defpath, **manifest.environment},
                capture_output=True, text=True, errors="replace", timeout=manifest.timeout_s,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{where}: no film after {manifest.timeout_s:g} s") from error
        except OSError as error:
            raise RuntimeError(f"{where}: cannot run {words[0]}: {error.strerror}") from error
        if done.returncode:
            said = " ".join(done.stderr.split())[-TOLD:]
            raise RuntimeError(f"{where}: exit code {done.returncode}: {said}")
        found = video.probe(path)
        shape = (found.frames, found.fps, found.height, found.width)
        expected = (job.chunks, size.fps, size.height, size.width)
        if shape != expected:
            raise RuntimeError(
                f"{where}: film of frames, rate, rows, columns {shape}, expected {expected}"
            )
        return path

    def peak_gib(self) -> float:
        """Most memory of any program run so far."""
        return children_peak_gib()


def _filled(word: str, places: Mapping[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word


def _git(root: Path, *words: str) -> str:
    """What git says of a checkout; empty if it is none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class External:
    """Factory of the programs of manifests."""

    def describe(self, address: str) -> SystemSpec:
        """What the manifest says; without a checkout the row has no films."""
        path = Path(address)
        manifest = read(path)
        tree = _tree(manifest)
        text = json.dumps({**tree, "label": ""}, sort_keys=True, separators=(",", ":"))
        there = (path.parent / manifest.checkout).is_dir()
        return SystemSpec(
            address=address,
            family=manifest.family,
            name=manifest.name,
            label=manifest.label,
            key=hashlib.sha256(text.encode()).hexdigest()[:12],
            experiment={**tree, "external": True},
            shape=manifest.geometry,
            absent="" if there else f"no checkout of {manifest.source} at {manifest.commit[:7]}",
        )

    def check_prompts(self, address: str, prompts: Sequence[Prompt]) -> list[str]:
        """No warning: what a program was made for is not known."""
        del address, prompts
        return []

    def load(self, address: str, device: str, attention: str) -> ExternalSystem:
        """The program, checked; it chooses its attention itself."""
        del attention
        path = Path(address)
        return ExternalSystem(read(path), path.parent, device)


EXTERNAL = External()
