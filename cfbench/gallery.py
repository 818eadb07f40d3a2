"""A page that plays films of several systems side by side, in step, from disk."""

import hashlib
import html
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from cfbench.aggregate import DIMENSIONS, Normaliser, film_total
from cfbench.frame import Frame
from cfbench.page import fill
from cfbench.store import write_atomic
from cfbench.tables import OURS, REFERENCES, system_order
from cfbench.types import RAW_FRAMES, Prompt

logger = logging.getLogger(__name__)

START = (OURS, "no-slow", "self-forcing", "rendered-truth")
MAX_START = 4


def opaque(sha256: str) -> str:
    """File name of a film in a gallery: says nothing of its system, changes with its content."""
    return hashlib.sha256(f"gallery\x1f{sha256}".encode()).hexdigest()[:20]


def gallery_data(
    frame: Frame,
    normaliser: Normaliser,
    *,
    prompts: Mapping[str, Prompt],
    labels: Mapping[str, str],
    sources: Mapping[str, str],
) -> dict[str, Any]:
    """What the page shows, as a JSON tree; scores are x100 and null where there are none.

    Args:
        frame: films and scores.
        normaliser: of the films' scores.
        prompts: by id; a prompt that is not there is shown by its id.
        labels: of systems.
        sources: relative URL by film hash; a film that is not there is named as missing.
    """
    scaled = frame.normalised(normaliser)
    order = [name for name in system_order(frame.systems) if name in frame.systems]
    wanted = [name for name in START if name in order]
    start = [*wanted, *(name for name in order if name not in wanted)][:MAX_START]
    strata = {run.prompt_id: run.stratum for run in frame.runs}
    films: list[dict[str, Any]] = []
    for run, row in zip(frame.runs, scaled, strict=True):
        values = {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(DIMENSIONS, row, strict=True)
        }
        whole = film_total(values)
        scores = {"total": whole.total, "quality": whole.quality, "semantic": whole.semantic}
        films.append(
            {
                "system": run.system,
                "prompt": run.prompt_id,
                "seed": run.seed,
                "src": sources.get(run.clip.sha256),
                "fps": run.clip.fps,
                "seconds": run.clip.frames / run.clip.fps,
                "width": run.clip.width,
                "height": run.clip.height,
                "scores": {
                    name: None if value is None else round(100 * value, 2)
                    for name, value in {**scores, **values}.items()
                },
                "reasons": frame.reasons.get(run.clip.sha256, {}),
            }
        )
    return {
        "systems": [
            {
                "id": name,
                "label": labels.get(name, system_order(frame.systems)[name]),
                "reference": name in REFERENCES,
            }
            for name in order
        ],
        "start": sorted(start, key=order.index),
        "prompts": [_prompt(name, strata[name], prompts.get(name)) for name in sorted(strata)],
        "dimensions": [{"id": name, "label": name.replace("_", " ")} for name in DIMENSIONS],
        "films": films,
    }


def _prompt(name: str, stratum: str, prompt: Prompt | None) -> dict[str, Any]:
    segments = [] if prompt is None else prompt.segments
    return {
        "id": name,
        "stratum": stratum,
        "segments": [{"text": part.text, "seconds": part.seconds} for part in segments]
        or [{"text": name, "seconds": 0}],
    }


def link_films(folder: Path, films: Mapping[str, Path]) -> dict[str, str]:
    """Hard-links (or copies) films into ``folder`` under opaque names; removes others from it.

    Args:
        folder: of the gallery's films.
        films: path by hash; a path that does not exist is left out.

    Returns:
        URL relative to the folder's parent, by hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources: dict[str, str] = {}
    for sha, path in films.items():
        if not path.is_file():
            logger.warning("film %s is not in the store; the gallery says so", sha[:12])
            continue
        target = folder / f"{opaque(sha)}.mp4"
        if not target.exists():
            try:
                os.link(path, target)
            except OSError:  # another disk, or one without hard links
                part = target.with_suffix(f".{os.getpid()}.part")
                shutil.copyfile(path, part)
                part.replace(target)
        sources[sha] = f"{folder.name}/{target.name}"
    kept = {Path(url).name for url in sources.values()}
    for old in folder.glob("*.mp4"):
        if old.name not in kept:
            old.unlink()
    return sources


def render_gallery(data: Mapping[str, Any], *, title: str, about: str, header: str) -> str:
    """The page: one file with its style, script and data inside; needs the films only."""
    static = resources.files("cfbench") / "static"
    page = (static / "gallery.html").read_text(encoding="utf-8")
    # "</" inside a script element would end it.
    tree = json.dumps(data, sort_keys=True, ensure_ascii=False).replace("</", "<\\/")
    parts = {
        "title": html.escape(title),
        "about": html.escape(about),
        "header": html.escape(header),
        "css": (static / "gallery.css").read_text(encoding="utf-8").strip(),
        "js": (static / "gallery.js").read_text(encoding="utf-8").strip(),
        "data": tree,
    }
    return fill(page, parts)


def build_gallery(
    out: Path,
    frame: Frame,
    normaliser: Normaliser,
    *,
    prompts: Mapping[str, Prompt],
    labels: Mapping[str, str],
    film_path: Callable[[str], Path],
    tier: str,
    header: str,
) -> Path:
    """Writes ``out/index.html`` and ``out/films/``; returns the page.

    Films that were scored without being stored are left out, and the page says how many.

    Args:
        out: folder of the gallery.
        frame: films and scores.
        normaliser: of the films' scores.
        prompts: by id.
        labels: of systems.
        film_path: where a film of a hash lies.
        tier: named beside the scores.
        header: provenance.
    """
    kept = frame.stored
    films = {run.clip.sha256: film_path(run.clip.sha256) for run in kept.runs}
    sources = link_films(out / "films", films)
    data = gallery_data(kept, normaliser, prompts=prompts, labels=labels, sources=sources)
    about = (
        f"{tier}-tier scores of each film, normalised, x100 (not VBench scores); "
        "a film's total runs over the dimensions that apply to it."
    )
    if left_out := len(frame.runs) - len(kept.runs):
        about += f" {left_out} films were scored as made ({RAW_FRAMES}) and not stored: not here."
    page = render_gallery(data, title="Films side by side", about=about, header=header)
    write_atomic(out / "index.html", page.encode())
    return out / "index.html"
