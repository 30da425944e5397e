"""What the commands beside train.py share."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attractor.lab.show import command

CHILD = """
import signal, sys, time
from pathlib import Path
def end(number, frame):
    time.sleep(1.5)  # longer than subprocess.run waits
    Path("saved").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
Path("ready").touch()
time.sleep(60)
"""
PARENT = """
import sys
from attractor.lab.show import command
sys.exit(command.child(["-c", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_child_is_told_to_end_and_waited_for(number: signal.Signals, tmp_path: Path) -> None:
    """SIGTERM to the parent alone, SIGINT to both as a terminal sends it: the child saves, its code counts.

    Else Ctrl-C would kill a training before it has saved, and a scheduler leave it going on.
    """
    words = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(words, cwd=tmp_path, start_new_session=True) as parent:
        until = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        if number == signal.SIGTERM:
            parent.send_signal(number)
        else:
            os.killpg(parent.pid, number)
        assert parent.wait(timeout=60) == 128 + number
    assert (tmp_path / "saved").exists()


def test_a_child_that_is_killed_has_the_code_of_a_shell() -> None:
    """137 after SIGKILL, not 247."""
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", PARENT, killed], check=False, timeout=60)
    assert done.returncode == 137


def test_fields_are_taken_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    """FIELD=VALUE, the first sign of equality counts; --help ends with 0, anything else with 2."""
    assert command.overrides(["seed=0,1", "a.b=c=d"], None) == {"seed": "0,1", "a.b": "c=d"}
    for words, code in ((["seed=0", "-h"], 0), (["-m", "seed=0"], 2)):
        with pytest.raises(SystemExit) as end:
            command.overrides(words, "what it does")
        assert end.value.code == code
    said = capsys.readouterr()
    assert said.out == "what it does\n"
    assert "'-m' is no FIELD=VALUE" in said.err
