"""manifest.json of a checkpoint: what its files hold, and a seal that breaks when a byte of it changes."""

import hashlib
import json
import os
import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from attractor.lab.errors import CheckpointError

SCHEMA = 3
NAME = "manifest.json"
_SEAL = "manifest_sha256"
_LIBRARIES = (
    "attractor",
    "torch",
    "safetensors",
    "torchvision",
    "numpy",
    "llvmlite",
    "hydra-core",
    "omegaconf",
)


@cache
def versions() -> dict[str, str]:
    """Python and the libraries that the numbers of a run may depend on."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[library] = "unknown"
    return found


def hash_of(values: Any) -> str:
    """SHA-256 of plain values; the order of the keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the hash of all of them."""
    rest = {name: value for name, value in values.items() if name != _SEAL}
    return rest | {_SEAL: hash_of(rest)}


def write(folder: Path, values: dict[str, Any]) -> None:
    """Write `values`, sealed, to `folder`, flushed to disk."""
    with (folder / NAME).open("w") as handle:
        json.dump(sealed(values), handle, indent=2)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())


def read(folder: Path) -> dict[str, Any]:
    """The manifest of the checkpoint `folder`, called step-N. Raises CheckpointError, naming the file."""
    path = folder / NAME
    try:
        values = json.loads(path.read_text())
        schema = values["schema"]
        whole = values.get(_SEAL) == sealed(values)[_SEAL]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} cannot be read: it is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has schema {schema}, this code reads {SCHEMA}")
    if not whole:
        raise CheckpointError(f"{path} is damaged: it is not what its own {_SEAL} says")
    if (step := step_of(folder)) != values["step"]:
        raise CheckpointError(f"{path} is that of step {values['step']}, not of step {step}")
    assert isinstance(values, dict)
    return values


def step_of(folder: Path) -> int | None:
    """N of a folder called step-N, else None."""
    matched = re.fullmatch(r"step-(\d+)", folder.name)
    return int(matched[1]) if matched else None
