"""Downloads from a local server: whole and checked, or a DataError and nothing left behind."""

import gzip
import hashlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets

from attractor.images import DataError, datasets, load
from attractor.images.downloads import fetch

ROOT = Path(__file__).parents[2]
FILES = datasets.DATASETS["mnist"].files


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *given: Any) -> None: ...


def idx(kind: int, *sizes: int) -> bytes:
    count = 1
    for size in sizes:
        count *= size
    return bytes([0, 0, 8, kind]) + b"".join(size.to_bytes(4, "big") for size in sizes) + bytes(count)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a local server gives out, the only place where torchvision looks for MNIST."""
    served = tmp_path / "served"
    served.mkdir()
    resources = []
    for file in FILES:
        content = idx(3, 12, 28, 28) if "images" in file else idx(1, 12)
        name = f"{Path(file).name}.gz"
        (served / name).write_bytes(gzip.compress(content))
        resources.append((name, hashlib.md5((served / name).read_bytes()).hexdigest()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_leaves_the_files_and_nothing_else(mirror: Path, tmp_path: Path) -> None:
    """Only what is read is kept, below a root that was not there; the next load needs no server."""
    root = tmp_path / "new" / "root"
    splits = load("mnist", root=root, validation=3, download=True)
    assert len(splits.train) == 9
    assert sorted(path for path in root.rglob("*") if path.is_file()) == sorted(root / f for f in FILES)
    for file in mirror.iterdir():
        file.unlink()
    load("mnist", root=root, validation=3, download=True)


@pytest.mark.parametrize("fault", ["wrong checksum", "truncated"])
def test_a_download_that_fails_leaves_nothing(fault: str, mirror: Path, tmp_path: Path) -> None:
    """The third of four files is another one, or half of it: DataError that says so.

    Two good files that stay behind would look like a data set to whoever comes next; so would half a file.
    """
    file = mirror / f"{Path(FILES[2]).name}.gz"
    content = file.read_bytes()
    if fault == "wrong checksum":
        file.write_bytes(gzip.compress(idx(3, 11, 28, 28)))
    else:
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        DataError, match=r"mnist could not be downloaded to .*nothing was left behind"
    ) as caught:
        load("mnist", root=tmp_path / "root", download=True)
    assert file.name in str(caught.value)
    assert not (tmp_path / "root").exists()


def test_an_interrupted_download_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle; what was there before stays. What SIGKILL has left goes the next time."""
    (tmp_path / "mine").write_text("kept")
    (tmp_path / ".downloading-before").mkdir()

    def get(folder: Path) -> None:
        (folder / "half").write_text("half of the")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, ["a/whole"], get)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_of_two_that_want_the_same_one_downloads(tmp_path: Path) -> None:
    """The second waits for the first and finds the files: jobs of a sweep do not spoil each other's."""
    asked: list[Path] = []
    arrived, go_on = threading.Event(), threading.Event()

    def get(folder: Path) -> None:
        asked.append(folder)
        arrived.set()
        assert go_on.wait(30)
        (folder / "whole").write_text("all")

    threads = [threading.Thread(target=fetch, args=(tmp_path, ["whole"], get)) for _ in range(2)]
    threads[0].start()
    assert arrived.wait(30)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_no_network_exits_with_6(tmp_path: Path) -> None:
    """train.py, data.download=true and nobody to answer: one line, no folder of the run or the data."""
    nobody = "http://127.0.0.1:9"  # the port of `discard`
    done = subprocess.run(
        [
            *(sys.executable, "train.py", "data=mnist", "data.download=true"),
            *(f"data.root={tmp_path / 'root'}", f"folder={tmp_path / 'run'}", "wandb=disabled"),
        ],
        cwd=ROOT,
        env=os.environ | {"http_proxy": nobody, "https_proxy": nobody, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 6, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: mnist could not be downloaded to")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_of_the_original_is_seen(mirror: Path, tmp_path: Path) -> None:
    """A file of the size of MNIST's with another hash is damaged, although it can be read (DataError)."""
    load("mnist", root=tmp_path / "root", validation=3, download=True)
    labels = tmp_path / "root" / FILES[3]
    labels.write_bytes(idx(1, 10_000))
    with pytest.raises(
        DataError, match=r"t10k-labels-idx1-ubyte is damaged: its SHA-256 is .*, not ff7bcfd4"
    ):
        load("mnist", root=tmp_path / "root", validation=3)


class Canary:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "processed"])
def test_a_pickle_in_place_of_data_is_not_executed(name: str, mirror: Path, tmp_path: Path) -> None:
    """CIFAR's own pickles, files of MNIST, the processed files of old torchvisions: DataError each."""
    canary = pickle.dumps(Canary(tmp_path / "executed"))
    root = tmp_path / "root"
    files = [root / file for file in datasets.DATASETS[name if name == "cifar10" else "mnist"].files]
    if name == "processed":
        load("mnist", root=root, validation=3, download=True)
        files = [root / "MNIST" / "processed" / file for file in ("training.pt", "test.pt")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(canary)
    with pytest.raises(DataError):
        load("cifar10" if name == "cifar10" else "mnist", root=root)
    assert not (tmp_path / "executed").exists()
    pickle.loads(canary)  # it would have been seen
    assert (tmp_path / "executed").exists()
