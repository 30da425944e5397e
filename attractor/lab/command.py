"""Commands that look at what a sweep has left: their arguments, what they say, and their exit codes."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from attractor.lab.errors import EXIT_CODES, exit_code


def parser(module: str, description: str | None, *, sweep: str) -> argparse.ArgumentParser:
    """With the folder of the sweep as its first argument; `sweep` says of which."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help=f"hydra.sweep.dir of {sweep}")
    return made


def carry_out(work: Callable[[], Iterable[Path]], sweep: Path) -> int:
    """Do the work, which returns the files that it wrote, and name them; the exit code.

    A known error is one line and its exit code (DESIGN.md section 5); anything else keeps its traceback.
    """
    try:
        written = work()
    except tuple(EXIT_CODES) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return exit_code(error)
    except OSError as error:
        print(f"error: {sweep} cannot be written: {error}", file=sys.stderr)
        return 5
    say("\n".join(f"written: {path}" for path in written))
    return 0


def say(text: str) -> None:
    """Print; a reader that has seen enough, like `head`, stops nothing."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the rest, and what the interpreter flushes at its end, goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
