"""Slots of low rank: each is a mean, a few directions in which it varies, and noise.

    x = m_s + W_s z + noise,   z ~ N(0, I_r),   noise ~ N(0, psi I)        C_s = W_s W_s^T + psi I

The noise psi is common to all slots. Any evidence of single pixels is answered exactly by an r x r solve
(Woodbury), with the precision D' = D / (1 + D psi) that it has for m_s + W_s z:

    H = I + W^T D' W,   z = H^-1 W^T D' (y - m),   x = m + W z + psi D' (y - m - W z)
    log evidence = ( z H z - (y - m) D' (y - m) - log det H - sum_p log(1 + D_p psi) ) / 2

So they answer noise with a few directions, and screen the slots of full precision (`slot_inference`).
Source: Tipping & Bishop 1999, "Mixtures of probabilistic principal component analysers" (a psi for each
slot; one psi makes D' common, and nearly all of the screening matrix products).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attractor.physics.evidence import PixelEvidence
from attractor.physics.slots import check_evidence, check_slots

_OVERSAMPLING = 8  # directions beyond the rank that the subspace iteration carries along


@dataclass(frozen=True)
class LowRankSlots:
    """log_weights (S,), log pi_s; means (S, P); loadings W (S, P, r); noise psi (), a variance.

    Raises ValueError for shapes that do not fit, weights that do not sum to 1, and noise that is not
    positive.
    """

    log_weights: Tensor
    means: Tensor
    loadings: Tensor
    noise: Tensor

    def __post_init__(self) -> None:
        check_slots(self.log_weights, self.means)
        if self.loadings.dim() != 3 or self.loadings.shape[:2] != self.means.shape:
            shape = (*self.means.shape, "r")
            raise ValueError(f"loadings have shape {tuple(self.loadings.shape)}, expected {shape}")
        if self.noise.dim() or not bool(self.noise > 0):
            raise ValueError(f"noise must be one positive variance, got {self.noise.tolist()}")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def pixels(self) -> int:
        """P."""
        return self.means.shape[1]

    @property
    def rank(self) -> int:
        """r."""
        return self.loadings.shape[2]

    @classmethod
    def from_covariances(
        cls,
        log_weights: Tensor,
        means: Tensor,
        *,
        covariances: Tensor,
        rank: int,
        generator: torch.Generator,
        iterations: int = 2,
    ) -> "LowRankSlots":
        """The r leading eigenvectors of every C_s, the rest of its trace as noise.

        psi = sum_s pi_s (tr C_s - sum_k lambda_sk) / (P - r) and W_s = U_s (lambda_s - psi)^1/2, the
        maximum of the likelihood (Tipping & Bishop). The eigenvectors are found by subspace iteration from
        a start that `generator` draws. Raises ValueError unless 1 <= rank < P.
        """
        slots, pixels = means.shape
        if not 1 <= rank < pixels:
            raise ValueError(f"rank is {rank}; slots of {pixels} pixels can have 1 to {pixels - 1}")
        width = min(pixels, rank + _OVERSAMPLING)
        start = torch.randn(pixels, width, generator=generator, dtype=torch.float64).to(means)
        loadings, scales = means.new_empty(slots, pixels, rank), means.new_empty(slots, rank)
        noise = means.new_zeros(())
        for s, covariance in enumerate(covariances):
            frame = start
            for _ in range(iterations + 1):
                frame = torch.linalg.qr(covariance @ frame)[0]
            values, vectors = torch.linalg.eigh(frame.T @ covariance @ frame)
            values, vectors = values[-rank:], vectors[:, -rank:]
            noise += log_weights[s].exp() * (covariance.trace() - values.sum()) / (pixels - rank)
            loadings[s], scales[s] = frame @ vectors, values
        loadings *= (scales - noise).clamp_min(0).sqrt().unsqueeze(1)
        return cls(log_weights, means, loadings, noise)

    def log_evidence(self, evidence: PixelEvidence) -> Tensor:
        """log pi_s + log integral N(x; m_s, C_s) exp(sum_p l_p(x_p) - l_p(y_p)) dx of all slots, (B, S)."""
        check_evidence(evidence, self.pixels)
        observed, shrink = evidence.observed, 1 + evidence.precision * self.noise
        weight = evidence.precision / shrink  # D' (B, P)
        pulled = weight * observed
        # -(y - m) D' (y - m), which no slot looks at image by image
        fit = 2 * pulled @ self.means.T - weight @ self.means.square().T
        fit = fit - (pulled * observed).sum(1, keepdim=True) - shrink.log().sum(1, keepdim=True)
        first, second = torch.triu_indices(self.rank, self.rank)
        columns = torch.cat((weight, pulled), 1).T  # (2 P, B)
        for s, (mean, loading) in enumerate(zip(self.means, self.loadings, strict=True)):
            products = (loading[:, first] * loading[:, second]).T @ columns[: self.pixels]  # of H - I
            pull = torch.cat((-mean.unsqueeze(1) * loading, loading)).T @ columns  # W^T D' (y - m)
            quadratic, log_det = _eliminate(products, pull, first, second)
            fit[:, s] += quadratic - log_det
        return self.log_weights + fit / 2

    def answer(self, evidence: PixelEvidence, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Log evidence (B, k) and posterior means (B, k, P) of the slots `asked` (B, k), int64; exact."""
        check_evidence(evidence, self.pixels)
        found = torch.empty_like(asked, dtype=self.means.dtype)
        filled = self.means.new_empty(*asked.shape, self.pixels)
        identity = torch.eye(self.rank).to(self.means)
        for s in asked.unique().tolist():
            image, place = (asked == s).nonzero(as_tuple=True)
            mean, loading, psi = self.means[s], self.loadings[s], self.noise
            strength = evidence.precision[image]
            weight = strength / (1 + strength * psi)
            residual = evidence.observed[image] - mean
            pull = weight * residual
            pulled = (pull @ loading).unsqueeze(2)  # (n, r, 1)
            h = identity + loading.T @ (weight.unsqueeze(2) * loading)
            factor = torch.linalg.cholesky(h)
            z = torch.cholesky_solve(pulled, factor)
            shape = z.squeeze(2) @ loading.T
            filled[image, place] = mean + shape + psi * weight * (residual - shape)
            log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
            fit = (pulled * z).sum((1, 2)) - (pull * residual).sum(1) - log_det
            found[image, place] = self.log_weights[s] + (fit - torch.log1p(strength * psi).sum(1)) / 2
        return found, filled

    def state_dict(self) -> dict[str, Tensor]:
        """All that is learned."""
        names = ("log_weights", "means", "loadings", "noise")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "LowRankSlots":
        """The slots whose `state_dict` this is."""
        return cls(**state)


def _eliminate(products: Tensor, rhs: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """b^T H^-1 b and log det H (B,), for the upper triangle of H - I (r(r+1)/2, B) and b (r, B).

    Gaussian elimination with the images innermost: LAPACK takes many times longer for matrices this small.
    """
    rank, images = rhs.shape
    h = products.new_empty(rank, rank, images)
    h[first, second] = products
    h[second, first] = products
    quadratic, log_det = torch.zeros_like(rhs[0]), torch.zeros_like(rhs[0])
    for k in range(rank):
        pivot = h[k, k] + 1
        row, b = h[k, k + 1 :], rhs[k]
        scaled = row / pivot
        quadratic += b * b / pivot
        log_det += pivot.log()
        h[k + 1 :, k + 1 :].addcmul_(scaled.unsqueeze(1), row.unsqueeze(0), value=-1)
        rhs[k + 1 :].addcmul_(scaled, b.unsqueeze(0), value=-1)
    return quadratic, log_det
