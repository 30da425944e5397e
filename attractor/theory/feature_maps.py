"""Feature maps: the separation function of a memory, made linear so that a matrix can hold it.

    kernel(q, k) = phi(q) . phi(k),        sum_s v_s kernel(q, k_s) = (sum_s v_s phi(k_s)^T) phi(q)

A memory that stores tokens compares the query with every key, and may do so by any kernel. A memory of
fixed size can do the same for kernels with a finite phi: F features hold a sum over any number of tokens.

    Identity                 q . k                        F = D
    EluPlusOne               phi = elu(scale x) + 1       F = D                positive
    Polynomial(n)            (q . k)^n                    F = (D+n-1 choose n)
    PositiveRandomFeatures   about exp(beta q . k)        F = rows of the projections     positive
    UnitNorm(phi)            the cosine of phi(q), phi(k)    F of phi

`positive` says that every feature of every token is positive, so that the weights of a readout are
too and may be divided by their sum.

Sources: Katharopoulos et al. 2020, arXiv 2006.16236 (elu + 1); Choromanski et al. 2020, arXiv 2009.14794
(positive random features); Krotov & Hopfield 2016, arXiv 1606.01164 (polynomials separate patterns).
"""

import math
from functools import cache
from itertools import combinations_with_replacement
from typing import Protocol

import torch
from torch import Generator, Tensor

MOST_FEATURES = 2**16  # of a polynomial; 512 kB for one token in float64


class FeatureMap(Protocol):
    """phi: tokens (..., D) -> features (..., F)."""

    positive: bool

    def features(self, dim: int) -> int:
        """F for tokens of D components; ValueError where there is no such map."""
        ...

    def __call__(self, tokens: Tensor) -> Tensor: ...


class Identity(FeatureMap):
    """phi(x) = x: the classical, linear associative memory."""

    positive = False

    def features(self, dim: int) -> int:
        return dim

    def __call__(self, tokens: Tensor) -> Tensor:
        return tokens


class EluPlusOne(FeatureMap):
    """phi(x) = scale x + 1 for x > 0, exp(scale x) otherwise, component by component.

    On unit tokens and with a scale of 1 all features are near 1 and all kernels near D: nothing is
    separated. Unit tokens times sqrt(D) have components of about 1, as after a layer normalisation.
    """

    positive = True

    def __init__(self, *, scale: float = 1.0) -> None:
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be positive, got {scale}")
        self.scale = scale

    def features(self, dim: int) -> int:
        return dim

    def __call__(self, tokens: Tensor) -> Tensor:
        x = self.scale * tokens
        # elu(x) + 1 would round exp(x) to a multiple of eps, and to zero below x = -37 in float64
        return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))


class Polynomial(FeatureMap):
    """The exact features of (q . k)^n: all products of n components, each set of factors once.

        phi_m(x) = sqrt(n! / prod_i m_i!) prod_i x_i^m_i,       m_1 + ... + m_D = n

    The n-fold tensor power has D^n features; many are equal, and the multinomial weight counts them.
    """

    positive = False

    def __init__(self, degree: int) -> None:
        if degree < 1:
            raise ValueError(f"a polynomial separation has a degree of 1 or more, got {degree}")
        self.degree = degree

    def features(self, dim: int) -> int:
        """(D+n-1 choose n); a ValueError above `MOST_FEATURES`."""
        count = math.comb(dim + self.degree - 1, self.degree)
        if count > MOST_FEATURES:
            raise ValueError(
                f"tokens of {dim} components have {count:,} features of degree {self.degree}, more than "
                f"{MOST_FEATURES:,}; use a lower degree or shorter tokens"
            )
        return count

    def __call__(self, tokens: Tensor) -> Tensor:
        self.features(tokens.shape[-1])
        factors, repeats = _products(tokens.shape[-1], self.degree)
        phi = tokens.new_ones(1)
        for factor in factors.to(tokens.device).T:
            phi = phi * tokens[..., factor]
        return phi * (math.factorial(self.degree) / repeats).sqrt().to(tokens)


@cache
def _products(dim: int, degree: int) -> tuple[Tensor, Tensor]:
    """The components that each feature multiplies, ascending, (F, n), and its prod_i m_i!, (F,)."""
    factors = torch.tensor(list(combinations_with_replacement(range(dim), degree)))
    run = torch.ones(len(factors), dtype=torch.float64)
    repeats = run
    for place in range(1, degree):
        # the length of the run of equal factors that ends here; the product of all lengths is prod_i m_i!
        run = torch.where(factors[:, place] == factors[:, place - 1], run + 1, 1)
        repeats = repeats * run
    return factors, repeats


class PositiveRandomFeatures(FeatureMap):
    """phi(x) = exp(sqrt(beta) w_f . x - beta |x|^2/2) / sqrt(F), with w_f ~ N(0, I).

    E_w[phi(q) . phi(k)] = exp(beta q . k): softmax attention, up to an error that falls like 1/sqrt(F).
    Its relative variance is exp(beta |q + k|^2) / F, about exp(4 beta) / F where unit tokens agree: a sharp
    softmax needs very many features. No maximum is subtracted from the exponent, which is for tokens of
    norm about 1; Choromanski et al. also make the w_f orthogonal.
    """

    positive = True

    def __init__(self, projections: Tensor, *, inverse_temperature: float = 1.0) -> None:
        """`projections` are the w_f, (F, D); see `draw`. `inverse_temperature` is beta."""
        if projections.dim() != 2 or not projections.numel():
            raise ValueError(f"projections are {tuple(projections.shape)}, expected (F, D)")
        if not 0 < inverse_temperature < float("inf"):
            raise ValueError(f"inverse_temperature must be positive, got {inverse_temperature}")
        self.projections = projections
        self.inverse_temperature = inverse_temperature

    @classmethod
    def draw(
        cls,
        features: int,
        dim: int,
        *,
        generator: Generator,
        inverse_temperature: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> "PositiveRandomFeatures":
        """F independent projections for tokens of D components."""
        projections = torch.randn(features, dim, generator=generator, dtype=dtype, device=generator.device)
        return cls(projections, inverse_temperature=inverse_temperature)

    def features(self, dim: int) -> int:
        if dim != self.projections.shape[1]:
            raise ValueError(
                f"projections are {tuple(self.projections.shape)}, (F, D), for tokens of "
                f"{self.projections.shape[1]} components; these have {dim}"
            )
        return len(self.projections)

    def __call__(self, tokens: Tensor) -> Tensor:
        features = self.features(tokens.shape[-1])
        scaled = math.sqrt(self.inverse_temperature) * tokens
        exponents = scaled @ self.projections.to(tokens).T - (scaled * scaled).sum(-1, keepdim=True) / 2
        return torch.exp(exponents) / math.sqrt(features)


class UnitNorm(FeatureMap):
    """phi(x) / |phi(x)|: what the delta rule needs to overwrite exactly, see `write_rules.Delta`."""

    def __init__(self, feature_map: FeatureMap) -> None:
        self.feature_map = feature_map
        self.positive = feature_map.positive

    def features(self, dim: int) -> int:
        return self.feature_map.features(dim)

    def __call__(self, tokens: Tensor) -> Tensor:
        phi = self.feature_map(tokens)
        return torch.nn.functional.normalize(phi, dim=-1, eps=torch.finfo(phi.dtype).tiny)
