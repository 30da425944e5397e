"""What can go wrong in a run, and the exit code that each ends with."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from attractor.images import DataError
from attractor.physics import NonFiniteError
from attractor.physics.processes import LostProcessError


class ConfigError(Exception):
    """A configuration that cannot be run."""


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged or does not fit."""


class OutputError(Exception):
    """An output folder that exists, is locked, is full or cannot be written."""


class Terminated(BaseException):
    """SIGTERM was received."""


class Paused(Exception):
    """Training has come to the step that it was asked to stop after; the run can go on from there."""


EXIT_CODES: dict[type[BaseException], int] = {
    ConfigError: 2,
    NonFiniteError: 3,
    CheckpointError: 4,
    OutputError: 5,
    DataError: 6,
    LostProcessError: 1,
    Paused: 0,
    KeyboardInterrupt: 130,
    Terminated: 143,
}


def exit_code(error: BaseException) -> int:
    """The exit code of an error; 1 for anything unexpected."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


@contextmanager
def called(names: Mapping[str, str]) -> Iterator[None]:
    """In a ConfigError of the body fields get other names: what one begins with -> what is said instead."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        for name, other in names.items():
            text = re.sub(rf"(?<![\w.]){re.escape(name)}", other, text)
        raise ConfigError(text) from error


@contextmanager
def configuring() -> Iterator[None]:
    """While objects are built from the configuration, a ValueError is a ConfigError."""
    try:
        yield
    except DataError:  # a ValueError too, with an exit code of its own
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
