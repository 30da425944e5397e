"""Transients: lifetimes and attractors against constructed courses, stored images and plain loops."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attractor.images import Denoise, ImageSplits, Masked, to_pixels
from attractor.lab.config.names import MapName
from attractor.lab.experiment.evaluation import evaluate, overlaps
from attractor.lab.experiment.network import AttractorNetwork, Recall, Retrieval
from attractor.studies.transients import command, courses
from attractor.studies.transients.courses import Lifetime
from attractor.studies.transients.measures import recorded
from attractor.studies.transients.tables import Row, gap

MakeNetwork = Callable[..., AttractorNetwork]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        # t = 0 is no iteration, however good; 1.1 is within 10 %, 1.11 is not
        ([0.5, 1.1, 1.0, 1.05, 1.11, 1.0], Lifetime(2, 1.0, 1, 3, censored=False)),
        # after a gap it is another transient
        ([9.0, 1.0, 2.0, 1.0, 2.0], Lifetime(1, 1.0, 1, 1, censored=False)),
        # what lasts until T may last longer
        ([9.0, 3.0, 2.0, 2.1, 2.2], Lifetime(2, 2.0, 2, 4, censored=True)),
        ([9.0, 3.0], Lifetime(1, 3.0, 1, 1, censored=True)),
    ],
)
def test_lifetimes(error: list[float], expected: Lifetime) -> None:
    """Iterations without a gap around the best one, within 10 % of its error."""
    found = courses.lifetime(torch.tensor(error, dtype=torch.float64))
    assert found == expected
    assert found.iterations == expected.last - expected.first + 1


def test_attractors_are_counted_in_any_order() -> None:
    """Unit vectors at 0, 5, 10, 90 and 180 degrees: links of 5 degrees make the first three one attractor.

    A leader that is compared with would find two in some orders and three in others.
    """
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 5.0, 180.0]))
    states = (
        torch.stack((angles.cos(), angles.sin()), 1)[:, None]
        * torch.tensor([1.0, 2, 3, 4, 5])[:, None, None]
    )
    limit = float(torch.deg2rad(torch.tensor(6.0)).cos())
    for order in (torch.arange(5), torch.tensor([3, 4, 1, 0, 2])):
        labels = courses.clusters(states[order], overlap=limit)
        assert sorted(labels.bincount().tolist()) == [1, 1, 3]
        assert len({int(labels[order == place]) for place in (0, 1, 3)}) == 1
    assert len(courses.clusters(states, overlap=0.9999).unique()) == 5


def test_the_nearest_images_are_those_of_a_loop(
    make_network: MakeNetwork, splits: ImageSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nearest of 32 images in chunks of 7, against all overlaps at once; an image finds itself."""
    monkeypatch.setattr(courses, "_CHUNK", 7)
    encoding = make_network().encoding
    stored, states = courses.encode(encoding, splits.train), courses.encode(encoding, splits.test)
    every = torch.nn.functional.cosine_similarity(
        states.flatten(1)[:, None], stored.flatten(1)[None], dim=2
    )
    expected = every.topk(2, 1)
    found, index = courses.nearest(states, splits.train, encoding, count=2)
    torch.testing.assert_close(found, expected.values)
    assert torch.equal(index, expected.indices)
    overlap, index = courses.nearest(stored, splits.train, encoding)
    assert torch.equal(index[:, 0], torch.arange(32))
    torch.testing.assert_close(overlap, torch.ones(32, 1))
    torch.testing.assert_close(courses.mean_state(encoding, splits.train), stored.mean(0))


@pytest.mark.parametrize("task", [Masked(patch=2), Denoise()], ids=lambda task: task.name)
def test_a_course_is_what_evaluation_measures(
    task: Masked | Denoise, make_network: MakeNetwork, splits: ImageSplits
) -> None:
    """Overlaps and errors of every t are those of `overlaps` and `evaluate`, also after all have arrived.

    Without couplings the mean-field map arrives at the zero vector at once, and the course is held.
    """
    batch = task.corrupt(to_pixels(splits.test), range(9), seed=0)
    for scale, retrieval in (
        (1.0, Retrieval(MapName.attention, inertia=0.5)),
        (0.0, Retrieval(MapName.mean_field)),
    ):
        network = make_network(scale=scale)
        told: list[None] = []
        centre = courses.mean_state(network.encoding, splits.train)
        course = courses.follow(
            network, retrieval, batch, steps=6, centre=centre, progress=lambda told=told: told.append(None)
        )
        assert len(told) == 6 if scale else len(told) < 6
        errors = evaluate({"it": Recall(network, retrieval)}, [batch], steps=6)
        torch.testing.assert_close(course.error[:, 1:], errors.errors["it"])
        torch.testing.assert_close(course.error[:, 0], errors.corrupted)
        torch.testing.assert_close(course.overlap, overlaps(network, retrieval, [batch], steps=6).double())
        if not scale:
            assert course.period.tolist() == [1] * 9


def test_cycles_are_no_fixed_points(make_network: MakeNetwork, splits: ImageSplits) -> None:
    """J_01 = J_10 = J_23 = J_32 = -1: tokens (a, b) become (-b, -a) and (a, b) again, period 2."""
    network = make_network()
    weights = torch.zeros(4, 4, 8, 8)
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2)):
        weights[i, j] = -torch.eye(8)
    network.energy.couplings.couplings = weights
    batch = Denoise().corrupt(to_pixels(splits.test), range(9), seed=0)
    centre = courses.mean_state(network.encoding, splits.train)
    course = courses.follow(network, Retrieval(MapName.attention), batch, steps=30, centre=centre)
    assert course.period.tolist() == [2] * 9
    past = [torch.full((2, 1, 1), float(value)) for value in (5, 0, 1, 2, 0)]
    past[-1][1] = 7.0
    assert courses._period(past).tolist() == [3, 0]


def test_recorded_times() -> None:
    """Every t up to 100, some forty for each factor of ten, the last one always."""
    assert recorded(30) == list(range(31))
    times = recorded(1000)
    assert times[:101] == list(range(101))
    assert times[-1] == 1000
    assert 130 < len(times) < 150
    assert recorded(1234)[-1] == 1234


def test_a_gap_has_the_error_of_its_images() -> None:
    """Two seeds: the mean difference is of both, its standard error is that of one, by its own images.

    More seeds, or more corruptions of the same images, are no more images.
    """

    def job(training: float, test: float) -> dict[str, Any]:
        sets = {"training": {"images": 4, "value": training}, "test": {"images": 100, "value": test}}
        return {"sets": sets}

    jobs = [job(0.9, 0.5), job(0.7, 0.5)]
    rows = (Row(4, "training", jobs), Row(4, "test", jobs))
    difference, error = gap(*rows, lambda entry: (entry["value"], 0.2))
    assert difference == pytest.approx(0.3)
    assert error == pytest.approx((0.04 / 4 + 0.04 / 100) ** 0.5)
    assert rows[0].deviation(lambda entry: entry["value"]) == pytest.approx(0.02**0.5)


@pytest.fixture(scope="module")
def sweep(train_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """P = 1 by Hebb's rule, which stores one image exactly, and two seeds of P = 448, all there are."""
    folder = tmp_path_factory.mktemp("sweep")
    for name, count, seed in (("0", "1", 0), ("1", "null", 0), ("2", "null", 1)):
        train_run(folder / name, f"data.train_images={count}", f"seed={seed}", "rule=hebb", "rule.rate=30")
    return folder


def test_one_stored_image_is_the_attractor(sweep: Path, capsys) -> None:
    """With J_ij = x_i x_j^T every state in one quadrant is sent to the stored image, and stays there.

    So all starts end in one fixed point, whose nearest training image is the original for training images
    and for no test image; its overlap with it is 1, and the transient lives as long as we look.
    """
    given = [str(sweep), "--images", "9", "--steps", "30", "--dynamics", "attention", "--inertia", "0"]
    assert command.main(given) == 0
    said = capsys.readouterr().out
    written = [Path(line.removeprefix("written: ")) for line in said.splitlines() if "written: " in line]
    names = ["results.json", "table.csv", "curves.png", "against_P.png", "examples.png", "attractors.png"]
    assert [path.name for path in written] == names
    assert all(path.stat().st_size for path in written)
    results = json.loads(written[0].read_text())
    training, test = (results["jobs"]["0"]["sets"][name] for name in ("training", "test"))
    for entry in (training, test):
        attractors = entry["attractors"]
        assert (attractors["distinct"], attractors["fixed"], attractors["nearest_images"]) == (1, 1.0, 1)
        assert attractors["nearest"] == pytest.approx(1, abs=1e-5)
        assert entry["pictures"]["common"]["share"] == [1.0]
        assert entry["overlap"]["mean"][0] < 0.95
    assert training["images"] == 1
    assert training["overlap"]["mean"][-1] == pytest.approx(1, abs=1e-5)
    assert training["error"]["mean"][-1] == pytest.approx(0, abs=1e-6)
    assert training["attractors"]["original_is_nearest"] == 1
    assert test["attractors"]["original_is_nearest"] == 0
    # the training image, cast in pixels
    examples = training["pictures"]["examples"]
    original, final = (torch.tensor(examples[name]) for name in ("original", "final"))
    assert int((original - final).abs().max()) <= 1
    rows = list(csv.DictReader(written[1].read_text().splitlines()))
    assert [(row["P"], row["images"], row["n"]) for row in rows] == [
        ("1", "training", "1"),
        ("1", "test", "1"),
        ("448", "training", "2"),
        ("448", "test", "2"),
    ]
    assert rows[0]["censored"] == "True"
    assert rows[0]["lifetime deviation"] == ""
    values = [results["jobs"][name]["sets"]["test"]["lifetime"]["error"] for name in ("1", "2")]
    assert float(rows[3]["best error"]) == pytest.approx(sum(values) / 2)


def test_what_is_measured_is_not_measured_again(
    sweep: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same question gets the answers on disk, another one is measured."""
    asked: list[int] = []
    measure = command.measure

    def counted(*given, **more):
        asked.append(more["steps"])
        return measure(*given, **more)

    monkeypatch.setattr(command, "measure", counted)
    for steps in ("3", "3", "4"):
        given = [str(sweep), "--images", "5", "--steps", steps, "--task", "masked", "--no-figures"]
        assert command.main([*given, "--couplings", "last"]) == 0
    assert asked == [3] * 3 + [4] * 3
    assert "masked: 5 starts" in capsys.readouterr().out


def test_what_makes_no_sense_exits_with_2(sweep: Path, train_run, tmp_path: Path, capsys) -> None:
    """Each says what it is instead, before anything is iterated or written."""
    other = tmp_path / "other"
    for name, jitter in (("0", 0.1), ("1", 0.2)):
        train_run(other / name, f"train.jitter={jitter}", "task=masked", "rule=hebb")
    one = tmp_path / "one"
    one.mkdir()
    (one / "0").symlink_to(other / "0")
    for given, said in (
        ([str(tmp_path / "none")], "is not a folder"),
        ([str(sweep / "0")], "holds one run, not a sweep"),
        ([str(sweep), "--images", "200"], "has 128 test images"),
        ([str(sweep), "--steps", "0"], "--steps must be at least 1"),
        ([str(sweep), "--same", "1.5"], "--same is an overlap"),
        ([str(sweep), "--dynamics", "attention", "--inertia", "-1"], "inertia must not be negative"),
        ([str(other)], "sweeps train.jitter too"),
        ([str(one), "--images", "5"], "has not learned denoise"),
    ):
        assert command.main(given) == 2
        assert said in capsys.readouterr().err
    assert not (other / "transients").exists()
    assert not (one / "transients").exists()
