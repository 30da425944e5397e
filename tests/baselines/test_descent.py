"""Descent by backpropagation: against the closed form of a quadratic, torch's Adam, and what it refuses."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from attractor.baselines.descent import adam, gradient_descent


def problem() -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """A start, a goal, and the error (w - goal)^T H (w - goal) / 2 with H = diag(1, 4)."""
    generator = Generator().manual_seed(0)
    start, goal = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)
    return start, goal, lambda w: ((w - goal).square() * curvature).sum() / 2


def test_gradient_descent_is_the_power_of_a_matrix() -> None:
    """On a quadratic w_t - goal = (I - rate H)^t (w_0 - goal); each error is that before its step."""
    start, goal, error = problem()
    weight, rate = start.clone(), 0.1
    factor = torch.tensor([1 - rate, 1 - 4 * rate], dtype=torch.float64)
    for t, value in enumerate(gradient_descent([weight], lambda: error(weight), steps=20, rate=rate)):
        expected = goal + factor**t * (start - goal)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)
        assert value == pytest.approx(float(error(expected)), rel=1e-12)
    assert t == 20


def test_adam_is_that_of_physics_with_a_falling_rate() -> None:
    """The same weights as `attractor.physics.Adam`, written apart, climbing the negative error."""
    from attractor.physics import Adam

    start, goal, error = problem()
    weight, other, steps, rate = start.clone(), start.clone()[None], 30, 0.05
    optimiser = Adam()
    for t, _ in enumerate(adam([weight], lambda: error(weight), steps=steps, rate=rate)):
        torch.testing.assert_close(weight.detach(), other[0], rtol=1e-9, atol=1e-9)
        gradient = torch.tensor([1.0, 4.0], dtype=torch.float64) * (goal - other)
        falling = rate * (1 + math.cos(math.pi * t / steps)) / 2
        optimiser.ascend({"w": other}, {"w": gradient}, rate=falling)


def test_several_weights_are_all_descended() -> None:
    """The product of two scalars comes to its goal, and the weights are left without a graph."""
    weights = [torch.tensor(0.5), torch.tensor(-0.3)]
    errors = list(adam(weights, lambda: (weights[0] * weights[1] - 2).square(), steps=500, rate=0.05))
    assert len(errors) == 501
    assert errors[-1] < 1e-6 < errors[0]
    assert not any(weight.requires_grad or weight.grad is not None for weight in weights)


def test_a_descent_that_is_left_leaves_no_graph() -> None:
    """Closing the iterator early ends the need of gradients."""
    start, _, error = problem()
    descent = gradient_descent([start], lambda: error(start), steps=5, rate=0.1)
    next(descent)
    assert start.requires_grad
    descent.close()
    assert not start.requires_grad


def test_training_stops_before_it_harms() -> None:
    """An error that overflows is refused, and no step is made of it: the weights are still finite."""
    start, _, error = problem()
    with pytest.raises(ArithmeticError, match=r"the error is .*; lower the rate"):
        list(gradient_descent([start], lambda: error(start).exp(), steps=2000, rate=1.0))
    assert bool(start.isfinite().all())


def test_it_works_where_gradients_are_off() -> None:
    """Inside no_grad, as code of the lab may be, it descends as outside."""
    start, _, error = problem()
    twin = copy.deepcopy(start)
    outside = list(gradient_descent([start], lambda: error(start), steps=3, rate=0.1))
    with torch.no_grad():
        inside = list(gradient_descent([twin], lambda: error(twin), steps=3, rate=0.1))
    assert inside == outside


@pytest.mark.parametrize(
    ("weights", "steps", "rate", "message"),
    [
        ([], 5, 0.1, "at least one"),
        ([torch.ones(2, dtype=torch.int64)], 5, 0.1, "floating-point"),
        ([torch.ones(2)], 0, 0.1, "at least one step, got 0"),
        ([torch.ones(2)], 5, 0.0, "rate must be positive"),
        ([torch.ones(2)], 5, math.inf, "rate must be positive"),
    ],
)
def test_refused_at_the_call(weights: list[Tensor], steps: int, rate: float, message: str) -> None:
    """Not at the first step, which a caller may take elsewhere."""
    for method in (adam, gradient_descent):
        with pytest.raises(ValueError, match=message):
            method(weights, lambda: torch.zeros(()), steps=steps, rate=rate)


def test_errors_that_cannot_be_descended() -> None:
    """No scalar, or none that depends on every weight: something would silently not be trained."""
    weight, idle = torch.ones(2), torch.ones(3)
    for error in (lambda: weight.square(), lambda: torch.zeros(())):
        with pytest.raises(ValueError, match="scalar that depends on the weights"):
            next(adam([weight], error, steps=1, rate=0.1))
    with pytest.raises(ValueError, match=r"does not depend on weight 1, of \(3,\)"):
        next(adam([weight, idle], lambda: weight.sum(), steps=1, rate=0.1))
