"""What a study is: something to measure, to say and to draw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from attractor.images import ImageSplits
from attractor.lab.config.schema import Config

SEEDS = 1000  # of a study's draws belong to each seed of a run, so that no two runs share one
Results = dict[str, Any]  # plain values, as they stand in results.json
Tell = Callable[[str], Any]  # what is being done now, for the progress bar


class Study(Protocol):
    """One module of this folder: the five functions that `run` needs of it."""

    def check(self, config: Config) -> None:
        """Refuse values that cannot be used (ConfigError), before any work."""
        ...

    def check_data(self, config: Config, splits: ImageSplits) -> None:
        """Refuse what these images cannot be used for (ConfigError), before any work."""
        ...

    def measure(self, config: Config, splits: ImageSplits, tell: Tell) -> Results:
        """Everything that is measured: lists, numbers and texts, enough to say and to draw it.

        "headline" maps the few numbers that sum it up to their names.
        """
        ...

    def table(self, results: Results) -> str:
        """The results as text."""
        ...

    def draw(self, results: Results, folder: Path) -> dict[str, Path]:
        """Figures, drawn from the results alone: name -> PNG (`figures.save`)."""
        ...
