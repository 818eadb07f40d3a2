"""The README's picture and table, put there by ``cfbench report --readme`` and never by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cfbench.sheet import sheet_rows, write_png
from cfbench.store import write_atomic
from cfbench.types import RunRecord

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
PICTURE_BEGIN, PICTURE_END = "<!-- picture:begin -->", "<!-- picture:end -->"
PICTURE = Path("docs") / "img" / "reproduce.png"
ROWS = ("rendered-truth", "ours", "no-slow", "self-forcing", "longlive", "infinity-rope", "frozen")
TIMES_S: tuple[float, ...] = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0)


def between(text: str, begin: str, end: str, content: str) -> str:
    """``text`` with what stands between two marker lines replaced.

    Raises:
        ValueError: not exactly one pair of markers, in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected one {begin} before one {end}; add the two lines to the file")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    return f"{before}{begin}\n{content.strip()}\n{end}{after}"


def read(path: Path) -> str:
    """A README that has both pairs of markers.

    Raises:
        ValueError: it cannot be read, or lacks a marker.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} ({error}); name a readable UTF-8 file") from error
    for begin, end in ((PICTURE_BEGIN, PICTURE_END), (BEGIN, END)):
        try:
            between(text, begin, end, "")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return text


def update(
    path: Path,
    table: str,
    runs: Sequence[RunRecord],
    paths: Mapping[str, Path],
    labels: Mapping[str, str],
) -> None:
    """Replace table and picture of a README; the picture lies in ``docs/img`` beside it.

    Args:
        path: the README.
        table: Markdown.
        runs: films of the report.
        paths: where films lie, by hash.
        labels: of systems.

    Raises:
        ValueError: a marker is missing.
        CfError: the disk refuses.
    """
    text = between(read(path), BEGIN, END, table)
    titles = {name: labels[name] for name in ROWS if name in labels}
    sheet = sheet_rows(runs, paths, titles, TIMES_S)
    if sheet is not None:
        folder = path.parent / PICTURE.parent
        folder.mkdir(parents=True, exist_ok=True)
        write_png(path.parent / PICTURE, sheet, TIMES_S)
        moments = ", ".join(f"{time:g}" for time in TIMES_S)
        shown = f"{', '.join(sheet.rows)} at {moments} s of prompt {sheet.prompt}"
        link = f"![Films of one prompt: {shown}]({PICTURE.as_posix()})"
        text = between(text, PICTURE_BEGIN, PICTURE_END, link)
    write_atomic(path, text.encode())
