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
from attractor.lab import load_run
from attractor.lab.errors import exit_code
from attractor.lab.run import checkpoints
from attractor.lab.run.manifest import sealed
from attractor.physics import SGD, LocalEnergy, NonFiniteError, Pairwise, PseudoLikelihood, Sphere
from tests.lab.faulty import LONG, STEPS

ROWS = "rows-0-16.safetensors"


@pytest.fixture(scope="module")
def paused(commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run LONG, paused at step 7: the newest two checkpoints are there, and the best one."""
    folder = tmp_path_factory.mktemp("damage") / "paused"
    code, said = commands.run(*LONG, f"folder={folder}", "train.stop_after=7")
    assert code == 0, said
    assert checkpoints.found(folder / "checkpoints") == [2, 6, 7]
    return folder


@pytest.fixture
def run(paused: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(paused, tmp_path / "run"))


def truncate(checkpoint: Path) -> list[str]:
    file = checkpoint / ROWS
    file.write_bytes(file.read_bytes()[:-8])
    return [f"step-7/{ROWS} is damaged: its SHA-256"]


def flip_a_bit(checkpoint: Path) -> list[str]:
    file = checkpoint / "common.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    return ["step-7/common.safetensors is damaged: its SHA-256"]


def change_a_digit_of_the_manifest(checkpoint: Path) -> list[str]:
    file = checkpoint / "manifest.json"
    file.write_text(file.read_text().replace('"failures": ', '"failures": 1'))
    return ["step-7/manifest.json is damaged: it is not what its own manifest_sha256 says"]


def delete_the_manifest(checkpoint: Path) -> list[str]:
    (checkpoint / "manifest.json").unlink()
    return [f"{checkpoint.name}/manifest.json cannot be read: it is missing"]


def swap(one: Path, other: Path) -> None:
    aside = one.with_name(f"{one.name}.aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def swap_rows(checkpoint: Path) -> list[str]:
    swap(checkpoint / ROWS, checkpoint.parent / "step-6" / ROWS)
    return [f"step-{step}/{ROWS} is damaged: its SHA-256" for step in (7, 6)]


def swap_manifests(checkpoint: Path) -> list[str]:
    swap(checkpoint / "manifest.json", checkpoint.parent / "step-6" / "manifest.json")
    return [f"step-{a}/manifest.json is that of step {b}, not of step {a}" for a, b in ((7, 6), (6, 7))]


def swap_folders(checkpoint: Path) -> list[str]:
    swap(checkpoint, checkpoint.parent / "step-6")
    return [f"step-{a}/manifest.json is that of step {b}, not of step {a}" for a, b in ((7, 6), (6, 7))]


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, delete_the_manifest, swap_rows],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    damage: Callable[[Path], list[str]], commands, whole: Path, run: Path
) -> None:
    """resume=RUN_DIR warns with file and reason, goes on from the newest whole one, and ends as the whole
    run did. Where files of two steps are swapped, neither is whole.

    The damaged ones are set aside, where they can be looked at. Asked for by name one is refused (4).
    """
    reasons = damage(run / "checkpoints" / "step-7")
    good = 6 if len(reasons) == 1 else 2
    code, said = commands.run(f"resume={run / 'checkpoints' / 'step-7'}")
    assert code == 4, said
    assert said.splitlines()[-1].startswith("error: ")
    assert reasons[0] in said.splitlines()[-1]
    code, said = commands.run(f"resume={run}")
    assert code == 0, said
    for reason in reasons:
        (warning,) = [line for line in said.splitlines() if reason in line]
        assert warning.startswith("warning: ")
        assert warning.endswith(f"going on from step-{good}, the newest that is whole")
    assert f"going on from step {good}" in said.splitlines()
    aside = sorted(path.name for path in (run / "checkpoints" / "set-aside").iterdir())
    assert aside == [f"step-{step}" for step in (6, 7) if step > good]
    mine, theirs = (checkpoints.load(folder / "checkpoints") for folder in (run, whole))
    assert mine.step == theirs.step == STEPS
    assert torch.equal(mine.weights["couplings"], theirs.weights["couplings"])
    assert [steps(folder) for folder in (run, whole)] == [list(range(1, STEPS + 1))] * 2


@pytest.mark.parametrize(
    "damage",
    [change_a_digit_of_the_manifest, swap_manifests, swap_folders],
    ids=lambda damage: damage.__name__,
)
def test_a_manifest_is_not_believed(damage: Callable[[Path], list[str]], run: Path) -> None:
    """A changed digit, which is valid JSON, and a whole checkpoint under the name of another: damage."""
    reasons = damage(run / "checkpoints" / "step-7")
    step, found = checkpoints.newest_whole(run / "checkpoints")
    assert step == (6 if len(reasons) == 1 else 2)
    assert len(found) == len(reasons)
    assert all(reason in said for reason, said in zip(reasons, found, strict=True))


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_without_a_whole_checkpoint_nothing_starts(commands, run: Path) -> None:
    """Files of two steps swapped, and no other checkpoint: exit code 4 with every reason, and the folder
    stays as it was. No silent fresh start.

    An older checkpoint that is named is gone on from, and the newer one set aside.
    """
    good = shutil.copytree(run, run.with_name("good"))
    reasons = swap_rows(run / "checkpoints" / "step-7")
    reasons += delete_the_manifest(run / "checkpoints" / "step-2")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, said = commands.run(f"resume={run}")
    assert code == 4, said
    assert all(reason in said.splitlines()[-1] for reason in reasons)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    code, said = commands.run(f"resume={good}/checkpoints/step-6")
    assert code == 0, said
    assert "going on from step 6" in said.splitlines()
    assert steps(good) == list(range(1, STEPS + 1))


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
    ("what", "value"),
    [("couplings", "nan"), ("couplings", "inf"), ("gradient", "inf"), ("gradient", "nan")],
)
def test_what_is_not_finite_ends_training(what: str, value: str, commands, tmp_path: Path) -> None:
    """NaN or infinity in row 5 at step 5: exit code 3; step, row and tensor are named; step-4 is whole."""
    folder = tmp_path / "run"
    every_row = "rule.rows_per_step=null"
    code, said = commands.run(*LONG, every_row, f"folder={folder}", FAULT=f"{what}:5:step", VALUE=value)
    assert code == 3, said
    last = said.splitlines()[-1]
    assert last.startswith("error: at step 5: the ")
    assert "the gradient of the couplings became non-finite in row 5" in last
    assert ("the couplings before the step" in last) == (what == "couplings")
    assert checkpoints.newest_whole(folder / "checkpoints") == (4, [])
    assert steps(folder) == [1, 2, 3, 4]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("what", ["gradient", "couplings"])
def test_what_is_not_finite_is_not_applied(what: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the gradient or in the couplings: after the refused step they are those before it, to the last
    bit, and so is the momentum, in which a value that is not finite would stay for ever.
    """
    couplings = Pairwise(tokens=4, dim=3)
    energy = LocalEnergy(couplings, Sphere(3))
    x = energy.measure.sample(torch.zeros(5, 4, 3), generator=torch.Generator().manual_seed(0))
    rule = PseudoLikelihood(SGD(momentum=0.9), decay=0.1)
    rule.step(energy, x, rate=1.0)
    assert couplings.couplings.any()
    if what == "couplings":
        couplings.weights["couplings"][2, 1, 0, 0] = float(value)
    before = [tensor.clone() for tensor in (couplings.couplings, *rule.optimiser.state.values())]
    write = LocalEnergy.write_gradient

    def broken(self: LocalEnergy, x: torch.Tensor, gradient: Any, **named: Any) -> torch.Tensor:
        objective = write(self, x, gradient, **named)
        if what == "gradient":
            gradient["couplings"][2, 1, 0, 0] = float(value)
            objective[:, 2] = float("nan")  # so do all kernels then (tests/physics/test_kernels.py)
        return objective

    monkeypatch.setattr(LocalEnergy, "write_gradient", broken)
    with pytest.raises(NonFiniteError, match="the gradient of the couplings became non-finite in row 2"):
        rule.step(energy, x, rate=1.0)
    after = (couplings.couplings, *rule.optimiser.state.values())
    assert len(before) == len(after) == 2
    for mine, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


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
