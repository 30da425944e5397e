"""Spin measures: where tokens live, and the log-normaliser that makes their conditionals exact.

    psi(h) = log integral dmu(x) exp(x . h),  psi(0) = 0,      mean(h) = grad psi(h) = E[x | h]

A measure mu with a natural parameter h is the exponential family p(x) = exp(x . h - psi(h)) dmu(x).
Every measure here has a mean of the form grad psi(h) = gain(h) h, where the gain is a scalar
(`Sphere`), a scalar for each circle (`Circles`) or a constant matrix (`Gaussian`); computing psi and gain
together, along any axis, is what the row-blocked engine in `energies` is built on.

Source: Shim 2021, "A probabilistic interpretation of transformers" (log-normalisers);
D'Amico et al. 2025, arXiv 2507.05147 (vector spins). Sampling: Wood 1994, "Simulation of the von
Mises-Fisher distribution".
"""

import math
from typing import Protocol

import torch
from torch import Generator, Tensor

from attractor.physics.bessel import log_normaliser_and_gain


class Measure(Protocol):
    """What the energies and the dynamics ask of a spin measure. Shapes: h (..., D) along `dim`.

    `precision`, where it is taken, is that of an observation of x (an evidence), and broadcasts over h
    without the axis `dim`: the density gains a factor exp(-precision |x|^2/2). It matters only where |x|
    varies; a measure of fixed norm ignores it.
    """

    dim: int
    fixed_norm: bool

    def log_normaliser(self, h: Tensor, *, dim: int = -1) -> Tensor:
        """psi(h), without the axis `dim`, in nats."""
        return self.log_normaliser_and_gain(h, dim=dim)[0]

    def mean(self, h: Tensor, *, dim: int = -1) -> Tensor:
        """grad psi(h), shaped like h."""
        gain = self.log_normaliser_and_gain(h, dim=dim)[1]
        return self.apply_gain(h, gain, torch.ones((), dtype=h.dtype, device=h.device), dim=dim)

    def log_normaliser_and_gain(
        self, h: Tensor, *, dim: int = -1, precision: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """psi(h), and the gain that `apply_gain` turns into the mean."""
        ...

    def apply_gain(self, h: Tensor, gain: Tensor, weight: Tensor, *, dim: int = -1) -> Tensor:
        """weight * grad psi(h), for a weight without the axis `dim`."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """The point of the manifold nearest to x (..., D)."""
        ...

    def sample(self, h: Tensor, *, generator: Generator, precision: Tensor | float = 0.0) -> Tensor:
        """One draw from exp(x . h - psi(h)) dmu(x) for each h (..., D); NaN where h is not finite."""
        ...


class Sphere(Measure):
    """Unit vectors of R^D, uniform; with a natural parameter: the von Mises-Fisher distribution.

    psi(h) = log[Gamma(D/2) (2/k)^(D/2-1) I_{D/2-1}(k)],  k = |h|;   mean(h) = I_{D/2}(k)/I_{D/2-1}(k) h/k.
    """

    fixed_norm = True

    def __init__(self, dim: int) -> None:
        """`dim` is D >= 2; D = 1 would be an Ising spin, which has no angle."""
        if dim < 2:
            raise ValueError(f"Sphere needs dim >= 2, got {dim}")
        self.dim = dim

    def log_normaliser_and_gain(
        self, h: Tensor, *, dim: int = -1, precision: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        return log_normaliser_and_gain((h * h).sum(dim), self.dim)

    def apply_gain(self, h: Tensor, gain: Tensor, weight: Tensor, *, dim: int = -1) -> Tensor:
        return h * (gain * weight).unsqueeze(dim)

    def project(self, x: Tensor) -> Tensor:
        """x/|x|; the zero vector, which has no nearest point, stays zero."""
        return torch.nn.functional.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)

    def sample(self, h: Tensor, *, generator: Generator, precision: Tensor | float = 0.0) -> Tensor:
        """Wood's rejection sampler: exact, for every k >= 0 and D >= 2.

        The cosine w = x . h/k has density (1 - w^2)^((D-3)/2) exp(k w); it is drawn from the envelope
        w = (1 - (1+b) z)/(1 - (1-b) z) with z ~ Beta((D-1)/2, (D-1)/2) and accepted with log-probability
        k w + (D-1) log(1 - x0 w) - c. The tangent is uniform. 1 - w is kept, so that a large k, where w
        rounds to 1, still gives the right spread.
        """
        flat = h.reshape(-1, self.dim)
        k = flat.norm(dim=-1).double()
        a = self.dim - 1
        b = a / (torch.sqrt(4 * k * k + a * a) + 2 * k)
        gap0 = 2 * b / (1 + b)  # 1 - x0, with x0 = (1 - b)/(1 + b)
        constant = -k * gap0 + a * torch.log(gap0 * (2 - gap0))
        gap = torch.full_like(k, torch.nan)  # 1 - w
        waiting = torch.isfinite(k).nonzero().squeeze(1)
        while len(waiting):
            kw, bw, gw = k[waiting], b[waiting], gap0[waiting]
            z = _beta_half(a, len(waiting), like=k, generator=generator)
            proposal = 2 * bw * z / (1 - (1 - bw) * z)
            uniform = torch.rand(len(waiting), generator=generator, dtype=k.dtype, device=k.device)
            # 1 - x0 w = gap0 + gap - gap0 gap, and the k of k w cancels against that of the constant
            log_ratio = -kw * proposal + a * torch.log(gw + proposal - gw * proposal)
            accepted = log_ratio - constant[waiting] >= torch.log(uniform)
            gap[waiting[accepted]] = proposal[accepted]
            waiting = waiting[~accepted]
        axis = flat.double() / k.clamp_min(torch.finfo(k.dtype).tiny).unsqueeze(-1)
        noise = torch.randn(flat.shape, generator=generator, dtype=k.dtype, device=k.device)
        tangent = noise - (noise * axis).sum(-1, keepdim=True) * axis
        tangent = torch.nn.functional.normalize(tangent, dim=-1)
        sine = torch.sqrt(gap * (2 - gap))
        x = torch.where(
            (k != 0).unsqueeze(-1),
            (1 - gap).unsqueeze(-1) * axis + sine.unsqueeze(-1) * tangent,
            torch.nn.functional.normalize(noise, dim=-1),
        )
        return x.to(h.dtype).reshape(h.shape)


class Circles(Measure):
    """K unit 2-vectors side by side, scaled by 1/sqrt(K) so that the token has norm 1; D = 2K.

    psi(h) = sum_k log I_0(|h_k|/sqrt K);   mean(h)_k = I_1/I_0(|h_k|/sqrt K) h_k/(|h_k| sqrt K).
    Components 2k and 2k+1 form circle k, as `images.patches` lays out pixels.
    """

    fixed_norm = True

    def __init__(self, circles: int) -> None:
        """`circles` is K >= 1: one for each pixel and channel of a patch."""
        if circles < 1:
            raise ValueError(f"Circles needs at least one circle, got {circles}")
        self.circles = circles
        self.dim = 2 * circles
        self._circle = Sphere(2)

    def log_normaliser_and_gain(
        self, h: Tensor, *, dim: int = -1, precision: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        axis = dim % h.dim()
        squared = (h * h).unflatten(axis, (self.circles, 2)).sum(axis + 1)
        psi, gain = log_normaliser_and_gain(squared / self.circles, 2)
        return psi.sum(axis), gain / self.circles

    def apply_gain(self, h: Tensor, gain: Tensor, weight: Tensor, *, dim: int = -1) -> Tensor:
        axis = dim % h.dim()
        weighted = gain * (weight.unsqueeze(axis) if weight.dim() else weight)
        pairs: Tensor = h.unflatten(axis, (self.circles, 2))
        return (pairs * weighted.unsqueeze(axis + 1)).flatten(axis, axis + 1)

    def project(self, x: Tensor) -> Tensor:
        """Each 2-vector to length 1/sqrt(K); a zero 2-vector stays zero."""
        pairs: Tensor = x.unflatten(-1, (self.circles, 2))
        return self._circle.project(pairs).flatten(-2) / math.sqrt(self.circles)

    def sample(self, h: Tensor, *, generator: Generator, precision: Tensor | float = 0.0) -> Tensor:
        pairs: Tensor = h.unflatten(-1, (self.circles, 2)) / math.sqrt(self.circles)
        return self._circle.sample(pairs, generator=generator).flatten(-2) / math.sqrt(self.circles)


class Gaussian(Measure):
    """R^D with density N(0, P^-1); with a natural parameter: N(P^-1 h, P^-1).

    psi(h) = h^T P^-1 h / 2;   mean(h) = P^-1 h. An observation of precision p turns P into P + p I in both,
    and adds log(det P / det(P + p I))/2 to psi.
    """

    fixed_norm = False

    def __init__(self, dim: int, *, precision: Tensor | None = None) -> None:
        """`precision` is P (D, D), symmetric positive definite; the identity unless given."""
        if dim < 1:
            raise ValueError(f"Gaussian needs dim >= 1, got {dim}")
        precision = torch.eye(dim, dtype=torch.float64) if precision is None else precision.double()
        if precision.shape != (dim, dim):
            raise ValueError(f"precision has shape {tuple(precision.shape)}, expected {(dim, dim)}")
        if not torch.allclose(precision, precision.T):
            raise ValueError("precision is not symmetric")
        self.dim = dim
        self.precision = precision
        self._eigenvalues, self._eigenvectors = torch.linalg.eigh(precision)
        if self._eigenvalues[0] <= 0:
            raise ValueError(f"precision has eigenvalue {self._eigenvalues[0]:.3g}; all must be positive")

    def log_normaliser_and_gain(
        self, h: Tensor, *, dim: int = -1, precision: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The gain lives in the eigenbasis of P."""
        eigenvalues = self._eigenvalues.to(h)
        observed = torch.as_tensor(precision, dtype=h.dtype, device=h.device).unsqueeze(-1)
        gain = 1 / (eigenvalues + observed)
        rotated = h.movedim(dim, -1) @ self._eigenvectors.to(h)
        shrinkage = torch.log1p(observed / eigenvalues).sum(-1)
        return ((rotated * rotated * gain).sum(-1) - shrinkage) / 2, gain

    def apply_gain(self, h: Tensor, gain: Tensor, weight: Tensor, *, dim: int = -1) -> Tensor:
        basis = self._eigenvectors.to(h)
        mean: Tensor = ((h.movedim(dim, -1) @ basis) * gain) @ basis.T
        return (mean * weight.unsqueeze(-1)).movedim(-1, dim)

    def project(self, x: Tensor) -> Tensor:
        """Every vector is a state."""
        return x

    def sample(self, h: Tensor, *, generator: Generator, precision: Tensor | float = 0.0) -> Tensor:
        _, gain = self.log_normaliser_and_gain(h, precision=precision)
        one = torch.ones((), dtype=h.dtype, device=h.device)
        noise = torch.randn(h.shape, generator=generator, dtype=h.dtype, device=h.device)
        spread: Tensor = (noise * gain.sqrt()) @ self._eigenvectors.to(h).T
        return self.apply_gain(h, gain, one, dim=-1) + spread


def _beta_half(a: int, size: int, *, like: Tensor, generator: Generator) -> Tensor:
    """`size` draws of Beta(a/2, a/2), a >= 1.

    z = (1 + first coordinate of a uniform point on the sphere of R^(a+1))/2: its cosine has density
    (1 - c^2)^((a-2)/2), which is that Beta law. Only normals are needed, so the generator is explicit.
    """
    normals = torch.randn(size, a + 1, generator=generator, dtype=like.dtype, device=like.device)
    return (1 + torch.nn.functional.normalize(normals, dim=-1)[:, 0]) / 2
