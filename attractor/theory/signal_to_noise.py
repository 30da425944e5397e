"""What a memory of fixed size returns of random pairs, in closed form for large D.

Keys and values are uniform unit vectors of D components, P pairs are stored, and the query is the key of
one of them. The readout is that pair's value times a signal, plus the values of all others with random
weights, which are orthogonal to it: the cosine of readout and value is signal / sqrt(signal^2 + noise^2).

    Hebbian, any kernel    noise^2 / signal^2 = (P - 1) c,     c = E[kernel(k, k')^2] / kernel(k, k)^2
    decay, age a           (1/D) sum_{s != a} gamma^(2s - 2a),  s = 0 .. P - 1
    delta, rate eta, age a signal = eta q,
                           noise^2 = eta/(2 - eta) ((1 - r^a) + (1 - r^(P-1-a)) (r^a - eta (2 - eta) q^2)),
                           q = (1 - eta/D)^a,  r = 1 - eta (2 - eta)/D

Delta: each later key k' multiplies M by I - eta k' k'^T, and so the weight of an old pair by 1 - eta/D in
the mean: q after a of them. Read M k from its end: the query k goes through these matrices, newest first,
and at each token its part along that key, 1/D of its square, returns eta^2 of that token's value, while r
of the square goes on. The a later tokens return eta^2/D sum_j r^j = eta/(2 - eta) (1 - r^a). The own token
takes eta (2 - eta) q^2 from the square, and the earlier ones return what is left of it in the same way.
With P to infinity the cosine of the newest pair is sqrt(eta (2 - eta)), and for eta = 1 that of every pair
is q; with eta to 0 it is Hebb's.
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


def overwritten_noise(age: int, *, rate: float, pairs: int, dim: int) -> float:
    """The same under the delta rule, 0 < rate < 2."""
    taken = rate * (2 - rate)
    signal, left = rate * (1 - rate / dim) ** age, (1 - taken / dim) ** age
    earlier = 1 - (1 - taken / dim) ** (pairs - 1 - age)
    noise = rate / (2 - rate) * (1 - left + earlier * (left - taken * (signal / rate) ** 2))
    return noise / signal**2
