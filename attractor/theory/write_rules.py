"""Write rules: how a token changes the matrix that holds the memory.

    M_t = M_{t-1} diag(g_t) + u_t phi(k_t)^T,       Z_t = g_t Z_{t-1} + phi(k_t)

    Hebbian    g_t = 1                                u_t = v_t
    Decay      g_t = gamma                            u_t = v_t
    Gate       g_t = g(k_t), for instance sigmoid(W k_t + b)      u_t = v_t
    Delta      g_t = 1                                u_t = eta (v_t - M_{t-1} phi(k_t))

A rule says what is kept (`gates`) and what is written (`written`); everything else, the recurrent, parallel
and chunked forms alike, is `fast_weights.FastWeights`.

Sources: Schlag et al. 2021, arXiv 2102.11174 (fast weights and the delta rule); Yang et al. 2023,
arXiv 2312.06635 (gates; theirs depend on the token x_t that k_t is a projection of, ours on k_t); Yang et
al. 2024, arXiv 2406.06484 (the delta rule as a triangular system).
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class WriteRule(Protocol):
    """What is kept of the memory when a token comes, and what is written for it.

    `sums`: the memory is a sum of values with weights that are positive where features are, so that Z is
    the sum of those weights and a readout may be divided by it. False where u_t depends on the memory; such
    a rule has no gates, since `written` solves for all u_t at once without them.
    """

    sums: bool

    def gates(self, keys: Tensor) -> Tensor | None:
        """g_t for keys (B, T, D): (B, T, 1), or (B, T, F) for one a feature; None where all are 1."""
        ...

    def written(self, memory: Tensor, features: Tensor, *, values: Tensor) -> Tensor:
        """u_t (B, T, Dv) for T tokens in a row that come when the memory is M (B, Dv, F).

        features: phi(k_t), (B, T, F); values: v_t, (B, T, Dv).
        """
        ...


class Hebbian(WriteRule):
    """M_t = M_{t-1} + v_t phi(k_t)^T: nothing is forgotten, nothing is corrected."""

    sums = True

    def gates(self, keys: Tensor) -> Tensor | None:
        return None

    def written(self, memory: Tensor, features: Tensor, *, values: Tensor) -> Tensor:
        return values


class Decay(Hebbian):
    """M_t = gamma M_{t-1} + v_t phi(k_t)^T: what was stored a tokens ago weighs gamma^a."""

    def __init__(self, retention: float) -> None:
        """`retention` is gamma, from 0 (only the newest token) to 1 (Hebbian)."""
        if not 0 <= retention <= 1:
            raise ValueError(f"retention must be from 0 to 1, got {retention}")
        self.retention = retention

    def gates(self, keys: Tensor) -> Tensor | None:
        return keys.new_full((*keys.shape[:-1], 1), self.retention)


class Gate(Hebbian):
    """M_t = M_{t-1} diag(g(k_t)) + v_t phi(k_t)^T: the token decides what is forgotten."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        """`function` maps keys (B, T, D) to gates in [0, 1]: (B, T, 1) or (B, T, F)."""
        self.function = function

    def gates(self, keys: Tensor) -> Tensor | None:
        gates = self.function(keys)
        if gates.dim() != 3 or gates.shape[:-1] != keys.shape[:-1]:
            raise ValueError(
                f"gates are {tuple(gates.shape)} for keys {tuple(keys.shape)}, expected (B, T, 1) or "
                "(B, T, F)"
            )
        if not ((gates >= 0) & (gates <= 1)).all():
            raise ValueError(
                f"gates must be in [0, 1], got {float(gates.min()):.3g} to {float(gates.max()):.3g}; "
                "use a function that ends in a sigmoid, such as `sigmoid_gates`"
            )
        return gates


def sigmoid_gates(weights: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """k -> sigmoid(W k + b): one gate, W (1, D) and b (1,), or one for each feature, (F, D) and (F,)."""
    if weights.dim() != 2 or bias.shape != weights.shape[:1]:
        raise ValueError(
            f"weights {tuple(weights.shape)} and bias {tuple(bias.shape)}, expected (G, D) and (G,)"
        )
    return lambda keys: torch.sigmoid(keys @ weights.T + bias)


def matched_bias(retention: float, dim: int) -> float:
    """The bias b of a gate sigmoid(w . k + b) whose geometric mean is `retention` = gamma.

        E[log sigmoid(sqrt(D) t + b)] = log gamma,      t = cos(theta), density sin(theta)^(D-2)

    for uniform unit keys k and |w| = sqrt(D), D >= 2: fields of variance 1. A pair of age a weighs the
    product of a independent gates, whose logarithm tends to a E[log g] with large a: the geometric mean,
    not the mean, sets how far back the memory reaches. Solved by quadrature and bisection, to rounding.
    """
    if not 0 < retention < 1 or dim < 2:
        raise ValueError(f"retention must be between 0 and 1 and dim 2 or more, got {retention} and {dim}")
    nodes = 512  # of a periodic integrand
    theta = (torch.arange(nodes, dtype=torch.float64) + 0.5) * math.pi / nodes
    weights = theta.sin() ** (dim - 2)
    fields = math.sqrt(dim) * theta.cos()
    middle = math.log(retention) - math.log1p(-retention)
    low, high = middle - math.sqrt(dim), middle + math.sqrt(dim)  # all gates below, all above gamma
    for _ in range(60):
        bias = (low + high) / 2
        mean = (weights * logsigmoid(fields + bias)).sum() / weights.sum()
        low, high = (bias, high) if mean < math.log(retention) else (low, bias)
    return (low + high) / 2


class Delta(WriteRule):
    """M_t = M_{t-1} + eta (v_t - M_{t-1} phi_t) phi_t^T: only what the memory does not know yet is written.

    One step of gradient descent on |v_t - M phi_t|^2 / 2 with rate eta. With eta = 1 and |phi_t| = 1 a key
    that was written before is overwritten exactly; above eta |phi_t|^2 = 2 the memory grows without bound.

    T steps at once are a unit triangular system, since M_{t-1} = M + sum_{s<t} u_s phi_s^T:

        u_t + eta sum_{s<t} (phi_t . phi_s) u_s = eta (v_t - M phi_t)

    Corrections have both signs, and Z is not the sum of their weights: no normaliser.
    """

    sums = False

    def __init__(self, rate: float = 1.0) -> None:
        if not 0 < rate < float("inf"):
            raise ValueError(f"the rate of the delta rule must be positive, got {rate}")
        self.rate = rate

    def gates(self, keys: Tensor) -> Tensor | None:
        return None

    def written(self, memory: Tensor, features: Tensor, *, values: Tensor) -> Tensor:
        errors = self.rate * (values - features @ memory.mT)
        system = self.rate * (features @ features.mT)  # only what is below its diagonal is read
        written: Tensor = torch.linalg.solve_triangular(system, errors, upper=False, unitriangular=True)
        return written
