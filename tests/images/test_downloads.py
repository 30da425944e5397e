"""Downloads from a local server: whole and checked, or a DataError and nothing left behind."""

import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets

from attractor.images import DataError, datasets, load
from attractor.images.downloads import fetch
from tests.images.mirror import FILES, fill, idx, served, spoil


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a local server gives out, the only place where torchvision looks for MNIST."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", fill(folder))
    with served(folder) as address:
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
        yield folder


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
    file = spoil(mirror, fault)
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
