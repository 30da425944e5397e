"""Runs on a file of one's own images: named by it, and never compared across two files of other images."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attractor.images import load, synthetic
from attractor.lab import load_run
from attractor.lab.errors import ConfigError
from attractor.lab.run.finished import TrainedModel, same_data, same_images
from attractor.lab.run.folder import RunFolder
from attractor.lab.sweep import jobs
from attractor.lab.sweep.job import different_from
from evaluate import compare


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Images, a copy of them elsewhere, and other images under the same name."""
    folder = tmp_path_factory.mktemp("files")
    for name, seed in (("first", 0), ("other", 1)):
        (folder / name).mkdir()
        np.savez(folder / name / "mine.npz", x=synthetic(side=4, train=80, test=20, seed=seed).train[:, 0])
    (folder / "copy").mkdir()
    first, other, copy = (folder / name / "mine.npz" for name in ("first", "other", "copy"))
    shutil.copy(first, copy)
    return first, copy, other


@pytest.fixture(scope="module")
def runs(
    files: tuple[Path, ...], train_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> list[Any]:
    folder = tmp_path_factory.mktemp("runs")
    given = ("data=npz", "eval.images=3", "train.validation_images=1", "dynamics.validation_images=1")
    return [
        train_run(folder / str(index), *given, f"data.root={file}", f"seed={index}")
        for index, file in enumerate(files)
    ]


@pytest.fixture(scope="module")
def models(runs: list[Any]) -> list[TrainedModel]:
    return [load_run(run.path) for run in runs]


def test_a_run_goes_by_the_name_of_its_file(runs: list[Any]) -> None:
    """Two files in one table would both be called npz."""
    assert runs[0].results["data"] == "mine"
    assert "bare self-attention on mine: 4x4 images" in runs[0].output


def test_copies_are_compared_and_other_images_are_not(models: list[TrainedModel]) -> None:
    """What the images are decides, not where they lie or what they are called."""
    first, copy, other = models
    same_data([first, copy])
    with pytest.raises(ConfigError, match=r"other.mine\.npz.*SHA-256.*evaluate them apart"):
        same_data([first, copy, other])
    # on fewer images the runs themselves cannot tell
    fewer = replace(first, config=replace(first.config, data=replace(first.config.data, train_images=9)))
    same_data([fewer, other])


def test_runs_are_evaluated_on_their_own_images(
    runs: list[Any],
    files: tuple[Path, ...],
    models: list[TrainedModel],
    make_comparison: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """evaluate.py takes `root` for a place: another file there is refused before anything is computed."""
    first, copy, other = files
    paths = [run.path for run in runs[:2]]
    small = ("images=3", f"folder={tmp_path / 'eval'}")
    compare(make_comparison(paths, *small, f"root={copy}"), RunFolder(tmp_path / "eval", ""))
    with pytest.raises(ConfigError, match="trained on other images than these of mine"):
        compare(make_comparison(paths, *small, f"root={other}"), RunFolder(tmp_path / "eval2", ""))
    splits = load("npz", root=first)
    part = replace(models[0], images=splits.fewer(9).fingerprint)
    part = replace(part, config=replace(part.config, data=replace(part.config.data, train_images=9)))
    same_images([models[0], part], splits)
    with pytest.raises(ConfigError, match="other images"):
        same_images([part, models[2]], splits)


def test_in_a_sweep_another_file_is_another_job(runs: list[Any], make_raw: Callable[..., Any]) -> None:
    """A job that is done counts for its own file only; of other data sets the root is a mere place."""
    job = jobs.read(runs[0].path)
    overrides = [
        f"{name}={jobs.shown(job.settings[name])}" for name in ("data.root", "seed", "eval.images")
    ]
    raw = make_raw("data=npz", *overrides)
    assert "data.root" not in different_from(raw, job)
    raw.data.root = "elsewhere.npz"
    assert different_from(raw, job)["data.root"] == (job.settings["data.root"], "elsewhere.npz")
    raw.data.name = "mnist"
    assert "data.root" not in different_from(raw, job)
