"""A Python that has imported what takes seconds, and forks: commands start in no time.

    python tests/warm.py          lines of JSON on standard input, see `WarmPython.run`

The answer to a request is the exit code of the process that was the command, negative for a signal. argv is
that of a script, or `-m` and a module. What a command would find in a fresh Python it finds here, but for
modules that are imported already: some tests start theirs in a fresh one.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

# of ours as they are installed; torch._dynamo is what the first optimiser of torch imports
KNOWN = (
    "attractor.lab.experiment.evaluation",
    "matplotlib.backends.backend_agg",
    "sklearn.cluster",
    "sklearn.datasets",
    "torch._dynamo",
)


class WarmPython:
    """The process that forks, started when it is first needed; `close` ends it."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        timeout: int | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """As subprocess.run([sys.executable, *argv], timeout=timeout) with captured output."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / name for name in ("stdout", "stderr")}
            request = {"argv": list(map(str, argv)), "cwd": str(cwd), "environment": dict(environment)}
            request["timeout"] = timeout or 0
            request |= {name: str(path) for name, path in files.items()}
            print(json.dumps(request), file=self._server.stdin, flush=True)
            code = int(self._server.stdout.readline())
            said = {name: path.read_text() for name, path in files.items()}
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(list(argv), timeout or 0, said["stdout"], said["stderr"])
        return subprocess.CompletedProcess(list(argv), code, **said)

    def close(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.communicate(timeout=30)


def forked(command: Callable[[], None]) -> int:
    """The process id of a child that is the command, and ends as Python does but for one thing.

    It leaves its objects to the system: taking those of torch apart takes a child three seconds.
    """
    gc.freeze()  # a collection in the child would copy every page that it looks at
    child = os.fork()
    if child:
        return child
    code = 0
    try:
        command()
    except SystemExit as asked:
        if isinstance(asked.code, str):
            print(asked.code, file=sys.stderr)
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    threading._shutdown()  # type: ignore[attr-defined]  # as Py_Finalize does: this, then that
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


def serve() -> None:
    """Fork a process for each request, and wait for it."""
    for line in sys.stdin:
        request = json.loads(line)
        child = forked(lambda request=request: be(request))  # type: ignore[misc]
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def be(request: dict[str, Any]) -> None:
    """In the child: be the command, for `timeout` seconds at most, of which 0 are all there are."""
    signal.alarm(request["timeout"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    first, *others = request["argv"]
    if first == "-m":
        sys.argv = others
        sys.path[0] = request["cwd"]
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *others]
        sys.path[0] = str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for name in KNOWN:
        import_module(name)
    serve()
