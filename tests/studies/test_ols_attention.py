"""The study of least squares as attention: what it rests on, on synthetic images, and one tiny run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import Generator

from attractor.images import ImageSplits, synthetic
from attractor.lab.errors import ConfigError
from attractor.physics import NonFiniteError
from attractor.studies import ols_attention
from attractor.studies.ols_attention.contexts import errors_in_contexts
from attractor.studies.ols_attention.descent import Descent, Regime, regimes, smaller_starts
from attractor.studies.ols_attention.measures import (
    controls,
    flatness,
    gains,
    label_overlap,
    map_gains,
    overlap,
)
from attractor.studies.ols_attention.problem import Problem, build_problem

SMALL = (
    "experiment=ols_attention",
    "theory.images=60",
    "theory.side=4",
    "theory.steps=40",
    "theory.seeds=2",
    "theory.short_context=12",
    "theory.start_scales=[0.3]",
)


@pytest.fixture(scope="module")
def splits() -> ImageSplits:
    return synthetic()


@pytest.fixture(scope="module")
def problem(splits: ImageSplits) -> Problem:
    """11 visible and 5 hidden pixels of 4x4 images, contexts of 60 images."""
    return build_problem(splits, images=60, side=4, fraction=0.3, test_images=50, seed=0)


@pytest.fixture(scope="module")
def done(study_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return study_run(tmp_path_factory.mktemp("study") / "run", *SMALL)


def test_rows_stand_for_the_context(problem: Problem) -> None:
    """|U^T X M - U^T Y|^2 = |X M - Y|^2 - min, and the Gram matrix is the same, of mean eigenvalue 1.

    Otherwise descent would be measured against another optimum than that of least squares.
    """
    (x, y), (rows, labels) = problem.context, problem.rows
    torch.testing.assert_close(rows.T @ rows, x.T @ x, rtol=0, atol=1e-12)
    assert float(problem.spectrum.values.mean()) == pytest.approx(1, abs=1e-12)
    m = torch.randn(x.shape[1], y.shape[1], generator=Generator().manual_seed(0), dtype=torch.float64)
    least = LinearRegression(fit_intercept=False).fit(x.numpy(), y.numpy())
    residual = (torch.as_tensor(least.predict(x.numpy())) - y).square().sum()
    excess = (x @ m - y).square().sum() - residual
    assert float((rows @ m - labels).square().sum()) == pytest.approx(float(excess), rel=1e-10)


def test_pixels_are_centred_and_never_seen_and_hidden(splits: ImageSplits, problem: Problem) -> None:
    """Visible and hidden pixels are all pixels of the averaged images, once; the context has mean zero."""
    x, y = problem.context
    assert x.shape == (60, 11)
    assert y.shape == (60, 5)
    assert float(x.mean(0).abs().max()) < 1e-12
    averaged = splits.test[:50].double().div(255).unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    pixels, columns = averaged.flatten(1).T, torch.cat(problem.test, 1).T
    nearest = torch.cdist(
        pixels - pixels.mean(1, keepdim=True), columns - columns.mean(1, keepdim=True)
    ).min(1)
    assert float(nearest.values.max()) < 1e-6  # of 50 images; cdist has half the digits
    assert sorted(nearest.indices.tolist()) == list(range(16))
    assert not torch.equal(problem.other[0], x)
    zero = torch.zeros_like(problem.test[1])
    expected = (problem.hidden_mean - (problem.test[1] + problem.hidden_mean)).square().mean()
    assert problem.squared_error(zero, problem.test) == pytest.approx(float(expected))
    assert problem.squared_error(zero + 9, problem.test) < 1  # clipped as every prediction is


def test_measures_of_the_constructed_similarity(problem: Problem) -> None:
    """G^+ has overlap, flatness and gains 1, I the gains lambda; turned signs leave A flat."""
    values, inverse = problem.spectrum.values, problem.spectrum.power(-1)
    identity = torch.eye(len(inverse), dtype=torch.float64)
    for measure in (overlap, label_overlap, flatness):
        assert measure(problem, 3 * inverse) == pytest.approx(1, abs=1e-9)
        assert measure(problem, identity) < 0.95
    assert gains(problem, inverse) == pytest.approx([1.0] * len(values))
    assert gains(problem, identity) == pytest.approx(values.tolist())
    whitening = problem.spectrum.whitening
    turned = whitening @ torch.diag(torch.tensor([1.0, -1.0] * 5 + [1.0]).double()) @ whitening.T
    assert flatness(problem, turned) == pytest.approx(1)
    assert overlap(problem, turned) == pytest.approx(1 / 11)
    assert map_gains(problem, problem.least_squares / 2, problem.least_squares) == pytest.approx([0.5] * 11)
    known = controls(problem, seeds=3, seed=0)
    closed = float(values.sum() / values.norm() / math.sqrt(len(values)))
    assert known["identity"]["overlap"] == pytest.approx([closed])
    assert max(map(abs, known["random"]["overlap"])) < 0.5


def test_every_regime_has_the_optimum_that_is_said(problem: Problem) -> None:
    """With W_Q W_K^T = G^+ the errors of the one context vanish; for any context it is not the optimum."""
    root = problem.spectrum.whitening
    for key, regime in regimes(problem, adam_rates=[0.01], plain_rates=[0.01], count=12).items():
        trainee = regime.start(Generator().manual_seed(0))
        if "in_weights" in key:
            if key == "in_weights_narrow":
                assert trainee.layer.queries.shape == (11, 5)
                continue
            trainee.layer.values.copy_(root)
            trainee.layer.feed_forward.copy_(torch.eye(11))
            trainee.layer.readout.copy_(root.T @ problem.context[0].T @ problem.context[1])
        trainee.layer.queries.copy_(root)
        trainee.layer.keys.copy_(root)
        error = float(trainee.error())
        if key == "any_context":
            assert error > 0.1
        else:
            assert error < 1e-18


def test_the_narrow_layer_is_wide_enough(problem: Problem) -> None:
    """Width m holds any coefficients: G^+ need not fit into the weights for least squares to be reached."""
    regime = regimes(problem, adam_rates=[0.03], plain_rates=[0.01], count=12)["in_weights_narrow"]
    trainee = regime.start(Generator().manual_seed(0))
    errors = list(regime.method(trainee.weights, trainee.error, steps=400, rate=0.03))
    assert errors[-1] < 1e-2 < 1 < errors[0]


def test_smaller_starts_are_the_same_starts_smaller(problem: Problem) -> None:
    """Every weight times the scale, by either method; otherwise the control controls nothing."""
    rates: Any = {"adam_rates": [0.01], "plain_rates": [0.01]}
    whole = regimes(problem, **rates, count=12)["in_weights"].start(Generator().manual_seed(3))
    for regime in smaller_starts(problem, **rates, scale=0.1).values():
        small = regime.start(Generator().manual_seed(3))
        assert len(small.weights) == 5
        for weight, expected in zip(small.weights, whole.weights, strict=True):
            torch.testing.assert_close(weight, 0.1 * expected, rtol=1e-15, atol=0)


def test_rates_are_ranked_by_the_error_at_the_end(problem: Problem) -> None:
    """1e-9 does not move and 1e6 diverges."""
    plain = regimes(problem, adam_rates=[0.01], plain_rates=[1e-9, 0.01, 1e6], count=12)["in_weights_plain"]
    assert plain.ranked_rates(Generator().manual_seed(0), 30) == [0.01, 1e-9]


def test_a_start_that_diverges_costs_the_rate_and_not_the_study(
    study_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The screening's start says nothing of the others: all of them take its next rate, or that is said."""
    descend = Regime.descend
    allowed = {0.01}

    def fragile(self: Regime, generator: Generator, steps: int, rate: float, overlap: Any) -> Descent:
        if rate not in allowed:
            raise ArithmeticError("the error is inf")
        return descend(self, generator, steps, rate, overlap)

    monkeypatch.setattr(Regime, "descend", fragile)
    rates = ("theory.adam_rates=[0.01,0.02]", "theory.plain_rates=[0.01,0.02]")
    trained = study_run(tmp_path / "run", *SMALL, *rates).results["trained"]
    assert {entry["rate"] for entry in trained.values()} == {0.01}
    allowed.clear()
    with pytest.raises(NonFiniteError, match=r"labels in the weights: a start diverges at every rate of"):
        study_run(tmp_path / "none", *SMALL, *rates)


def test_contexts_change_what_the_weights_do_not_know(problem: Problem) -> None:
    """In its own context the constructed layer is least squares; exchanged labels reach scores alone.

    Weights that hold the labels say of pixel k + 2 what was asked of k, and in half the context H they are
    the map G^+ (H^T H) G^+ X^T Y.
    """
    errors = errors_in_contexts(problem, {}, count=12, ridges=[0.0, 0.1])
    training, exchanged = errors["training"], errors["exchanged"]
    for key in ("constructed", "constructed_in_context"):
        assert training[key] == pytest.approx(training["refit"], rel=1e-9)
    assert exchanged["constructed_in_context"] == pytest.approx(training["refit"], rel=1e-9)
    assert exchanged["refit"] == pytest.approx(training["refit"], rel=1e-9)
    (x, _), beta = problem.context, problem.least_squares
    halved = problem.spectrum.power(-1) @ (x[:30].T @ x[:30]) @ beta
    for name, coefficients in (("exchanged", beta.roll(-2, 1)), ("half", halved)):
        expected = problem.squared_error(problem.test[0] @ coefficients, problem.test)
        assert errors[name]["constructed"] == pytest.approx([expected], rel=1e-9)
        assert abs(expected - errors[name]["refit"][0]) > 1e-3


def test_a_tiny_run(done: Any) -> None:
    """Every number is there and finite, the table says them, and the figure is drawn from results.json."""
    results = done.results
    assert results["theory"] == "ols_attention"
    assert (results["visible"], results["hidden"], results["rank"]) == (11, 5, 11)
    assert all(math.isfinite(value) for value in results["headline"].values())
    for row in results["construction"]:
        assert max(row["gap"], row["labels_gap"]) < 1e-9
        assert (row["naive_gap"] > 1e-4) == (row["ridge"] > 0)
    for entry in results["trained"].values():
        assert len(entry["errors"]) == len(entry["mse"]) == 2
        assert all(start[-1] < start[0] for start in entry["errors"])
        assert entry["steps"][0] == 0
        assert entry["steps"][-1] == 40
    assert [(entry["scale"], entry["method"]) for entry in results["smaller_starts"]] == [
        (0.3, "adam"),
        (0.3, "plain"),
    ]
    for entry in results["smaller_starts"]:
        assert len(entry["errors"]) == len(entry["overlaps"]) == 2
        assert f"start times 0.3, {entry['method']}, rate {entry['rate']:g}" in done.output
    for name in (
        "least squares of the context",
        "trained for any task and context",
        "identity A",
        "exchanged",
    ):
        assert name in done.output
    assert (done.path / "figures" / "ols_attention.png").stat().st_size > 20_000


def test_the_same_seed_measures_the_same(done: Any, splits: ImageSplits) -> None:
    """Every draw is of a generator of its own: measured again, bit for bit."""
    again = ols_attention.measure(done.config, splits, lambda what: None)
    assert json.loads(json.dumps(again["trained"])) == done.results["trained"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("theory.images=1", r"theory\.images is 1; it must be at least 2"),
        ("theory.start_scales=[0.0]", r"theory\.start_scales is \[0\.0\].*positive"),
        ("theory.steps=0", r"theory\.steps is 0"),
        ("theory.seeds=0", r"theory\.seeds is 0"),
        ("theory.short_context=61", r"short_context=61 exceeds theory\.images=60"),
        ("theory.ridges=[-1.0]", r"theory\.ridges is \[-1\.0\].*0 or more"),
        ("theory.adam_rates=[]", r"theory\.adam_rates is \[\].*positive"),
        ("theory.plain_rates=[0.0]", r"theory\.plain_rates is \[0\.0\].*positive"),
        ("theory.images=300", "needs 600 training images for two contexts, and synthetic has 448"),
        ("task.mask_fraction=0.01", "hides 0 of 16 pixels"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    make_config: Callable[..., Any], splits: ImageSplits, tiny: tuple[str, ...], override: str, message: str
) -> None:
    """With the field and its value."""
    config = make_config(*tiny, *SMALL, override)

    def run() -> None:
        ols_attention.check(config)
        ols_attention.check_data(config, splits)

    with pytest.raises(ConfigError, match=message):
        run()


def test_the_least_that_is_accepted_can_be_measured(
    make_config: Callable[..., Any], splits: ImageSplits, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Two images, contexts of one, one hidden pixel: no raw error, no label exchanged with itself.

    With one label the context of exchanged labels would be that of training, and look like a success.
    """
    least = ("theory.images=2", "theory.short_context=1", "theory.steps=2", "theory.seeds=1")
    config = make_config(*tiny, *SMALL, *least, "task.mask_fraction=0.06", "theory.start_scales=[]")
    ols_attention.check(config)
    results = ols_attention.measure(config, splits, lambda what: None)
    assert results["hidden"] == 1
    assert results["smaller_starts"] == []
    assert list(results["contexts"]) == ["training", "other", "few", "half"]
    assert "exchanged" not in ols_attention.table(results)
    assert ols_attention.draw(results, tmp_path)["ols_attention"].exists()


def test_the_experiment_composes(make_config: Callable[..., Any], root: Path) -> None:
    """conf/experiment/ols_attention.yaml alone is a configuration that passes its check."""
    ols_attention.check(make_config("experiment=ols_attention"))
