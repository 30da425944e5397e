"""Slots: a mixture of Hopfield networks, with one joint density behind all local energies.

    p(x) = sum_s pi_s N(x; m_s, K_s^-1)

Slot s is a vector Hopfield network of its own: its couplings are A_s,ij = -K_s,ij, and it is centred on
m_s. All P = N D components of the tokens stand in one vector x (P,), token after token. Precisions are in
inverse squared pixels where components are pixels.

The mixture answers what every slot makes of an evidence (`SlotMixture.answer`), exactly; `slot_inference`
asks only the slots that matter. The local energies are in `slot_energy`, how slots learn in `slot_learning`
and `slot_rules`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from attractor.physics.evidence import PixelEvidence

# Pixels known with at least this precision stay as they are; below 1e3, so that a variance of 1e-3 is above
# it in float32 too.
CLAMPED = 900.0


class SlotMixture:
    """log_weights (S,), log pi_s; means (S, P); precisions (S, P, P), symmetric and positive definite.

    Raises ValueError for shapes that do not fit, weights that do not sum to 1, and a precision that is not
    positive definite.
    """

    def __init__(
        self,
        log_weights: Tensor,
        means: Tensor,
        *,
        precisions: Tensor,
        log_determinants: Tensor | None = None,
    ) -> None:
        """`log_determinants`, log det K_s (S,), are computed unless they are known already."""
        check_slots(log_weights, means)
        slots, pixels = means.shape
        if precisions.shape != (slots, pixels, pixels):
            shape = (slots, pixels, pixels)
            raise ValueError(f"precisions have shape {tuple(precisions.shape)}, expected {shape}")
        self.log_weights = log_weights
        self.means = means
        self.precisions = precisions
        if log_determinants is None:
            log_determinants = torch.empty_like(log_weights)
            for s, precision in enumerate(precisions):
                factor = _cholesky(precision, f"the precision of slot {s}")
                log_determinants[s] = 2 * factor.diagonal().log().sum()
        self.log_determinants = log_determinants

    @classmethod
    def from_covariances(cls, log_weights: Tensor, means: Tensor, *, covariances: Tensor) -> "SlotMixture":
        """The same with K_s = C_s^-1, for covariances (S, P, P)."""
        precisions, log_determinants = torch.empty_like(covariances), torch.empty_like(log_weights)
        for s, covariance in enumerate(covariances):
            factor = _cholesky(covariance, f"the covariance of slot {s}")
            precisions[s] = torch.cholesky_inverse(factor)
            log_determinants[s] = -2 * factor.diagonal().log().sum()
        return cls(log_weights, means, precisions=precisions, log_determinants=log_determinants)

    def __len__(self) -> int:
        return len(self.means)

    @property
    def pixels(self) -> int:
        """P, the components of all tokens."""
        return self.means.shape[1]

    def log_joint(self, x: Tensor) -> Tensor:
        """log pi_s N(x; m_s, K_s^-1), for x (B, P); (B, S), nats."""
        check_pixels(x, self.pixels)
        joint = x.new_empty(len(x), len(self))
        for s, (mean, precision) in enumerate(zip(self.means, self.precisions, strict=True)):
            deviation = x - mean
            joint[:, s] = (deviation @ precision * deviation).sum(1)
        constant = self.log_weights + (self.log_determinants - self.pixels * math.log(2 * math.pi)) / 2
        return constant - joint / 2

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) (B,), nats."""
        return self.log_joint(x).logsumexp(1)

    def attention(self, x: Tensor) -> Tensor:
        """alpha_s = p(s | x) (B, S)."""
        return self.log_joint(x).softmax(1)

    def gradient(self, x: Tensor) -> dict[str, Tensor]:
        """d/d parameters of mean_B log p(x): the direction in which to learn, gated by attention.

            log_weights  <alpha_s> - pi_s        means  <alpha_s K_s (x - m_s)>
            precisions   <alpha_s (K_s^-1 - (x - m_s)(x - m_s)^T)> / 2

        The weights are kept normalised; a precision is a matrix of P^2 free entries.
        """
        alpha = self.attention(x) / len(x)
        weights = alpha.sum(0)
        means, precisions = torch.empty_like(self.means), torch.empty_like(self.precisions)
        for s, precision in enumerate(self.precisions):
            deviation = x - self.means[s]
            gated = alpha[:, s, None] * deviation
            means[s] = precision @ gated.sum(0)
            covariance = torch.cholesky_inverse(_cholesky(precision, f"the precision of slot {s}"))
            precisions[s] = (weights[s] * covariance - gated.T @ deviation) / 2
        return {
            "log_weights": weights - self.log_weights.exp(),
            "means": means,
            "precisions": precisions,
        }

    def answer(self, evidence: PixelEvidence, asked: Tensor) -> tuple[Tensor, Tensor]:
        """What the slots `asked` (B, k), int64, make of the evidence on each image; exact.

        Returns log pi_s + log integral N(x; m_s, K_s^-1) exp(sum_p l_p(x_p) - l_p(y_p)) dx (B, k), y being
        what was observed, and the posterior mean of all pixels in each of these slots (B, k, P). Pixels of
        a precision of `CLAMPED` or more are clamped to y, c; of the others, u, with D = diag(precision):

            r = y - m,   A = K_uu + D,   b = D r_u - K_uc r_c,   x_u = m_u + A^-1 b
            log evidence = ( b A^-1 b - r_u D r_u - r_c K_cc r_c
                             + log det K - log det A - |c| log 2 pi ) / 2

        (clamped pixels give the density at y_c instead of the integral). Cost: |u|^3 / 3 for each.
        """
        check_evidence(evidence, self.pixels)
        unclamped = evidence.precision < CLAMPED
        counts = unclamped.sum(1)
        # the pixels u of every image in a table, filled up with clamped ones where there are fewer
        table = unclamped.sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]
        real = torch.arange(table.shape[1], device=table.device) < counts[:, None]
        images = _Images(evidence, unclamped, table, real)
        found = torch.empty_like(asked, dtype=self.means.dtype)
        filled = self.means.new_empty(*asked.shape, self.pixels)
        for s in asked.unique().tolist():
            image, place = (asked == s).nonzero(as_tuple=True)
            found[image, place], filled[image, place] = self._answer(s, images.of(image))
        return found, filled

    def _answer(self, s: int, images: "_Images") -> tuple[Tensor, Tensor]:
        mean, precision = self.means[s], self.precisions[s]
        strength = torch.where(images.unclamped, images.evidence.precision, 0)
        clamped = torch.where(images.unclamped, mean, images.evidence.observed)
        residual = clamped - mean
        pull = residual @ precision  # K_.c r_c
        noise = images.evidence.observed - mean
        b = (strength * noise - pull).gather(1, images.table).mul_(images.real)
        # image by image: one index over all costs more than the factorisation
        block = torch.stack([precision.index_select(0, u).index_select(1, u) for u in images.table])
        own = block.diagonal(dim1=1, dim2=2) + strength.gather(1, images.table)
        if not images.real.all():
            block.mul_(images.real[:, :, None] & images.real[:, None, :])
            own = torch.where(images.real, own, 1)
        block.diagonal(dim1=1, dim2=2).copy_(own)
        factor = _cholesky(block, f"the posterior precision of slot {s}")
        shift = torch.cholesky_solve(b.unsqueeze(2), factor).squeeze(2)
        filled = clamped.scatter_add(1, images.table, shift * images.real)
        quadratic = (b * shift).sum(1) - (pull * residual + strength * noise * noise).sum(1)
        determinant = self.log_determinants[s] - 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = (self.pixels - images.real.sum(1)).to(mean) * math.log(2 * math.pi)
        log_evidence = (quadratic + determinant - constant) / 2
        weighted: Tensor = self.log_weights[s] + log_evidence
        return weighted, filled

    def state_dict(self) -> dict[str, Tensor]:
        """All that is learned."""
        names = ("log_weights", "means", "precisions", "log_determinants")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "SlotMixture":
        """The mixture whose `state_dict` this is."""
        return cls(**state)


class _Images:
    """Some images of an evidence, and which of their pixels are not clamped."""

    def __init__(self, evidence: PixelEvidence, unclamped: Tensor, table: Tensor, real: Tensor) -> None:
        self.evidence, self.unclamped, self.table, self.real = evidence, unclamped, table, real

    def of(self, image: Tensor) -> "_Images":
        evidence = PixelEvidence(self.evidence.field[image], self.evidence.precision[image])
        return _Images(evidence, self.unclamped[image], self.table[image], self.real[image])


def check_slots(log_weights: Tensor, means: Tensor) -> None:
    """Refuse what cannot be the weights (S,) and means (S, P) of a mixture (ValueError)."""
    if means.dim() != 2 or log_weights.shape != means.shape[:1] or not len(means):
        raise ValueError(
            f"log_weights and means have shapes {tuple(log_weights.shape)} and {tuple(means.shape)}, "
            "expected (S,) and (S, P) with S >= 1"
        )
    total = float(log_weights.double().exp().sum())
    if not abs(total - 1) < 1e-4:
        raise ValueError(f"the weights sum to {total:g}, expected 1; subtract their logsumexp")


def check_pixels(x: Tensor, pixels: int) -> None:
    """Refuse x that is not (B, P) (ValueError)."""
    if x.dim() != 2 or x.shape[1] != pixels:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, P) = (B, {pixels})")


def check_evidence(evidence: PixelEvidence, pixels: int) -> None:
    """Refuse an evidence of other pixels, or of no image (ValueError)."""
    if evidence.field.shape[1] != pixels or not len(evidence):
        shape = tuple(evidence.field.shape)
        raise ValueError(f"the evidence has shape {shape}, expected (B, P) = (B, {pixels}) with B >= 1")


def _cholesky(matrix: Tensor, name: str) -> Tensor:
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool(info.any()) or not bool(factor.diagonal(dim1=-2, dim2=-1).isfinite().all()):
        raise ValueError(f"{name} is not positive definite; use a larger ridge, or float64")
    return factor
