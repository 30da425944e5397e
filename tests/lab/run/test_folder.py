"""The run folder: one run each, and a true word on what became of it."""

import errno
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from attractor.images import DataError
from attractor.lab.errors import (
    CheckpointError,
    ConfigError,
    OutputError,
    Terminated,
    configuring,
    exit_code,
)
from attractor.lab.run.folder import RunFolder
from attractor.lab.run.metrics import MetricsFile
from attractor.physics import NonFiniteError


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def status(folder: RunFolder) -> dict[str, Any]:
    return json.loads((folder.path / "status.json").read_text())


def test_nothing_is_written_before_the_job(tmp_path: Path) -> None:
    """A run that is refused while it is built leaves no folder that the next one would trip over."""
    RunFolder(tmp_path / "a" / "run", "seed: 0\n")
    assert not (tmp_path / "a").exists()


def test_a_run_that_went_well(tmp_path: Path) -> None:
    """running while the body runs, then done, with its times; config.yaml is what was given."""
    folder = RunFolder(tmp_path / "a" / "run", "seed: 0\n")
    with folder.job():
        inside = status(folder)
        assert inside["status"] == "running"
        assert inside["pid"] == os.getpid()
    after = status(folder)
    assert after["status"] == "done"
    assert after["begin"] <= after["end"]
    assert "error" not in after
    assert (folder.path / "config.yaml").read_text() == "seed: 0\n"


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    """OutputError, and byte for byte the same folder: a second run must not overwrite the first."""
    folder = RunFolder(tmp_path / "run", "seed: 0\n")
    with folder.job():
        folder.write_json("results.json", {"schema": 1})
    before = contents(folder.path)
    with pytest.raises(OutputError, match="already holds a run; nothing was changed"):
        RunFolder(tmp_path / "run", "seed: 1\n")
    assert contents(folder.path) == before


def test_of_two_jobs_that_race_one_is_refused(tmp_path: Path) -> None:
    """Both saw an empty folder; the one that comes second is refused and leaves the first one's status."""
    first, second = (RunFolder(tmp_path / "run", f"seed: {seed}\n") for seed in (0, 1))
    with first.job():
        before = contents(first.path)
        with pytest.raises(OutputError, match="already holds a run"), second.job():
            pytest.fail("two jobs in one folder")
        assert contents(first.path) == before
    assert status(first)["status"] == "done"


def test_a_status_is_whole_whenever_one_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the moment it is first written: empty, it would tell the others of a run that nobody has."""
    folder = RunFolder(tmp_path / "run", "seed: 0\n")
    written, seen = folder._status, []

    def look(*given: Any, **more: Any) -> dict[str, Any]:
        seen.append((tmp_path / "run" / "status.json").exists() and status(folder)["status"])
        return written(*given, **more)

    monkeypatch.setattr(folder, "_status", look)
    with folder.job():
        pass
    assert seen == [False, "running", "running"]
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run starts there too, and of two one is still refused."""

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    first, second = (RunFolder(tmp_path / "run", f"seed: {seed}\n") for seed in (0, 1))
    with (
        first.job(),
        pytest.raises(OutputError, match="already holds a run"),
        second.job(),
    ):
        pytest.fail("two jobs in one folder")
    assert status(first)["status"] == "done"


def test_what_a_killed_start_has_left_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL before status.json has its name: the folder holds no run, and takes one."""

    def killed(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "hardlink_to", killed)
        patch.setattr(Path, "unlink", lambda path, missing_ok: None)  # what is killed tidies nothing
        with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "run", "").job():
            pytest.fail("it was killed before")
    (left,) = (tmp_path / "run").iterdir()
    assert left.name.endswith(".writing")
    folder = RunFolder(tmp_path / "run", "")
    with folder.job():
        pass
    assert status(folder)["status"] == "done"


@pytest.mark.parametrize("name", ["lr=0.1", "a,b"])
def test_names_that_hydra_cannot_take_back_are_refused(name: str, tmp_path: Path) -> None:
    """`=` and `,` mean something in an override: such a folder could not be given to evaluate.py."""
    with pytest.raises(OutputError, match="'=' or ','"):
        RunFolder(tmp_path / name, "")


def test_a_parent_that_cannot_be_written(tmp_path: Path) -> None:
    """A parent that is a file (as root, no permission stops us) is OutputError, and so exit code 5."""
    (tmp_path / "file").write_text("kept")
    folder = RunFolder(tmp_path / "file" / "run", "")
    with pytest.raises(OutputError, match="cannot be written"), folder.job():
        pytest.fail("there is no folder to work in")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    """A file of that name holds no run: the message must not send anyone to look for one."""
    (tmp_path / "run").write_text("kept")
    with pytest.raises(OutputError) as caught, RunFolder(tmp_path / "run", "").job():
        pytest.fail("there is no folder to work in")
    assert "holds a run" not in str(caught.value)
    assert (tmp_path / "run").read_text() == "kept"


@pytest.mark.parametrize(
    ("error", "word", "code"),
    [
        (ConfigError("no"), "failed", 2),
        (NonFiniteError("at step 3"), "failed", 3),
        (CheckpointError("damaged"), "failed", 4),
        (OutputError("full"), "failed", 5),
        (DataError("missing"), "failed", 6),
        (RuntimeError("surprise"), "failed", 1),
        (KeyboardInterrupt(), "killed", 130),
        (Terminated("SIGTERM"), "killed", 143),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_run_ended(error: BaseException, word: str, code: int, tmp_path: Path) -> None:
    """The error passes through; status.json has its name and exit code, train.log its traceback.

    What was killed and what failed are told apart: only the second is worth a look at the code.
    """
    folder = RunFolder(tmp_path / "run", "")
    with pytest.raises(type(error)) as caught, folder.job():
        raise error
    assert caught.value is error
    assert exit_code(error) == code
    after = status(folder)
    assert (after["status"], after["exit_code"]) == (word, code)
    assert after["error"].startswith(type(error).__name__)
    assert str(error) in after["error"]
    trace = (folder.path / "train.log").read_text()
    assert "Traceback" in trace
    assert "in test_how_a_run_ended" in trace
    assert type(error).__name__ in trace


def test_exit_codes_know_subclasses() -> None:
    """A subclass has the code of its kind; a plain ValueError is unexpected although DataError is one."""

    class Diverged(NonFiniteError):
        pass

    assert exit_code(Diverged()) == 3
    assert exit_code(ValueError()) == 1
    assert exit_code(SystemExit()) == 1


def test_configuring_turns_value_errors_into_config_errors() -> None:
    """A ValueError of an object is the user's mistake, exit code 2; a DataError stays what it is, 6."""
    with pytest.raises(ConfigError, match="span is 0") as caught, configuring():
        raise ValueError("span is 0")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(DataError), configuring():
        raise DataError("missing")


def test_sigterm_ends_the_job(tmp_path: Path) -> None:
    """SIGTERM raises Terminated in the body, the status is killed, and the old handler is put back.

    By default the process would end at once: a status of running for ever, and buffers lost.
    """
    folder = RunFolder(tmp_path / "run", "")
    reached = []

    def mine(signum: int, frame: object) -> None: ...

    def body() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        reached.extend(range(1000))  # the handler runs between two bytecodes
        reached.append("the end")

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(Terminated), folder.job():
            body()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "the end" not in reached
    after = status(folder)
    assert (after["status"], after["exit_code"]) == ("killed", 143)


def test_a_signal_does_not_hide_what_went_wrong_before_it(tmp_path: Path) -> None:
    """torchrun sends SIGTERM to a process that is just writing down which of its peers has ended."""
    folder = RunFolder(tmp_path / "run", "")

    class Interrupted(ValueError):
        def __str__(self) -> str:
            os.kill(os.getpid(), signal.SIGTERM)
            return "a peer has ended"

    with pytest.raises(Interrupted), folder.job():
        raise Interrupted
    after = status(folder)
    assert (after["status"], after["error"]) == ("failed", "Interrupted: a peer has ended")
    assert folder.signals.received is signal.SIGTERM
    with pytest.raises(Terminated):
        folder.signals.heed()


def test_no_log_handler_is_left_behind(tmp_path: Path) -> None:
    """In a multirun a handler that stays would write the next jobs' warnings into this folder."""
    handlers = list(logging.getLogger().handlers)
    folder = RunFolder(tmp_path / "run", "")
    with folder.job():
        logging.getLogger("attractor").warning("inside the run")
    logging.getLogger("attractor").warning("after the run")
    assert logging.getLogger().handlers == handlers
    log = (folder.path / "train.log").read_text()
    assert "inside the run" in log
    assert "after the run" not in log


def test_an_operating_system_error_is_an_output_error(tmp_path: Path) -> None:
    """A body that cannot write ends with OutputError, which has an exit code, and keeps the cause."""
    folder = RunFolder(tmp_path / "run", "")
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError, match="No space left") as caught, folder.job():
        raise full
    assert caught.value.__cause__ is full
    assert status(folder)["exit_code"] == 5


def test_a_disk_too_full_for_the_status_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When not even status.json can be written the run still ends with OutputError, exit code 5.

    On a full disk that is the usual case: the write that fails in the body fails again for the status.
    """
    folder = RunFolder(tmp_path / "run", "")

    def full(name: str, value: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def body() -> None:
        monkeypatch.setattr(folder, "write_json", full)
        folder.write_json("results.json", {})

    with pytest.raises(OutputError, match="No space left"), folder.job():
        body()


def test_the_first_error_is_the_one_that_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A status that cannot be written does not replace the error that ended the run."""
    folder = RunFolder(tmp_path / "run", "")

    def full(name: str, value: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def body() -> None:
        monkeypatch.setattr(folder, "write_json", full)
        raise NonFiniteError("at step 3")

    with pytest.raises(NonFiniteError, match="at step 3"), folder.job():
        body()


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A value that cannot be serialised leaves the file as it was, not half of it."""
    folder = RunFolder(tmp_path / "run", "")
    with folder.job():
        folder.write_json("results.json", {"a": 1})
        with pytest.raises(TypeError):
            folder.write_json("results.json", {"a": 2, "b": object()})
        assert json.loads((folder.path / "results.json").read_text()) == {"a": 1}


def test_metrics_are_flushed_line_by_line(tmp_path: Path) -> None:
    """While the file is still open every line is there, whole, valid JSON: what a killed run leaves."""
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        for step in range(1, 4):
            metrics.write(step, {"train/rate": 0.1 / step, "val/masked": None})
            lines = path.read_text().splitlines(keepends=True)
            assert len(lines) == step
            assert all(line.endswith("\n") for line in lines)
    first = json.loads(lines[0])
    assert (first["step"], first["train/rate"], first["val/masked"]) == (1, 0.1, None)
    assert first["time"] <= json.loads(lines[2])["time"]


def test_a_folder_with_files_of_ones_own_is_refused(tmp_path: Path) -> None:
    """Only an empty or new folder becomes a run: folder=conf would else overwrite conf/config.yaml."""
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(OutputError, match="already holds files; nothing was changed"):
        RunFolder(tmp_path, "theirs")
    assert contents(tmp_path) == {"config.yaml": b"mine"}
