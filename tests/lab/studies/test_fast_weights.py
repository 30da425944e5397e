"""The study of fast weights, tiny: what it measures, says, draws and refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attractor.images import synthetic
from attractor.lab.errors import ConfigError
from attractor.lab.studies import fast_weights
from attractor.lab.studies.fast_weights.memory import TensorBytes

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


@pytest.fixture(scope="module")
def study(study_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run of everything, in the frame of train.py."""
    return study_run(tmp_path_factory.mktemp("fast") / "run", *SMALL)


def test_measures_says_and_draws(study: Any) -> None:
    """Every rule with every separation has a curve over all numbers of pairs; figures and table exist."""
    curves = study.results["retrieval"]["curves"]
    assert set(curves) == {*study.config.theory.separations, "softmax"}
    for separation in study.config.theory.separations:
        assert set(curves[separation]) == set(study.config.theory.rules)
        for rule in curves[separation].values():
            for kind in ("cosine", "accuracy"):
                assert [len(rule[kind][part]) for part in ("mean", "std")] == [3, 3]
    for name in ("fast_weights", "fast_weights_rules", "fast_weights_memory"):
        assert (study.path / "figures" / f"{name}.png").stat().st_size > 10_000
    for words in ("polynomial 2, delta", "N = 80", "keys written 3 times", "recurrent"):
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
    assert newest["delta"] == pytest.approx(1, abs=1e-9)
    assert newest["hebbian"] == pytest.approx(oldest["hebbian"], abs=0.2)
    assert newest["decay"] > oldest["decay"]
    written = {name: each["newest"]["mean"] for name, each in results["overwriting"]["curves"].items()}
    assert written["gate"][-1] > written["hebbian"][-1]
    assert written["delta"][-1] > written["hebbian"][-1]
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
    """Constant for the recurrent and the chunked form, quadratic in the end for the parallel one."""
    forms = study.results["memory"]["forms"]
    for name in ("recurrent", "chunked"):
        assert len(set(forms[name]["peak"])) == 1
    peak = forms["parallel"]["peak"]
    assert peak[2] - peak[1] > 2 * (peak[1] - peak[0])
    assert len({size for form in forms.values() for size in form["state"]}) == 1


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


def test_one_seed_has_no_spread(make_config: Callable[..., Any]) -> None:
    """A deviation of one draw is not zero: it is absent, and so is a crossing that was not seen."""
    one = (
        "theory.seeds=1",
        "theory.separations=[identity]",
        "theory.rules=[delta]",
        "theory.loads=[0.05,0.06]",
    )
    images = synthetic(side=4, train=40, test=9, validation=8)
    results = fast_weights.measure(make_config(*SMALL, *one), images, lambda text: None)
    assert results["retrieval"]["curves"]["identity"]["delta"]["cosine"]["std"] == [None] * 3
    assert results["signs"]["curves"]["80"]["half"] == {"mean": [None], "std": [None]}
    text = fast_weights.table(results)
    assert "none" in text  # both loads are below the one where half of the patterns are lost
    assert "±" not in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("theory.rules=[hebb]", "theory.rules has hebb; known are hebbian"),
        ("theory.separations=[cubic]", "theory.separations has cubic; known are identity"),
        ("theory.stored=[]", r"theory.stored is \[\]"),
        ("theory.lengths=[8,4]", r"theory.lengths is \[8, 4\]; use positive numbers, ascending"),
        ("theory.loads=[0.001,0.1]", "0.001 of 40 neurons is no pattern"),
        ("theory.retention=1.0", "theory.retention is 1.0"),
        ("theory.inverse_temperature=0", "theory.inverse_temperature 0.0"),
        ("theory.seeds=0", "theory.seeds is 0; it must be at least 1"),
        ("theory.dim=80", "80 components have 88,560 features of degree 3, more than 65,536"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(
    override: str, message: str, make_config: Callable[..., Any]
) -> None:
    """Before any work, naming the field."""
    with pytest.raises(ConfigError, match=message):
        fast_weights.check(make_config(*SMALL, override))
