"""Files of named tensors, without pickle: flushed to disk, and read only if their hash is right."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attractor.lab.errors import CheckpointError, OutputError


def write(path: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Write tensors as group/name, flushed to disk; their SHA-256. Raises OutputError and OSError."""
    tensors = {
        f"{group}/{name}": tensor.contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OutputError(f"{path.parent} cannot be written: {error}") from error
    flush(path)
    return _digest(path)


def read(path: Path, digests: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """group -> name -> tensor, of a file that passes `check`. SafetensorError if it holds no tensors."""
    check(path, digests)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def check(path: Path, digests: Mapping[str, str]) -> None:
    """Raise CheckpointError unless the file has the SHA-256 that `digests` gives for its name."""
    try:
        digest, expected = _digest(path), digests[path.name]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} cannot be read: it is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if digest != expected:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {digest[:12]}..., the manifest says {expected[:12]}..."
        )


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
