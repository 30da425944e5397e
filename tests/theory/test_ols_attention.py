"""Least squares as linear attention, against scikit-learn and numpy; tolerances are those of float64.

Errors of least squares from the Gram matrix grow with the square of the condition of x. The random x here
have a condition below 1e3, so that 1e-9 is far above rounding and far below any wrong factor.
"""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge
from torch import Generator, Tensor

from attractor.theory.ols_attention import LinearTransformer, best_similarity, least_squares_layer

TOLERANCE = 1e-9


def draws(*shapes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def low_rank(n: int, d: int, rank: int, seed: int = 0) -> Tensor:
    left, right = draws((n, rank), (rank, d), seed=seed)
    return left @ right


def close(a: Tensor, b: Tensor | np.ndarray) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b), rtol=TOLERANCE, atol=TOLERANCE)


def test_one_forward_pass_is_linear_regression() -> None:
    """f(X_q; X) is scikit-learn's OLS, on the context and on new queries, for several outputs."""
    x, y, new = draws((50, 7), (50, 3), (20, 7))
    layer = least_squares_layer(x, y)
    oracle = LinearRegression(fit_intercept=False).fit(x.numpy(), y.numpy())
    for queries in (x, new):
        close(layer(queries, x), oracle.predict(queries.numpy()))
    close(layer.coefficients(x), oracle.coef_.T)
    close(layer.value_map, oracle.coef_.T)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    d=st.integers(1, 8),
    m=st.integers(1, 3),
    rank=st.integers(1, 8),
    ridge=st.sampled_from([0.0, 0.1, 10.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_rank(n: int, d: int, m: int, rank: int, ridge: float, seed: int) -> None:
    """n < d and rank-deficient x: numpy's pseudo-inverse of x, or the normal equations of ridge.

    A rank that is judged wrongly blows up predictions by the inverse of rounding. The condition is below
    1e3, its square times rounding below 1e-9: 1e-8 of the largest coefficient is above that.
    """
    x = low_rank(n, d, min(rank, n, d), seed)
    y, new = draws((n, m), (5, d), seed=seed + 1)
    singular = np.linalg.svd(x.numpy(), compute_uv=False)[: min(rank, n, d)]
    assume(singular[-1] > 1e-3 * singular[0])
    if ridge:
        expected = np.linalg.solve(x.numpy().T @ x.numpy() + ridge * np.eye(d), x.numpy().T @ y.numpy())
    else:
        expected = np.linalg.pinv(x.numpy(), rcond=1e-9) @ y.numpy()
    layer = least_squares_layer(x, y, ridge=ridge)
    scale = 1 + np.abs(expected).max()
    np.testing.assert_allclose(
        layer(new, x).numpy() / scale, new.numpy() @ expected / scale, atol=1e-8, rtol=0
    )
    np.testing.assert_allclose((layer.scores(new, x) @ y).numpy(), layer(new, x).numpy(), atol=1e-8 * scale)


def test_the_values_of_the_context_are_orthonormal() -> None:
    """(X L)^T (X L) = I on the range of X, the identity on which the construction rests."""
    for x in (draws((30, 6))[0], low_rank(30, 6, 4)):
        values = x @ least_squares_layer(x, x).values
        close(values.T @ values, torch.eye(values.shape[1], dtype=torch.float64))


def test_the_scores_are_the_hat_matrix() -> None:
    """S = X (X^T X)^+ X^T: symmetric, idempotent, of trace rank; S Y are the fitted values.

    Labels in the context (fast memory) and labels in the weights (slow memory) say the same.
    """
    x, (y,) = low_rank(20, 6, 4), draws((20, 2), seed=1)
    layer = least_squares_layer(x, y)
    hat = layer.scores(x, x)
    close(hat, x.numpy() @ np.linalg.pinv(x.numpy(), rcond=1e-9))
    close(hat @ hat, hat)
    assert float(hat.trace()) == pytest.approx(4, abs=TOLERANCE)
    close(hat @ y, layer(x, x))


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_a_ridge_shrinks_once(ridge: float) -> None:
    """The layer is scikit-learn's ridge; with L_rho for the values too it shrinks twice, and is not."""
    x, y, new = draws((40, 6), (40, 2), (9, 6))
    layer = least_squares_layer(x, y, ridge=ridge)
    oracle = Ridge(alpha=ridge, fit_intercept=False, solver="svd").fit(x.numpy(), y.numpy())
    close(layer(new, x), oracle.predict(new.numpy()))
    close(layer.scores(new, x) @ y, oracle.predict(new.numpy()))
    naive = LinearTransformer(layer.queries, layer.keys, layer.queries, layer.feed_forward, layer.readout)
    gram, eye = x.T @ x, ridge * torch.eye(6, dtype=torch.float64)
    once = torch.linalg.solve(gram + eye, x.T @ y)
    close(naive.coefficients(x), torch.linalg.solve(gram + eye, gram @ once))
    assert float((naive(new, x) - layer(new, x)).abs().max()) > 1e3 * TOLERANCE
    # what makes it right: values that are not shrunk, G B = X^T Y
    close(gram @ layer.value_map, x.T @ y)


def test_the_order_of_the_products_does_not_matter() -> None:
    """Scores times values, as attention is drawn, equals the sum over the context that is computed."""
    x, new, *weights = draws((30, 5), (8, 5), (5, 4), (5, 4), (5, 3), (3, 6), (6, 2))
    layer = LinearTransformer(*weights)
    close(layer(new, x), layer.scores(new, x) @ (x @ layer.values) @ layer.feed_forward @ layer.readout)
    close(layer(new, x), new @ layer.coefficients(x))


def test_features_may_be_rotated() -> None:
    """Least squares does not depend on the basis of the features; nor does ridge, for rotations."""
    x, y, new, mixing = draws((40, 6), (40, 2), (9, 6), (6, 6))
    rotation = torch.linalg.qr(mixing).Q
    for ridge in (0.0, 3.0):
        before = least_squares_layer(x, y, ridge=ridge)(new, x)
        after = least_squares_layer(x @ rotation, y, ridge=ridge)(new @ rotation, x @ rotation)
        close(after, before)
    close(least_squares_layer(x @ mixing, y)(new @ mixing, x @ mixing), least_squares_layer(x, y)(new, x))


def test_an_intercept_is_a_column_of_ones() -> None:
    """As documented: without it none is fitted, with it scikit-learn's is."""
    x, y = draws((40, 3), (40, 2))
    y, ones = y + 5, torch.ones(40, 1, dtype=torch.float64)
    extended = torch.cat([x, ones], 1)
    oracle = LinearRegression().fit(x.numpy(), y.numpy())
    close(least_squares_layer(extended, y)(extended, extended), oracle.predict(x.numpy()))
    assert (
        float((least_squares_layer(x, y)(x, x) - torch.as_tensor(oracle.predict(x.numpy()))).abs().max())
        > 1
    )


def test_what_weights_cannot_be_told_apart() -> None:
    """(W_Q T, W_K T^-T) and (W_V S, S^-1 W_FFN U, U^-1 W_P) are the same layer in every context.

    In one context, of Gram matrix G, only A G B is seen, so that (G^-1 M^-T G W_K, M W_V) is the same layer
    there, for any M, and another one elsewhere: A and B are told apart by other contexts alone.
    """
    x, y, other, t, m = draws((40, 5), (40, 3), (40, 5), (5, 5), (5, 5))
    layer = least_squares_layer(x, y)
    inverse, gram = torch.linalg.inv, x.T @ x
    free = LinearTransformer(
        layer.queries @ t,
        layer.keys @ inverse(t).T,
        layer.values @ m,
        inverse(m) @ t,
        inverse(t) @ layer.readout,
    )
    bound = LinearTransformer(
        layer.queries,
        inverse(gram) @ inverse(m).T @ gram @ layer.keys,
        m @ layer.values,
        layer.feed_forward,
        layer.readout,
    )
    for context in (x, other):
        close(free.scores(x, context), layer.scores(x, context))
        close(free(x, context), layer(x, context))
    close(bound(x, x), layer(x, x))
    assert float((bound(x, other) - layer(x, other)).abs().max()) > 0.1


def test_slow_memory_does_not_follow_the_context() -> None:
    """In another context C the coefficients are G^+ (C^T C) G^+ X^T Y: half of them in half of it."""
    x, y = draws((40, 5), (40, 2))
    layer = least_squares_layer(torch.cat([x, x]), torch.cat([y, y]))
    close(layer(x, x), least_squares_layer(x, y)(x, x) / 2)


@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_best_similarity_is_that_of_all_contexts(context: int) -> None:
    """A E[G_C^2] = E[G_C], the moments averaged over every one of the 15^c contexts of c tokens.

    The solution of a least-squares problem: a wrong fourth moment gives another ridge. In 1/c the moments
    are of first degree, so that three values of c leave nothing to be wrong for the others.
    """
    (x,) = draws((15, 3))
    x = x * torch.tensor([3.0, 1.0, 0.3], dtype=torch.float64)
    tokens = x[torch.cartesian_prod(*[torch.arange(15)] * context).view(-1, context)]
    assert len(tokens) == 15**context
    grams = tokens.mT @ tokens / context
    close(best_similarity(x, context=context), grams.mean(0) @ torch.linalg.inv((grams @ grams).mean(0)))


def test_the_best_similarity_of_a_gaussian() -> None:
    """((1 + 1/c) Sigma + tr(Sigma)/c I)^-1, the closed form of Zhang et al.; Sigma^-1 for long contexts."""
    (x,) = draws((200_000, 3))
    x = x * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    covariance, eye = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)), torch.eye(3).double()
    for context in (5, 100):
        expected = torch.linalg.inv((1 + 1 / context) * covariance + 5.25 / context * eye)
        # 200,000 samples: fourth moments to about 1 %
        torch.testing.assert_close(best_similarity(x, context=context), expected, rtol=0.03, atol=0.01)
    close(best_similarity(x, context=10**12), torch.linalg.inv(x.T @ x / len(x)))


X, Y = torch.ones(4, 2).double(), torch.ones(4, 1).double()


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, Y[:3], {}, r"same n, got x \(4, 2\) and y \(3, 1\)"),
        (X, Y[:, 0], {}, "same n"),
        (X[:0], Y[:0], {}, "nothing to fit"),
        (X, Y[:, :0], {}, "nothing to fit"),
        (X, Y.float(), {}, "one floating-point type"),
        (X, Y * torch.nan, {}, "not finite"),
        (X / 0, Y, {}, "not finite"),
        (X, Y, {"singular": False}, "rank is 1 of 2"),
        (X[:1], Y[:1], {"singular": False}, "rank is 1 of 2"),
        (X, Y, {"ridge": -1.0}, "ridge is -1"),
        (X, Y, {"ridge": float("nan")}, "ridge is nan"),
        (0 * X, Y, {}, "is zero"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    x: Tensor, y: Tensor, options: dict[str, float], message: str
) -> None:
    """Before any work, saying what was given."""
    with pytest.raises(ValueError, match=message):
        least_squares_layer(x, y, **options)  # type: ignore[arg-type]


def test_a_ridge_makes_singular_data_regular() -> None:
    """singular=False refuses what has no inverse, and with a ridge there is one."""
    layer = least_squares_layer(X, Y, ridge=1.0, singular=False)
    close(
        layer(X, X),
        Ridge(alpha=1.0, fit_intercept=False).fit(X.numpy(), Y.numpy()).predict(X.numpy()).reshape(-1, 1),
    )


def test_matrices_that_cannot_be_multiplied_are_refused() -> None:
    """Weights at once, tokens when they come, with their shapes."""
    good = draws((5, 4), (5, 4), (5, 3), (3, 6), (6, 2))
    for place, shape in enumerate([(5, 3), (4, 4), (4, 3), (2, 6), (5, 2)]):
        bad = [*good[:place], torch.ones(shape), *good[place + 1 :]]
        with pytest.raises(ValueError, match=r"expected \(d, r\).*got queries"):
            LinearTransformer(*bad)
    with pytest.raises(ValueError, match="are matrices"):
        LinearTransformer(*good[:4], torch.ones(6))
    layer = LinearTransformer(*good)
    with pytest.raises(ValueError, match=r"queries are \(7, 4\), this layer reads \(., d\) = \(., 5\)"):
        layer(torch.ones(7, 4), torch.ones(7, 5))
    with pytest.raises(ValueError, match=r"context are \(7, 4\)"):
        layer.scores(torch.ones(7, 5), torch.ones(7, 4))
    with pytest.raises(ValueError, match="at least one token"):
        best_similarity(X, context=0)
