"""The study of fast weights, tiny: what it measures, says, draws and refuses."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attractor.images import synthetic
from attractor.lab.config.schema import Config
from attractor.lab.errors import ConfigError
from attractor.studies import fast_weights
from attractor.studies.config import FastWeightsConfig
from attractor.studies.fast_weights.memory import TensorBytes

SMALL = (
    "experiment=fast_weights",
    "theory.seeds=2",
    "theory.dim=8",
    "theory.sequences=16",
    "theory.stored=[2,8,32]",
    "theory.random_features=64",
    "theory.rounds=3",
    "theory.neurons=[40,80]",
    "theory.loads=[0.05,0.3,0.6]",
    "theory.patterns=10",
    "theory.lengths=[8,16,32]",
    "theory.chunk=4",
)


NAN = float("nan")


@pytest.fixture(scope="module")
def small(make_config: Callable[..., Config]) -> Config:
    return make_config(*SMALL)


@pytest.fixture(scope="module")
def study(study_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run of everything, in the frame of train.py."""
    return study_run(tmp_path_factory.mktemp("fast") / "run", *SMALL)


def test_measures_says_and_draws(study: Any) -> None:
    """Every rule with every separation has a curve over all numbers of pairs; figures and table exist.

    The delta rule has one for each rate: with rate 1 alone, what it stores worst would be all that is seen.
    """
    curves = study.results["retrieval"]["curves"]
    rules = {"hebbian", "decay", "gate", "delta 1", "delta 0.3", "delta 0.1"}
    assert set(curves) == {*study.config.theory.separations, "softmax"}
    for separation in study.config.theory.separations:
        assert set(curves[separation]) == rules
        for rule in curves[separation].values():
            for kind in ("cosine", "accuracy"):
                assert [len(rule[kind][part]) for part in ("mean", "std")] == [3, 3]
    for name in ("fast_weights", "fast_weights_rules", "fast_weights_memory"):
        assert (study.path / "figures" / f"{name}.png").stat().st_size > 10_000
    for words in ("polynomial 2, delta 0.3", "N = 80", "keys written 3 times", "stream by chunk"):
        assert words in study.output
    assert all(isinstance(value, float) for value in study.results["headline"].values())


def test_findings_that_hold_at_any_size(study: Any) -> None:
    """A mix-up of rules, ages or rounds would turn these around."""
    results = study.results
    curves = results["retrieval"]["curves"]
    for separation in ("identity", "polynomial_2", "polynomial_3"):
        measured = curves[separation]["hebbian"]["cosine"]["mean"]
        # 8 sequences of up to 32 pairs; the prediction is for large D
        assert measured == pytest.approx(results["retrieval"]["predicted"][separation], abs=0.12)
    assert (
        curves["polynomial_3"]["hebbian"]["cosine"]["mean"][-1]
        > (curves["identity"]["hebbian"]["cosine"]["mean"][-1])
    )
    newest = {rule: each["cosine"]["mean"][0] for rule, each in results["forgetting"]["curves"].items()}
    oldest = {rule: each["cosine"]["mean"][-1] for rule, each in results["forgetting"]["curves"].items()}
    assert newest["delta 1"] == pytest.approx(1, abs=1e-9)
    assert newest["delta 1"] > newest["delta 0.3"] > newest["delta 0.1"] > newest["hebbian"]
    for rule, predicted in results["forgetting"]["predicted"].items():
        measured = results["forgetting"]["curves"][rule]["cosine"]["mean"]
        # 32 cosines of deviation up to 1/sqrt(8), four standard errors; the prediction is for large D
        assert measured == pytest.approx(predicted, abs=0.3), rule
    assert set(results["forgetting"]["predicted"]) == set(newest) - {"gate"}
    assert newest["hebbian"] == pytest.approx(oldest["hebbian"], abs=0.2)
    assert newest["decay"] > oldest["decay"]
    written = {name: each["newest"]["mean"] for name, each in results["overwriting"]["curves"].items()}
    assert written["gate"][-1] > written["hebbian"][-1]
    assert written["delta 1"][-1] > written["delta 0.1"][-1] > written["hebbian"][-1]
    signs = results["signs"]["curves"]["80"]["retrieved"]["mean"]
    assert signs[0] == 1.0 > signs[-1]


def test_the_normaliser_bounds_the_readout(study: Any) -> None:
    """With Z the readout is a mean of images, without it a sum; directions are the same."""
    curves = study.results["normaliser"]["curves"]
    assert study.results["normaliser"]["stored"] == [2, 8, 32]
    for separation in ("elu", "random_features"):
        bound, free = (curves[f"{separation}, {word} Z"] for word in ("with", "without"))
        assert max(bound["scale"]["mean"]) < 1.5
        assert free["scale"]["mean"][-1] > 4 * free["scale"]["mean"][0]
        assert bound["found by direction"] == free["found by direction"]


def test_memory_in_the_length_of_a_sequence(study: Any) -> None:
    """Beside its outputs: constant for `recurrent` and `chunked`, as methods and as streams of pieces.

    Quadratic in the end for `parallel`. Outputs are B T Dv numbers for each.
    """
    memory = study.results["memory"]
    forms = memory["forms"]
    for form in (
        forms["recurrent"],
        forms["chunked"],
        memory["streams"]["step"],
        memory["streams"]["chunk"],
    ):
        assert len(set(form["work"])) == 1
    work = forms["parallel"]["work"]
    assert work[2] - work[1] > 2 * (work[1] - work[0])
    for form in forms.values():
        assert form["outputs"] == [8 * 8 * length for length in memory["lengths"]]
    everything = (*forms.values(), *memory["streams"].values())
    assert {size for form in everything for size in form["state"]} == {8 * (8 * 8 + 8)}


def test_bytes_are_counted_until_they_are_freed() -> None:
    """By hand: a view and an operation in place make nothing, a product makes one matrix."""
    before = torch.ones(10, 10, dtype=torch.float64)
    with TensorBytes() as counted:
        made = before @ before
        assert (counted.held, counted.peak) == (800, 800)
        made.add_(1)
        view = made[2:]
        assert counted.held == 800
        other = view.clone()
        assert counted.held == 800 + 640
        del made
        assert counted.held == 800 + 640  # the view holds it
        del view
        assert counted.held == 640
        del other
    assert (counted.held, counted.peak) == (0, 1440)


def test_one_of_everything(make_config: Callable[..., Any], tmp_path: Path) -> None:
    """A deviation of one draw is not zero: it is absent, and so is a crossing that was not seen.

    One separation and one rule are drawn too, at the lowest temperature that `check` lets through.
    """
    one = (
        "theory.seeds=1",
        "theory.separations=[identity]",
        "theory.rules=[delta]",
        "theory.delta_rates=[0.7]",
        "theory.loads=[0.05,0.06]",
        "theory.inverse_temperature=100",
    )
    images = synthetic(side=4, train=40, test=9, validation=8)
    config = make_config(*SMALL, *one)
    fast_weights.check(config)
    results = fast_weights.measure(config, images, lambda text: None)
    assert results["retrieval"]["curves"]["identity"]["delta 0.7"]["cosine"]["std"] == [None] * 3
    assert results["signs"]["curves"]["80"]["half"] == {"mean": [None], "std": [None]}
    text = fast_weights.table(results)
    assert "none" in text  # both loads are below the one where half of the patterns are lost
    assert "±" not in text
    assert len(fast_weights.draw(results, tmp_path)) == 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rules", ["hebb"], "theory.rules has hebb; known are hebbian, decay, gate, delta"),
        ("rules", [], r"theory.rules is \[\]; name at least one"),
        (
            "rules",
            ["gate", "gate"],
            r"theory.rules is \['gate', 'gate'\]; name at least one, and each once",
        ),
        ("separations", ["cubic"], "theory.separations has cubic; known are identity"),
        ("separations", [], r"theory.separations is \[\]; name at least one"),
        ("separations", ["elu", "elu"], "theory.separations is .*, and each once"),
        ("delta_rates", [], r"theory.delta_rates is \[\]"),
        ("delta_rates", [0.3, 0.3], "theory.delta_rates is .*different rates between 0 and 2"),
        ("delta_rates", [1.0, 2.0], "theory.delta_rates is .*different rates between 0 and 2"),
        ("delta_rates", [NAN], "theory.delta_rates is"),
        ("stored", [], r"theory.stored is \[\]"),
        ("stored", [1, 2], "start at 2 or more"),
        ("neurons", [1, 40], "start at 2 or more"),
        ("lengths", [8, 4], r"theory.lengths is \[8, 4\]; use positive, finite numbers, ascending"),
        ("loads", [0.001, 0.1], "0.001 of 40 neurons is no pattern"),
        ("loads", [0.1, NAN], "theory.loads is .*finite"),
        ("loads", [0.1, float("inf")], "theory.loads is .*finite"),
        ("retention", 1.0, "theory.retention is 1.0; it must be between 0 and 1"),
        ("retention", NAN, "theory.retention is nan"),
        ("inverse_temperature", 0.0, "theory.inverse_temperature is 0.0"),
        ("inverse_temperature", 1000.0, "positive and at most 100, above which random features"),
        ("seeds", 0, "theory.seeds is 0; it must be at least 1"),
        ("sequences", 0, "theory.sequences is 0"),
        ("random_features", 0, "theory.random_features is 0"),
        ("rounds", 0, "theory.rounds is 0"),
        ("patterns", 0, "theory.patterns is 0"),
        ("chunk", 1, "theory.chunk is 1; it must be at least 2"),
        ("dim", 3, "theory.dim is 3; it must be at least 4"),
        ("dim", 80, "80 components have 88,560 features of degree 3, more than 65,536"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(
    field: str, value: Any, message: str, small: Config
) -> None:
    """Before any work, naming the field; an empty list would otherwise fail after the whole measurement."""
    assert isinstance(small.theory, FastWeightsConfig)
    fast_weights.check(small)
    with pytest.raises(ConfigError, match=message):
        fast_weights.check(replace(small, theory=replace(small.theory, **{field: value})))


def test_every_field_is_refused_somewhere() -> None:
    """A field that is added to the study, and not to `check`, fails here."""
    (refused,) = (mark for mark in test_what_cannot_be_measured_is_refused_first.pytestmark)
    assert {case[0] for case in refused.args[1]} == {each.name for each in fields(FastWeightsConfig)}
