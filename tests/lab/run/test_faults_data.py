"""Data that is missing, damaged or cannot be fetched: exit code 6, and nothing is left behind."""

import json
from pathlib import Path

import pytest

from tests.images.mirror import FILES, fill, idx, served, spoil

NOBODY = "http://127.0.0.1:9/"  # the port of `discard`
FETCHED = "could not be downloaded to {root}"


@pytest.mark.parametrize(
    ("download", "fault", "reason"),
    [
        (False, "missing", "mnist is not in {root}: expected MNIST/raw/train-images-idx3-ubyte, "),
        (False, "truncated", "the test images in {root} could not be read"),
        (False, "wrong checksum", "{root}/MNIST/raw/t10k-labels-idx1-ubyte is damaged: its SHA-256 is "),
        (True, "truncated", FETCHED),
        (True, "wrong checksum", FETCHED),
        (True, "no network", FETCHED),
    ],
)
def test_data_that_cannot_be_had_exits_with_6(
    download: bool, fault: str, reason: str, commands, tmp_path: Path
) -> None:
    """train.py data=mnist, as it is typed: one line that says which file or folder, no folder of the run,
    and below data.root what was there, byte for byte.

    Half a download that stays would look like a data set to whoever comes next.
    """
    root, mirror = tmp_path / "root", tmp_path / "mirror"
    mirror.mkdir()
    resources = fill(mirror)
    if download and fault != "no network":
        spoil(mirror, fault)
    elif fault in ("truncated", "wrong checksum"):
        (root / FILES[0]).parent.mkdir(parents=True)
        for file in FILES:
            (root / file).write_bytes(idx(3, 12, 28, 28) if "images" in file else idx(1, 12))
        if fault == "truncated":
            (root / FILES[2]).write_bytes((root / FILES[2]).read_bytes()[:-1])
        else:  # of a file of the size that MNIST's has
            (root / FILES[3]).write_bytes(idx(1, 10_000))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with served(mirror) as address:
        code, said = commands.run(
            *("data=mnist", f"data.root={root}", f"data.download={download}", f"folder={tmp_path / 'run'}"),
            MIRROR=NOBODY if fault == "no network" else address,
            RESOURCES=json.dumps(resources),
        )
    assert code == 6, said
    last = said.splitlines()[-1]
    assert last.startswith("error: mnist")
    assert reason.format(root=root) in last
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert root.exists() == (not download and fault != "missing")
    assert not (tmp_path / "run").exists()
