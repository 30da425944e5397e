"""Checkpoints: couplings and what they belong to, without pickle.

    checkpoints/step-N/weights.safetensors    the couplings, by name, and the training mean
    checkpoints/step-N/manifest.json          schema, step, configuration, SHA-256 of the weights

A checkpoint is written to a temporary folder, flushed to disk and renamed, so that what has its name is
whole. The two newest are kept.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attractor.lab.errors import CheckpointError, OutputError

SCHEMA = 1
KEPT = 2
_WEIGHTS = "weights.safetensors"
_MANIFEST = "manifest.json"
_MEAN = "encoding.mean"


@dataclass(frozen=True)
class Checkpoint:
    """The couplings after `step` updates, and what is needed to use them without the data."""

    step: int
    weights: dict[str, Tensor]
    mean: Tensor  # training mean (C, H, W), which the encoding needs
    config: dict[str, Any]
    validation: dict[str, float]  # task -> mean squared error


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` below `folder` (the run's checkpoints/), remove those beyond the newest two."""
    target = folder / f"step-{checkpoint.step}"
    temporary = folder / f".step-{checkpoint.step}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {_MEAN: checkpoint.mean} | checkpoint.weights
    try:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary / _WEIGHTS)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OutputError(f"{temporary} cannot be written: {error}") from error
    manifest = {
        "schema": SCHEMA,
        "step": checkpoint.step,
        "validation": checkpoint.validation,
        "torch": torch.__version__,
        "sha256": {_WEIGHTS: _digest(temporary / _WEIGHTS)},
        "config": checkpoint.config,
    }
    (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for file in (_WEIGHTS, _MANIFEST):
        with (temporary / file).open("rb") as handle:
            os.fsync(handle.fileno())
    temporary.rename(target)
    for old in found(folder)[:-KEPT]:
        shutil.rmtree(folder / f"step-{old}")
    return target


def found(folder: Path) -> list[int]:
    """The steps of the checkpoints below `folder`, oldest first."""
    names = (entry.name.removeprefix("step-") for entry in folder.glob("step-*"))
    return sorted(int(name) for name in names if name.isdigit())


def load(folder: Path, *, step: int | None = None) -> Checkpoint:
    """The newest checkpoint below `folder`, or that of `step`. Raises CheckpointError."""
    steps = found(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "a checkpoint" if step is None else f"step-{step}"
        there = ", ".join(f"step-{s}" for s in steps) or "none"
        raise CheckpointError(f"{folder.absolute()} does not hold {wanted}; there: {there}")
    path = folder / f"step-{steps[-1] if step is None else step}"
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        if manifest["schema"] != SCHEMA:
            raise CheckpointError(f"{path} has schema {manifest['schema']}, this code reads {SCHEMA}")
        digest, expected = _digest(path / _WEIGHTS), manifest["sha256"][_WEIGHTS]
        if digest != expected:
            raise CheckpointError(
                f"{path / _WEIGHTS} is damaged: its SHA-256 is {digest[:12]}..., the manifest says "
                f"{expected[:12]}...; remove {path} to fall back on an older checkpoint"
            )
        tensors = load_file(path / _WEIGHTS)
        return Checkpoint(
            step=manifest["step"],
            mean=tensors.pop(_MEAN),
            weights=tensors,
            config=manifest["config"],
            validation=manifest["validation"],
        )
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
