"""Ordinary least squares as one forward pass of linear attention.

A layer without softmax reads queries X_q (q, d) against a context X (n, d):

    S = (X_q W_Q) (X W_K)^T                       (q, n)   the scores
    f(X_q; X) = S (X W_V) W_FFN W_P = X_q A G B   (q, m)

    A = W_Q W_K^T (d, d),    G = X^T X (d, d),    B = W_V W_FFN W_P (d, m)

**Slow memory** is what the weights hold, A and B; **fast memory** is what the context at hand makes of
them, the scores S or, summed over the context, G. With X^T X = V Lambda V^T, L = V Lambda^(-1/2) and

    W_Q = W_K = W_V = L,    W_FFN = I,    W_P = L^T X^T Y

A = G^+ and B = G^+ X^T Y are the pseudo-inverse and the coefficients of least squares, and
f(X_q; X) = X_q G^+ G G^+ X^T Y = X_q G^+ X^T Y. The scores S = X_q G^+ X^T are the hat matrix: applied to
the labels of the context instead of its values they predict the same, S Y = f(X_q; X), and the weights
need not know Y.

With a ridge rho the same L_rho = V (Lambda + rho)^(-1/2) in all three places would shrink twice, to
(G + rho)^-1 G (G + rho)^-1 X^T Y. Scores that shrink need values that do not, G B = X^T Y, which is

    W_V = V Lambda^-1 (Lambda + rho)^(1/2)    on the range of X,    W_P = L_rho^T X^T Y.

There is no intercept: centre X and Y, or append a column of ones to queries and context.

Source: Tan & Zhao 2026, arXiv 2604.13656, for the layer and its weights without a ridge. The ridge, the
pseudo-inverse, the reading by labels and `best_similarity` are additions.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from attractor.physics.spectrum import second_moments, spectrum


@dataclass(frozen=True)
class LinearTransformer:
    """One layer of linear attention; its five matrices may be leaves of autograd.

    Raises ValueError for matrices that cannot be multiplied.
    """

    queries: Tensor  # W_Q (d, r)
    keys: Tensor  # W_K (d, r)
    values: Tensor  # W_V (d, h)
    feed_forward: Tensor  # W_FFN (h, h')
    readout: Tensor  # W_P (h', m)

    def __post_init__(self) -> None:
        given = ", ".join(
            f"{field.name} {tuple(getattr(self, field.name).shape)}" for field in fields(self)
        )
        matrices = [getattr(self, field.name) for field in fields(self)]
        if any(matrix.dim() != 2 for matrix in matrices):
            raise ValueError(f"the weights of a layer are matrices, got {given}")
        fit = (
            self.queries.shape == self.keys.shape
            and len(self.values) == len(self.keys)
            and self.values.shape[1] == len(self.feed_forward)
            and self.feed_forward.shape[1] == len(self.readout)
        )
        if not fit:
            raise ValueError(f"expected (d, r), (d, r), (d, h), (h, k) and (k, m), got {given}")

    def __call__(self, queries: Tensor, context: Tensor) -> Tensor:
        """f(X_q; X) (q, m), summed over the context first. Raises ValueError like `scores`."""
        self._check(queries, context)
        mixed = (queries @ self.queries) @ ((context @ self.keys).T @ (context @ self.values))  # (q, h)
        return mixed @ self.feed_forward @ self.readout

    def scores(self, queries: Tensor, context: Tensor) -> Tensor:
        """S (q, n): what each query takes from each token of the context; fast memory.

        Raises ValueError unless both are (., d).
        """
        self._check(queries, context)
        return (queries @ self.queries) @ (context @ self.keys).T

    @property
    def similarity(self) -> Tensor:
        """A = W_Q W_K^T (d, d), the metric of the scores; slow memory."""
        return self.queries @ self.keys.T

    @property
    def value_map(self) -> Tensor:
        """B = W_V W_FFN W_P (d, m), what the layer says of a token it attends to; slow memory."""
        return self.values @ self.feed_forward @ self.readout

    def coefficients(self, context: Tensor) -> Tensor:
        """A G B (d, m): the linear map that the layer is in this context."""
        self._check(context, context)
        return self.similarity @ (context.T @ context) @ self.value_map

    def _check(self, queries: Tensor, context: Tensor) -> None:
        for name, tokens in (("queries", queries), ("context", context)):
            if tokens.dim() != 2 or tokens.shape[1] != len(self.queries):
                expected = f"(., d) = (., {len(self.queries)})"
                raise ValueError(f"{name} are {tuple(tokens.shape)}, this layer reads {expected}")


def least_squares_layer(
    x: Tensor, y: Tensor, *, ridge: float = 0.0, singular: bool = True
) -> LinearTransformer:
    """The layer whose forward pass f(X_q; X) is X_q (X^T X + ridge I)^-1 X^T Y, for x (n, d) and y (n, m).

    The pseudo-inverse where x has not full column rank; with singular=False that is refused, and so is
    n < d. Raises ValueError for it, for data that are empty, not finite or do not fit, and for a negative
    ridge.
    """
    _check_data(x, y)
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge is {ridge}; it must be 0 or more, and finite")
    # singular data may be refused only where no ridge makes the inverse exist
    found = spectrum(x.T @ x, singular=singular or ridge > 0)
    whitening = found.vectors * (found.values + ridge).rsqrt()  # L_rho (d, r)
    return LinearTransformer(
        queries=whitening,
        keys=whitening,
        values=found.vectors * ((found.values + ridge).sqrt() / found.values),
        feed_forward=torch.eye(found.rank, dtype=x.dtype, device=x.device),
        readout=whitening.T @ (x.T @ y),
    )


def best_similarity(x: Tensor, *, context: int) -> Tensor:
    """The A (d, d) that serves every linear task best when the labels stand in a context of x (n, d).

    A context C is `context` tokens of x drawn with replacement, its labels are C w / context for the w of
    any task, and a query q is answered by q A C^T C w / context. Averaged over tasks, w ~ N(0, I), the
    squared error is E |q - q A G_C|^2, G_C = C^T C / context, least for

        A = Sigma E[G_C^2]^+,    E[G_C^2] = Sigma^2 + (E[|x|^2 x x^T] - Sigma^2) / context

    with Sigma = X^T X / n. For Gaussian x this is ((1 + 1/c) Sigma + tr(Sigma)/c I)^-1, c = context: a
    ridge that a short context asks for, and Sigma^-1 for a long one. Source: Zhang, Frei & Bartlett 2023,
    arXiv 2306.09927, for the Gaussian. Raises ValueError for data as `least_squares_layer` does.
    """
    _check_data(x, x)
    if context < 1:
        raise ValueError(f"a context has at least one token, got {context}")
    covariance = second_moments(x)
    fourth = (x * x.square().sum(1, keepdim=True)).T @ x / len(x)
    square = covariance @ covariance
    return covariance @ spectrum(square + (fourth - square) / context).power(-1)


def _check_data(x: Tensor, y: Tensor) -> None:
    given = f"x {tuple(x.shape)} and y {tuple(y.shape)}"
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        raise ValueError(f"expected x (n, d) and y (n, m) with the same n, got {given}")
    if not x.numel() or not y.numel():
        raise ValueError(f"nothing to fit: {given}")
    if not x.is_floating_point() or x.dtype != y.dtype:
        raise ValueError(f"x is {x.dtype} and y is {y.dtype}, expected one floating-point type")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError(f"{given} hold values that are not finite")
