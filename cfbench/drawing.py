"""Pictures of a report, drawn in this process or over several: the files are the same."""

from collections.abc import Callable, Sequence

from cfbench import fanout
from cfbench.errors import CfError
from cfbench.progress import Fractions, Reporter

Drawing = Callable[[], object]


class Drawer:
    """Draws what it is handed."""

    def __call__(self, drawing: Drawing, emit: fanout.Emit) -> None:
        """Draw one picture."""
        drawing()

    def close(self) -> None:
        """Nothing is held."""


def draw(drawings: Sequence[Drawing], *, workers: int, reporter: Reporter) -> None:
    """Make all pictures.

    Args:
        drawings: calls without arguments that write files; picklable for several workers.
        workers: processes.
        reporter: shows how far it is.

    Raises:
        CfError: a picture could not be drawn.
    """
    reporter.phase("pictures", len(drawings))
    fractions = Fractions(reporter)
    reasons: list[str] = []

    def on_event(event: fanout.Event) -> None:
        if fractions.follow(event) and event.kind == "failed":
            reasons.append(event.value)

    staff = [Drawer() for _ in range(workers)]
    fanout.run(drawings, staff, group=lambda _: "", on_event=on_event)
    if reasons:
        raise CfError(f"{len(reasons)} pictures could not be drawn: {'; '.join(reasons)}")
