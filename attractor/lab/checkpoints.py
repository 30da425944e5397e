"""Checkpoints: couplings, what they belong to and how training goes on from them, without pickle.

    checkpoints/step-N/rows-A-B.safetensors    rows A to B - 1 of the couplings and of the optimiser's state
    checkpoints/step-N/common.safetensors      the training mean, the states of generators
    checkpoints/step-N/manifest.json           schema, step, configuration, SHA-256 of every file

Every process writes its own rows, and any number of processes reads them. A checkpoint is written to a
temporary folder, flushed to disk and renamed, so that what has its name is whole. The two newest are
kept, and the best ones that they refer to.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attractor.lab.distributed import Processes
from attractor.lab.errors import CheckpointError, OutputError

SCHEMA = 2
KEPT = 2
_COMMON = "common.safetensors"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Position:
    """How far training has come, beside the tensors."""

    best_step: int = 0  # of the lowest validation error so far; 0: none
    best_score: float = float("inf")
    failures: int = 0  # validations since then
    train_seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """The couplings after `step` updates, and what is needed to use them without the data.

    `weights` and `optimiser` hold `rows`: the first axis of each of their tensors.
    """

    step: int
    rows: range
    weights: dict[str, Tensor]
    mean: Tensor  # training mean (C, H, W), which the encoding needs
    config: dict[str, Any]
    validation: dict[str, float]  # task -> mean squared error
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    generators: dict[str, Tensor] = field(default_factory=dict)  # name -> state
    position: Position = field(default_factory=Position)


def save(folder: Path, checkpoint: Checkpoint, processes: Processes | None = None) -> Path:
    """Write `checkpoint` below `folder` (the run's checkpoints/), remove those no longer needed.

    All processes must call it, each with its rows. Raises OutputError, LostProcessError.
    """
    processes = processes or Processes()
    target = folder / f"step-{checkpoint.step}"
    temporary = folder / f".step-{checkpoint.step}.writing"
    if processes.first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    processes.gathered(None)  # the folder is there
    rows = checkpoint.rows
    part = f"rows-{rows.start}-{rows.stop}.safetensors"
    own = {"weights": checkpoint.weights, "optimiser": checkpoint.optimiser}
    parts = {part: ([rows.start, rows.stop], _write(temporary / part, own))}
    for others in processes.gathered(parts):  # and all rows are
        parts |= others
    if processes.first:
        common = {"encoding": {"mean": checkpoint.mean}, "generators": checkpoint.generators}
        files = {name: digest for name, (_, digest) in parts.items()}
        files[_COMMON] = _write(temporary / _COMMON, common)
        manifest = {
            "schema": SCHEMA,
            "step": checkpoint.step,
            "rows": {name: bounds for name, (bounds, _) in parts.items()},
            "sha256": files,
            "validation": checkpoint.validation,
            "position": asdict(checkpoint.position),
            "torch": torch.__version__,
            "config": checkpoint.config,
        }
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        _flush(temporary / _MANIFEST)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        _flush(folder)
        _prune(folder)
    return target


def found(folder: Path) -> list[int]:
    """The steps of the checkpoints below `folder`, oldest first."""
    names = (entry.name.removeprefix("step-") for entry in folder.glob("step-*"))
    return sorted(int(name) for name in names if name.isdigit())


def load(folder: Path, *, step: int | None = None, rows: range | None = None) -> Checkpoint:
    """The newest checkpoint below `folder`, or that of `step`; all of its rows, or `rows`.

    Raises CheckpointError, naming the file, for one that is missing or damaged.
    """
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
        parts = {name: range(*bounds) for name, bounds in manifest["rows"].items()}
        common = _read(path / _COMMON, manifest)
        rows = range(max(part.stop for part in parts.values())) if rows is None else rows
        own = _rows(path, manifest, parts, rows)
        return Checkpoint(
            step=manifest["step"],
            rows=rows,
            weights=own.get("weights", {}),
            mean=common["encoding"]["mean"],
            config=manifest["config"],
            validation=manifest["validation"],
            optimiser=own.get("optimiser", {}),
            generators=common.get("generators", {}),
            position=Position(**manifest["position"]),
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def fill(weights: dict[str, Tensor], checkpoint: Checkpoint, where: Path) -> None:
    """Copy the couplings of `checkpoint` into `weights`; CheckpointError if they do not fit."""
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    found = {name: tuple(weight.shape) for name, weight in checkpoint.weights.items()}
    if shapes != found:
        raise CheckpointError(f"{where}: the checkpoint holds {found}, its configuration asks for {shapes}")
    for name, weight in weights.items():
        weight.copy_(checkpoint.weights[name])


def _rows(
    path: Path, manifest: dict[str, Any], parts: dict[str, range], rows: range
) -> dict[str, dict[str, Tensor]]:
    """The tensors of `rows`, from the files that hold some of them."""
    pieces: dict[str, dict[str, list[Tensor]]] = {}
    reached = rows.start
    for name, part in sorted(parts.items(), key=lambda item: item[1].start):
        if part.stop <= reached or part.start >= rows.stop:
            continue
        if part.start > reached:
            break
        here = slice(reached - part.start, min(rows.stop, part.stop) - part.start)
        for group, tensors in _read(path / name, manifest).items():
            for key, tensor in tensors.items():
                if len(tensor) != len(part):
                    raise CheckpointError(f"{path / name}: {key} has {len(tensor)} rows, not {part}")
                pieces.setdefault(group, {}).setdefault(key, []).append(tensor[here])
        reached = min(rows.stop, part.stop)
    if reached < rows.stop:
        raise CheckpointError(f"{path} lacks row {reached}; its files hold {list(parts.values())}")
    return {
        group: {key: torch.cat(found) for key, found in tensors.items()}
        for group, tensors in pieces.items()
    }


def _write(path: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Write tensors as group/name, flushed to disk; their SHA-256."""
    tensors = {
        f"{group}/{name}": tensor.contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OutputError(f"{path.parent} cannot be written: {error}") from error
    _flush(path)
    return _digest(path)


def _read(path: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The inverse of `_write`; refuses a file that is not the one in the manifest."""
    digest, expected = _digest(path), manifest["sha256"][path.name]
    if digest != expected:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {digest[:12]}..., the manifest says {expected[:12]}...; "
            f"remove {path.parent} to fall back on an older checkpoint"
        )
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def _prune(folder: Path) -> None:
    steps = found(folder)
    newest = steps[-KEPT:]
    kept = {*newest, *(_best_step(folder / f"step-{step}") for step in newest)}
    for step in set(steps) - kept:
        shutil.rmtree(folder / f"step-{step}")


def _best_step(path: Path) -> int | None:
    try:
        best: int = json.loads((path / _MANIFEST).read_text())["position"]["best_step"]
    except (OSError, KeyError, TypeError, ValueError):  # damaged since: it will not be gone on from
        return None
    return best


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
