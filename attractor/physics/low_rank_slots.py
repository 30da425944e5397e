"""Slots of low rank: each is a mean, a few directions in which it varies, and noise.

    x = m_s + W_s z + noise,   z ~ N(0, I_r),   noise ~ N(0, psi_s I)        C_s = W_s W_s^T + psi_s I

Any evidence of single pixels is answered exactly by an r x r solve (Woodbury), with D' = D / (1 + D psi_s):

    H = I + W^T D' W,   z = H^-1 W^T D' (y - m),   x = m + W z + psi D' (y - m - W z)
    log evidence = ( z H z - (y - m) D' (y - m) - log det H - sum_p log(1 + D_p psi) ) / 2

So they answer noise at a few directions, and screen the slots of full precision (`slot_inference`).
Source: Tipping & Bishop 1999, "Mixtures of probabilistic principal component analysers".
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
    """log_weights (S,), log pi_s; means (S, P); loadings W (S, P, r); noise psi (S,), a variance.

    Raises ValueError for shapes that do not fit, weights that do not sum to 1, and noise that is not positive.
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
        if self.noise.shape != self.log_weights.shape or not bool((self.noise > 0).all()):
            raise ValueError(f"noise must be a positive variance for every slot, got {self.noise}")

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

        psi = (tr C - sum lambda_k) / (P - r) and W = U (lambda - psi)^1/2, the maximum of the likelihood
        (Tipping & Bishop). The eigenvectors are found by subspace iteration from a start that `generator`
        draws. Raises ValueError unless 1 <= rank < P.
        """
        slots, pixels = means.shape
        if not 1 <= rank < pixels:
            raise ValueError(f"rank is {rank}; slots of {pixels} pixels can have 1 to {pixels - 1}")
        width = min(pixels, rank + _OVERSAMPLING)
        start = torch.randn(pixels, width, generator=generator, dtype=torch.float64).to(means)
        loadings, noise = means.new_empty(slots, pixels, rank), means.new_empty(slots)
        for s, covariance in enumerate(covariances):
            frame = start
            for _ in range(iterations + 1):
                frame = torch.linalg.qr(covariance @ frame)[0]
            values, vectors = torch.linalg.eigh(frame.T @ covariance @ frame)
            values, vectors = values[-rank:], vectors[:, -rank:]
            noise[s] = (covariance.trace() - values.sum()) / (pixels - rank)
            loadings[s] = (frame @ vectors) * (values - noise[s]).clamp_min(0).sqrt()
        return cls(log_weights, means, loadings, noise)

    def log_evidence(self, evidence: PixelEvidence) -> Tensor:
        """log pi_s + log integral N(x; m_s, C_s) exp(sum_p l_p(x_p) - l_p(y_p)) dx of all slots, (B, S)."""
        check_evidence(evidence, self.pixels)
        found = self.means.new_empty(len(evidence), len(self))
        observed, strength = evidence.observed, evidence.precision
        first, second = torch.triu_indices(self.rank, self.rank)
        for s, (mean, loading, psi) in enumerate(zip(self.means, self.loadings, self.noise, strict=True)):
            shrink = 1 + strength * psi
            weight = strength / shrink  # D'
            residual = observed - mean
            pull = weight * residual
            products = (loading[:, first] * loading[:, second]).T @ weight.T  # of H, above the diagonal
            quadratic, log_det = _eliminate(products, (pull @ loading).T, first, second)
            fit = quadratic - (pull * residual).sum(1) - log_det - shrink.log().sum(1)
            found[:, s] = self.log_weights[s] + fit / 2
        return found

    def answer(self, evidence: PixelEvidence, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Log evidence (B, k) and posterior means (B, k, P) of the slots `asked` (B, k), int64; exact."""
        check_evidence(evidence, self.pixels)
        found = torch.empty_like(asked, dtype=self.means.dtype)
        filled = self.means.new_empty(*asked.shape, self.pixels)
        identity = torch.eye(self.rank).to(self.means)
        for s in asked.unique().tolist():
            image, place = (asked == s).nonzero(as_tuple=True)
            mean, loading, psi = self.means[s], self.loadings[s], self.noise[s]
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


def _eliminate(
    products: Tensor, rhs: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
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
