"""A sweep in one table: swept fields, mean and standard deviation over seeds, best first.

uv run python -m attractor.lab.collect SWEEP_DIR [--sort val|masked|denoise|log_pl] [--no-figures]

Rows are sorted by what validation images say; the test errors stand beside it and choose nothing.
Jobs that failed or have not ended are counted in the table and listed below it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attractor.lab.config.names import Objective
from attractor.lab.show import command
from attractor.lab.sweep.table import OBJECTIVES, collect
from attractor.lab.sweep.text import printed, write


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser("attractor.lab.collect", __doc__, sweep="the sweep")
    parser.add_argument("--sort", choices=OBJECTIVES, default="val", help="a metric of validation images")
    parser.add_argument("--no-figures", action="store_true", help="write the tables alone")
    given = parser.parse_args(arguments)
    return command.carry_out(lambda: _run(given), given.sweep)


def _run(given: argparse.Namespace) -> list[Path]:
    """Print and write the tables, draw the figures; the files."""
    table = collect(given.sweep, sort=Objective(given.sort))

    command.say(printed(table))
    written = write(table)
    if given.no_figures:
        return written
    from attractor.lab.sweep.figures import draw  # matplotlib takes a second to import

    return written + draw(table)


if __name__ == "__main__":
    sys.exit(main())
