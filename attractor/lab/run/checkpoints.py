"""Checkpoints: couplings, what they belong to and how training goes on from them, without pickle.

    checkpoints/step-N/rows-A-B.safetensors    rows A to B - 1 of the couplings and of the optimiser's state
    checkpoints/step-N/common.safetensors      the training mean, the states of generators
    checkpoints/step-N/manifest.json           the rest: see `manifest`

Every process writes its own rows, and any number of processes reads them. A checkpoint is written to a
temporary folder, flushed to disk and renamed, so that what has its name is whole, and it is renamed again
before it is removed. The two newest are kept, and the best ones that they refer to.
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from attractor.lab.errors import CheckpointError
from attractor.lab.experiment.processes import Processes
from attractor.lab.run import manifest, tensor_files

KEPT = 2
_COMMON = "common.safetensors"


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
    cursor: dict[str, int] = field(default_factory=dict)  # which batch is next: see `training.cursor`
    data: str = ""  # fingerprint of the images
    versions: dict[str, str] = field(default_factory=manifest.versions)


def save(folder: Path, checkpoint: Checkpoint, processes: Processes | None = None) -> Path:
    """Write `checkpoint` below `folder` (the run's checkpoints/), remove those no longer needed.

    All processes must call it, each with its rows. Raises OutputError, LostProcessError.
    """
    processes = processes or Processes()
    temporary = folder / f".step-{checkpoint.step}.writing"
    try:
        _write_all(temporary, checkpoint, processes)
        if processes.first:
            _publish(temporary, folder / f"step-{checkpoint.step}")
            _prune(folder)
    except BaseException:
        if processes.first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder / f"step-{checkpoint.step}"


def _write_all(temporary: Path, checkpoint: Checkpoint, processes: Processes) -> None:
    if processes.first:
        # not its parents: a run folder that was removed must not come back without its run
        temporary.parent.mkdir(exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    processes.gathered(None)  # the folder is there
    rows = checkpoint.rows
    part = f"rows-{rows.start}-{rows.stop}.safetensors"
    own = {"weights": checkpoint.weights, "optimiser": checkpoint.optimiser}
    parts = {part: ([rows.start, rows.stop], tensor_files.write(temporary / part, own))}
    for others in processes.gathered(parts):  # and all rows are
        parts |= others
    if not processes.first:
        return
    common = {"encoding": {"mean": checkpoint.mean}, "generators": checkpoint.generators}
    files = {name: digest for name, (_, digest) in parts.items()}
    files[_COMMON] = tensor_files.write(temporary / _COMMON, common)
    values = {
        "schema": manifest.SCHEMA,
        "step": checkpoint.step,
        "cursor": checkpoint.cursor,
        "rows": {name: bounds for name, (bounds, _) in parts.items()},
        "sha256": files,
        "optimiser": sorted(checkpoint.optimiser),
        "generators": sorted(checkpoint.generators),
        "validation": checkpoint.validation,
        "position": asdict(checkpoint.position),
        "data": checkpoint.data,
        "versions": checkpoint.versions,
        "config": checkpoint.config,
        "config_sha256": manifest.hash_of(checkpoint.config),
    }
    manifest.write(temporary, values)
    tensor_files.flush(temporary)


def found(folder: Path) -> list[int]:
    """The steps of the checkpoints below `folder`, oldest first."""
    return sorted(step for entry in folder.glob("step-*") if (step := manifest.step_of(entry)) is not None)


def load(folder: Path, *, step: int | None = None, rows: range | None = None) -> Checkpoint:
    """The newest checkpoint below `folder`, or that of `step`; all of its rows, or `rows`.

    Raises CheckpointError, naming the file, for one that is missing or damaged.
    """
    path = _path(folder, step)
    values = manifest.read(path)
    try:
        parts = {name: range(*bounds) for name, bounds in values["rows"].items()}
        common = tensor_files.read(path / _COMMON, values["sha256"])
        rows = range(max(part.stop for part in parts.values())) if rows is None else rows
        own = _rows(path, values, parts, rows)
        return Checkpoint(
            step=values["step"],
            rows=rows,
            weights=own.get("weights", {}),
            mean=common["encoding"]["mean"],
            config=values["config"],
            validation=values["validation"],
            optimiser=own.get("optimiser", {}),
            generators=common.get("generators", {}),
            position=Position(**values["position"]),
            cursor=values["cursor"],
            data=values["data"],
            versions=values["versions"],
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def verify(folder: Path, step: int) -> None:
    """Read every file of the checkpoint of `step`, and of the best one that it refers to.

    Raises CheckpointError, naming the file, for one that is missing or damaged.
    """
    path = _path(folder, step)
    values = manifest.read(path)
    for name in values["sha256"]:
        tensor_files.check(path / name, values["sha256"])
    best = values["position"]["best_step"]
    if best not in (0, step):
        verify(folder, best)


def newest_whole(folder: Path) -> tuple[int, list[str]]:
    """The step of the newest checkpoint that is whole, and what is wrong with each newer one.

    Every process that asks reads all files, so all of them get the same answer. Raises CheckpointError with
    all reasons if there is none.
    """
    reasons: list[str] = []
    for step in reversed(found(folder)):
        try:
            verify(folder, step)
        except CheckpointError as error:
            reasons.append(str(error))
        else:
            return step, reasons
    if not reasons:
        _path(folder, None)
    raise CheckpointError(f"{folder} holds no whole checkpoint: {'; '.join(reasons)}")


def set_aside(folder: Path, *, after: int) -> list[Path]:
    """Move the checkpoints of steps after `after` to set-aside/: training goes on from before them."""
    _sweep(folder)
    moved = []
    for step in found(folder):
        if step > after:
            target = folder / "set-aside" / f"step-{step}"
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            moved.append((folder / target.name).rename(target))
    return moved


def fill(weights: dict[str, Tensor], checkpoint: Checkpoint, where: Path) -> None:
    """Copy the couplings of `checkpoint` into `weights`; CheckpointError if they do not fit."""
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    found = {name: tuple(weight.shape) for name, weight in checkpoint.weights.items()}
    if shapes != found:
        raise CheckpointError(f"{where}: the checkpoint holds {found}, its configuration asks for {shapes}")
    for name, weight in weights.items():
        weight.copy_(checkpoint.weights[name])


def _rows(
    path: Path, values: dict[str, Any], parts: dict[str, range], rows: range
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
        for group, tensors in tensor_files.read(path / name, values["sha256"]).items():
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


def _path(folder: Path, step: int | None) -> Path:
    steps = found(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "a checkpoint" if step is None else f"step-{step}"
        there = ", ".join(f"step-{s}" for s in steps) or "none"
        raise CheckpointError(f"{folder.absolute()} does not hold {wanted}; there: {there}")
    return folder / f"step-{steps[-1] if step is None else step}"


def _publish(temporary: Path, target: Path) -> None:
    """Give the whole checkpoint its name; an older one of that name goes."""
    if target.exists():
        _remove(target)
    temporary.rename(target)
    tensor_files.flush(target.parent)


def _prune(folder: Path) -> None:
    steps = found(folder)
    newest = steps[-KEPT:]
    kept = {*newest, *(_best_step(folder / f"step-{step}") for step in newest)}
    for step in set(steps) - kept:
        _remove(folder / f"step-{step}")
    _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove what a killed run has left half written or half removed."""
    for pattern in (".step-*.writing", ".step-*.removing"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _remove(path: Path) -> None:
    """Half of a checkpoint must not have its name, so it loses that first."""
    going = path.with_name(f".{path.name}.removing")
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going)


def _best_step(path: Path) -> int | None:
    try:
        best: int = manifest.read(path)["position"]["best_step"]
    except CheckpointError:  # damaged since: it will not be gone on from
        return None
    return best
