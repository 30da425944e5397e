"""Universal Hopfield networks: similarity, separation, projection.

    y = V sep(beta sim(K, q))

K are the stored keys, V what they call up, which may be something else (heteroassociative). Dot and
identity are the classical Hopfield network, one step without its sign: y = V K^T q, Hebb's matrix memory;
dot and polynomial a dense associative memory; dot and softmax the modern Hopfield network, which is
attention; euclidean or manhattan and max the nearest neighbour; euclidean and softmax `DenseMemory`.

Source: Millidge et al. 2022, arXiv 2202.04557; `similarities` and `separations` say where they differ.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from attractor.baselines.separations import SEPARATIONS, Separation
from attractor.baselines.similarities import SIMILARITIES, Similarity

_Made = TypeVar("_Made")


class UniversalMemory:
    """Keys (M, P) and values (M, V) of one floating-point type, read by a similarity and a separation."""

    def __init__(
        self,
        keys: Tensor,
        values: Tensor | None = None,
        *,
        similarity: Similarity,
        separation: Separation,
        beta: float = 1.0,
    ) -> None:
        """Without values the keys themselves are called up (autoassociative).

        Raises ValueError for an empty memory, shapes that do not fit and a beta that is not positive, and
        for what the similarity refuses of the keys.
        """
        values = keys if values is None else values
        if keys.dim() != 2 or not keys.is_floating_point():
            raise ValueError(f"keys are {_given(keys)}, expected floating-point (M, P)")
        if not keys.numel():
            raise ValueError(f"the memory is empty: keys are {_given(keys)}; store at least one")
        if values.dim() != 2 or len(values) != len(keys) or values.dtype != keys.dtype:
            raise ValueError(
                f"values are {_given(values)}, expected (M, V) with one row for each of the M = {len(keys)}"
                f" keys, of {keys.dtype}"
            )
        _check_beta(beta)
        self.keys, self.values, self.separation, self.beta = keys, values, separation, beta
        self.similarity = similarity.fitted(keys)

    def retrieve(self, queries: Tensor) -> Tensor:
        """y = V sep(beta sim(K, q)), (B, V), for queries (B, P). Raises ValueError for another shape."""
        return self.read(self.scores(queries), beta=self.beta)

    def scores(self, queries: Tensor) -> Tensor:
        """sim(K, q), (B, M)."""
        if queries.dim() != 2 or queries.shape[1] != self.keys.shape[1] or queries.dtype != self.keys.dtype:
            raise ValueError(
                f"queries are {_given(queries)}, expected (B, P), to be compared with keys (M, P) ="
                f" {_given(self.keys)}"
            )
        return self.similarity.scores(queries, self.keys)

    def read(self, scores: Tensor, *, beta: float) -> Tensor:
        """V sep(beta scores), (B, V): several betas can share the scores (B, M), which take the time."""
        _check_beta(beta)
        weights = self.separation.weights(beta * scores)
        return project(weights, [self.values], normalised=self.separation.normalised)


def project(weights: Tensor, values: Iterable[Tensor], *, normalised: bool) -> Tensor:
    """sum_m w_m v_m, divided by sum_m w_m if normalised, (B, V).

    weights (B, M); the values (M, V) may come in several pieces.
    """
    first, total = 0, None
    for piece in values:
        if total is None:
            total = weights.new_zeros(len(weights), piece.shape[1])
        total.addmm_(weights[:, first : first + len(piece)], piece)
        first += len(piece)
    assert total is not None
    return total.div_(weights.sum(-1, keepdim=True)) if normalised else total


def similarity(name: str, **options: Any) -> Similarity:
    """A similarity of `SIMILARITIES`, by name. Raises ValueError for an unknown one."""
    return _named(SIMILARITIES, "similarity", name)(**options)


def separation(name: str, **options: Any) -> Separation:
    """A separation of `SEPARATIONS`, by name. Raises ValueError for an unknown one."""
    return _named(SEPARATIONS, "separation", name)(**options)


def _named(registry: Mapping[str, Callable[..., _Made]], kind: str, name: str) -> Callable[..., _Made]:
    if name not in registry:
        raise ValueError(f"unknown {kind} {name!r}; use one of {', '.join(sorted(registry))}")
    return registry[name]


def _check_beta(beta: float) -> None:
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta is {beta}; an inverse temperature must be positive and finite")


def _given(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"
