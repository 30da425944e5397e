"""One formula, four readings: each theory is held against the others, and against bare self-attention.

No module imports another's reading, so that a factor lost in one of them shows here.
"""

import math

import pytest
import torch
from torch import Generator, Tensor

from attractor.baselines.separations import Identity, Polynomial, Softmax
from attractor.baselines.similarities import Dot
from attractor.baselines.universal import UniversalMemory
from attractor.physics import Gaussian, Hopfield, LocalEnergy, Pairwise, Ridge, Sphere
from attractor.theory.fast_weights import FastWeights
from attractor.theory.feature_maps import Polynomial as PolynomialFeatures
from attractor.theory.log_normaliser import Discrete, normal
from attractor.theory.ols_attention import LinearTransformer, least_squares_layer

B, N, D = 3, 6, 4


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_the_force_is_the_gradient_of_a_log_normaliser() -> None:
    """-lambda e_i = log Z(x_i) + log S and lambda f_i = grad log Z(x_i), of the points lambda J_ij x_j.

    The whole of bare self-attention in Shim's terms: token i is the query, its fields are the tokens.
    """
    couplings = Pairwise(N, D, dtype=torch.float64)
    values = draw(N, N, D, D, seed=0)
    values[range(N), range(N)] = 0
    couplings.couplings = values
    sphere, temperature = Sphere(D), 1.7
    energy = LocalEnergy(couplings, sphere, inverse_temperature=temperature)
    x = sphere.project(draw(B, N, D, seed=1))
    energies, forces, attention = energy.energy(x), energy.force(x), energy.attention(x)
    for b in range(B):
        for i in range(N):
            others = [j for j in range(N) if j != i]
            fields = torch.stack([values[i, j] @ x[b, j] for j in others])
            tokens = Discrete(temperature * fields)
            log_z = tokens.log_normaliser(x[b, i]) + math.log(N - 1)
            torch.testing.assert_close(-temperature * energies[b, i], log_z)
            torch.testing.assert_close(temperature * forces[b, i], tokens.mean(x[b, i]))
            torch.testing.assert_close(attention[b, i, others], tokens.attention(x[b, i]))


def test_softmax_memory_is_the_gradient_of_a_log_normaliser() -> None:
    """V softmax(K q) with V = K: one step of a modern Hopfield network is grad log Z of what it stores."""
    stored, queries = draw(N, D, seed=0), draw(B, D, seed=1)
    memory = UniversalMemory(stored, similarity=Dot(), separation=Softmax())
    torch.testing.assert_close(memory.retrieve(queries), Discrete(stored).mean(queries))


@pytest.mark.parametrize("degree", [1, 3])  # of an even power the memory refuses scores of both signs
def test_fast_weights_are_a_universal_memory(degree: int) -> None:
    """A matrix of degree-n features, written pair by pair, is V sep(K q) with sep(s) = s^n."""
    keys, values, queries = draw(1, N, D, seed=0), draw(1, N, 5, seed=1), draw(1, B, D, seed=2)
    written = FastWeights(D, 5, feature_map=PolynomialFeatures(degree))
    found = written.recall(written.store(keys, values), queries)[0]
    separation = Identity() if degree == 1 else Polynomial(degree)
    memory = UniversalMemory(keys[0], values[0], similarity=Dot(), separation=separation)
    torch.testing.assert_close(found, memory.retrieve(queries[0]), rtol=1e-9, atol=1e-9)


def test_the_layer_of_least_squares_is_fast_weights() -> None:
    """Its context, written into a Hebbian memory as keys X W_K and values X W_V, and read by X_q W_Q."""
    x, y, queries = draw(20, D, seed=0), draw(20, 3, seed=1), draw(B, D, seed=2)
    layer = least_squares_layer(x, y, ridge=0.3)
    memory = FastWeights(layer.keys.shape[1], layer.values.shape[1])
    state = memory.store((x @ layer.keys)[None], (x @ layer.values)[None])
    read = memory.recall(state, (queries @ layer.queries)[None])[0]
    torch.testing.assert_close(read @ layer.feed_forward @ layer.readout, layer(queries, x))


def test_the_layer_of_least_squares_is_the_ridge_rule() -> None:
    """Regression of one token on the others: the vector Hopfield network in closed form, and the layer.

    N tokens of one component under a Gaussian measure: A_i. of the rule `Ridge` are its coefficients.
    """
    tokens, ridge = draw(50, N, 1, seed=0), 0.2
    energy = LocalEnergy(Hopfield(N, 1, dtype=torch.float64), Gaussian(1))
    Ridge(ridge=ridge).solve(energy, [tokens])
    predicted = energy.conditional_mean(tokens)[:, 0]
    others, own = tokens[:, 1:, 0], tokens[:, 0]
    # the rule takes means over images, the layer sums
    layer = least_squares_layer(others, own, ridge=ridge * len(tokens))
    torch.testing.assert_close(layer(others, others), predicted)


def test_attention_over_many_gaussian_tokens_is_regression() -> None:
    """Softmax over n draws of N(mu, Sigma) tends to mu + Sigma eta, which linear attention gives exactly.

    n = 200,000 and a short query: the standard error of a component is about 0.003.
    """
    root = draw(2, 2, seed=0) / 2
    sigma, mu, eta = root @ root.T + torch.eye(2) / 4, draw(2, seed=1), torch.tensor([0.3, -0.4]).double()
    sample = mu + draw(200_000, 2, seed=2) @ torch.linalg.cholesky(sigma).T
    exact = normal(mu, sigma).mean(eta)
    torch.testing.assert_close(Discrete(sample).mean(eta), exact, rtol=0, atol=0.015)
    centred = sample - sample.mean(0)
    identity = torch.eye(2, dtype=torch.float64)
    linear = LinearTransformer(identity, identity, identity, identity, identity)
    read = sample.mean(0) + linear(eta[None], centred)[0] / len(sample)
    torch.testing.assert_close(read, exact, rtol=0, atol=0.015)
