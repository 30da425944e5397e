"""Predictions of retrieval. Oracle: memories that are filled at random, and numerical integrals."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from attractor.theory.fast_weights import FastWeights
from attractor.theory.feature_maps import Polynomial
from attractor.theory.signal_to_noise import (
    cosine,
    decayed_noise,
    exponential_noise,
    overwritten_noise,
    polynomial_noise,
)
from attractor.theory.write_rules import Decay, Delta, WriteRule

DIM, PAIRS, SEQUENCES = 40, 60, 300


def _unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


def _cosines(memory: FastWeights) -> Tensor:
    """Of every pair, newest first, (P,): mean over sequences."""
    keys, values = (_unit(SEQUENCES, PAIRS, DIM, seed=seed) for seed in (0, 1))
    outputs = memory.recall(memory.store(keys, values), keys)
    return torch.cosine_similarity(outputs, values, dim=-1).mean(0).flip(0)


@pytest.mark.parametrize("dim", [3, 8, 32])
def test_kernels_of_random_unit_vectors(dim: int) -> None:
    """E over the angle, whose density is (1 - t^2)^((D-3)/2): the constants of the noise, by quadrature."""
    density = lambda t: (1 - t * t) ** ((dim - 3) / 2)  # noqa: E731
    whole = quad(density, -1, 1)[0]
    for degree in (1, 2, 3):
        moment = quad(lambda t: density(t) * t ** (2 * degree), -1, 1)[0] / whole  # noqa: B023
        assert polynomial_noise(degree, dim) == pytest.approx(moment, rel=1e-6)
    for beta in (0.5, 4.0):
        moment = quad(lambda t: density(t) * math.exp(2 * beta * (t - 1)), -1, 1)[0] / whole  # noqa: B023
        assert exponential_noise(beta, dim) == pytest.approx(moment, rel=1e-6)


@pytest.mark.parametrize("degree", [1, 2])
def test_the_hebbian_cosine(degree: int) -> None:
    """cosine = 1 / sqrt(1 + (P - 1) c). A readout that mixes in anything else falls below it."""
    measured = float(_cosines(FastWeights(DIM, DIM, feature_map=Polynomial(degree))).mean())
    predicted = cosine((PAIRS - 1) * polynomial_noise(degree, DIM))
    # 18,000 pairs: 0.002; corrections of order 1/D to a ratio of means
    assert measured == pytest.approx(predicted, abs=0.5 / DIM)


@pytest.mark.parametrize(
    ("rule", "noise"),
    [
        (Decay(1.0), lambda age: decayed_noise(1.0, age, pairs=PAIRS, dim=DIM)),
        (Decay(0.95), lambda age: decayed_noise(0.95, age, pairs=PAIRS, dim=DIM)),
        (Delta(), lambda age: overwritten_noise(age, rate=1.0, pairs=PAIRS, dim=DIM)),
        (Delta(0.5), lambda age: overwritten_noise(age, rate=0.5, pairs=PAIRS, dim=DIM)),
        (Delta(0.1), lambda age: overwritten_noise(age, rate=0.1, pairs=PAIRS, dim=DIM)),
        (Delta(1.6), lambda age: overwritten_noise(age, rate=1.6, pairs=PAIRS, dim=DIM)),
    ],
)
def test_forgetting_curves(rule: WriteRule, noise) -> None:
    """Cosine against age, every age: the curves by which the rules are told apart."""
    measured = _cosines(FastWeights(DIM, DIM, rule=rule)).numpy()
    predicted = np.array([cosine(noise(age)) for age in range(PAIRS)])
    # 300 cosines of deviation up to 1/sqrt(D) each, four standard errors, and corrections of order 1/D
    np.testing.assert_allclose(measured, predicted, atol=4 / math.sqrt(DIM * SEQUENCES) + 0.5 / DIM)


@pytest.mark.parametrize("age", [0, 7, PAIRS - 1])
def test_limits_of_the_rate_of_the_delta_rule(age: int) -> None:
    """At a rate of 1 the newest pair has no noise; to a rate of 0 the delta rule is Hebb's.

    Of infinitely many pairs the newest comes back with a cosine of sqrt(eta (2 - eta)).
    """
    assert overwritten_noise(0, rate=1.0, pairs=PAIRS, dim=DIM) == pytest.approx(0, abs=1e-15)
    for rate in (0.1, 0.3, 1.6):
        newest = cosine(overwritten_noise(0, rate=rate, pairs=10**6, dim=DIM))
        assert newest == pytest.approx(math.sqrt(rate * (2 - rate)), rel=1e-12)
    slow = overwritten_noise(age, rate=1e-7, pairs=PAIRS, dim=DIM)
    # relative corrections of rate P / D, and differences of 1 and 1 - 1e-9
    assert slow == pytest.approx(decayed_noise(1.0, age, pairs=PAIRS, dim=DIM), rel=1e-5)
