"""Query-key matrices and their targets. Oracles: numpy, scipy, scikit-learn, autograd, closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, spearmanr
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Generator, Tensor

from attractor.physics import LocalEnergy, Pairwise, Sphere
from attractor.physics.spectrum import second_moments, spectrum
from attractor.theory import query_key as qk


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _covariance(dim: int = 6, *, seed: int = 3) -> Tensor:
    """With eigenvalues from 0.1 to 30, in random directions."""
    turn = qk.orthogonal(dim, dim, generator=_generator(seed))
    return turn @ torch.diag(torch.logspace(-1, 1.5, dim, dtype=torch.float64)) @ turn.T


def test_inverse_covariance_is_recognised() -> None:
    """M = Sigma^-1, of any scale, has cosine 1, gains 1/lambda and slope -1; M = Sigma slope +1.

    A study in which the prediction itself would not score 1 could not tell that networks miss it.
    """
    found = spectrum(_covariance())
    m = qk.in_eigenbasis(7 * torch.linalg.inv(_covariance()), found)
    assert qk.cosine(m, torch.diag(1 / found.values)) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(m.diagonal(), 7 / found.values, rtol=1e-10, atol=0)
    assert qk.log_slope(found.values, m.diagonal()) == pytest.approx(-1, abs=1e-10)
    other = qk.in_eigenbasis(_covariance(), found)
    assert qk.log_slope(found.values, other.diagonal()) == pytest.approx(1, abs=1e-10)
    identity = qk.in_eigenbasis(torch.eye(6, dtype=torch.float64), found)
    assert qk.log_slope(found.values, identity.diagonal()) == pytest.approx(0, abs=1e-10)


def test_gains_are_quadratic_forms_and_slope_is_polyfit() -> None:
    """v_k . M v_k by numpy's eigenvectors, for an asymmetric M; the slope by np.polyfit, signs dropped.

    The symmetric part has the same gains.
    """
    m, found = _normal(6, 6), spectrum(_covariance())
    values, vectors = np.linalg.eigh(_covariance().numpy())
    expected = np.array([v @ m.numpy() @ v for v in vectors.T])[::-1]
    gains = qk.in_eigenbasis(m, found).diagonal()
    np.testing.assert_allclose(gains.numpy(), expected, rtol=1e-10, atol=1e-12)
    assert (gains < 0).any()
    assert (gains > 0).any()
    slope = np.polyfit(np.log(values[::-1]), np.log(np.abs(expected)), 1)[0]
    assert qk.log_slope(found.values, gains) == pytest.approx(slope, rel=1e-9)
    same = qk.in_eigenbasis(qk.symmetric(m), found).diagonal()
    torch.testing.assert_close(same, gains, rtol=1e-10, atol=1e-12)


def test_outside_of_the_range_nothing_counts() -> None:
    """A singular covariance leaves out what M does in its null space, which no token has.

    LayerNorm makes one direction empty; its inverse eigenvalue would be all of Sigma^-1.
    """
    flat = _normal(50, 6) - _normal(50, 6).mean(1, keepdim=True)
    found = spectrum(flat.T.cov(correction=0))
    assert found.rank == 5
    null = torch.ones(6, 6, dtype=torch.float64)
    inside = qk.in_eigenbasis(_normal(6, 6, seed=5), found)
    torch.testing.assert_close(qk.in_eigenbasis(_normal(6, 6, seed=5) + 9 * null, found), inside)


def test_controls_keep_what_they_claim() -> None:
    """Rotations keep singular values; conjugations eigenvalues and trace; permutations each row's blocks.

    A control that changes more compares the network with another kind of matrix.
    """
    blocks = _normal(4, 4, 3, 3)
    turned = qk.rotated(blocks, generator=_generator())
    torch.testing.assert_close(torch.linalg.svdvals(turned), torch.linalg.svdvals(blocks))
    assert qk.cosine(turned, blocks) < 0.5
    moved = qk.conjugated(blocks, generator=_generator())
    trace = blocks.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(moved.diagonal(dim1=-2, dim2=-1).sum(-1), trace)
    expected, given = (torch.linalg.eigvals(b).abs().sort(-1).values for b in (blocks, moved))
    torch.testing.assert_close(given, expected)
    shuffled = qk.permuted_sources(blocks, generator=_generator())
    assert torch.equal(shuffled.diagonal(dim1=0, dim2=1), blocks.diagonal(dim1=0, dim2=1))
    assert not torch.equal(shuffled, blocks)
    for mine, theirs in zip(shuffled, blocks, strict=True):
        assert sorted(mine.flatten(1).tolist()) == sorted(theirs.flatten(1).tolist())


def test_orthogonal_is_uniform() -> None:
    """Q^T Q = I, and over 4,000 draws <Q_11> = 0, <Q_11^2> = 1/3: QR without its signs has <Q_11> < 0."""
    drawn = qk.orthogonal(4000, 3, 3, generator=_generator())
    torch.testing.assert_close(drawn.mT @ drawn, torch.eye(3, dtype=torch.float64).expand(4000, 3, 3))
    # 4 standard errors: of the mean 0.577/63, of the mean square 0.298/63
    assert abs(float(drawn[:, 0, 0].mean())) < 4 * 0.577 / 63
    assert float(drawn[:, 0, 0].square().mean()) == pytest.approx(1 / 3, abs=4 * 0.298 / 63)


def test_expected_cosines_of_the_controls() -> None:
    """<cos(U M V^T, T)> = 0 and <cos(U M U^T, T)> = tr M tr T / (D |M| |T|), by Monte Carlo.

    The trace is why a random matrix with a positive trace already looks like an inverse covariance.
    """
    m, target = _normal(5, 5) + 2 * torch.eye(5, dtype=torch.float64), torch.linalg.inv(_covariance(5))
    generator = _generator(1)
    free = [qk.cosine(qk.rotated(m, generator=generator), target) for _ in range(1500)]
    held = [qk.cosine(qk.conjugated(m, generator=generator), target) for _ in range(1500)]
    expected = float(m.trace() * target.trace() / (5 * m.norm() * target.norm()))
    assert expected > 0.1
    assert np.mean(free) == pytest.approx(0, abs=4 * np.std(free) / 1500**0.5)
    assert np.mean(held) == pytest.approx(expected, abs=4 * np.std(held) / 1500**0.5)


def _field(tokens: int = 3, dim: int = 2, images: int = 60) -> tuple[Tensor, Tensor]:
    """Tokens of a correlated Gaussian with a mean, and their second moments plus ridge."""
    mixing = _normal(tokens * dim, tokens * dim, seed=8)
    flat = _normal(images, tokens * dim, seed=9) @ mixing.T + 0.5
    moments = flat.T @ flat / images
    ridged = moments + 0.01 * moments.diagonal().mean() * torch.eye(tokens * dim, dtype=torch.float64)
    return flat.view(images, tokens, dim), ridged


def test_pair_targets_against_numpy_and_sklearn() -> None:
    """Every block by numpy's inverse of the whole matrix, of two tokens alone, and by scikit-learn's Ridge.

    A transposed block or a lost sign leaves norms and shapes as they are, and turns every cosine.
    """
    tokens, ridged = _field()
    n, d = 3, 2
    found = qk.pair_targets(tokens, ridge=0.01)
    precision = np.linalg.inv(ridged.numpy())
    ridge = float(ridged[0, 0] - (tokens.flatten(1)[:, 0] ** 2).mean())
    for i in range(n):
        a, others = slice(i * d, (i + 1) * d), [k for k in range(n * d) if k // d != i]
        flat = tokens.flatten(1).numpy()
        model = SklearnRidge(alpha=ridge * len(flat), fit_intercept=False).fit(flat[:, others], flat[:, a])
        for j in range(n):
            b = slice(j * d, (j + 1) * d)
            if i == j:
                assert not any(target[i, i].count_nonzero() for target in found.values())
                continue
            np.testing.assert_allclose(found["precision"][i, j], -precision[a, b], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found["hebb"][i, j], ridged[a, b], rtol=1e-12, atol=1e-12)
            both = [*range(a.start, a.stop), *range(b.start, b.stop)]
            alone = -np.linalg.inv(ridged.numpy()[np.ix_(both, both)])[:d, d:]
            np.testing.assert_allclose(found["pair"][i, j], alone, rtol=1e-8, atol=1e-12)
            columns = [others.index(k) for k in range(b.start, b.stop)]
            np.testing.assert_allclose(
                found["regression"][i, j], model.coef_[:, columns], rtol=1e-8, atol=1e-10
            )


def test_large_ridges_are_hebbs() -> None:
    """All targets tend to C_ij times a number as the ridge grows, with an error of 1/ridge.

    Without it a cosine to an inverse with a large ridge would be read as one to an inverse.
    """
    tokens, _ = _field()
    small, large, larger = (qk.pair_targets(tokens, ridge=ridge) for ridge in (0.01, 1e3, 1e4))
    for name in ("precision", "regression", "pair"):
        missing = [1 - qk.cosine(found[name], found["hebb"]) for found in (small, large, larger)]
        assert missing[0] > 0.1
        assert 0 < missing[2] < missing[1] / 50  # the cosine is of second order
        assert missing[2] < 1e-6


def test_log_likelihood_is_scipys() -> None:
    """Per dimension, against scipy's density; of all scales of the covariance their own is likeliest."""
    tokens, ridged = _field()
    found = qk.log_likelihood(tokens, spectrum(ridged))
    density = multivariate_normal(mean=np.zeros(6), cov=ridged.numpy()).logpdf(tokens.flatten(1).numpy())
    assert found == pytest.approx(density.mean() / 6, rel=1e-10)
    moments = second_moments(tokens.flatten(1))
    own = qk.log_likelihood(tokens, spectrum(moments))
    assert all(qk.log_likelihood(tokens, spectrum(c * moments)) < own for c in (0.9, 1.1))
    with pytest.raises(ValueError, match="use a ridge"):
        qk.log_likelihood(tokens[:4], spectrum(second_moments(tokens[:4].flatten(1))))


def test_beyond_is_the_cosine_of_residuals() -> None:
    """Against the residuals themselves; an array that is C and noise has nothing of T beyond C."""
    j, t, c = (_normal(4, 4, 3, 3, seed=seed) + _normal(4, 4, 3, 3, seed=9) for seed in (0, 1, 2))
    left = [m - (m * c).sum() / (c * c).sum() * c for m in (j, t)]
    given = qk.cosine(j, t), qk.cosine(j, c), qk.cosine(t, c)
    assert qk.beyond(*given) == pytest.approx(qk.cosine(*left), abs=1e-12)
    assert abs(qk.beyond(*given) - given[0]) > 0.1
    assert np.isnan(qk.beyond(0.5, 0.5, 1.0))


def test_precision_is_the_field_of_a_gaussian() -> None:
    """The gradient of -x.Kx/2 by x_i is sum_j target_ij x_j - K_ii x_i, by autograd."""
    tokens, ridged = _field()
    target = qk.pair_targets(tokens, ridge=0.01)["precision"]
    inverse = torch.linalg.inv(ridged)
    x = _normal(3, 2, seed=11).requires_grad_()
    (-(x.flatten() @ inverse @ x.flatten()) / 2).backward()
    own = inverse.view(3, 2, 3, 2).diagonal(dim1=0, dim2=2).movedim(-1, 0)  # K_ii
    expected = torch.einsum("ijac,jc->ia", target, x) - torch.einsum("iac,ic->ia", own, x)
    torch.testing.assert_close(x.grad, expected.detach(), rtol=1e-9, atol=1e-9)


def test_small_attention_is_a_gaussian_field() -> None:
    """J = -S K, scaled by c -> 0: the force of attention tends to that of all sources, sum_j J_ij x_j / S.

    The claim of `pair_targets` about small couplings; the difference falls with c.
    """
    tokens, _ = _field()
    target = qk.pair_targets(tokens, ridge=0.01)["precision"]
    x = Sphere(2).project(tokens[:4])
    errors = []
    for scale in (0.1, 0.01):
        couplings = Pairwise(3, 2, dtype=torch.float64)
        couplings.couplings = 2 * scale * target / target.norm()
        force = LocalEnergy(couplings, Sphere(2)).force(x)
        field = torch.einsum("ijac,bjc->bia", scale * target / target.norm(), x)
        errors.append(float((force - field).norm() / field.norm()))
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.01


def test_without_direction() -> None:
    """P J P vanishes on the directions of both sides, and projecting twice changes nothing."""
    blocks, means = _normal(4, 4, 3, 3), _normal(4, 3, seed=2)
    projected = qk.without_direction(blocks, means)
    zeros = torch.zeros(4, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.einsum("ijac,jc->ija", projected, means), zeros, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.einsum("ia,ijac->ijc", means, projected), zeros, rtol=0, atol=1e-12)
    torch.testing.assert_close(qk.without_direction(projected, means), projected, rtol=0, atol=1e-12)
    assert float(projected.norm()) > 1


def test_rank_correlation_is_spearmans() -> None:
    """Against scipy, for values without ties."""
    a, b = _normal(40), _normal(40) + _normal(40, seed=1)
    assert qk.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_factors_are_the_truncated_svd() -> None:
    """W_Q^T W_K at rank r equals numpy's truncated SVD for every matrix of a batch, and M at full rank.

    Both factors have the same singular values; a whole s on one side would give the same product.
    """
    matrices = _normal(2, 5, 4)
    for rank in (1, 3, 4):
        queries, keys = qk.factors(matrices, rank)
        assert queries.shape == (2, rank, 5)
        assert keys.shape == (2, rank, 4)
        for m, w_q, w_k in zip(matrices, queries, keys, strict=True):
            u, s, vh = np.linalg.svd(m.numpy(), full_matrices=False)
            np.testing.assert_allclose(w_q.T @ w_k, (u[:, :rank] * s[:rank]) @ vh[:rank], atol=1e-12)
        torch.testing.assert_close(torch.linalg.svdvals(queries), torch.linalg.svdvals(keys))
    torch.testing.assert_close(queries.mT @ keys, matrices)


def test_effective_rank() -> None:
    """Counted by hand for diagonal blocks; zeros have none."""
    blocks = torch.diag_embed(
        torch.tensor([[1.0, 0, 0], [1, 1, 0], [10, 1, 0.1], [0, 0, 0]], dtype=torch.float64)
    )
    # of (10, 1, 0.1) the first carries 0.995 of the norm
    assert qk.effective_rank(blocks).tolist() == [1, 2, 1, 0]
    assert qk.effective_rank(blocks, share=0.9999).tolist() == [1, 2, 2, 0]


def test_refusals() -> None:
    """What cannot be compared or factored is named with its shapes."""
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 3\)"):
        qk.cosine(torch.eye(2), torch.eye(3))
    with pytest.raises(ValueError, match="zeros"):
        qk.cosine(torch.eye(2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"matrix is \(5, 5\), the covariance \(6, 6\)"):
        qk.in_eigenbasis(torch.eye(5), spectrum(_covariance()))
    for rank in (0, 4):
        with pytest.raises(ValueError, match=rf"the rank is {rank}"):
            qk.factors(torch.ones(5, 3), rank)
    with pytest.raises(ValueError, match="B at least 1"):
        qk.pair_targets(torch.zeros(0, 3, 2), ridge=0.1)
    with pytest.raises(ValueError, match="singular"):
        qk.pair_targets(torch.ones(4, 3, 2), ridge=0.0)
