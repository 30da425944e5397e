"""Universal Hopfield networks against numpy loops, scikit-learn, scipy, attention, and their limits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances, manhattan_distances
from sklearn.neighbors import NearestNeighbors
from torch import Generator, Tensor

from attractor.baselines import UniversalMemory
from attractor.baselines.separations import SEPARATIONS, Identity, Max, Polynomial, Softmax
from attractor.baselines.similarities import SIMILARITIES, Cosine, Dot, Euclidean, Mahalanobis, Manhattan
from attractor.baselines.universal import separation, similarity

M, P, V, B = 11, 5, 3, 7  # memories, components of a key, of a value, queries
# float64 sums of some ten terms of order 1
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


KEYS, VALUES, QUERIES = normal(M, P, seed=0), normal(M, V, seed=1), normal(B, P, seed=2)
COVARIANCE = np.cov(KEYS.numpy().T, bias=True)
ORTHOGONAL = torch.linalg.qr(normal(P, P, seed=3)).Q

ORACLES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "dot": lambda q, k: np.array([[sum(a * b for a, b in zip(x, y, strict=True)) for y in k] for x in q]),
    "cosine": cosine_similarity,
    "euclidean": lambda q, k: -euclidean_distances(q, k, squared=True) / 2,
    "manhattan": lambda q, k: -manhattan_distances(q, k),
    "mahalanobis": lambda q, k: (
        -(scipy.spatial.distance.cdist(q, k, "mahalanobis", VI=np.linalg.inv(COVARIANCE)) ** 2) / 2
    ),
    "inverse_euclidean": lambda q, k: 2 / euclidean_distances(q, k, squared=True),
    "inverse_manhattan": lambda q, k: 1 / manhattan_distances(q, k),
}
INVARIANT = ("dot", "cosine", "euclidean", "mahalanobis", "inverse_euclidean")  # under rotations


def memory(
    similar: str, separate: str, *, beta: float = 1.0, values: Tensor | None = VALUES
) -> UniversalMemory:
    options = {"power": 3} if separate == "polynomial" else {}
    return UniversalMemory(
        KEYS,
        values,
        similarity=similarity(similar),
        separation=separation(separate, **options),
        beta=beta,
    )


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_are_those_of_the_libraries(name: str) -> None:
    """Every registered one: a lost 1/2, root or sign makes beta mean something else."""
    expected = ORACLES[name](QUERIES.numpy(), KEYS.numpy())
    torch.testing.assert_close(
        memory(name, "max").scores(QUERIES), torch.from_numpy(expected), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("separate", SEPARATIONS)
@pytest.mark.parametrize("similar", SIMILARITIES)
def test_retrieval_is_the_loop(similar: str, separate: str) -> None:
    """y = sum_m sep(beta s)_m v_m, a query and a memory at a time, for values that are not the keys.

    Reading keys for values, beta in the wrong place or a missing normaliser shows here.
    """
    beta = 0.7
    scores = beta * ORACLES[similar](QUERIES.numpy(), KEYS.numpy())
    expected = np.zeros((B, V))
    for b in range(B):
        match separate:
            case "identity":
                weights = [float(s) for s in scores[b]]
            case "polynomial":
                weights = [float(s) ** 3 for s in scores[b]]
            case "softmax":
                total = sum(math.exp(s) for s in scores[b])
                weights = [math.exp(s) / total for s in scores[b]]
            case _:
                weights = [float(m == max(range(M), key=scores[b].__getitem__)) for m in range(M)]
        for m in range(M):
            expected[b] += weights[m] * VALUES[m].numpy()
    found = memory(similar, separate, beta=beta).retrieve(QUERIES)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_dot_and_softmax_are_attention() -> None:
    """torch's scaled dot-product attention, with beta its scale."""
    expected = torch.nn.functional.scaled_dot_product_attention(QUERIES, KEYS, VALUES, scale=0.6)
    torch.testing.assert_close(memory("dot", "softmax", beta=0.6).retrieve(QUERIES), expected, **EXACT)


@pytest.mark.parametrize(("name", "metric"), [("euclidean", "euclidean"), ("manhattan", "manhattan")])
def test_max_of_a_distance_is_the_nearest_neighbour(name: str, metric: str) -> None:
    """scikit-learn's: with the sign of the distance lost it would be the farthest."""
    nearest = NearestNeighbors(n_neighbors=1, metric=metric).fit(KEYS.numpy())
    index = torch.from_numpy(nearest.kneighbors(QUERIES.numpy(), return_distance=False)[:, 0])
    assert torch.equal(memory(name, "max").retrieve(QUERIES), VALUES[index])


def test_dot_and_identity_are_hebbs_matrix_memory() -> None:
    """y = V K^T q; exact recall of orthonormal keys, and only then."""
    torch.testing.assert_close(
        memory("dot", "identity").retrieve(QUERIES), QUERIES @ (VALUES.T @ KEYS).T, **EXACT
    )
    values = VALUES[:P]
    orthonormal = UniversalMemory(ORTHOGONAL, values, similarity=Dot(), separation=Identity())
    torch.testing.assert_close(orthonormal.retrieve(ORTHOGONAL), values, **EXACT)
    correlated = UniversalMemory(KEYS, VALUES, similarity=Dot(), separation=Identity())
    assert (correlated.retrieve(KEYS) - VALUES).abs().max() > 0.1


@pytest.mark.parametrize("similar", SIMILARITIES)
def test_softmax_tends_to_max(similar: str) -> None:
    """beta to infinity, for scores that differ by more than 40 / beta (exp(-40) is below rounding)."""
    found = memory(similar, "softmax", beta=1e6).retrieve(QUERIES)
    torch.testing.assert_close(found, memory(similar, "max").retrieve(QUERIES), **EXACT)


def test_euclidean_softmax_of_keys_of_one_norm_is_dot_softmax() -> None:
    """|q - k|^2 = |q|^2 + |k|^2 - 2 q.k: only the norms of the keys tell the two apart."""
    keys = torch.nn.functional.normalize(KEYS, dim=-1)
    common = {"separation": Softmax(), "beta": 3.0}
    euclidean = UniversalMemory(keys, VALUES, similarity=Euclidean(), **common)
    dot = UniversalMemory(keys, VALUES, similarity=Dot(), **common)
    torch.testing.assert_close(euclidean.retrieve(QUERIES), dot.retrieve(QUERIES), **EXACT)
    other = UniversalMemory(2 * KEYS, VALUES, similarity=Dot(), **common).retrieve(QUERIES)
    assert not torch.allclose(
        UniversalMemory(2 * KEYS, VALUES, similarity=Euclidean(), **common).retrieve(QUERIES), other
    )


@pytest.mark.parametrize("separate", SEPARATIONS)
@pytest.mark.parametrize("similar", SIMILARITIES)
def test_the_order_of_memories_does_not_count(similar: str, separate: str) -> None:
    """Keys and values permuted together; permuted apart, values are read of the wrong keys."""
    order = torch.randperm(M, generator=Generator().manual_seed(5))
    options = {"power": 3} if separate == "polynomial" else {}
    common = {"similarity": similarity(similar), "separation": separation(separate, **options)}
    found = UniversalMemory(KEYS[order], VALUES[order], **common).retrieve(QUERIES)
    expected = memory(similar, separate).retrieve(QUERIES)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_rotations_change_the_manhattan_distance_alone(name: str) -> None:
    """Keys and queries rotated together: manhattan knows the pixels, the others only the geometry."""
    make = SIMILARITIES[name]
    rotated = make().fitted(KEYS @ ORTHOGONAL).scores(QUERIES @ ORTHOGONAL, KEYS @ ORTHOGONAL)
    scores = make().fitted(KEYS).scores(QUERIES, KEYS)
    assert torch.allclose(rotated, scores, rtol=1e-9, atol=1e-9) == (name in INVARIANT)


def test_mahalanobis_is_euclidean_after_whitening_and_with_a_large_ridge() -> None:
    """Any map of keys and queries leaves it as it is (ridge 0); ridge to infinity: euclidean / ridge."""
    stretch = normal(P, P, seed=8)
    found = Mahalanobis().scores(QUERIES @ stretch, KEYS @ stretch)
    expected = Mahalanobis().scores(QUERIES, KEYS)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    whitening = torch.from_numpy(np.linalg.cholesky(np.linalg.inv(COVARIANCE)))
    whitened = Euclidean().scores(QUERIES @ whitening, KEYS @ whitening)
    torch.testing.assert_close(whitened, expected, rtol=1e-10, atol=1e-10)
    ridge = 1e8  # next to which the covariance, of order 1, is 1e-8
    large = Mahalanobis(ridge=ridge).scores(QUERIES, KEYS) * ridge
    torch.testing.assert_close(large, Euclidean().scores(QUERIES, KEYS), rtol=1e-6, atol=1e-6)


def test_a_singular_covariance_is_refused_or_orthogonalises() -> None:
    """M <= P keys: an error, or the pseudo-inverse, under which they stand at the corners of a simplex.

    Sigma^+ of M centred independent keys gives each pair the squared distance 2 M: the keys are
    orthogonalised, as by the pseudo-inverse rule of Hopfield networks.
    """
    few = KEYS[: P - 1]
    with pytest.raises(ValueError, match=r"singular.*ridge"):
        UniversalMemory(few, similarity=Mahalanobis(), separation=Max())
    scores = Mahalanobis(singular=True).scores(few, few)
    expected = -len(few) * (1 - torch.eye(len(few), dtype=torch.float64))
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    assert torch.isfinite(Mahalanobis(ridge=0.1).scores(few, few)).all()


def test_a_normalised_polynomial_is_a_softmax_of_logarithms() -> None:
    """s^n / sum s^n = softmax(n log s), whatever beta; without overflow for a power of 300."""
    scores = memory("inverse_euclidean", "max").scores(QUERIES)
    for power in (1, 2.5, 10, 300):
        polynomial = UniversalMemory(
            KEYS,
            VALUES,
            similarity=similarity("inverse_euclidean"),
            separation=Polynomial(power, normalised=True),
            beta=5.0,
        )
        expected = torch.softmax(power * scores.log(), -1) @ VALUES
        torch.testing.assert_close(polynomial.retrieve(QUERIES), expected, rtol=1e-9, atol=1e-9)
    blank = UniversalMemory(KEYS, VALUES, similarity=Dot(), separation=Identity(normalised=True))
    zero = torch.zeros(2, P, dtype=torch.float64)
    torch.testing.assert_close(blank.retrieve(zero), VALUES.mean(0).expand(2, -1), **EXACT)


def test_without_values_the_keys_are_called_up() -> None:
    """An autoassociative memory returns what it stores."""
    found = memory("euclidean", "max", values=None).retrieve(KEYS + 1e-3)
    assert torch.equal(found, KEYS)


def test_a_similarity_of_a_query_of_zeros_is_finite() -> None:
    """A fully occluded image has no direction: 0 / 0 would be NaN, and argmax of NaN the first memory."""
    zero = torch.zeros(1, P, dtype=torch.float64)
    assert torch.equal(Cosine().scores(zero, KEYS), torch.zeros(1, M, dtype=torch.float64))


@pytest.mark.parametrize("power", [2, 0.5, 1.5])
def test_powers_that_misread_negative_scores_are_refused(power: float) -> None:
    """(-3)^2 > (-1)^2: the least similar memory would win, silently; (-3)^0.5 is NaN."""
    squared = UniversalMemory(KEYS, VALUES, similarity=Euclidean(), separation=Polynomial(power))
    with pytest.raises(ValueError, match=r"scores go down to -.*inverse"):
        squared.retrieve(QUERIES)
    for separate in (Identity(normalised=True), Polynomial(3, normalised=True)):
        with pytest.raises(ValueError, match="normalised"):
            UniversalMemory(KEYS, VALUES, similarity=Manhattan(), separation=separate).retrieve(QUERIES)


def test_what_cannot_be_a_memory_is_refused() -> None:
    """Each error names what was given and what is expected; broadcasting would hide most of them."""
    common = {"similarity": Dot(), "separation": Softmax()}
    with pytest.raises(ValueError, match=r"empty.*\(0, 5\)"):
        UniversalMemory(KEYS[:0], **common)
    with pytest.raises(ValueError, match=r"\(5,\).*\(M, P\)"):
        UniversalMemory(KEYS[0], **common)
    with pytest.raises(ValueError, match=r"int64"):
        UniversalMemory(torch.ones(3, 2, dtype=torch.int64), **common)
    with pytest.raises(ValueError, match=r"values are \(10, 3\).*M = 11"):
        UniversalMemory(KEYS, VALUES[:10], **common)
    with pytest.raises(ValueError, match=r"queries are \(7, 4\).*\(11, 5\)"):
        UniversalMemory(KEYS, **common).retrieve(QUERIES[:, :4])
    with pytest.raises(ValueError, match="float32"):
        UniversalMemory(KEYS, **common).retrieve(QUERIES.float())
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive"):
            UniversalMemory(KEYS, beta=beta, **common)
    with pytest.raises(ValueError, match="power"):
        Polynomial(0)


def test_unknown_names_list_the_known_ones() -> None:
    """A typing error costs one look, not a search."""
    with pytest.raises(ValueError, match=r"'euclid'.*cosine, dot, euclidean"):
        similarity("euclid")
    with pytest.raises(ValueError, match=r"'soft'.*identity, max, polynomial, softmax"):
        separation("soft")
