"""Element-wise optimisers: what a synapse does with the local gradient that it sees.

Every update of a weight uses that weight's own gradient and own state and nothing else, so a rule stays
local under all of them. They climb: gradients are directions of ascent. Weights are updated a few rows at
a time, so that weight, gradient and state stay in the cache.

Source: Kingma & Ba 2015 (Adam); they are checked against torch.optim in tests/physics/test_optimisers.py.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

_BLOCK_BYTES = 256_000


class Optimiser(Protocol):
    """Holds the state of every weight, by the weight's name; the state is made at the first ascent."""

    state: dict[str, Tensor]

    def ascend(self, weights: dict[str, Tensor], gradient: dict[str, Tensor], *, rate: float) -> None:
        """Move `weights` in place along `gradient`, with learning rate `rate`."""
        ...


class SGD:
    """v <- momentum v + g;  w <- w + rate v."""

    def __init__(self, *, momentum: float = 0.0) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.state: dict[str, Tensor] = {}

    def ascend(self, weights: dict[str, Tensor], gradient: dict[str, Tensor], *, rate: float) -> None:
        if not self.momentum:
            for name, weight in weights.items():
                weight.add_(gradient[name], alpha=rate)
            return
        for name, weight in weights.items():
            velocity = _state(self.state, f"{name}.velocity", weight)
            for w, g, v in _row_blocks(weight, gradient[name], velocity):
                v.mul_(self.momentum).add_(g)
                w.add_(v, alpha=rate)


class Adam:
    """m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2,  w <- w + rate m' / (sqrt(v') + epsilon).

    m' = m/(1 - b1^t) and v' = v/(1 - b2^t) correct the bias of the start. Adam makes the step of a synapse
    independent of the scale of its gradient, which at confident couplings falls by orders of magnitude.
    """

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> None:
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if epsilon <= 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.state: dict[str, Tensor] = {}

    def ascend(self, weights: dict[str, Tensor], gradient: dict[str, Tensor], *, rate: float) -> None:
        steps = self.state.setdefault("steps", torch.zeros((), dtype=torch.int64))
        steps += 1
        t = int(steps)
        step_size = rate / (1 - self.beta1**t)
        root_correction = (1 - self.beta2**t) ** 0.5
        for name, weight in weights.items():
            first = _state(self.state, f"{name}.mean", weight)
            second = _state(self.state, f"{name}.square", weight)
            for w, g, m, v in _row_blocks(weight, gradient[name], first, second):
                m.lerp_(g, 1 - self.beta1)
                v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
                w.addcdiv_(m, v.sqrt().div_(root_correction).add_(self.epsilon), value=step_size)


def _state(state: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(like)
    return state[name]


def _row_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    row_bytes = tensors[0][0].numel() * tensors[0].element_size()
    return zip(*(t.split(max(1, _BLOCK_BYTES // row_bytes)) for t in tensors), strict=True)
