"""Tracking: what wandb is told of a run, seen by a server that takes wandb's own uploads."""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attractor.lab.config.names import WandbMode
from attractor.lab.config.schema import WandbConfig
from attractor.lab.run import channel, tracking
from attractor.lab.run.folder import RunFolder
from attractor.lab.run.metrics import MetricsFile
from attractor.lab.run.provenance import commit
from attractor.lab.run.resuming import continued
from attractor.lab.run.tracking import Tracker
from evaluate import compare
from tests.lab.wandb_server import KEY, Server
from train import train

RESULTS = {
    "tasks": {
        "masked": {
            "models": {
                "net": {
                    "mse": [0.3, 0.2],
                    "std": [0.1, 0.1],
                    "best": {"t": 2, "mse": 0.2},
                    "oracle_best": {"t": 2, "mse": 0.2},
                },
                "memory": {"mse": [0.1], "std": [0.1]},
            }
        }
    }
}


def tracker(mode: str, folder: Path, **more: Any) -> Tracker:
    folder.mkdir(parents=True, exist_ok=True)
    return Tracker(
        WandbConfig(mode=WandbMode(mode), **more),
        folder=folder,
        name="a run",
        job_type="train",
        settings={"seed": 0},
    )


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """One that works, and is where WANDB_BASE_URL points."""
    with Server().running() as working:
        for name, value in working.environment.items():
            monkeypatch.setenv(name, value)
        yield working


def upload(said: str) -> None:
    """Run the last command that was printed."""
    (command,) = [line.partition("uv run ")[2] for line in said.splitlines() if "upload with: " in line]
    words = shlex.split(command)
    assert words[:2] == ["wandb", "sync"]
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def only(values: Any) -> Any:
    (value,) = values
    return value


def test_disabled_never_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every call is a no-op, in a folder that is not even there: no process, warning, file, command."""
    monkeypatch.setattr(channel.subprocess, "Popen", lambda *given, **more: pytest.fail("it started"))
    settings: dict[str, Any] = {"name": "a", "job_type": "train", "settings": {}}
    config = WandbConfig(mode=WandbMode.disabled)
    with Tracker(config, folder=tmp_path / "none", **settings) as disabled:
        disabled.log(1, {"train/rate": 0.1})
        disabled.results(RESULTS)
        disabled.images({"picture": tmp_path / "none.png"})
    silent = Tracker(WandbConfig(), folder=tmp_path / "none", silent=True, **settings)
    with silent:  # another process tracks
        silent.log(1, {"train/rate": 0.1})
    assert (disabled.sync_command, silent.sync_command) == (None, None)
    assert not warnings_of(caplog)
    assert not list(tmp_path.iterdir())


def test_the_commands_import_no_wandb(root: Path) -> None:
    """wandb is for the witness alone: in the run it takes seconds, threads and memory."""
    code = "import sys, train, evaluate; sys.exit('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=120)
    assert done.returncode == 0


def test_an_offline_run_is_uploaded_by_the_command_that_it_prints(
    train_run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder with spaces; wandb's own sync brings all of it to the server, and nothing did before.

    Scalars under train/, val/ and physics/, one result table, curves of both tasks, pictures and GIFs by
    path, headline numbers, the configuration with commit, parameters and device, a name that tells model,
    data and seed. Nothing but wandb's logs goes to the home folder, and nothing stays in the temporary one.
    """
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    run = train_run(tmp_path / "a run", "wandb=offline", "figures=true")
    assert not server.requests
    assert not list((tmp_path / "tmp").iterdir())
    assert {path.suffix for path in (tmp_path / "home").rglob("*") if path.is_file()} <= {".log"}
    assert not (tmp_path / "wandb").exists()
    assert "upload with: uv run wandb sync 'a run/wandb/offline-run-" in run.output

    upload(run.output)
    identity, told = only(server.runs.items())
    assert (run.path / "wandb" / "id").read_text() == identity
    assert told["displayName"] == "bare_attention-synthetic-seed0"
    assert told["jobType"] == "train"
    config = {name: entry["value"] for name, entry in json.loads(told["config"]).items() if name[0] != "_"}
    assert config["train"]["steps"] == 6
    assert (config["parameters"], config["device"]) == (15_360, "cpu")
    assert config["git"] == commit()

    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    history = {line["_step"]: line for line in server.history[identity].values()}
    for line in metrics:
        step = line.pop("step")
        del line["time"]
        assert {name: value for name, value in history[step].items() if name in line} == line
    assert {"val/masked", "val/denoise", "physics/log_pl", "physics/overlap"} <= history[6].keys()

    summary = json.loads(server.files["wandb-summary.json"])
    for task, row in (("masked", "bare_attention"), ("denoise", "bare_attention+evidence")):
        error = run.results["tasks"][task]["models"][row]["best"]["mse"]
        assert summary[f"{task}/{row}"] == pytest.approx(error)
    tables = {name: json.loads(body) for name, body in server.files.items() if ".table." in name}
    table = only(body for name, body in tables.items() if "/results_" in name)
    assert table["columns"] == ["model", "masked mse", "masked t", "denoise mse", "denoise t"]
    assert [row[0] for row in table["data"]][:1] == ["bare_attention"]
    for task in ("masked", "denoise"):
        curves = only(body for name, body in tables.items() if f"/{task}/curves_" in name)
        for model, t, error, _ in curves["data"]:
            assert error == run.results["tasks"][task]["models"][model]["mse"][t - 1]
        chart = only(body for name, body in tables.items() if f"/{task}/error_table_" in name)
        assert {line for _, line, _ in chart["data"]} >= {"bare self-attention", "softmax memory"}
    media = {
        Path(name).name.rpartition("_")[0].rpartition("_")[0] for name in server.files if "media/" in name
    }
    assert {"error_curves", "grid_masked", "trajectory_masked", "trajectory_denoise"} <= media
    assert any(name.endswith(".gif") for name in server.files)


def test_a_resumed_run_keeps_its_id_and_tells_nothing_twice(
    train_run, make_raw, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Interrupted at step 6, gone on with from 3, all parts uploaded by the one command: steps 1 to 8 once.

    Two runs in wandb, or a history that goes back, would have to be put together by hand.
    """
    write = MetricsFile.write

    def write_or_stop(self: MetricsFile, step: int, values: dict[str, float | None]) -> None:
        write(self, step, values)
        if step == 6:
            raise RuntimeError("interrupted")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write", write_or_stop)
        with pytest.raises(RuntimeError, match="interrupted"):
            train_run(folder, "wandb=offline", "train.steps=8", "train.validate_every=3")
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    given = (f"resume={folder}",)
    config, path = continued(make_raw(*given), given)
    capsys.readouterr()
    train(config, RunFolder(path, "", resumed=True))
    upload(capsys.readouterr().out)
    identity = only(server.runs)
    assert only({part.name.rpartition("-")[2] for part in (folder / "wandb").glob("offline-*")}) == identity
    lines = [server.history[identity][offset] for offset in sorted(server.history[identity])]
    steps = [line["_step"] for line in lines if "train/rate" in line]
    assert steps == list(range(1, 9))
    assert [line["_step"] for line in lines] == sorted({line["_step"] for line in lines})


def test_a_run_goes_on_online_under_its_id(server: Server, tmp_path: Path) -> None:
    """The same with a server: the second part is the first one's run, and its steps follow."""
    for first, last in ((1, 4), (3, 6)):
        with tracker("online", tmp_path) as online, (tmp_path / "metrics.jsonl").open("w") as metrics:
            for step in range(first, last):
                metrics.write(json.dumps({"step": step}) + "\n")
                online.log(step, {"train/rate": step / 10})
        assert online.sync_command is None
    history = only(server.history.values())
    assert [(line["_step"], line["train/rate"]) for line in history.values()] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 0.4),
        (5, 0.5),
    ]


def test_jobs_of_a_sweep_are_one_group(root: Path, tiny, server: Server, tmp_path: Path) -> None:
    """Two jobs of a multirun in one process: two runs, named by their seeds, in the sweep's group.

    wandb.init in a process whose first run never finished would have returned that run again.
    """
    done = subprocess.run(
        [
            *(sys.executable, "train.py", "-m", *tiny, "wandb=online", "seed=0,1", "train.steps=2"),
            f"hydra.sweep.dir={tmp_path / 'rates'}",
        ],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = sorted((run["displayName"], run["groupName"]) for run in server.runs.values())
    assert told == [(f"bare_attention-synthetic-seed{seed}", "rates") for seed in (0, 1)]
    assert list(server.exit_codes.values()) == [0, 0]
    assert done.stdout.count(f"tracked at   {server.url}/me/attractor/runs/") == 2
    assert "upload with" not in done.stdout


def test_a_comparison_is_an_eval_job(
    trained, make_comparison, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """evaluate.py tracks too, in the group that it is given, and says where."""
    config = make_comparison([trained.path], "wandb=online", "wandb.group=mine", "figures=true")
    compare(config, RunFolder(tmp_path / "eval", ""))
    told = only(server.runs.values())
    assert (told["jobType"], told["groupName"]) == ("eval", "mine")
    assert told["displayName"] == "evaluate-synthetic-1-runs"
    assert f"tracked at   {server.url}" in capsys.readouterr().out
    assert any("/results_" in name for name in server.files)
    assert any("error_curves" in name for name in server.files)


def test_a_run_that_failed_is_finished_as_failed(server: Server, tmp_path: Path) -> None:
    """A crashed run must not look finished in wandb; what it told before is there."""

    def run() -> None:
        with tracker("online", tmp_path) as failed:
            failed.log(3, {"train/rate": 0.5})
            raise RuntimeError("surprise")

    with pytest.raises(RuntimeError, match="surprise"):
        run()
    assert list(server.exit_codes.values()) == [1]
    assert [line["train/rate"] for line in only(server.history.values()).values()] == [0.5]


def test_online_without_a_key_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, no prompt: a run on a cluster would wait for an answer for ever."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where no key is
    with Server().running() as unasked:
        monkeypatch.setenv("WANDB_BASE_URL", unasked.url)
        with tracker("online", tmp_path / "run") as online:
            online.log(1, {"train/rate": 0.1})
        assert not unasked.requests
    assert "no key" in only(warnings_of(caplog))
    assert online.sync_command is not None


def test_a_key_that_is_none_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """wandb raises at a key that is too short: one warning with its reason, and the run goes on."""
    monkeypatch.setenv("WANDB_API_KEY", KEY[:5])
    with tracker("online", tmp_path / "run") as online:
        online.log(1, {"train/rate": 0.1})
    assert "key" in only(warnings_of(caplog)).lower()


def test_what_wandb_cannot_take_costs_that_alone(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A picture that is not there: one warning; numbers before and after it arrive, and the run is done."""
    picture = tmp_path / "picture.png"
    Image.new("L", (4, 4)).save(picture)
    with tracker("online", tmp_path / "run") as online:
        online.log(1, {"train/rate": 0.1})
        online.images({"missing": tmp_path / "missing.png"})
        online.images({"picture": picture})
        online.log(2, {"train/rate": 0.2})
        online.results(RESULTS)
    warning = only(warnings_of(caplog))
    assert "'media'" in warning
    assert "missing.png" in warning
    history = only(server.history.values())
    assert [line["train/rate"] for line in history.values() if "train/rate" in line] == [0.1, 0.2]
    assert json.loads(server.files["wandb-summary.json"])["masked/net"] == 0.2
    assert list(server.exit_codes.values()) == [0]


@pytest.mark.parametrize("interrupted", [False, True], ids=["wait_seconds", "interrupted"])
def test_a_witness_that_stands_still_holds_nobody_up(
    interrupted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Stopped, with more to tell than a pipe holds: no call waits, the end waits as long as it may.

    A run that was told to end waits less: its scheduler will not wait for it.
    """
    monkeypatch.setattr(tracking, "_INTERRUPTED", 0.5)
    stopped = tracker("offline", tmp_path, wait_seconds=100.0 if interrupted else 0.5)
    stopped.__enter__()
    assert stopped._channel is not None
    process = stopped._channel._process
    os.kill(process.pid, signal.SIGSTOP)
    begin = time.monotonic()
    for step in range(1, 3000):
        stopped.log(step, {"train/rate": 0.1, "train/log_pseudo_likelihood": 1.0})
    assert time.monotonic() - begin < 5
    error = KeyboardInterrupt() if interrupted else None
    begin = time.monotonic()
    stopped.__exit__(type(error) if error else None, error, None)
    assert 0.5 <= time.monotonic() - begin < 5
    assert "it took more than 0.5 s" in only(warnings_of(caplog))
    assert process.returncode == -signal.SIGKILL


def test_a_witness_that_cannot_start_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No process can be started, or wandb is not installed: the run goes on, without a command."""

    def refuse(*given: Any, **more: Any) -> None:
        raise OSError("no more processes")

    with monkeypatch.context() as patch:
        patch.setattr(channel.subprocess, "Popen", refuse)
        with tracker("offline", tmp_path / "first") as none:
            none.log(1, {"train/rate": 0.1})
    assert "no more processes" in only(warnings_of(caplog))
    caplog.clear()
    (tmp_path / "wandb.py").write_text("raise ImportError('there is no wandb')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with tracker("offline", tmp_path / "second") as without:
        without.log(1, {"train/rate": 0.1})
        without.results(RESULTS)
    assert "there is no wandb" in only(warnings_of(caplog))
    assert (none.sync_command, without.sync_command) == (None, None)


def test_an_agent_of_a_wandb_sweep_has_chosen_the_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WANDB_RUN_ID is kept: under another id, the sweep's server would wait for a run that never comes."""
    monkeypatch.setenv("WANDB_RUN_ID", "chosen12")
    with tracker("offline", tmp_path):
        pass
    assert only((tmp_path / "wandb").glob("offline-run-*")).name.endswith("-chosen12")


def test_the_commit_is_that_of_the_code(tmp_path: Path) -> None:
    """Commit and changes of the repository that tracks the code; None for code that no git tracks."""

    def git(*words: str) -> str:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *names, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    assert commit(package) is None
    (package / "code.py").write_text("1")
    git("init")
    assert commit(package) is None  # installed into the repository of somebody else
    git("add", ".")
    git("commit", "-m", "first")
    clean = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert commit(package) == clean
    (package / "notes.txt").write_text("not tracked")
    assert commit(package) == clean
    (package / "code.py").write_text("2")
    assert commit(package) == clean | {"dirty": True}
