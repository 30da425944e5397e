"""Several processes, started by torchrun as a user starts them: the same numbers, and one end for all."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from attractor.lab.config.names import MapName
from attractor.lab.errors import ConfigError, Terminated
from attractor.lab.experiment.build import build_network
from attractor.lab.experiment.processes import Processes, joined, launched, refuse_clocks, refuse_draws
from attractor.lab.run import checkpoints
from attractor.lab.run.folder import RunFolder
from attractor.lab.run.resuming import continued
from attractor.physics import Backend, Ranks
from attractor.physics.processes import LostProcessError
from train import train

ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).parents[1] / "worker.py"
# training that is long enough to be interrupted, and an evaluation that never ends
LONG = (
    "train.steps=60",
    "train.validate_every=20",
    "dynamics.maps=[mean_field]",
    "dynamics.inertias=[30.0]",
    "dynamics.evidence=[]",
    "eval.steps=100000000",
)

Torchrun = Callable[..., Any]


@pytest.fixture
def torchrun(tiny: tuple[str, ...]) -> Torchrun:
    """A function that starts processes of train.py, or of the worker; all are ended after the test."""

    @contextmanager
    def start(count: int, *overrides: str, script: Path = ROOT / "train.py", **more: str) -> Iterator[Any]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        given = () if any(word.startswith("resume=") for word in overrides) else tiny
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc-per-node={count}", str(script), *given, *overrides),
            ],
            cwd=ROOT,
            env=kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()  # it ends what it has started
            process.communicate(timeout=60)

    return start


def ended(process: Any, *, within: float = 300.0) -> tuple[int, list[str]]:
    """The exit code, and the lines that were printed."""
    said, _ = process.communicate(timeout=within)
    return process.returncode, said.replace("\r", "\n").splitlines()


def processes_of(torchrun: Any, count: int) -> dict[int, int]:
    """rank -> process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "environ").read_text().split("\0")
        except OSError:  # it has ended
            continue
        ranks = [int(word.removeprefix("RANK=")) for word in words if word.startswith("RANK=")]
        if parent == torchrun.pid and ranks:
            found[ranks[0]] = int(folder.name)
    assert sorted(found) == list(range(count))
    return found


def kill_one(torchrun: Any, rank: int, *, of: int) -> list[str]:
    """End one of the processes without a word; all must be gone within 60 s. Returns what was printed."""
    running = processes_of(torchrun, of)
    os.kill(running[rank], signal.SIGKILL)
    code, said = ended(torchrun, within=60)
    assert code != 0
    assert not [pid for pid in running.values() if Path(f"/proc/{pid}").exists()]
    return said


def wait_for(process: Any, sign: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not sign():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trained_steps(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    specification = importlib.util.spec_from_file_location("worker", WORKER)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def alone(worker: ModuleType) -> dict[Backend, tuple[dict[str, Any], dict[str, Any]]]:
    """What one process measures."""
    return {backend: worker.measured(Processes(), backend) for backend in (Backend.eager, Backend.auto)}


@pytest.mark.parametrize("count", [2, 3])
def test_processes_agree_to_the_last_bit(
    count: int, alone, trained, read_scenes, torchrun: Torchrun, tmp_path: Path
) -> None:
    """Couplings after 8 steps, states after 8 iterations and results.json are those of one process.

    For every kind of couplings, drawn rows, and both backends; 16 rows are shared 8 and 8, or 4, 4 and 8.
    A batch, a jitter or a random start that depends on the process would differ at once; blocks of rows
    that are cut elsewhere than in one process, in the last bits.
    """
    folder = tmp_path / "run"
    overrides = (f"folder={folder}", f"figures={'true' if count == 2 else 'false'}")
    with torchrun(count, *overrides, script=WORKER, MEASURED=str(tmp_path)) as process:
        code, said = ended(process)
    assert code == 0, "\n".join(said)
    files = [load_file(tmp_path / f"rank-{rank}.safetensors") for rank in range(count)]
    for backend, (couplings, states) in alone.items():
        for name, whole in couplings.items():
            assert whole.any()
            assert torch.equal(torch.cat([f[f"{backend.value} couplings {name}"] for f in files]), whole)
        for name, state in states.items():
            assert state.any()
            assert all(torch.equal(file[f"{backend.value} states {name}"], state) for file in files)

    results = json.loads((folder / "results.json").read_text())
    for key in ("tasks", "selection", "pseudo_likelihood"):
        assert results[key] == trained.results[key]
    assert results["cost"]["processes"] == count
    assert trained.results["cost"]["processes"] == 1
    assert len([line for line in said if line.startswith("run folder")]) == 1
    assert any(line.endswith(f", {count} processes") for line in said)
    assert status(folder)["status"] == "done"
    if count == 2:
        drawn, expected = ({f.name for f in (p / "figures").iterdir()} for p in (folder, trained.path))
        assert drawn == expected
        for name in drawn:
            # the curve of training has the objective at validations only, see below
            if name.endswith(".png") and name != "training.png":
                mine, theirs = ((p / "figures" / name).read_bytes() for p in (folder, trained.path))
                assert mine == theirs, name
        assert read_scenes(folder) == read_scenes(trained.path)

    # the objective is known at validations only, and there it is that of all rows
    mine, theirs = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (folder, trained.path)
    )
    for line, other in zip(mine, theirs, strict=True):
        assert {k: v for k, v in line.items() if k.startswith("val/")} == {
            k: v for k, v in other.items() if k.startswith("val/")
        }
        assert ("train/log_pseudo_likelihood" in line) == ("val/masked" in line)
        physics = {name for name in line if name.startswith("physics/")}
        assert bool(physics) == ("val/masked" in line)
        for name in line.keys() & {"train/log_pseudo_likelihood"} | physics:
            assert line[name] == pytest.approx(other[name], rel=1e-6)


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are looked up in /proc")
def test_a_killed_run_goes_on_with_any_number_of_processes(
    torchrun: Torchrun, train_run, make_raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved by 2, gone on with by 1 and by 3: the couplings of a run that was never interrupted.

    On the way a process is killed in training, and one in evaluation, where the others wait for its rows:
    all of them end within 60 s with an exit code that is not 0, and the first one says so. SIGTERM ends
    them all without saving the step they are in, and what they had saved is whole.
    """
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with torchrun(2, *LONG, f"folder={killed}") as process:
        wait_for(process, lambda: trained_steps(killed) >= 25)
        kill_one(process, 1, of=2)
    left = trained_steps(killed)
    assert status(killed)["status"] in ("killed", "failed")
    assert "torchrun" in status(killed)["error"]
    assert checkpoints.found(killed / "checkpoints")[-1] <= left < 60
    one, three = (Path(shutil.copytree(killed, tmp_path / name)) for name in ("one", "three"))
    terminated = tmp_path / "terminated"
    with torchrun(2, *LONG, f"folder={terminated}") as process:
        wait_for(process, lambda: trained_steps(terminated) >= 25)
        running = processes_of(process, 2)
        process.terminate()
        assert ended(process, within=60)[0] != 0
        assert not [pid for pid in running.values() if Path(f"/proc/{pid}").exists()]
    assert status(terminated)["status"] == "killed"
    assert status(terminated)["error"].startswith("Terminated: SIGTERM")
    step, damaged = checkpoints.newest_whole(terminated / "checkpoints")
    assert (step % 20, damaged) == (0, [])

    with torchrun(3, f"resume={three}") as process:
        wait_for(process, lambda: (three / "checkpoints" / "step-60").exists())
        said = kill_one(process, 2, of=3)
    assert any(line.startswith("going on from step ") for line in said)
    assert len([line for line in said if line.startswith("error: ")]) == 1

    class Trained(Exception):
        pass

    def stop(*given: Any, **settings: Any) -> None:
        raise Trained

    monkeypatch.setattr("train.assessment.choose_retrievals", stop)
    for folder in (one, terminated):
        config, path = continued(make_raw(f"resume={folder}"), [f"resume={folder}"])
        with pytest.raises(Trained):
            train(config, RunFolder(path, "", resumed=True))
    with pytest.raises(Trained):
        train_run(whole, *LONG)
    expected = checkpoints.load(whole / "checkpoints")
    assert expected.step == 60
    for folder in (one, three, terminated):
        found = checkpoints.load(folder / "checkpoints")
        assert found.step == 60
        assert found.position.best_step == expected.position.best_step
        for group in ("weights", "optimiser", "generators"):
            mine, theirs = getattr(found, group), getattr(expected, group)
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines == list(range(1, 61))


def test_the_error_of_one_process_ends_all_and_is_known(torchrun: Torchrun, tmp_path: Path) -> None:
    """Process 1 cannot write its rows: status.json, which is process 0's, says whose error it was.

    The half-written checkpoint has no name, and the one before it stays.
    """
    folder = tmp_path / "run"
    with torchrun(2, f"folder={folder}", script=WORKER, FAILS="1") as process:
        code, said = ended(process)
    assert code != 0
    after = status(folder)
    assert after["status"] in ("failed", "killed")
    reason = "rank 1: OSError: [Errno 28] No space left on device"
    assert reason in after["error"]
    assert any(line.startswith("error: ") and reason in line for line in said)
    assert checkpoints.found(folder / "checkpoints") == [2]
    assert checkpoints.load(folder / "checkpoints").step == 2


def test_a_signal_does_not_stop_the_search_for_the_reason() -> None:
    """torchrun's SIGTERM may arrive while a process that has lost a peer asks why: it still says so."""
    asked = []

    class Store:
        def check(self, keys: list[str]) -> bool:
            asked.append(keys)
            if len(asked) == 1:
                raise Terminated("SIGTERM")
            return True

        def get(self, key: str) -> bytes:
            return b"rank 1: OSError: no space"

    processes = Processes(store=Store())  # type: ignore[arg-type]
    with (
        pytest.raises(LostProcessError, match=r"lost \(rank 1: OSError: no space\)"),
        processes.last_words(),
    ):
        raise LostProcessError("lost")
    assert len(asked) == 2


def test_an_error_of_all_is_said_once(torchrun: Torchrun, tmp_path: Path) -> None:
    """4 tokens are one block of rows: a second process would have none. One line, not one from each."""
    with torchrun(2, "model.patch=4", f"folder={tmp_path / 'run'}") as process:
        code, said = ended(process)
    assert code != 0
    assert [line for line in said if line.startswith("error: ")] == [
        "error: 2 processes cannot share 4 rows in cells of 4; use at most 1"
    ]
    assert not (tmp_path / "run").exists()


def test_too_many_processes_are_refused(make_config) -> None:
    """16 tokens are four blocks of rows; the fifth process finds out before any work (ConfigError)."""
    mean = torch.full((1, 8, 8), 0.5)
    for rank in range(4):
        network = build_network(make_config().model, mean, seed=0, ranks=Ranks(rank, 4))
        assert network.energy.couplings.rows == range(4 * rank, 4 * rank + 4)
    with pytest.raises(ConfigError, match=r"5 processes cannot share 16 rows .*use at most 4"):
        build_network(make_config().model, mean, seed=0, ranks=Ranks(0, 5))


def test_draws_are_not_shared(make_config) -> None:
    """gibbs under several processes is refused before any work; one process draws as it likes."""
    maps = make_config("dynamics.maps=[attention,gibbs]").dynamics.maps
    refuse_draws(maps, Processes())
    refuse_draws([MapName.attention], Processes(Ranks(1, 2)))
    with pytest.raises(ConfigError, match="gibbs draws at random"):
        refuse_draws(maps, Processes(Ranks(1, 2)))


def test_clocks_are_not_shared() -> None:
    """Each process would follow its own: other rates, another last step, rows of different couplings."""
    refuse_clocks(10.0, Processes())
    refuse_clocks(None, Processes(Ranks(1, 2)))
    with pytest.raises(ConfigError, match=r"train\.max_seconds is 10"):
        refuse_clocks(10.0, Processes(Ranks(1, 2)))


def test_without_torchrun_a_run_is_alone(make_config, monkeypatch: pytest.MonkeyPatch) -> None:
    """No WORLD_SIZE, or one of 1: no process group. One that torchrun did not set is a ConfigError."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined(make_config().device) as processes:
        assert (processes.count, processes.first, processes.of_first("x")) == (1, True, "x")
        assert processes.row_mean(0.1, 3) == 0.1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2, but .*torchrun"), joined(make_config().device):
        pytest.fail("there is nobody to meet")
