"""Checkpoints: whole and bit-exact, by any number of processes, or refused with CheckpointError."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attractor.lab.errors import CheckpointError
from attractor.lab.experiment.processes import Processes
from attractor.lab.run import checkpoints
from attractor.lab.run.checkpoints import Checkpoint, Position
from attractor.lab.run.manifest import sealed
from attractor.physics import Ranks

PART = "rows-0-3.safetensors"


def checkpoint(step: int, *, best: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(3, 3, 2, 2, generator=generator)
    weights[0, 1] = torch.tensor([[1e-45, -0.0], [3.4e38, 1 / 3]])  # denormal, signed zero, near overflow
    return Checkpoint(
        step=step,
        rows=range(3),
        # not contiguous, as the couplings of a Hopfield network are
        weights={"couplings": weights.permute(1, 0, 3, 2)},
        mean=torch.rand(1, 4, 4, generator=generator),
        config={"model": {"name": "bare_attention", "projection": None}, "tags": ["a", "b"]},
        validation={"masked": 0.1 + step, "denoise": 1 / 3},
        optimiser={
            "couplings.mean": torch.randn(3, 3, 2, 2, generator=generator),
            "couplings.steps": torch.tensor([step, 0, 2**40]),
        },
        generators={"rows": generator.get_state()},
        position=Position(best_step=best, best_score=1 / 7, failures=3, train_seconds=0.1),
    )


def test_a_round_trip_is_bit_exact(tmp_path: Path) -> None:
    """load(save(c)) == c: every bit of every tensor, the configuration, the errors, the position."""
    saved = checkpoint(7)
    path = checkpoints.save(tmp_path, saved)
    assert path == tmp_path / "step-7"
    loaded = checkpoints.load(tmp_path)
    for name in ("step", "rows", "config", "validation", "position"):
        assert getattr(loaded, name) == getattr(saved, name)
    for group in ("weights", "optimiser", "generators"):
        mine, other = getattr(saved, group), getattr(loaded, group)
        assert mine.keys() == other.keys()
        assert all(same_bits(mine[name], other[name]) for name in mine)
    assert same_bits(saved.mean, loaded.mean)
    nothing_best = Position(best_score=float("inf"))
    checkpoints.save(tmp_path, replace(saved, step=8, position=nothing_best))
    assert checkpoints.load(tmp_path).position == nothing_best


def same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


class Threads(Processes):
    """Processes that are threads: each leaves its value and waits for the others."""

    def __init__(self, ranks: Ranks, meeting: threading.Barrier, values: list[Any]) -> None:
        super().__init__(ranks)
        object.__setattr__(self, "meeting", meeting)
        object.__setattr__(self, "values", values)

    def gathered(self, value: Any) -> list[Any]:
        self.values[self.ranks.rank] = value
        self.meeting.wait(timeout=30)
        found = list(self.values)
        self.meeting.wait(timeout=30)
        return found


def saved_by(count: int, folder: Path, whole: Checkpoint) -> None:
    """Save `whole` as `count` processes do, each with its own rows."""
    meeting, values = threading.Barrier(count), [None] * count

    def one(rank: int) -> None:
        ranks = Ranks(rank, count)
        rows = ranks.rows(len(whole.weights["couplings"]))
        here = slice(rows.start, rows.stop)
        own = {
            group: {name: tensor[here] for name, tensor in getattr(whole, group).items()}
            for group in ("weights", "optimiser")
        }
        checkpoints.save(folder, replace(whole, rows=rows, **own), Threads(ranks, meeting, values))

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))


@pytest.mark.parametrize("writers", [1, 2, 3])
@pytest.mark.parametrize("readers", [1, 2, 4])
def test_any_number_of_processes_reads_what_others_saved(
    writers: int, readers: int, tmp_path: Path
) -> None:
    """Row i of a tensor is row i, whoever wrote it and whoever asks; 14 rows are shared unevenly.

    An offset that is taken from the wrong range would give a process the rows of another.
    """
    rows = torch.arange(14)
    whole = replace(
        checkpoint(5),
        rows=range(14),
        weights={"couplings": rows.float().view(-1, 1).expand(14, 3)},
        optimiser={"couplings.steps": 100 + rows},
    )
    saved_by(writers, tmp_path, whole)
    assert len(list((tmp_path / "step-5").glob("rows-*"))) == writers
    for rank in range(readers):
        wanted = Ranks(rank, readers).rows(14)
        found = checkpoints.load(tmp_path, rows=wanted)
        assert found.rows == wanted
        assert found.weights["couplings"][:, 2].tolist() == list(wanted)
        assert found.optimiser["couplings.steps"].tolist() == [100 + i for i in wanted]
    assert same_bits(checkpoints.load(tmp_path).weights["couplings"], whole.weights["couplings"])


def test_rows_that_no_file_holds_are_missed(tmp_path: Path) -> None:
    """A manifest whose files leave a gap is refused, with the first row that is not there."""
    whole = replace(checkpoint(5), rows=range(8), weights={"couplings": torch.zeros(8, 2)}, optimiser={})
    saved_by(2, tmp_path, whole)
    manifest = tmp_path / "step-5" / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["rows"]["rows-0-4.safetensors"]
    manifest.write_text(json.dumps(sealed(values)))
    assert len(checkpoints.load(tmp_path, rows=range(4, 8)).weights["couplings"]) == 4
    with pytest.raises(CheckpointError, match="lacks row 0"):
        checkpoints.load(tmp_path)
    with pytest.raises(CheckpointError, match="lacks row 8"):
        checkpoints.load(tmp_path, rows=range(4, 12))


def test_the_best_ones_are_kept_too(tmp_path: Path) -> None:
    """Both of the newest two can be gone on from: the best checkpoints that they refer to are there.

    Step 5 was the best when 6 was saved, 7 is since 7: without 5 a run that falls back on 6 could not end.
    """
    for step, best in ((3, 3), (4, 3), (5, 5), (6, 5), (7, 7)):
        checkpoints.save(tmp_path, checkpoint(step, best=best))
    assert checkpoints.found(tmp_path) == [5, 6, 7]
    checkpoints.save(tmp_path, checkpoint(8, best=7))
    assert checkpoints.found(tmp_path) == [7, 8]
    (tmp_path / "step-8" / "manifest.json").write_text("{")
    checkpoints.save(tmp_path, checkpoint(9, best=7))
    assert checkpoints.found(tmp_path) == [7, 8, 9]


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    """After five saves two are left, by number and not by spelling: 1000 is newer than 900."""
    for step in (100, 200, 900, 1000, 1100):
        checkpoints.save(tmp_path, checkpoint(step))
    assert checkpoints.found(tmp_path) == [1000, 1100]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-1000", "step-1100"]
    assert checkpoints.load(tmp_path).step == 1100
    assert checkpoints.load(tmp_path, step=1000).step == 1000


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    """A run that was killed while writing leaves a temporary folder: it is no checkpoint.

    Saving that step again works, and leaves nothing temporary behind.
    """
    checkpoints.save(tmp_path, checkpoint(1))
    half = tmp_path / ".step-2.writing"
    half.mkdir()
    (half / PART).write_bytes(b"half of the")
    (tmp_path / "step-notes").mkdir()
    assert checkpoints.found(tmp_path) == [1]
    assert checkpoints.load(tmp_path).step == 1
    checkpoints.save(tmp_path, checkpoint(2))
    assert not half.exists()
    assert checkpoints.load(tmp_path).step == 2


def flip_a_bit(path: Path) -> None:
    file = path / PART
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def flip_a_bit_of_the_mean(path: Path) -> None:
    file = path / "common.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def truncate_weights(path: Path) -> None:
    file = path / PART
    file.write_bytes(file.read_bytes()[:-8])


def truncate_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text()[:60])


def garble_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b"\xff\xfe\x00\x80" * 20)


def empty_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{}")


def not_an_object(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


def other_schema(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))


def remove_weights(path: Path) -> None:
    (path / PART).unlink()


def remove_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"rows-0-3\.safetensors is damaged: its SHA-256"),
        (flip_a_bit_of_the_mean, r"common\.safetensors is damaged: its SHA-256"),
        (truncate_weights, r"rows-0-3\.safetensors is damaged"),
        (truncate_manifest, "cannot be read"),
        (garble_manifest, "cannot be read"),
        (empty_manifest, "cannot be read"),
        (not_an_object, "cannot be read"),
        (other_schema, "schema 99, this code reads 3"),
        (remove_weights, "cannot be read"),
        (remove_manifest, "cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_refused(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """One flipped bit is enough for CheckpointError, which names the checkpoint; the older one still loads.

    Anything else would be a traceback with exit code 1, or numbers of couplings that nobody trained.
    """
    checkpoints.save(tmp_path, checkpoint(1))
    damage(checkpoints.save(tmp_path, checkpoint(2)))
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(tmp_path)
    assert "step-2" in str(caught.value)
    assert checkpoints.load(tmp_path, step=1).step == 1


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """No folder, no checkpoint, no such step: CheckpointError with what is there instead."""
    with pytest.raises(CheckpointError, match="does not hold a checkpoint; there: none"):
        checkpoints.load(tmp_path / "nowhere")
    checkpoints.save(tmp_path, checkpoint(3))
    with pytest.raises(CheckpointError, match=r"does not hold step-4; there: step-3"):
        checkpoints.load(tmp_path, step=4)
