"""What runs leave behind, and whether one that was interrupted has ended as another one that was not."""

import json
from pathlib import Path
from typing import Any

import torch

from attractor.lab.run import checkpoints

WALL_CLOCK = {"time", "train_seconds"}  # what may differ between a run and the same run, interrupted


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in WALL_CLOCK} for line in found]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(folder: Path, whole: Path) -> None:
    """Every metric, and every tensor and word of the last checkpoint, at zero tolerance."""
    assert lines(folder) == lines(whole)
    mine, theirs = (checkpoints.load(path / "checkpoints") for path in (folder, whole))
    assert mine.step == theirs.step == lines(whole)[-1]["step"]
    for group in ("weights", "optimiser", "generators"):
        own, other = getattr(mine, group), getattr(theirs, group)
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
    assert torch.equal(mine.mean, theirs.mean)
    for name in ("cursor", "data", "validation", "versions"):
        assert getattr(mine, name) == getattr(theirs, name)
    for name in vars(mine.position).keys() - WALL_CLOCK:
        assert getattr(mine.position, name) == getattr(theirs.position, name)
