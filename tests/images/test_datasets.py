"""Data sets: fixed splits, and errors that say which folder and what to do."""

import pickle
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets
from sklearn.datasets import load_digits

from attractor.images import (
    DATASETS,
    DataError,
    ImageSplits,
    check_images,
    load,
    pixel_mean,
    synthetic,
    to_pixels,
)


def write_idx(path: Path, values: torch.Tensor) -> None:
    """The format of MNIST: 0, 0, type 8 (uint8), dimensions, sizes in big endian, bytes."""
    sizes = struct.pack(f">{values.dim()}I", *values.shape)
    path.write_bytes(bytes([0, 0, 8, values.dim()]) + sizes + values.numpy().tobytes())


def write_mnist(root: Path, *, train: int = 12, test: int = 5, side: tuple[int, int] = (28, 28)) -> Path:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("t10k", test)):
        images = torch.randint(0, 256, (count, *side), generator=generator, dtype=torch.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", torch.zeros(count, dtype=torch.uint8))
    return folder


def as_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_digits_are_split_without_overlap_and_keep_their_levels() -> None:
    """1,257 + 180 + 360 of scikit-learn's digits, level v at round(255 v / 16), none lost or doubled."""
    splits = load("digits", root=".")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1257, 180, 360)
    assert (splits.channels, splits.side) == (1, 8)
    ours = torch.cat((splits.train, splits.validation, splits.test)).flatten(1)
    theirs = torch.from_numpy(np.floor(load_digits().data * 255 / 16 + 0.5)).to(torch.uint8)
    assert sorted(ours.tolist()) == sorted(theirs.tolist())
    again = load("digits", root=".")
    assert torch.equal(splits.test, again.test)
    assert torch.equal(splits.train, again.train)


def test_validation_sets_are_nested_and_leave_the_test_set_alone() -> None:
    """Asking for more validation images must not move any into or out of the test set."""
    small, large = (load("digits", root=".", validation=count) for count in (10, 300))
    assert torch.equal(small.test, large.test)
    assert torch.equal(small.validation, large.validation[:10])
    assert len(large.train) == 1437 - 300


def test_mnist_is_read_from_its_folder(tmp_path: Path) -> None:
    """The test set in its own order; validation is held out of training, both as they are stored."""
    folder = write_mnist(tmp_path)
    splits = load("mnist", root=tmp_path, validation=3)
    stored = torch.frombuffer(
        bytearray((folder / "t10k-images-idx3-ubyte").read_bytes()[16:]), dtype=torch.uint8
    )
    assert torch.equal(splits.test, stored.view(5, 1, 28, 28))
    assert splits.train.shape == (9, 1, 28, 28)
    assert splits.validation.shape == (3, 1, 28, 28)
    stored = torch.frombuffer(
        bytearray((folder / "train-images-idx3-ubyte").read_bytes()[16:]), dtype=torch.uint8
    )
    assert as_set(splits.train) | as_set(splits.validation) == as_set(stored.view(12, 1, 28, 28))


def test_cifar_has_its_channels_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored as 3 planes of 1,024; torchvision turns them around and we turn them back."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    batches = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        batches[name] = generator.integers(0, 256, (2, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": batches[name], "labels": [0, 1]}))
    splits = load("cifar10", root=tmp_path, validation=4)
    assert torch.equal(splits.test.flatten(1), torch.from_numpy(batches["test_batch"]))
    assert (len(splits.train), splits.channels, splits.side) == (6, 3, 32)
    (folder / "test_batch").write_bytes(b"garbage")
    with pytest.raises(DataError, match="test images") as caught:
        load("cifar10", root=tmp_path, validation=4)
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
    ],
)
def test_missing_data_names_folder_file_and_remedy(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The absolute folder, even if a relative one was given, the file looked for, and both remedies."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load(name, root="nowhere")
    for part in (str(tmp_path / "nowhere"), file, "data.root=DIR", "data.download=true"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage", None], ids=["empty", "garbage", "truncated"])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_files_are_data_errors(tmp_path: Path, content: bytes | None, file: str) -> None:
    """Whatever torchvision raises, the message names the folder and the cause is kept."""
    path = write_mnist(tmp_path) / file
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(DataError, match=r"mnist: the (training|test) images") as caught:
        load("mnist", root=tmp_path, validation=3)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.__cause__ is not None


def test_failed_download_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: the folder, the cause, and what a download needs."""

    def no_network(self: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_network)
    with pytest.raises(DataError, match=r"no route to host.*network") as caught:
        load("mnist", root=tmp_path, download=True)
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value.__cause__, URLError)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    """28 x 27 pixels, or more labels than images, are not MNIST."""
    folder = write_mnist(tmp_path / "wide", side=(28, 27))
    with pytest.raises(DataError, match=r"\(12, 1, 28, 27\).*\(1, 28, 28\)"):
        load("mnist", root=tmp_path / "wide", validation=3)
    folder = write_mnist(tmp_path / "labels")
    write_idx(folder / "train-labels-idx1-ubyte", torch.zeros(13, dtype=torch.uint8))
    with pytest.raises(DataError, match="13 labels"):
        load("mnist", root=tmp_path / "labels", validation=3)


@pytest.mark.parametrize("validation", [0, -1, 12, 1000, None])
def test_validation_must_leave_training_images(tmp_path: Path, validation: int | None) -> None:
    """A configuration error, not a data error: it says how many are possible."""
    write_mnist(tmp_path)
    with pytest.raises(ValueError, match="validation=1 to 11") as caught:
        load("mnist", root=tmp_path, validation=validation)
    assert not isinstance(caught.value, DataError)


def test_unknown_data_set_lists_the_known_ones() -> None:
    """A typo is answered with the registry."""
    with pytest.raises(ValueError, match="mnits") as caught:
        load("mnits", root=".")
    assert all(name in str(caught.value) for name in DATASETS)


def test_splits_refuse_what_models_could_not_use() -> None:
    """Empty, oblong, unequal and floating-point splits are named with their shapes."""
    good = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    for bad, message in (
        (good[:0], "at least one"),
        (good[..., :3], "square"),
        (good[..., :3, :3], "training images"),
        (good.float(), "uint8"),
        (good[0], "uint8"),
    ):
        with pytest.raises(DataError, match=message):
            ImageSplits("bad", good, good, bad)


def test_synthetic_images_are_smooth_and_reproducible() -> None:
    """Neighbours correlate more than pixels far apart; else no model could fill a mask."""
    splits = synthetic(side=12, channels=3, train=200, test=30, validation=20)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (180, 20, 30)
    assert splits.train.shape[1:] == (3, 12, 12)
    assert torch.equal(
        splits.train, synthetic(side=12, channels=3, train=200, test=30, validation=20).train
    )
    assert not torch.equal(splits.test, synthetic(side=12, channels=3, train=200, test=30, seed=1).test)
    row = to_pixels(splits.train)[:, 0, 5]
    correlation = torch.corrcoef(row.T)
    assert correlation.diagonal(1).min() > 0.8
    assert correlation[0, 11].abs() < 0.3
    red_green = torch.corrcoef(to_pixels(splits.train)[:, :2, 5, 5].T)[0, 1]
    assert red_green > 0.5


def test_pixels_and_their_mean() -> None:
    """255 is exactly 1, and the mean of many bytes is not rounded on the way."""
    images = load("digits", root=".").train
    assert to_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    expected = images.double().mean(0) / 255
    torch.testing.assert_close(pixel_mean(images).double(), expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="float32"):
        to_pixels(torch.zeros(1))


def test_check_images_refuses_what_is_not_pixels() -> None:
    """One's own images: size, channels, type, NaN and range, each with a message of its own."""
    good = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    check_images(good, channels=3, side=8)
    broken = good.clone()
    broken[0, 0, 0, 0] = torch.nan
    for bad, message in (
        (good[:, :1], r"shape \(2, 1, 8, 8\)"),
        (good[..., :7], r"shape \(2, 3, 8, 7\)"),
        (good[0], r"shape \(3, 8, 8\)"),
        (good[:0], r"shape \(0, 3, 8, 8\)"),
        ((good * 255).to(torch.uint8), "uint8.*divide"),
        (broken, "1 non-finite"),
        (good * 255, "values from"),
        (good - 1, "values from"),
    ):
        with pytest.raises(DataError, match=message):
            check_images(bad, channels=3, side=8)
