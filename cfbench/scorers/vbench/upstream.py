"""What the ``vbench`` package itself says of films, as scores of a suite of its own.

The package runs in another environment (``cfbench vbench-env create``), one process a dimension;
see ``cfbench.upstream``. Its scores never stand in for ours, nor ours for its.
"""

from dataclasses import dataclass

from cfbench.errors import CfError
from cfbench.scorers.vbench.files import Folder
from cfbench.scorers.vbench.suite import NEEDS, specs
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
        return specs(
            self.version,
            self.folder,
            lambda name: NEEDS.get(name, ()),
            lambda _: f"{TOOL}, run as it is",
        )

    def score(self, clip: Clip, prompt: Prompt) -> list[Score]:
        """Refused: the package looks at files, many at a time.

        Raises:
            CfError: always.
        """
        raise CfError(NEEDED_VERB)
