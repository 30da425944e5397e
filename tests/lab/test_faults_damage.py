"""Damaged checkpoints, pickles, non-finite numbers, another run's settings: named, and never used."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attractor.images import DataError, ImageSplits
from attractor.lab import checkpoints, load_run
from attractor.lab.errors import exit_code
from attractor.lab.manifest import sealed
from attractor.physics import SGD, LocalEnergy, NonFiniteError, Pairwise, PseudoLikelihood, Sphere

LONG = ("train.steps=8", "backend=eager")
ROWS = "rows-0-16.safetensors"


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("damage") / "whole"
    code, said = commands.run(*LONG, f"folder={folder}")
    assert code == 0, said
    return folder


@pytest.fixture(scope="module")
def paused(commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, paused at step 7: its checkpoints are step-6 and step-7."""
    folder = tmp_path_factory.mktemp("damage") / "paused"
    code, said = commands.run(*LONG, f"folder={folder}", "train.stop_after=7")
    assert code == 0, said
    assert checkpoints.found(folder / "checkpoints")[-2:] == [6, 7]
    return folder


@pytest.fixture
def run(paused: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(paused, tmp_path / "run"))


def truncate(checkpoint: Path) -> str:
    file = checkpoint / ROWS
    file.write_bytes(file.read_bytes()[:-8])
    return f"step-7/{ROWS} is damaged: its SHA-256"


def flip_a_bit(checkpoint: Path) -> str:
    file = checkpoint / "common.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    return "step-7/common.safetensors is damaged: its SHA-256"


def change_a_digit_of_the_manifest(checkpoint: Path) -> str:
    file = checkpoint / "manifest.json"
    file.write_text(file.read_text().replace('"failures": ', '"failures": 1'))
    return "step-7/manifest.json is damaged: it is not what its own manifest_sha256 says"


def delete_the_manifest(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").unlink()
    return "step-7/manifest.json cannot be read: it is missing"


def swap_files(checkpoint: Path) -> str:
    # step-6 must stay whole, to fall back on: its file comes here, and that of step-7 is lost
    shutil.copyfile(checkpoint.parent / "step-6" / ROWS, checkpoint / ROWS)
    return f"step-7/{ROWS} is damaged: its SHA-256"


def swap_all_files(checkpoint: Path) -> str:
    for file in (checkpoint.parent / "step-6").iterdir():
        shutil.copyfile(file, checkpoint / file.name)
    return "step-7/manifest.json is that of step 6, not of step 7"


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, delete_the_manifest, swap_files],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    damage: Callable[[Path], str], commands, whole: Path, run: Path
) -> None:
    """resume=RUN_DIR warns with file and reason, goes on from step-6, and ends as the whole run did.

    The damaged one is set aside, where it can be looked at. Asked for by name it is refused (4).
    """
    reason = damage(run / "checkpoints" / "step-7")
    code, said = commands.run(f"resume={run / 'checkpoints' / 'step-7'}")
    assert code == 4, said
    assert said.splitlines()[-1].startswith("error: ")
    assert reason in said.splitlines()[-1]
    code, said = commands.run(f"resume={run}")
    assert code == 0, said
    (warning,) = [line for line in said.splitlines() if reason in line]
    assert warning.startswith("warning: ")
    assert warning.endswith("going on from step-6, the newest that is whole")
    assert "going on from step 6" in said.splitlines()
    assert (run / "checkpoints" / "set-aside" / "step-7").is_dir()
    mine, theirs = (checkpoints.load(folder / "checkpoints") for folder in (run, whole))
    assert mine.step == theirs.step == 8
    assert torch.equal(mine.weights["couplings"], theirs.weights["couplings"])
    assert [steps(folder) for folder in (run, whole)] == [list(range(1, 9))] * 2


@pytest.mark.parametrize(
    "damage", [change_a_digit_of_the_manifest, swap_all_files], ids=lambda damage: damage.__name__
)
def test_a_manifest_is_not_believed(damage: Callable[[Path], str], run: Path) -> None:
    """A changed digit, which is valid JSON, and a whole checkpoint under the name of another: damage."""
    reason = damage(run / "checkpoints" / "step-7")
    step, (found,) = checkpoints.newest_whole(run / "checkpoints")
    assert step == 6
    assert reason in found


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_without_a_whole_checkpoint_nothing_starts(commands, run: Path) -> None:
    """All damaged: exit code 4 with every reason, and the folder stays as it was: no silent fresh start.

    An older checkpoint that is named is gone on from, and the newer one set aside.
    """
    good = shutil.copytree(run, run.with_name("good"))
    first = truncate(run / "checkpoints" / "step-7")
    for step in checkpoints.found(run / "checkpoints")[:-1]:
        delete_the_manifest(run / "checkpoints" / f"step-{step}")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, said = commands.run(f"resume={run}")
    assert code == 4, said
    assert first in said
    assert "step-6/manifest.json cannot be read: it is missing" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    code, said = commands.run(f"resume={good}/checkpoints/step-6")
    assert code == 0, said
    assert "going on from step 6" in said.splitlines()
    assert steps(good) == list(range(1, 9))


class Canary:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", [ROWS, "common.safetensors", "manifest.json"])
def test_a_pickle_in_place_of_a_checkpoint_is_not_executed(
    file: str, commands, run: Path, tmp_path: Path
) -> None:
    """Exit code 4, even if the manifest has the hash of the pickle; what it would do is not done."""
    canary = pickle.dumps(Canary(tmp_path / "executed"))
    path = run / "checkpoints" / "step-7"
    (path / file).write_bytes(canary)
    if file != "manifest.json":
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["sha256"][file] = hashlib.sha256(canary).hexdigest()
        (path / "manifest.json").write_text(json.dumps(sealed(manifest)))
    code, said = commands.run(f"resume={path}")
    assert code == 4, said
    assert "Traceback" not in said
    assert not (tmp_path / "executed").exists()
    pickle.loads(canary)  # it would have been seen
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("what", "value"), [("couplings", "nan"), ("gradient", "inf"), ("gradient", "nan")]
)
def test_what_is_not_finite_ends_training(what: str, value: str, commands, tmp_path: Path) -> None:
    """NaN or infinity in row 5 at step 5: exit code 3; step, row and tensor are named; step-4 is whole."""
    folder = tmp_path / "run"
    code, said = commands.run(*LONG, f"folder={folder}", FAULT=f"{what}:5:step", VALUE=value)
    assert code == 3, said
    last = said.splitlines()[-1]
    assert last.startswith("error: at step 5: the ")
    assert "the gradient of the couplings became non-finite in row 5" in last
    assert ("the couplings before the step" in last) == (what == "couplings")
    assert checkpoints.newest_whole(folder / "checkpoints") == (4, [])
    assert steps(folder) == [1, 2, 3, 4]


def test_a_gradient_that_is_not_finite_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The couplings after the refused step are those before it, to the last bit."""
    couplings = Pairwise(tokens=4, dim=3)
    energy = LocalEnergy(couplings, Sphere(3))
    x = energy.measure.sample(torch.zeros(5, 4, 3), generator=torch.Generator().manual_seed(0))
    rule = PseudoLikelihood(SGD(), decay=0.1)
    rule.step(energy, x, rate=1.0)
    before = couplings.couplings.clone()
    assert before.any()
    write = LocalEnergy.write_gradient

    def broken(self: LocalEnergy, x: torch.Tensor, gradient: Any, **named: Any) -> torch.Tensor:
        objective = write(self, x, gradient, **named)
        gradient["couplings"][2, 1, 0, 0] = float("-inf")
        objective[:, 2] = float("nan")  # so do all kernels then (tests/physics/test_kernels.py)
        return objective

    monkeypatch.setattr(LocalEnergy, "write_gradient", broken)
    with pytest.raises(NonFiniteError, match="the gradient of the couplings became non-finite in row 2"):
        rule.step(energy, x, rate=1.0)
    assert torch.equal(couplings.couplings, before)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_rate_and_data_that_are_not_finite_are_refused(value: str, commands, tmp_path: Path) -> None:
    """The rate: exit code 2. A value of the data: 6. Both before there is a folder."""
    code, said = commands.run(f"rule.learning_rate={value}", f"folder={tmp_path / 'run'}")
    assert code == 2, said
    assert said.splitlines()[-1] == f"error: rule.learning_rate is {value}; it must be positive and finite"
    code, said = commands.run(f"folder={tmp_path / 'run'}", FAULT="data:0:step", VALUE=value)
    assert code == 6, said
    assert said.splitlines()[-1].endswith("hold 448 non-finite values")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_images_of_ones_own_that_are_not_finite(value: float, trained) -> None:
    """reconstruct and ImageSplits raise DataError, which has exit code 6."""
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[1, 0, 3, 3] = value
    with pytest.raises(DataError, match="1 non-finite") as caught:
        load_run(trained.path).reconstruct(images)
    assert exit_code(caught.value) == 6
    with pytest.raises(DataError, match="hold 1 non-finite values"):
        ImageSplits("mine", images, images, images)


def test_another_run_is_refused_field_by_field(commands, run: Path) -> None:
    """Patch (tokens and dimension), measure, rule, data and seed: exit code 2, each with its values."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, said = commands.run(
        f"resume={run}",
        "model.patch=4",
        "model.measure=circles",
        "rule.momentum=0.5",
        "data=digits",
        "seed=3",
    )
    assert code == 2, said
    for difference in (
        "model.patch (2, now 4)",
        "model.measure (sphere, now circles)",
        "rule.momentum (0.0, now 0.5)",
        "data.name (synthetic, now digits)",
        "seed (0, now 3)",
    ):
        assert difference in said.splitlines()[-1]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
