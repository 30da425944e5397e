"""One's own images: read from a NumPy file as they are, split once and for all, or refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attractor.images import DataError, load
from scripts import photographs


def levels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.npz"


def test_given_splits_are_taken_as_they_are(file: Path) -> None:
    """Nothing moves between splits that the file has, and their order stays; labels are not looked at."""
    arrays = {
        "train": levels(7, 5, 5),
        "validation": levels(3, 5, 5, seed=1),
        "test": levels(4, 5, 5, seed=2),
    }
    splits = load("npz", root=save(file, y=np.arange(7), **arrays))
    assert (splits.name, splits.channels, splits.side) == ("mine", 1, 5)
    for name, array in arrays.items():
        assert torch.equal(getattr(splits, name), torch.from_numpy(array).unsqueeze(1))
    assert torch.equal(load("npz", root=file, validation=2).validation, splits.validation[:2])
    with pytest.raises(ValueError, match=r"4 validation images.*1 to 3") as caught:
        load("npz", root=file, validation=4)
    assert not isinstance(caught.value, DataError)


@pytest.mark.parametrize("key", ["x", "images"])
def test_one_array_is_split_without_overlap(file: Path, key: str) -> None:
    """A fifth to test, a tenth of the rest to validate, none lost or doubled; the same at every reading."""
    array = levels(50, 6, 6)
    splits = load("npz", root=save(file, **{key: array}))
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [36, 4, 10]
    together = torch.cat(parts).flatten(1).tolist()
    assert sorted(together) == sorted(array.reshape(50, -1).tolist())
    assert load("npz", root=str(file)).fingerprint == splits.fingerprint
    more = load("npz", root=file, validation=9)
    assert torch.equal(more.test, splits.test)
    assert torch.equal(more.validation[:4], splits.validation)
    with pytest.raises(ValueError, match="validation=1 to 39"):
        load("npz", root=file, validation=40)


def test_train_and_test_alone_hold_validation_out_of_training(file: Path) -> None:
    """The test images stay, and every training image is in one of the two others."""
    train, test = levels(20, 4, 4), levels(5, 4, 4, seed=1)
    splits = load("npz", root=save(file, train=train, test=test))
    assert torch.equal(splits.test[:, 0], torch.from_numpy(test))
    assert (len(splits.train), len(splits.validation)) == (18, 2)
    both = torch.cat((splits.train, splits.validation)).flatten(1).tolist()
    assert sorted(both) == sorted(train.reshape(20, -1).tolist())


@pytest.mark.parametrize("channels", [1, 3])
def test_layouts_are_told_apart(file: Path, channels: int) -> None:
    """Channels first and channels last are the same images: pixel, channel and image stay together."""
    first = levels(9, channels, 4, 4)
    splits = load("npz", root=save(file, train=first, test=np.moveaxis(first, 1, -1), validation=first))
    assert torch.equal(splits.train, torch.from_numpy(first))
    assert torch.equal(splits.test, splits.train)
    assert splits.test.is_contiguous()


def test_squares_as_small_as_channels(file: Path) -> None:
    """3x3 grey images have one reading in each layout; 3x3 of 3 channels have two, and are refused."""
    grey = levels(9, 3, 3)
    for array in (grey, grey[:, None], grey[..., None]):
        assert torch.equal(
            load("npz", root=save(file, train=array, test=array)).test[:, 0], torch.tensor(grey)
        )
    with pytest.raises(DataError, match="first or last"):
        load("npz", root=save(file, x=levels(9, 3, 3, 3)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_become_the_nearest_levels(file: Path, dtype: Any) -> None:
    """Pixels p become round(255 p): v / 255 is level v again, in any precision and byte order."""
    array = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    splits = load("npz", root=save(file, train=(array / 255).astype(dtype), test=array[:1]))
    found = torch.cat((splits.train, splits.validation)).flatten(1).tolist()
    assert sorted(found) == sorted(array.reshape(4, -1).tolist())


def test_home_and_the_fewest_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is the home folder; of three images each split gets one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "three.npz", x=levels(3, 2, 2))
    splits = load("npz", root="~/three.npz")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1, 1, 1]


good = levels(9, 4, 4)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"y": np.arange(3)}, r"holds y; expected `train` and `test`.*`x` or `images`"),
    ({}, "holds nothing"),
    ({"train": good}, "holds train; expected"),
    ({"validation": good, "x": good}, "not both"),
    ({"train": good, "test": good, "x": good}, "not both"),
    ({"x": good, "images": good}, "not both"),
    ({"x": np.array([None, "a"], dtype=object)}, r"could not be read .*allow_pickle"),
    ({"x": good[0]}, r"uint8 \(4, 4\), expected \(P, H, W\)"),
    ({"x": good[:, :3]}, r"\(9, 3, 4\).*crop or pad"),
    ({"x": levels(9, 2, 4, 4)}, r"\(9, 2, 4, 4\).*C = 1 or 3"),
    ({"x": levels(9, 3, 4, 5)}, r"\(9, 3, 4, 5\).*squares"),
    ({"x": good[:0]}, "no images"),
    ({"x": good[:2]}, "leaves 1 to train on of 2"),
    ({"train": good[:1], "test": good}, "leaves 1 to train on of 10"),
    ({"train": good, "test": good[:0]}, "test is uint8 .*no images"),
    ({"train": good, "test": levels(9, 5, 5)}, r"test images are .*5, 5\), but the training images"),
    ({"x": good.astype(np.int64)}, r"int64.*expected uint8.*astype"),
    ({"x": good > 100}, "bool.*expected uint8"),
    ({"x": np.full((9, 4, 4), "a")}, "expected uint8"),
    ({"x": (good > 100).astype(np.uint8)}, "0 and 1 alone.*255"),
    ({"x": np.where(good > 100, np.nan, 0.5)}, "[0-9]+ non-finite"),
    ({"x": good.astype(np.float32)}, "values from .*scale"),
    ({"x": good / 255 - 0.1}, "values from -0.1.*scale"),
    ({"x": good * 1j}, "complex128.*expected uint8"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_what_is_no_set_of_images_is_refused(file: Path, arrays: dict[str, Any], message: str) -> None:
    """A DataError of one line, which says what was given, what is allowed and what to do."""
    with pytest.raises(DataError, match=message) as caught:
        load("npz", root=save(file, **arrays))
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz_are_refused(tmp_path: Path, file: Path) -> None:
    """Missing, a folder, empty, garbage, one array, a pickle, cut off: the path and a remedy each time."""
    whole = save(tmp_path / "whole.npz", x=levels(30, 9, 9)).read_bytes()
    np.save(tmp_path / "single.npy", good)
    single = (tmp_path / "single.npy").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    for content, message in (
        (b"", "could not be read"),
        (b"garbage", "could not be read"),
        (single, r"single \.npy array"),
        (pickle.dumps({"x": 1}), "could not be read"),
        (whole[:-40], "could not be read"),
        (bytes(damaged), "could not be read"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            load("npz", root=file)
        assert str(file) in str(caught.value)
        assert "np.savez_compressed" in str(caught.value)
    with pytest.raises(DataError, match=r"is not there; set data\.root=FILE"):
        load("npz", root=tmp_path / "nowhere.npz")
    with pytest.raises(DataError, match=r"is a folder, .*data\.root=FILE"):
        load("npz", root=tmp_path)


def test_photographs_are_cut_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Crops of a split are whole squares of its own region: no test pixel is in a training crop."""
    path = tmp_path / "crops.npz"
    assert photographs.main([str(path), "--side", "8", "--count", "40"]) == 0
    assert "train (32, 8, 8, 3)" in capsys.readouterr().out
    splits = load("npz", root=path)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [32, 4, 4]
    columns = {"train": (0, 384), "validation": (384, 512), "test": (512, 640)}
    for name, (left, right) in columns.items():
        views = [
            np.lib.stride_tricks.sliding_window_view(photograph[:, left:right], (8, 8), axis=(0, 1))
            for photograph in photographs.load_sample_images().images
        ]
        images = getattr(splits, name).numpy()
        for index, image in enumerate(images):
            view = views[index * 2 // len(images)]  # the second half is from the second photograph
            assert (view == image).all(axis=(2, 3, 4)).any()
    mirrored = photographs.splits(side=8, count=40, seed=0, from_right=True)["test"]
    left = photographs.load_sample_images().images[0][:, :128]  # its left fifth
    views = np.lib.stride_tricks.sliding_window_view(left, (8, 8), axis=(0, 1))
    assert all(
        (views == image[:, ::-1].transpose(2, 0, 1)).all(axis=(2, 3, 4)).any() for image in mirrored[:2]
    )
    with pytest.raises(SystemExit, match="2"):
        photographs.main([str(path)])
    assert "new file" in capsys.readouterr().err
    for arguments, message in ((["--side", "129"], "1 to 128"), (["--count", "30"], "multiple of 20")):
        with pytest.raises(SystemExit, match="2"):
            photographs.main([str(tmp_path / "other.npz"), *arguments])
        assert message in capsys.readouterr().err
