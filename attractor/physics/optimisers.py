"""Element-wise optimisers: what a synapse does with the local gradient that it sees.

Every update of a weight uses that weight's own gradient and own state and nothing else, so a rule stays
local under all of them. They climb: gradients are directions of ascent. Weights are updated a few rows at
a time, so that weight, gradient and state stay in the cache; a row comes out with the same bits whichever
rows are updated with it.

Where only some rows are given, the others keep their weights and their state: time is a row's own.

Source: Kingma & Ba 2015 (Adam); they are checked against torch.optim in tests/physics/test_optimisers.py.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from attractor.physics.kernels import cpu_adam

_BLOCK_BYTES = 256_000


class Optimiser(Protocol):
    """Holds the state of every weight, by the weight's name; the state is made at the first ascent."""

    state: dict[str, Tensor]

    def ascend(
        self,
        weights: dict[str, Tensor],
        gradient: dict[str, Tensor],
        *,
        rate: float,
        rows: Sequence[int] | None = None,
    ) -> bool:
        """Move `weights` in place along `gradient`, with learning rate `rate`.

        rows: ascending places on the first axis of the weights, all of them unless given. Returns whether
        the sum of the new weights is finite: if so, they all are.
        """
        ...


class SGD:
    """v <- momentum v + g;  w <- w + rate v."""

    def __init__(self, *, momentum: float = 0.0) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.state: dict[str, Tensor] = {}

    def ascend(
        self,
        weights: dict[str, Tensor],
        gradient: dict[str, Tensor],
        *,
        rate: float,
        rows: Sequence[int] | None = None,
    ) -> bool:
        finite = True
        for name, weight in weights.items():
            velocity = _state(self.state, f"{name}.velocity", weight) if self.momentum else gradient[name]
            for run in _runs(rows, len(weight)):
                for w, g, v in _row_blocks(weight[run], gradient[name][run], velocity[run]):
                    if self.momentum:
                        v.mul_(self.momentum).add_(g)
                    w.add_(v, alpha=rate)
                    finite &= bool(w.sum().isfinite())
        return finite


class Adam:
    """m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2,  w <- w + rate m' / (sqrt(v') + epsilon).

    m' = m/(1 - b1^t) and v' = v/(1 - b2^t) correct the bias of the start; t counts the updates of a row.
    Adam makes the step of a synapse independent of the scale of its gradient, which at confident couplings
    falls by orders of magnitude.
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

    def ascend(
        self,
        weights: dict[str, Tensor],
        gradient: dict[str, Tensor],
        *,
        rate: float,
        rows: Sequence[int] | None = None,
    ) -> bool:
        finite = True
        for name, weight in weights.items():
            first = _state(self.state, f"{name}.mean", weight)
            second = _state(self.state, f"{name}.square", weight)
            steps = self._advanced(f"{name}.steps", rows, len(weight))
            for run in _runs(rows, len(weight), alike=steps):
                t = steps[run.start]
                root_correction = (1 - self.beta2**t) ** 0.5
                step_size = rate / (1 - self.beta1**t)
                everything = (weight[run], gradient[name][run], first[run], second[run])
                one_pass = _one_pass(*everything)
                if one_pass is not None:
                    finite &= one_pass(
                        *everything,
                        step_size=step_size,
                        root_correction=root_correction,
                        beta1=self.beta1,
                        beta2=self.beta2,
                        epsilon=self.epsilon,
                    )
                    continue
                for w, g, m, v in _row_blocks(*everything):
                    m.lerp_(g, 1 - self.beta1)
                    v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
                    w.addcdiv_(m, v.sqrt().div_(root_correction).add_(self.epsilon), value=step_size)
                    finite &= bool(w.sum().isfinite())
        return finite

    def _advanced(self, name: str, rows: Sequence[int] | None, count: int) -> list[int]:
        """How often each of `count` rows was updated, this time included for `rows`."""
        counter = _state(self.state, name, torch.zeros(count, dtype=torch.int64))
        counter[slice(None) if rows is None else torch.tensor(rows)] += 1
        steps: list[int] = counter.tolist()
        return steps


def _one_pass(*tensors: Tensor) -> Callable[..., bool] | None:
    """The fused update of Adam that can take them, which reads and writes every number once, or None."""
    if cpu_adam.fits(*tensors):
        return cpu_adam.update
    if find_spec("triton") and all(t.is_cuda and t.is_contiguous() for t in tensors):
        from attractor.physics.kernels import cuda

        return cuda.adam if all(t.dtype == torch.float32 for t in tensors) else None
    return None


def _state(state: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    if name not in state:
        with torch.inference_mode(False):  # an ordinary tensor, which may be written to anywhere
            state[name] = torch.zeros_like(like)
    return state[name]


def _runs(rows: Sequence[int] | None, count: int, *, alike: Sequence[int] | None = None) -> Iterator[slice]:
    """The rows asked for, all `count` unless given, as runs of consecutive ones with equal `alike`."""
    rows = range(count) if rows is None else rows
    alike = [0] * count if alike is None else alike
    if rows == range(count) and len(set(alike)) == 1:
        yield slice(0, count)
        return
    begin = 0
    for end, row in enumerate(rows, start=1):
        if end == len(rows) or rows[end] != row + 1 or alike[rows[end]] != alike[row]:
            yield slice(rows[begin], row + 1)
            begin = end


def _row_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    if tensors[0].device.type != "cpu":
        return iter([tensors])  # one launch beats any cache
    row_bytes = tensors[0][0].numel() * tensors[0].element_size()
    return zip(*(t.split(max(1, _BLOCK_BYTES // row_bytes)) for t in tensors), strict=True)
