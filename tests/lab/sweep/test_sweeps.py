"""Sweeps: what is refused, what is run, and what it is measured by."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from attractor.lab.config.names import Objective
from attractor.lab.errors import ConfigError, OutputError
from attractor.lab.experiment import build
from attractor.lab.experiment.objective import measured
from attractor.lab.run.folder import RunFolder
from attractor.lab.run.locks import take
from attractor.lab.sweep.callback import SweepCallback
from evaluate import compare
from tests.lab.traces import status
from tests.warm import WarmPython

ROOT = Path(__file__).parents[3]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def command(warm: WarmPython) -> Command:
    """Python from the root of the repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment["OMP_NUM_THREADS"] = "1"
    return lambda *words: warm.run(words, cwd=ROOT, environment=environment, timeout=240)


def test_a_sweep_without_multirun_is_refused(command: Command, tmp_path: Path) -> None:
    """Hydra would run one job and say nothing: exit code 2 with the command that was meant."""
    done = command("train.py", "sweep=rates", "dynamics.inertias=[0.0]", f"folder={tmp_path / 'run'}")
    assert done.returncode == 2
    expected = f"uv run train.py -m sweep=rates 'dynamics.inertias=[0.0]' folder={tmp_path / 'run'}\n"
    assert done.stderr.endswith(expected)
    assert not (tmp_path / "run").exists()


def test_on_error_stop_starts_no_further_job(
    command: Command, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """The jobs after the failed one leave nothing, and are named at the end."""
    given = ("model.patch=2,3,4", "on_error=stop", f"hydra.sweep.dir={tmp_path}")
    done = command("train.py", "-m", *tiny, *given)
    assert done.returncode == 1
    assert f"sweep {tmp_path}: 3 jobs: 1 done, 1 failed, 1 not started" in done.stdout
    assert f"not started: {tmp_path / '2'}  model.patch=4" in done.stdout
    assert not (tmp_path / "2" / "status.json").exists()


def test_jobs_run_side_by_side(command: Command, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """launcher=joblib: each job in a process and a folder of its own, failures as without it."""
    given = ("launcher=joblib", "model.patch=2,3", f"hydra.sweep.dir={tmp_path}")
    done = command("train.py", "-m", *tiny, *given)
    assert done.returncode == 1, done.stderr
    first, second = (status(tmp_path / name) for name in "01")
    assert (first["status"], second["status"]) == ("done", "failed")
    assert "patch size 3" in (tmp_path / "1" / "train.log").read_text()
    assert first["pid"] != second["pid"]
    assert "2 jobs: 1 done, 1 failed" in done.stdout


# --- before a sweep


@pytest.fixture
def composed(make_raw, tmp_path: Path) -> Callable[..., Any]:
    """A function that composes the configuration of a multirun, Hydra's own part included."""
    from hydra import compose, initialize_config_dir

    def make(*overrides: str) -> Any:
        make_raw()  # the schema is registered
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose(
                "config", [*overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}"], return_hydra_config=True
            )

    return make


@pytest.mark.parametrize("launcher", ["joblib", "slurm"])
def test_a_launcher_that_is_not_installed_is_named(
    launcher: str, composed, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Exit code 2 and what to type, in place of Hydra's list of the launchers that there are."""
    monkeypatch.setattr("attractor.lab.sweep.callback.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        SweepCallback().on_multirun_start(composed(f"launcher={launcher}"))
    assert end.value.code == 2
    assert f"uv sync --extra {launcher}" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["joblib", "slurm"])
def test_the_fields_of_a_launcher_are_those_of_its_plugin(launcher: str, composed) -> None:
    """Names and types as the plugin declares them: a typo would show on the cluster only."""
    from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    ours = composed(f"launcher={launcher}").hydra.launcher
    schema = OmegaConf.structured({"joblib": JobLibLauncherConf, "slurm": SlurmQueueConf}[launcher])
    assert ours._target_ == schema._target_
    plain = OmegaConf.to_container(ours, resolve=False)
    plain["cpus_per_task"] = 1
    if launcher == "joblib":
        del plain["cpus_per_task"]
    OmegaConf.merge(schema, plain)


def test_a_sweep_is_not_paused(composed, tmp_path: Path, capsys) -> None:
    """train.stop_after in a sweep is refused before any job; given again it would fail what can go on."""
    with pytest.raises(SystemExit) as end:
        SweepCallback().on_multirun_start(composed("train.stop_after=3"))
    assert end.value.code == 2
    assert "train.stop_after pauses a single run" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_two_sweeps_do_not_share_a_folder(
    composed, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 5 while another sweep is going on there; its end, however it came, frees the folder."""
    monkeypatch.setattr("attractor.lab.sweep.callback._planned", lambda config: {})  # needs a running Hydra
    callback = SweepCallback()
    callback.on_multirun_start(composed("seed=0"))
    with pytest.raises(SystemExit) as end:
        SweepCallback().on_multirun_start(composed("seed=0"))
    assert end.value.code == 5
    assert "another sweep is going on in this folder" in capsys.readouterr().err
    with pytest.raises(OutputError, match="busy"):
        take(tmp_path / "sweep" / ".lock", "busy")
    callback._lock.close()
    take(tmp_path / "sweep" / ".lock", "").close()


def test_a_sweep_folder_that_cannot_be_made_exits_with_5(composed, tmp_path: Path, capsys) -> None:
    """A file in its place is named, before any job is started."""
    (tmp_path / "sweep").touch()
    with pytest.raises(SystemExit) as end:
        SweepCallback().on_multirun_start(composed("seed=0"))
    assert end.value.code == 5
    assert f"error: {tmp_path / 'sweep'} cannot be written" in capsys.readouterr().err


JOBS = {
    "rates": 20,
    "seeds": 5,
    "rules": 6,
    "rules_dynamics": 24,
    "patch_span": 12,
    "representation": 12,
    "images": 10,
    "transients": 5,
}


@pytest.mark.parametrize(("name", "count"), JOBS.items())
def test_the_jobs_of_every_named_sweep_are_valid(
    name: str, count: int, make_config, tmp_path: Path
) -> None:
    """As many jobs as the file says, the first and the last of which compose and validate."""
    file = ROOT / "conf" / "sweep" / f"{name}.yaml"
    params = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    (batch,) = BasicSweeper.split_arguments(parsed, None)
    assert len(batch) == count
    assert f"{count} jobs" in file.read_text()
    configs = [make_config(*overrides, f"folder={tmp_path}") for overrides in (batch[0], batch[-1])]
    assert configs[0] != configs[1]
    assert {path.stem for path in file.parent.iterdir()} == set(JOBS)


def test_the_sweep_file_of_wandb_starts_a_run(make_config, tmp_path: Path) -> None:
    """wandb's own agent makes a command of it that Hydra accepts: arguments without hyphens."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "conf" / "wandb_sweep.yaml").read_text())
    chosen = {"rule.learning_rate": {"value": 0.0123}, "train.jitter": {"value": 0.2}}
    assert sweep["parameters"].keys() == chosen.keys()
    values = create_sweep_command_args({"args": chosen}) | {"program": [sweep["program"]]}
    words: list[str] = []
    for word in create_sweep_command(sweep["command"]):
        words += values[word[2:-1]] if word.startswith("${") else [word]
    assert words[:3] == ["uv", "run", "train.py"]
    config = make_config(*words[3:], f"folder={tmp_path}")
    assert (config.rule.learning_rate, config.train.jitter) == (0.0123, 0.2)
    assert config.wandb.mode.value == "online"
    assert sweep["metric"] == {"name": "objective", "goal": "minimize"}


# --- objective, number of images, downloads


def test_every_objective_is_of_validation_images(train_run, tmp_path: Path) -> None:
    """val, masked, denoise and log_pl as results.json holds them; train returns the one asked for."""
    run = train_run(tmp_path / "run", "objective=denoise")
    results = run.results
    rows = results["selection"]["denoise"].values()
    assert run.score == min(row["validation_mse"] for row in rows) == measured(results, Objective.denoise)
    (row,) = results["selection"]["masked"].values()
    assert measured(results, Objective.masked) == row["validation_mse"]
    assert measured(results, Objective.log_pl) == results["pseudo_likelihood"]["validation"]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    scores = [(line["val/masked"] * line["val/denoise"]) ** 0.5 for line in lines if "val/masked" in line]
    assert measured(results, Objective.val) == pytest.approx(min(scores))
    results["pseudo_likelihood"]["validation"] = float("nan")
    assert measured(results, Objective.log_pl) == float("-inf")


def test_an_objective_of_a_task_that_is_not_run_is_refused(make_config, tmp_path: Path) -> None:
    """Before training, not after it."""
    with pytest.raises(ConfigError, match=r"objective is masked, but task\.names is \['denoise'\]"):
        make_config("task=denoise", "objective=masked", f"folder={tmp_path}")


def test_fewer_training_images_lie_within_more(make_config, tmp_path: Path) -> None:
    """Sets of P images are nested and validation images stay the same, or P would not be what is swept."""
    splits = {
        count: build.build_data(make_config("data=synthetic", f"data.train_images={count}").data)
        for count in (5, 20, "null")
    }
    assert [len(split.train) for split in splits.values()] == [5, 20, 448]
    sets = [{image.numpy().tobytes() for image in split.train} for split in splits.values()]
    assert sets[0] < sets[1] < sets[2]
    assert torch.equal(splits[5].validation, splits["null"].validation)
    assert not torch.equal(
        splits[20].train[:5], splits["null"].train[:5]
    )  # drawn, not the first of the file
    with pytest.raises(ConfigError, match=r"data\.train_images is 449, but synthetic has 448 images"):
        build.build_data(make_config("data=synthetic", "data.train_images=449").data)
    with pytest.raises(ConfigError, match=r"data\.train_images is 0"):
        make_config("data.train_images=0")


def test_runs_on_other_numbers_of_images_share_their_references(
    train_run, make_comparison, tmp_path: Path
) -> None:
    """evaluate.py holds both against references of all training images, whichever comes first."""
    few, all_of_them = (train_run(tmp_path / str(p), f"data.train_images={p}") for p in (20, 448))
    folder = RunFolder(tmp_path / "together", "")
    compare(make_comparison([few.path, all_of_them.path]), folder)
    errors = json.loads((folder.path / "results.json").read_text())["tasks"]["masked"]["models"]
    for name in ("regression", "memory"):
        expected, other = (run.results["tasks"]["masked"]["models"][name] for run in (all_of_them, few))
        assert errors[name]["mse"] == expected["mse"] != other["mse"]


def test_a_lock_is_let_go_of_with_its_holder(tmp_path: Path) -> None:
    """What is left of a process that was killed refuses nobody."""
    handle = take(tmp_path / "lock", "")
    with pytest.raises(OutputError, match="busy"):
        take(tmp_path / "lock", "busy")
    handle.close()
    assert (tmp_path / "lock").exists()
    take(tmp_path / "lock", "busy").close()
    assert RunFolder(tmp_path / "run", "")  # an empty folder is free
