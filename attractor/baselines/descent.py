"""Descent of any error of any tensors by backpropagation, for what is compared with a closed form.

The whole error is descended, not that of a batch, unless `error` draws one; so two methods are enough:

    gradient descent    w <- w - rate g
    Adam                the same with a step size of its own for each weight (Kingma & Ba 2015), and with a
                        rate that falls to 0 as a cosine, without which Adam circles its goal at the
                        distance of a step
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim import Adam as _Adam

Error = Callable[[], Tensor]  # the scalar error of the weights as they are now


def gradient_descent(
    weights: Sequence[Tensor], error: Error, *, steps: int, rate: float
) -> Iterator[float]:
    """Yields the error before each of `steps` steps, then that of the weights it ends with: steps + 1.

    `weights` are changed in place; `error` reads them. They need gradients while the iterator lives, and
    not after. Raises ArithmeticError for an error or a gradient that is not finite, and makes no step of
    it; ValueError for weights, an error, steps or a rate that cannot be used.
    """
    return _descend(weights, error, steps, rate, lambda w: SGD(w, lr=rate), lambda share: 1.0)


def adam(weights: Sequence[Tensor], error: Error, *, steps: int, rate: float) -> Iterator[float]:
    """Like `gradient_descent`, by Adam with betas (0.9, 0.999) and the rate falling as a cosine."""
    return _descend(weights, error, steps, rate, lambda w: _Adam(w, lr=rate), _cosine)


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def _descend(
    weights: Sequence[Tensor],
    error: Error,
    steps: int,
    rate: float,
    make: Callable[[Sequence[Tensor]], Optimizer],
    schedule: Callable[[float], float],
) -> Iterator[float]:
    if not weights or not all(weight.is_leaf and weight.is_floating_point() for weight in weights):
        raise ValueError("descent needs floating-point weights, at least one, each a leaf of autograd")
    if steps < 1:
        raise ValueError(f"descent needs at least one step, got {steps}")
    if not 0 < rate < math.inf:
        raise ValueError(f"the rate must be positive and finite, got {rate}")
    # in a generator of its own, so that what was refused above is refused at the call
    return _steps(weights, error, steps, rate, make, schedule)


def _steps(
    weights: Sequence[Tensor],
    error: Error,
    steps: int,
    rate: float,
    make: Callable[[Sequence[Tensor]], Optimizer],
    schedule: Callable[[float], float],
) -> Iterator[float]:
    for weight in weights:
        weight.requires_grad_(True)
    try:
        optimiser = make(weights)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * schedule(step / steps)
            optimiser.zero_grad()
            yield _gradient(weights, error)
            optimiser.step()
        yield _gradient(weights, error)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


def _gradient(weights: Sequence[Tensor], error: Error) -> float:
    """Leave the gradient of the error in the weights; returns the error."""
    with torch.enable_grad():
        value = error()
        if value.dim() or not value.requires_grad:
            raise ValueError(
                f"the error must be a scalar that depends on the weights, got {tuple(value.shape)}"
            )
        value.backward()
    for place, weight in enumerate(weights):
        if weight.grad is None:
            raise ValueError(f"the error does not depend on weight {place}, of {tuple(weight.shape)}")
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not (value.isfinite() and all(bool(gradient.isfinite().all()) for gradient in gradients)):
        raise ArithmeticError(f"the error is {value.item():g}, or its gradient not finite; lower the rate")
    return value.item()
