"""Local linear attention: softmax attention that chooses, and a least squares inside it that adapts.

Attention over stored patterns m_s with scores a_s has a log-normaliser, whose derivatives by an external
field are the attended moments:

    G(eta)  = log sum_s exp(a_s + m_s . eta)
    mu      = grad G(0)   = sum_s beta_s m_s,                        beta = softmax(a)
    C       = Hessian G(0) = sum_s beta_s (m_s - mu)(m_s - mu)^T

Evidence of a component p, with a gain D_p (a precision) and the value o_p that it speaks for, is
answered by the linear response of attention:

    x = mu + C (C + D^-1)^-1 (o - mu)

the conditional mean under the Gaussian that the attended patterns form. Where D_p = 0 nothing is known, and
D^-1 is never formed. With X the rows sqrt(beta_s) (m_s - mu), C = X^T X, and either side may be solved:

    x = mu + C sqrt(D) (I + sqrt(D) C sqrt(D))^-1 sqrt(D) (o - mu)                P x P
      = mu + X^T (I + X D X^T)^-1 X D (o - mu)                                     K x K

Limits: beta uniform over all patterns is linear regression (a Gaussian conditional under a mask, the Wiener
filter under noise); D = 0 in the response is the softmax memory.

Source: Shim 2021, proposition 1a and corollary 1 (attention and mu + Sigma eta); Tan & Zhao 2026, arXiv
2604.13656 (least squares as linear attention). As an attention layer: arXiv 2510.01450. As statistics:
locally weighted regression, Cleveland 1979; Atkeson, Moore & Schaal 1997.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def log_normaliser(scores: Tensor, patterns: Tensor, eta: Tensor) -> Tensor:
    """G(eta) (...), in nats, for scores (..., K), patterns (..., K, P) and a field eta (..., P)."""
    return torch.logsumexp(scores + (patterns @ eta.unsqueeze(-1)).squeeze(-1), -1)


def attended_mean(attention: Tensor, patterns: Tensor) -> Tensor:
    """mu (T, P), for attention (T, K) and patterns (T, K, P)."""
    return torch.bmm(attention.unsqueeze(1), patterns).squeeze(1)


def attended_moments(attention: Tensor, patterns: Tensor) -> tuple[Tensor, Tensor]:
    """mu (T, P) and X (T, K, P), C = X^T X, for attention (T, K) and patterns (T, K, P), overwritten."""
    mean = attended_mean(attention, patterns)
    deviations = patterns.sub_(mean.unsqueeze(1)).mul_(attention.sqrt().unsqueeze(-1))
    return mean, deviations


def response(
    mean: Tensor, deviations: Tensor, observed: Tensor, gain: Tensor, *, outputs: int, prior: Tensor | None
) -> Tensor:
    """The last `outputs` components of x (T, P), for mu (T, P), X (T, K, P), o and D (T, P).

    `prior` (T, P, P) is added to C. The smaller of the two systems is solved, P x P with a prior.
    """
    if prior is None and deviations.shape[1] < deviations.shape[2]:
        return response_by_patterns(mean, deviations, observed, gain, outputs=outputs)
    covariance = torch.bmm(deviations.transpose(1, 2), deviations)
    if prior is not None:
        covariance.add_(prior)
    return response_by_components(mean, covariance, observed, gain, outputs=outputs)


def response_by_patterns(
    mean: Tensor, deviations: Tensor, observed: Tensor, gain: Tensor, *, outputs: int
) -> Tensor:
    """The K x K form of `response`."""
    pulled = deviations * gain.unsqueeze(1)  # X D
    system = torch.bmm(pulled, deviations.transpose(1, 2))
    system.diagonal(dim1=1, dim2=2).add_(1)
    target = torch.bmm(pulled, (observed - mean).unsqueeze(-1))
    weight = torch.cholesky_solve(target, torch.linalg.cholesky(system))  # (T, K, 1)
    own = deviations[..., -outputs:]
    return mean[:, -outputs:] + torch.bmm(own.transpose(1, 2), weight).squeeze(-1)


def response_by_components(
    mean: Tensor, covariance: Tensor, observed: Tensor, gain: Tensor, *, outputs: int
) -> Tensor:
    """The P x P form of `response`, for a covariance (T, P, P), overwritten."""
    root = gain.sqrt()
    own = covariance[:, -outputs:] * root.unsqueeze(1)  # (T, outputs, P)
    system = covariance.mul_(root.unsqueeze(1)).mul_(root.unsqueeze(2))
    system.diagonal(dim1=1, dim2=2).add_(1)
    target = (root * (observed - mean)).unsqueeze(-1)
    field = torch.cholesky_solve(target, torch.linalg.cholesky(system))
    return mean[:, -outputs:] + torch.bmm(own, field).squeeze(-1)


@dataclass(frozen=True)
class LocalAttention:
    """How a memory is attended to in one iteration.

        a_is   = sum_p w_i(p) [ l_p(m_sp) + kappa (x_p m_sp - m_sp^2 / 2) ]
        w_i(p) = exp(-d_ip^2 / 2 rho^2)
        beta_i = softmax_s(tau a_is), over its K best
        D_i    = diag(w_i q / (1 + rho_0 w_i q)),  q = P              in the response

    l_p is the evidence and d_ip the distance from token i to component p. neighbours: K; None attends to
    all patterns alike (tau = 0), so that mu and C are those of the whole memory, without its copies.
    inverse_temperature: tau; with `relative` in units of what lies between the best score and the K-th, so
    that attention adapts its width to how dense the memory is there. reach: rho, in pixels; None is one
    attention for the whole image, w = 1. pull: kappa, the precision that the state itself counts as.
    softening: rho_0; infinite, nothing adapts, and the softmax memory is left. shrinkage: lambda,
    C_i + lambda C_0 with the covariance C_0 of all patterns. window: components that answer for a token
    with a reach, the nearest observed ones; None: all. coupled: the response of a token with a reach heeds
    the state of the other tokens too, q_p = P_p + kappa, o_p = (h_p + kappa x_p) / q_p of their components.

    Raises ValueError for values out of range, and for tokens that are coupled without a reach.
    """

    neighbours: int | None = 1000
    inverse_temperature: float = 4.0
    relative: bool = True
    reach: float | None = None
    pull: float = 0.0
    softening: float = 0.0
    shrinkage: float = 0.0
    window: int | None = 256
    coupled: bool = False

    def __post_init__(self) -> None:
        for name, least in (("neighbours", 1), ("window", 1)):
            count = getattr(self, name)
            if count is not None and count < least:
                raise ValueError(f"{name} is {count}; use {least} or more, or None for all")
        for name in ("inverse_temperature", "pull", "shrinkage"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be 0 or more, and finite")
        if not self.softening >= 0:
            raise ValueError(f"softening is {self.softening}; it must be 0 or more")
        if self.reach is not None and not 0 < self.reach < math.inf:
            raise ValueError(
                f"reach is {self.reach} pixels; it must be positive, or None for the whole image"
            )
        if self.coupled and self.reach is None:
            raise ValueError(
                "coupled needs a reach: one attention for the whole image answers for all tokens"
            )

    def separate(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """beta (T, K) and the places of the K best of the scores (T, S), in no order."""
        assert self.neighbours is not None
        best, places = scores.topk(min(self.neighbours, scores.shape[1]), 1, sorted=False)
        best = best - best.amax(1, keepdim=True)
        if self.relative:
            spread = -best.amin(1, keepdim=True)
            best = best / spread.clamp_min(torch.finfo(best.dtype).tiny)
        return torch.softmax(self.inverse_temperature * best, 1), places

    def relevance(self, squared_distances: Tensor) -> Tensor:
        """w_i(p), shaped like d_ip^2."""
        if self.reach is None:
            return torch.ones_like(squared_distances)
        return torch.exp(squared_distances / (-2 * self.reach**2))

    def gain(self, precision: Tensor) -> Tensor:
        """D from w P."""
        return precision / (1 + self.softening * precision) if self.softening < math.inf else 0 * precision
