"""The log-normaliser of the unit sphere, as one smooth function of the squared radius.

    psi_nu(k) = log[ Gamma(nu+1) (2/k)^nu I_nu(k) ],    nu = D/2 - 1,    psi_nu(0) = 0
    gain_nu(k) = psi_nu'(k) / k = I_{nu+1}(k) / (k I_nu(k)),    gain_nu(0) = 1/D

torch has no Bessel function of general order. In double precision both are built from two exact facts.

1. Raising the order. With I_{nu} = I_{nu+2} + 2(nu+1)/k I_{nu+1}:
       gain_nu = 1 / (2(nu+1) + k^2 gain_{nu+1}),
       psi_nu  = psi_{nu+1} - log(2(nu+1) gain_nu).
   Downward in the order I_nu is the dominant solution, so the recursion is stable and damps errors.
2. The uniform (Debye) expansion at large order, s = sqrt(nu^2 + k^2), t = nu/s, delta = s - nu:
       psi_nu = delta - nu log(1 + delta/2nu) - log(1 + delta/nu)/2 + sum_m [c_m(t) - c_m(1)] / nu^m,
   in which psi_nu(0) = 0 holds term by term and no large numbers cancel.

In single precision, where speed matters, one logarithm and two short polynomials do the same work:

       psi_nu = s - a - (nu + 1/2) log((s + a)/2a) + q(t),     gain_nu = r(t)/s,
       s = sqrt(a^2 + k^2),  t = a/s,  a = nu + 2,

which grows as it should at large k, so that q and r are smooth on [0, 1]; they are interpolated there.

Errors are below 1e-5 (1 + |psi|) in float32 and 1e-9 (1 + |psi|) in float64, for D from 2 to 128 and
k from 0 to 1e5 (held against scipy in tests/physics/test_bessel.py).
Source: Abramowitz & Stegun 9.7.7 and 9.6.26; DLMF 10.41.
"""

import math
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

Polynomial = dict[int, Fraction]

# Double precision: terms of the expansion, and the lowest order at which it is used.
_TERMS, _LOWEST_ORDER = 8, 12.0


def log_normaliser_and_gain(squared_radius: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """psi(k) and gain(k) = psi'(k)/k of the unit sphere in R^dim, element by element in k^2.

    Both are smooth functions of k^2, so autograd through psi is exact at 0 too. float32 or float64.
    """
    if squared_radius.dtype == torch.float64:
        return _double(squared_radius, dim)
    return _single(squared_radius, dim)


def _single(squared_radius: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    order, shift = dim / 2 - 1, dim / 2 + 1
    remainder, scaled_gain = _polynomials(dim)
    s = torch.sqrt(squared_radius + shift * shift)
    inverse_s = torch.reciprocal(s)
    logarithm = torch.log((s + shift) / (2 * shift))
    psi = torch.sub(s - shift, logarithm, alpha=order + 0.5) + _fused_horner(remainder, inverse_s)
    return psi, inverse_s * _fused_horner(scaled_gain, inverse_s)


def _fused_horner(coefficients: list[Tensor], v: Tensor) -> Tensor:
    """A polynomial whose coefficients are tensors without axes: then a step is one pass over memory."""
    *rest, second, first = coefficients
    value = v * first + second
    for coefficient in reversed(rest):
        value = torch.addcmul(coefficient, value, v)
    return value


@cache
def _polynomials(dim: int) -> tuple[list[Tensor], list[Tensor]]:
    remainder, scaled_gain = single_precision_fit(dim)
    with torch.inference_mode(False):  # the cache outlives the mode it is first filled in
        return [torch.tensor(c) for c in remainder], [torch.tensor(c) for c in scaled_gain]


@cache
def single_precision_fit(dim: int) -> tuple[list[float], list[float]]:
    """q(t) and s gain as polynomials in t/a = 1/s, lowest power first, for `_single` and fused kernels.

    By interpolation at Chebyshev-Lobatto nodes in t, whose ends are nodes: t = 1, which is k = 0, so that
    psi(0) = 0 survives, and t = 0, which is infinity, where log I_nu(k) = k - log(2 pi k)/2 gives q(0) and
    the mean has length 1.
    """
    degree = 7 if dim >= 8 else 10
    order, shift = dim / 2 - 1, dim / 2 + 1
    nodes = torch.arange(degree + 1, dtype=torch.float64)
    t = (1 + torch.cos(math.pi * nodes / degree)) / 2
    s = shift / t[:-1]
    psi, gain = _double((s - shift) * (s + shift), dim)
    q = psi - (s - shift) + (order + 0.5) * torch.log((s + shift) / (2 * shift))
    q_infinity = math.lgamma(order + 1) + order * math.log(2) - math.log(2 * math.pi) / 2
    q_infinity += shift - (order + 0.5) * math.log(2 * shift)
    q = torch.cat((q, torch.full_like(q[:1], q_infinity)))
    r = torch.cat((s * gain, torch.ones_like(q[:1])))
    t[-1] = 0
    vandermonde = torch.linalg.vander(t)
    powers = shift ** torch.arange(degree + 1, dtype=torch.float64)
    remainder, scaled_gain = (torch.linalg.solve(vandermonde, y) * powers for y in (q, r))
    return remainder.tolist(), scaled_gain.tolist()


def _double(squared_radius: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    order = dim / 2 - 1
    raised = order + max(0, math.ceil(_LOWEST_ORDER - order))
    s = torch.sqrt(squared_radius + raised * raised)
    delta = squared_radius / (s + raised)
    t = raised / s
    series = _series(raised)
    psi = (
        delta
        - raised * torch.log1p(delta / (2 * raised))
        - 0.5 * torch.log1p(delta / raised)
        + _horner(series, t)
    )
    # d psi/d delta = s/(s+nu) - 1/(2s), d delta/dk = k/s, dt/dk = -t k/s^2
    slope = _horner(_derivative(series), t)
    gain = 1 / (s + raised) - (0.5 + t * slope) / (s * s)
    while raised > order:
        raised -= 1
        denominator = squared_radius * gain + 2 * (raised + 1)
        gain = 1 / denominator
        psi = psi + torch.log(denominator / (2 * (raised + 1)))
    return psi, gain


def _horner(coefficients: list[float], t: Tensor) -> Tensor:
    value = torch.full_like(t, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * t + coefficient
    return value


@cache
def _series(order: float) -> list[float]:
    """Coefficients in t of sum_m [c_m(t) - c_m(1)] / order^m."""
    coefficients = [0.0] * (3 * _TERMS + 1)
    for m, polynomial in enumerate(_debye_logarithms(_TERMS), start=1):
        for power, value in polynomial.items():
            coefficients[power] += float(value) / order**m
            coefficients[0] -= float(value) / order**m
    return coefficients


def _derivative(coefficients: list[float]) -> list[float]:
    return [power * value for power, value in enumerate(coefficients)][1:]


@cache
def _debye_logarithms(terms: int) -> list[Polynomial]:
    """c_1..c_terms with log(1 + sum_m u_m(t)/nu^m) = sum_m c_m(t)/nu^m, u_m the Debye polynomials.

    u_{m+1} = t^2 (1 - t^2) u_m' / 2 + (1/8) int_0^t (1 - 5 r^2) u_m(r) dr   (DLMF 10.41.9), and
    m c_m = m u_m - sum_{l<m} l c_l u_{m-l}, the logarithm of a power series.
    """
    debye: list[Polynomial] = [{0: Fraction(1)}]
    for _ in range(terms):
        following: Polynomial = {}
        for p, value in debye[-1].items():
            low = Fraction(p, 2) + Fraction(1, 8 * (p + 1))
            high = -Fraction(p, 2) - Fraction(5, 8 * (p + 3))
            following[p + 1] = following.get(p + 1, Fraction(0)) + low * value
            following[p + 3] = following.get(p + 3, Fraction(0)) + high * value
        debye.append(following)
    logarithms: list[Polynomial] = []
    for m in range(1, terms + 1):
        polynomial = dict(debye[m])
        for lower in range(1, m):
            for p, left in logarithms[lower - 1].items():
                for q, right in debye[m - lower].items():
                    term = Fraction(lower, m) * left * right
                    polynomial[p + q] = polynomial.get(p + q, Fraction(0)) - term
        logarithms.append(polynomial)
    return logarithms
