"""The tables and the picture of ``results/speed/generate.json``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfbench.plots import BLUE, GREY, VERMILION, figure
from cfbench.speed import machines
from cfbench.speed.generate import summary
from cfbench.store import write_atomic

UNKNOWN = "\u2013"
HEAD = (
    "| | ms a chunk | (least to most) | frames/s | TFLOP/s | share of the floor | "
    "error to float32 | GiB |\n|:--|--:|:-:|--:|--:|--:|--:|--:|"
)


def page(results: Mapping[str, Any]) -> str:
    """Markdown: a table a machine, then what failed."""
    return "\n\n".join(_machine(name, entry) for name, entry in results["machines"].items()) + "\n"


def _machine(label: str, entry: Mapping[str, Any]) -> str:
    found, machine = summary(entry), entry.get("machine", {})
    rows = sorted(found["systems"].values(), key=lambda row: row["ms"])
    about = f"**{label}**: {machine.get('device', '?')}, torch {machine.get('torch', '?')}"
    if "cudnn" in machine:
        about += f", CUDA {machine['cuda']}, cuDNN {machine['cudnn']}"
    parts = [f"{about}, commit {entry.get('commit', '?')}.", "\n".join([HEAD, *map(_row, rows)])]
    parts += [_floors(entry)] if "kernels" in entry else []
    lines = [f"- {name}: {_number(found[key], form)}{unit}" for name, key, form, unit in ALSO
             if found.get(key) is not None]  # fmt: skip
    parts += ["\n".join(lines)] if lines else []
    failed = [f"- {name}: {reason}" for name, reason in sorted(found["failed"].items())]
    parts += ["Not measured:\n\n" + "\n".join(failed)] if failed else []
    return "\n\n".join(parts)


ALSO = (
    ("times as fast as Self-Forcing, eager", "times self-forcing", "{:.2f}", ""),
    ("times as fast as Self-Forcing, compiled", "times self-forcing-compiled", "{:.2f}", ""),
    ("the decoder alone", "decoder_ms", "{:.0f}", " ms a chunk"),
    ("prompt to frames, decoded beside the generator", "film_ms", "{:.0f}", " ms a chunk"),
    ("prompt to first frames, text encoder resident", "first_frames_s", "{:.2f}", " s"),
    ("a chunk at 10 minutes over one at 30 s", "growth_10min", "{:.3f}", ""),
    ("many prompts on all GPUs over one", "prompts_times", "{:.2f}", " times as fast"),
    ("one film on all GPUs over one", "film_times", "{:.2f}", " times as fast"),
    ("memory, generator and decoder", "film_gib", "{:.1f}", " GiB"),
)


def _row(row: Mapping[str, Any]) -> str:
    cells = [
        row["label"] + ("" if row["attention"] == "cudnn" else f" ({row['attention']})"),
        f"{row['ms']:.1f}",
        f"{row['least_ms']:.1f} to {row['most_ms']:.1f}",
        _number(row["frames_per_s"], "{:.1f}"),
        f"{row['tflop_per_s']:.0f}",
        _number(row["floor_share"], "{:.0%}"),
        _number(row["error"], "{:.1e}"),
        _number(row["peak_gib"], "{:.1f}"),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)


def _floors(entry: Mapping[str, Any]) -> str:
    lines = ["| least a chunk can take, ms | exact | fp8 | pooled | pooled, fp8 |",
             "|:--|--:|--:|--:|--:|"]  # fmt: skip
    for backend, floors in sorted(entry["kernels"]["floor_ms"].items()):
        keys = ("ours", "ours fp8", "pooled", "pooled fp8")
        cells = [_number(floors.get(key), "{:.0f}") for key in keys]
        lines.append(f"| attention by {backend} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: Mapping[str, Any], label: str, to: Path) -> None:
    """A bar a system of the machine called ``label``, with the floor of each as a mark."""
    entry = results["machines"][label]
    rows = sorted(summary(entry)["systems"].values(), key=lambda row: -row["ms"])
    size = (6.5, 0.9 + 0.34 * max(1, len(rows)))
    with figure(to, 1, 1, size) as (_, [axes]):
        names = [row["label"] for row in rows]
        colours = [BLUE if name.startswith("ours") else GREY for name in names]
        bars = axes.barh(names, [row["ms"] for row in rows], color=colours)
        axes.bar_label(bars, [f"{row['ms']:.0f}" for row in rows], padding=4)
        marked: Sequence[tuple[int, float]] = [
            (k, row["floor_ms"]) for k, row in enumerate(rows) if row["floor_ms"] is not None
        ]
        if marked:
            axes.plot(
                [ms for _, ms in marked], [k for k, _ in marked], "|", color=VERMILION,
                markersize=14, label="attention and matrix products alone",
            )  # fmt: skip
            axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False)
        axes.set_xlabel(f"ms a chunk ({entry.get('machine', {}).get('device', label)})")


def put(results: Path, label: str) -> list[Path]:
    """Writes page and picture (PNG and PDF) beside a file of results."""
    tree = machines.read(results)
    text = results.with_suffix(".md")
    write_atomic(text, page(tree).encode())
    draw(tree, label, results)
    return [text, results.with_suffix(".png"), results.with_suffix(".pdf")]
