"""What the ``vbench`` package itself says of films, as scores of a suite of its own.

The package runs in another environment (``cfbench vbench-env create``), one process a dimension;
see ``cfbench.upstream``. Its scores never stand in for ours, nor ours for its.
"""

from dataclasses import dataclass

from cfbench.aggregate import DIMENSIONS, QUALITY, SEMANTIC
from cfbench.errors import CfError
from cfbench.scorers.vbench.files import Folder
from cfbench.scorers.vbench.suite import NEEDS
from cfbench.types import DimensionSpec, Prompt, Score
from cfbench.video import Clip

TOOL = "vbench 0.1.5"
NEEDED_VERB = "scores of the vbench package are made by cfbench score --via upstream"


@dataclass
class UpstreamSuite:
    """The package's dimensions; it names them and cannot score by itself.

    Args:
        folder: of the weights.
    """

    folder: Folder

    @property
    def version(self) -> str:
        """Of the package."""
        return TOOL.replace(" ", "-")

    @property
    def dimensions(self) -> tuple[DimensionSpec, ...]:
        """All sixteen; versions name the package and the weights that we know of.

        Raises:
            CfError: weights are others than they were.
        """
        return tuple(
            DimensionSpec(
                name=name,
                group="quality" if name in QUALITY else "semantic",
                weight={**QUALITY, **SEMANTIC}[name],
                version=".".join([self.version, *map(self._digits, NEEDS.get(name, ()))]),
                tier="reference",
                higher_is_better=True,
                source=f"{TOOL}, run as it is",
            )
            for name in DIMENSIONS
        )

    def score(self, clip: Clip, prompt: Prompt) -> list[Score]:
        """Refused: the package looks at files, many at a time.

        Raises:
            CfError: always.
        """
        raise CfError(NEEDED_VERB)

    def _digits(self, name: str) -> str:
        return self.folder.sha256(name)[:6] if self.folder.has(name) else "none"
