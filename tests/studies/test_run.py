"""The frame of the studies: folder, results, errors, and what else reads a run folder."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException

from attractor.lab.errors import ConfigError
from attractor.lab.experiment.processes import Processes
from attractor.lab.run.finished import load_run
from attractor.lab.run.resuming import continued
from attractor.lab.sweep import jobs
from attractor.lab.sweep.table import collect
from attractor.lab.sweep.text import printed
from attractor.physics import Ranks
from attractor.studies.config import THEORY_SCHEMAS
from attractor.studies.run import name_of

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A study that measures the seed, in the place of fast_weights."""
    made: Any = ModuleType("attractor.studies.fast_weights")
    made.check = lambda config: None
    made.check_data = lambda config, splits: None
    made.measure = lambda config, splits, tell: {"headline": {"seed squared": float(config.seed**2)}}
    made.table = lambda results: f"found {results['headline']['seed squared']}"
    made.draw = lambda results, folder: {}
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_every_study_has_a_file_an_experiment_and_a_module() -> None:
    """One name for the class, conf/theory, conf/experiment and the module: `run` finds them by it."""
    for name, schema in THEORY_SCHEMAS.items():
        assert name_of(schema()) == name
        assert (CONF / "theory" / f"{name}.yaml").is_file()
        assert f"override /theory: {name}" in (CONF / "experiment" / f"{name}.yaml").read_text()
        assert (CONF.parent / "attractor" / "studies" / name / "__init__.py").is_file()


def test_a_study_leaves_a_run_folder(
    module: ModuleType, study_run: Callable[..., Any], tmp_path: Path
) -> None:
    """results.json has what was measured and what it came from; the table is said and kept."""
    done = study_run(tmp_path / "run", "experiment=fast_weights", "seed=3")
    assert done.results["theory"] == "fast_weights"
    assert (done.results["seed"], done.results["headline"]) == (3, {"seed squared": 9.0})
    assert "found 9.0" in done.output
    assert done.output.rpartition("in short")[2].split()[:3] == ["9", "seed", "squared"]
    assert "found 9.0" in (done.path / "train.log").read_text()
    assert json.loads((done.path / "status.json").read_text())["status"] == "done"
    assert not (done.path / "checkpoints").exists()


@pytest.mark.parametrize("name", ["check", "check_data"])
def test_a_study_that_cannot_run_leaves_nothing(
    name: str, module: Any, study_run: Callable[..., Any], tmp_path: Path
) -> None:
    """What a study refuses is refused before the folder is made, of the images too."""

    def refuse(*args: object) -> None:
        raise ConfigError("theory.seeds is 0")

    setattr(module, name, refuse)
    with pytest.raises(ConfigError, match=r"theory\.seeds is 0"):
        study_run(tmp_path / "run", "experiment=fast_weights")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["max_seconds", "patience", "stop_after"])
def test_limits_of_trainings_are_refused(
    field: str, module: Any, study_run: Callable[..., Any], tmp_path: Path
) -> None:
    """A limit that did nothing would be believed."""
    with pytest.raises(ConfigError, match=f"train.{field} is for trainings"):
        study_run(tmp_path / "run", "experiment=fast_weights", f"train.{field}=3")


def test_a_field_of_no_study_is_refused_by_name(make_config: Callable[..., Any]) -> None:
    """theory.stored without a study is a typo, and not a traceback."""
    with pytest.raises(ConfigCompositionException, match=r"theory\.stored"):
        make_config("theory.stored=[2]")


def test_an_interrupted_study_begins_anew(
    module: Any, study_run: Callable[..., Any], make_raw: Callable[..., Any], tmp_path: Path
) -> None:
    """It has no checkpoint; resume says what to do, and of a finished one that it is done."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    kept = module.measure
    module.measure = interrupted
    with pytest.raises(KeyboardInterrupt):
        study_run(tmp_path / "run", "experiment=fast_weights")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "killed"
    raw = make_raw(f"resume={tmp_path / 'run'}")
    with pytest.raises(ConfigError, match="keeps no checkpoints, and begins anew; remove this folder"):
        continued(raw, [])
    module.measure = kept
    study_run(tmp_path / "done", "experiment=fast_weights")
    with pytest.raises(ConfigError, match="this run is done"):
        continued(make_raw(f"resume={tmp_path / 'done'}"), [])


def test_one_process(module: ModuleType, make_config: Callable[..., Any]) -> None:
    """Several would all write the same results."""
    from attractor.studies.run import study

    config = make_config("experiment=fast_weights")
    with pytest.raises(ConfigError, match="one process"):
        study(config, None, Processes(Ranks(0, 2)))  # type: ignore[arg-type]


def test_a_study_is_no_trained_network(
    module: ModuleType, study_run: Callable[..., Any], tmp_path: Path
) -> None:
    """evaluate.py and load_run say what the folder holds, not that it is damaged."""
    study_run(tmp_path / "run", "experiment=fast_weights")
    with pytest.raises(ConfigError, match="holds a study, fast_weights, and no trained network"):
        load_run(tmp_path / "run")


def test_a_sweep_of_studies_is_collected(
    module: ModuleType, study_run: Callable[..., Any], tmp_path: Path
) -> None:
    """Mean and deviation of the headline over seeds; nothing is best, as nothing is optimised."""
    for seed in (1, 2):
        study_run(tmp_path / str(seed), "experiment=fast_weights", f"seed={seed}")
    assert jobs.read(tmp_path / "1").metrics == {"seed squared": 1.0}
    table = collect(tmp_path)
    text = printed(table)
    assert "2.5000 ± 2.1213" in text
    assert "best" not in text
