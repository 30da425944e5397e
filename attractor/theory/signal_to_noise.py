"""What a memory of fixed size returns of random pairs, in closed form for large D.

Keys and values are uniform unit vectors of D components, P pairs are stored, and the query is the key of
one of them. The readout is that pair's value times a signal, plus the values of all others with random
weights, which are orthogonal to it: the cosine of readout and value is signal / sqrt(signal^2 + noise^2).

    Hebbian, any kernel    noise^2 / signal^2 = (P - 1) c,     c = E[kernel(k, k')^2] / kernel(k, k)^2
    decay, age a           (1/D) sum_{s != a} gamma^(2s - 2a),  s = 0 .. P - 1
    delta with rate 1      signal = q,  noise^2 = (1 - q) + (1 - p) q (1 - q),
                           q = (1 - 1/D)^a,  p = (1 - 1/D)^(P - 1 - a)

Delta: each later key k' takes the part of M along k' away, M (I - k' k'^T), and so 1/D of the weight of an
old pair, whose signal is q in the mean. Later values are written along k', which has k in it: the sum of
(1/D) (1 - 1/D)^j over the a later ones is 1 - q. Earlier values are taken from k when it is written, and
come back as far as later keys turn k away from itself, q - q^2, times what is left of them, 1 - p. With
p = 0 the cosine is q itself.
"""

import math

import torch

from attractor.physics import Sphere


def cosine(noise_to_signal: float) -> float:
    """1 / sqrt(1 + noise^2 / signal^2)."""
    return 1 / math.sqrt(1 + noise_to_signal)


def polynomial_noise(degree: int, dim: int) -> float:
    """c of (q . k)^n: E[(k . k')^2n] = prod_j (2j - 1)/(D + 2j - 2), j = 1 .. n. For n = 1 it is 1/D."""
    return math.prod((2 * j - 1) / (dim + 2 * j - 2) for j in range(1, degree + 1))


def exponential_noise(inverse_temperature: float, dim: int) -> float:
    """c of exp(beta q . k), softmax: exp(psi(2 beta) - 2 beta), psi the log-normaliser of the sphere."""
    field = torch.zeros(dim, dtype=torch.float64)
    field[0] = 2 * inverse_temperature
    return math.exp(float(Sphere(dim).log_normaliser(field)) - 2 * inverse_temperature)


def decayed_noise(retention: float, age: int, *, pairs: int, dim: int) -> float:
    """noise^2 / signal^2 of the pair stored `age` tokens ago under decay, with identity features."""
    return sum(retention ** (2 * (s - age)) for s in range(pairs) if s != age) / dim


def overwritten_noise(age: int, *, pairs: int, dim: int) -> float:
    """The same under the delta rule with rate 1."""
    q, p = (1 - 1 / dim) ** age, (1 - 1 / dim) ** (pairs - 1 - age)
    return ((1 - q) + (1 - p) * q * (1 - q)) / (q * q)
