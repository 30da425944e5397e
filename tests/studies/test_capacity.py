"""The study of capacity: how it draws, chooses and scores, against plain loops; and a tiny run of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attractor.baselines import UniversalMemory
from attractor.baselines.separations import Max, Softmax
from attractor.baselines.similarities import Euclidean
from attractor.images import Corrupted, Denoise, ImageSplits, Masked, synthetic, to_pixels
from attractor.lab.config.schema import Config
from attractor.lab.errors import ConfigError
from attractor.studies import capacity
from attractor.studies.capacity.retrieval import (
    BETAS,
    DISTANCES,
    THRESHOLD,
    Queries,
    draw_queries,
    draw_stored,
    memories,
    recall,
    scores,
)
from attractor.studies.config import CapacityConfig

SMALL = (
    "experiment=capacity",
    "theory.stored=[2,6]",
    "theory.learned=[6]",
    "theory.fixed=6",
    "theory.variances=[0.1,0.5]",
    "theory.fractions=[0.5]",
    "theory.powers=[3]",
    "theory.ridges=[0.1,1.0]",
    "theory.queries=8",
    "theory.seeds=2",
)
SIMILARITIES = ["dot", "cosine", "euclidean", "manhattan", "mahalanobis"]
ALL = {"similarities": SIMILARITIES, "separations": ["identity", "polynomial", "softmax", "max"]}
SPLITS = synthetic(train=90, validation=20, test=5)
NOISE = Denoise(0.3)


@pytest.fixture(scope="module")
def done(study_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return study_run(tmp_path_factory.mktemp("capacity") / "run", *SMALL)


def test_everything_is_measured_at_every_point(done: Any) -> None:
    """Each row has a score of each seed at each x: one lost in the loop is a curve of another seed."""
    curves = done.results["curves"]
    expected = {f"{name}, {kind}" for name in SIMILARITIES for kind in ("max", "softmax")}
    positive = [f"{'inverse_' * (name in DISTANCES)}{name}" for name in SIMILARITIES]
    expected |= {f"{name}, {kind}" for name in positive for kind in ("identity", "polynomial 3")}
    expected |= {"mahalanobis, max, ridge 0.1", "mean", "bare_attention", "bare_attention+evidence"}
    points = {"stored": [2, 6], "variances": [0.1, 0.5], "fractions": [0.5]}
    for axis, x in points.items():
        assert set(curves[axis]) == expected
        for row, curve in curves[axis].items():
            learned = axis == "stored" and row.startswith("bare")
            assert curve["x"] == ([6] if learned else x)
            for metric in ("nearest", "within", "mse"):
                values = np.array(curve[metric])
                assert values.shape == (len(curve["x"]), 2)
                assert ((values >= 0) & (values <= 1)).all()
    assert curves["stored"]["mean"]["nearest"][0] == [0, 0]  # of two images it is as near to both


def test_more_corruption_is_worse_and_the_table_says_so(done: Any) -> None:
    """The numbers of the table are the means over seeds of those in results.json."""
    curve = done.results["curves"]["variances"]["euclidean, softmax"]
    weak, strong = np.mean(curve["mse"], 1)
    assert weak < strong
    assert f"{weak:8.3f}{strong:8.3f}" in done.output
    assert done.results["network"]["parameters"] == 16 * 15 * 64
    assert "as many as 240 images" in done.output
    figures = {path.name for path in (done.path / "figures").iterdir()}
    assert {"capacity.png", "capacity_separations.png", "capacity_examples.png"} <= figures


def test_draws_are_keyed_by_image() -> None:
    """Of a larger set the same images have the same noise; drawn twice, or to choose by, they have another.

    Otherwise curves against P compare different noise, and beta is tuned on what is scored.
    """
    small, large = (draw_stored(SPLITS.train, seed=3, count=count) for count in (4, 30))
    assert torch.equal(small.images, large.images[:4])
    assert torch.equal(small.images, SPLITS.train[small.places])
    few, many = (draw_queries(NOISE, stored, count=10, seed=0) for stored in (small, large))
    assert few.own.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert torch.equal(few.scored.corrupted[:4], many.scored.corrupted[:4])
    assert torch.equal(few.scored.original[4:8], few.scored.original[:4])
    assert not torch.equal(few.scored.corrupted[4:8], few.scored.corrupted[:4])
    assert not torch.equal(few.scored.corrupted, few.choosing.corrupted)
    assert torch.equal(few.scored.original, few.choosing.original)


def test_nobody_is_told_what_is_occluded() -> None:
    """No mask: all pixels are scored, and a network may clamp none."""
    stored = draw_stored(SPLITS.train, seed=0, count=5)
    queries = draw_queries(Masked(0.5, patch=2), stored, count=5, seed=0)
    assert queries.scored.mask is None
    assert queries.scored.pixel_mask is None
    hidden = queries.scored.corrupted != queries.scored.original
    assert 0.4 < hidden.float().mean() <= 0.5


def test_scores_are_those_of_a_loop() -> None:
    """Nearest of all stored images, and squared error of all pixels, an image at a time in float64."""
    stored = draw_stored(SPLITS.train, seed=1, count=12)
    queries = draw_queries(NOISE, stored, count=20, seed=0)
    others = stored.keys[(queries.own + 1) % 12].view_as(queries.scored.original)
    mixed = torch.linspace(0.3, 0.6, 20).view(-1, 1, 1, 1)
    prediction = (1 - mixed) * queries.scored.corrupted + mixed * others
    keys = stored.keys.double()
    nearest, errors = [], []
    for index, own in enumerate(queries.own.tolist()):
        image = prediction[index].flatten().double()
        distances = [float(((image - key) ** 2).sum()) for key in keys]
        nearest.append(min(range(12), key=distances.__getitem__) == own)
        errors.append(float(((image - keys[own]) ** 2).mean()))
    found = scores(prediction, queries, stored.keys)
    assert 0 < found["nearest"] == np.mean(nearest) < 1
    assert found["mse"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert found["within"] == np.mean(np.array(errors) <= THRESHOLD)
    assert 0 < found["within"] < 1
    perfect = scores(queries.scored.original, queries, stored.keys)
    assert perfect == {"nearest": 1.0, "within": 1.0, "mse": 0.0}


def test_beta_is_chosen_on_the_other_draws() -> None:
    """The least error on `choosing`; where the two disagree, choosing by `scored` gives another beta."""
    stored = draw_stored(SPLITS.train, seed=1, count=40)
    weak = draw_queries(Denoise(0.05), stored, count=40, seed=0)
    strong = draw_queries(Denoise(3.0), stored, count=40, seed=0)
    mixed = Queries(weak.scored, strong.choosing, weak.own)
    memory = UniversalMemory(stored.keys, similarity=Euclidean(), separation=Softmax())

    def best(batch: Corrupted) -> float:
        errors = {}
        for beta in BETAS:
            one = UniversalMemory(stored.keys, similarity=Euclidean(), separation=Softmax(), beta=beta)
            prediction = one.retrieve(batch.corrupted.flatten(1)).view_as(batch.corrupted)
            errors[beta] = float(batch.squared_error(prediction).mean())
        return min(errors, key=errors.__getitem__)

    found, chosen = recall([memory], mixed)
    assert chosen["beta"] == best(strong.choosing) != best(weak.scored)
    memory.beta = chosen["beta"]
    expected = memory.retrieve(weak.scored.corrupted.flatten(1))
    assert torch.allclose(found.flatten(1), expected)


def test_the_memory_is_chosen_too_and_max_needs_no_beta() -> None:
    """Of a good and a useless memory the good one, whatever their order; max has no beta to choose."""
    stored = draw_stored(SPLITS.train, seed=1, count=10)
    queries = draw_queries(Denoise(0.01), stored, count=10, seed=0)
    good = UniversalMemory(stored.keys, similarity=Euclidean(), separation=Max())
    useless = UniversalMemory(stored.keys, stored.keys.flip(0), similarity=Euclidean(), separation=Max())
    for order in ([good, useless], [useless, good]):
        found, chosen = recall(order, queries)
        assert torch.equal(found, queries.scored.original)
        assert chosen == {"candidate": order.index(good), "beta": None}


def test_every_memory_is_an_average_of_stored_images() -> None:
    """Normalised weights: all predictions stay within the pixels that are stored, and need no clipping."""
    stored = draw_stored(SPLITS.train, seed=0, count=7)
    known = memories(stored, CapacityConfig(powers=[2, 10], ridges=[0.1], **ALL))
    assert len(known) == 25
    queries = draw_queries(NOISE, stored, count=9, seed=0)
    low, high = to_pixels(stored.images).amin(0) - 1e-5, to_pixels(stored.images).amax(0) + 1e-5
    for candidates in known.values():
        found = recall(candidates, queries)[0]
        assert ((found >= low) & (found <= high)).all()


def test_the_ridge_is_chosen_and_the_least_has_a_row_of_its_own() -> None:
    """All ridges are offered to each row of Mahalanobis, in ascending order; the extra row has one."""
    stored = draw_stored(SPLITS.train, seed=0, count=7)
    known = memories(stored, CapacityConfig(powers=[2], ridges=[1.0, 0.1, 10.0], **ALL))
    for row, candidates in known.items():
        chosen = "mahalanobis" in row and "ridge" not in row
        assert len(candidates) == (3 if chosen else 1)
    assert known["mahalanobis, max, ridge 0.1"] == known["mahalanobis, max"][:1]
    centred = stored.keys.double() - stored.keys.double().mean(0)
    for ridge, memory in zip((0.1, 1.0, 10.0), known["mahalanobis, max"], strict=True):
        precision = (centred.T @ centred / 7 + ridge * torch.eye(64)).inverse()
        expected = (
            -torch.einsum("p,pq,q->", centred[1] - centred[2], precision, centred[1] - centred[2]) / 2
        )
        assert float(memory.scores(stored.keys[1:2])[0, 2]) == pytest.approx(float(expected), rel=1e-4)


def test_identity_weighs_by_the_inverse_of_a_distance() -> None:
    """y = sum_m v_m / d_m / sum_m 1 / d_m for each distance, in float64: with -d far images would win."""
    stored = draw_stored(SPLITS.train, seed=0, count=9)
    known = memories(stored, CapacityConfig(powers=[2], ridges=[0.1], **ALL))
    query = draw_queries(NOISE, stored, count=1, seed=0).scored.corrupted.flatten(1)
    difference = (query - stored.keys).double()
    centred = stored.keys.double() - stored.keys.double().mean(0)
    precision = (centred.T @ centred / 9 + 0.1 * torch.eye(64)).inverse()
    distances = {
        "euclidean": difference.square().sum(1),
        "manhattan": difference.abs().sum(1),
        "mahalanobis": ((difference @ precision) * difference).sum(1),
    }
    for name, distance in distances.items():
        weights = 1 / distance
        expected = weights @ stored.keys.double() / weights.sum()
        (memory,) = known[f"inverse_{name}, identity"]
        torch.testing.assert_close(memory.retrieve(query)[0].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("theory.stored=[]", "theory.stored is empty"),
        ("theory.variances=[0.0]", r"theory.variances has 0.0"),
        ("theory.ridges=[-1.0]", r"theory.ridges has -1"),
        ("theory.variances=[0.1,0.1]", r"theory.variances has \[0.1\] more than once"),
        ("theory.fractions=[2.0]", r"theory.fractions has 2.0; .* below 1"),
        ("theory.fractions=[1.0]", r"theory.fractions has 1.0; .* below 1"),
        ("theory.powers=[0.0]", r"theory.powers has 0.0"),
        ("theory.similarities=[]", "theory.similarities is empty"),
        ("theory.similarities=[dot,euclid]", "unknown similarity 'euclid'; use one of cosine, dot"),
        ("theory.separations=[soft]", "unknown separation 'soft'; use one of identity, max"),
        ("theory.queries=0", "theory.queries is 0"),
        ("theory.fixed=0", "theory.fixed is 0"),
        ("theory.seeds=0", "theory.seeds is 0"),
        ("task.noise_variance=0.0", "noise variance is 0.0"),
        ("rule=backprop", "rule=backprop trains transformers"),
        ("rule=ridge", "Gaussian"),
        ("model.projection=3 model.measure=circles", "model.projection"),
        ("model.patch=0", "patch"),
        ("theory.learned=[3]", r"theory.learned has \[3\]"),
        ("model=transformer", "attractor network"),
    ],
)
def test_values_that_cannot_be_used_are_refused(
    override: str, message: str, make_config: Callable[..., Config]
) -> None:
    """Before any work, naming the field."""
    with pytest.raises(ConfigError, match=message):
        capacity.check(make_config(*SMALL, *override.split()))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("theory.stored=[1000]", "1000 images are to be stored, but synthetic has 70"),
        ("theory.fractions=[0.999]", "masks 16 of them"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(
    override: str, message: str, make_config: Callable[..., Config]
) -> None:
    """The data are known then, and nothing has been learned yet."""
    splits: ImageSplits = SPLITS
    with pytest.raises(ConfigError, match=message):
        capacity.check_data(make_config(*SMALL, "theory.learned=[]", override), splits)


def test_the_experiments_are_composed(make_config: Callable[..., Config]) -> None:
    """As their commands compose them; that of MNIST is the same study."""
    for name, data in (("capacity", "digits"), ("capacity_mnist", "mnist")):
        config = make_config(f"experiment={name}")
        capacity.check(config)
        assert isinstance(config.theory, CapacityConfig)
        assert config.data.name == data
        assert config.theory.fixed in config.theory.learned
        assert config.dynamics.evidence


@pytest.mark.parametrize("seed", [0, 1])
def test_no_two_seeds_of_a_sweep_share_a_draw(
    seed: int, study_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or the deviation that `collect` prints over them would be of fewer draws than it says."""
    drawn: list[int] = []

    def draw(images: Any, *, seed: int, count: int) -> Any:
        drawn.append(seed)
        raise KeyboardInterrupt

    monkeypatch.setattr(capacity, "draw_stored", draw)
    with pytest.raises(KeyboardInterrupt):
        study_run(tmp_path / "run", *SMALL, f"seed={seed}")
    assert drawn == [1000 * seed]
