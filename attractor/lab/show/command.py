"""Commands beside train.py and evaluate.py: their arguments, what they say, and their exit codes."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from attractor.lab.errors import EXIT_CODES, ConfigError, exit_code


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


def at_least_one(given: argparse.Namespace, *names: str) -> None:
    """Refuse counts below 1 (ConfigError); one that was not given is None, and all right."""
    for name in names:
        if (value := getattr(given, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def overrides(arguments: Sequence[str], description: str | None) -> dict[str, str]:
    """FIELD=VALUE, as train.py takes them, by field. Ends with 0 after --help, with 2 for anything else."""
    if {"-h", "--help"} & set(arguments):
        print(description)
        sys.exit(0)
    if others := [argument for argument in arguments if "=" not in argument]:
        print(f"error: {others[0]!r} is no FIELD=VALUE; see --help", file=sys.stderr)
        sys.exit(2)
    return dict(argument.partition("=")[::2] for argument in arguments)


def child(arguments: Sequence[str | Path]) -> int:
    """Run this Python with `arguments` to its end, whatever is signalled; its exit code, as of a shell.

    What it saves when it is told to end takes longer than subprocess.run would wait. A terminal sends
    SIGINT to parent and child; SIGTERM, which a scheduler sends to the parent alone, is passed on.
    """
    process = subprocess.Popen([sys.executable, *arguments])
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number)),
    }
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def say(text: str) -> None:
    """Print; a reader that has seen enough, like `head`, stops nothing."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the rest, and what the interpreter flushes at its end, goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
