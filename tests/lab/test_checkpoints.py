"""Checkpoints: whole and bit-exact, or refused with CheckpointError."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attractor.lab import checkpoints
from attractor.lab.checkpoints import Checkpoint
from attractor.lab.errors import CheckpointError


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(3, 3, 2, 2, generator=generator)
    weights[0, 1] = torch.tensor([[1e-45, -0.0], [3.4e38, 1 / 3]])  # denormal, signed zero, near overflow
    return Checkpoint(
        step=step,
        # not contiguous, like the public view of couplings
        weights={"couplings": weights.permute(1, 0, 3, 2)},
        mean=torch.rand(1, 4, 4, generator=generator),
        config={"model": {"name": "bare_attention", "projection": None}, "tags": ["a", "b"]},
        validation={"masked": 0.1 + step, "denoise": 1 / 3},
    )


def test_a_round_trip_is_bit_exact(tmp_path: Path) -> None:
    """load(save(c)) == c: every bit of the couplings and the mean, the configuration, the errors."""
    saved = checkpoint(7)
    path = checkpoints.save(tmp_path, saved)
    assert path == tmp_path / "step-7"
    loaded = checkpoints.load(tmp_path)
    assert (loaded.step, loaded.config, loaded.validation) == (7, saved.config, saved.validation)
    assert loaded.weights.keys() == {"couplings"}
    for mine, other in (
        (saved.weights["couplings"].contiguous(), loaded.weights["couplings"]),
        (saved.mean, loaded.mean),
    ):
        assert mine.dtype == other.dtype
        assert torch.equal(mine.view(torch.int32), other.view(torch.int32))


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
    (half / "weights.safetensors").write_bytes(b"half of the")
    (tmp_path / "step-notes").mkdir()
    assert checkpoints.found(tmp_path) == [1]
    assert checkpoints.load(tmp_path).step == 1
    checkpoints.save(tmp_path, checkpoint(2))
    assert not half.exists()
    assert checkpoints.load(tmp_path).step == 2


def flip_a_bit(path: Path) -> None:
    file = path / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def truncate_weights(path: Path) -> None:
    file = path / "weights.safetensors"
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
    (path / "weights.safetensors").unlink()


def remove_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"weights\.safetensors is damaged: its SHA-256"),
        (truncate_weights, r"weights\.safetensors is damaged"),
        (truncate_manifest, "cannot be read"),
        (garble_manifest, "cannot be read"),
        (empty_manifest, "cannot be read"),
        (not_an_object, "cannot be read"),
        (other_schema, "schema 99, this code reads 1"),
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
