"""Query-key matrices against the inverse covariance of the tokens that they compare, and their low ranks.

    score_ij = z_i . M z_j,     M = W_Q^T W_K / sqrt(head dimension)    of a transformer's head
    score_ij = x_i . J_ij x_j                                           of bare self-attention

Three views say what M should be. Regression: the linear layer that computes OLS has W_Q = W_K = L, so that
M = L L^T = Sigma^-1 (Tan & Zhao 2026, arXiv 2604.13656). Log-normalisers: attention over tokens of mean mu
and covariance Sigma gives mu + Sigma eta for the natural parameter eta = M^T z, which is mu + z, a query
in the units of the tokens, for M = Sigma^-1 (Shim 2021). Gaussian fields: p(x) ~ exp(-x . K x / 2) puts
the field -K_ij x_j on x_i, K = C^-1 the precision of all tokens of an image. In the eigenvectors v_k of
Sigma, of eigenvalue lambda_k, the prediction is v_k . M v_k = 1/lambda_k: a slope of -1 on logarithmic
axes.

The targets for J and the controls are ours.
"""

import math

import torch
from torch import Generator, Tensor

from attractor.physics import Gaussian, Hopfield, LocalEnergy, Ridge
from attractor.physics.spectrum import Spectrum, second_moments, spectrum


def cosine(a: Tensor, b: Tensor) -> float:
    """<a, b> / (|a| |b|), Frobenius, of arrays of one shape. ValueError for zeros and other shapes."""
    if a.shape != b.shape:
        raise ValueError(f"the arrays are {tuple(a.shape)} and {tuple(b.shape)}, expected one shape")
    norms = float(a.norm() * b.norm())
    if not norms > 0:
        raise ValueError("the cosine to an array of zeros, or of values that are not finite, is undefined")
    return float((a * b).sum()) / norms


def symmetric(blocks: Tensor) -> Tensor:
    """(M + M^T)/2 of (..., D, D): what the gains x . M x can see."""
    return (blocks + blocks.mT) / 2


def in_eigenbasis(matrix: Tensor, found: Spectrum) -> Tensor:
    """V^T M V (r, r) of M (D, D): its action within the range of the covariance, whose axes are 1..r there.

    The diagonal holds the gains v_k . M v_k. Outside of the range M acts on nothing.
    """
    if matrix.shape != (len(found.vectors),) * 2:
        expected = (len(found.vectors),) * 2
        raise ValueError(f"the matrix is {tuple(matrix.shape)}, the covariance {expected}")
    basis = found.vectors.to(matrix)
    return basis.T @ matrix @ basis


def log_slope(values: Tensor, gains: Tensor) -> float:
    """Slope of log |gain| on log value by least squares, (r,) each; -1 where the gain is 1/value."""
    x, y = values.log(), gains.abs().log()
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def orthogonal(*shape: int, generator: Generator) -> Tensor:
    """Uniform (Haar) orthogonal matrices (..., D, D), float64."""
    q, r = torch.linalg.qr(torch.randn(*shape, generator=generator, dtype=torch.float64))
    turned: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # QR alone favours some signs
    return turned


def rotated(blocks: Tensor, *, generator: Generator) -> Tensor:
    """U M V^T with U and V drawn for every block (..., D, D): the singular values and nothing else of M."""
    left, right = (orthogonal(*blocks.shape, generator=generator).to(blocks) for _ in range(2))
    return left @ blocks @ right.mT


def conjugated(blocks: Tensor, *, generator: Generator) -> Tensor:
    """U M U^T: the eigenvalues of M in random directions. It keeps the trace, so what M shares with I."""
    turn = orthogonal(*blocks.shape, generator=generator).to(blocks)
    return turn @ blocks @ turn.mT


def permuted_sources(blocks: Tensor, *, generator: Generator) -> Tensor:
    """J (N, N, D, D) with the sources j != i of every row i in random order; [i, i] stays."""
    shuffled = blocks.clone()
    for i, row in enumerate(blocks):
        others = torch.tensor([j for j in range(len(row)) if j != i])
        order = torch.randperm(len(others), generator=generator)
        shuffled[i, others] = row[others[order]]
    return shuffled


def pair_targets(tokens: Tensor, *, ridge: float) -> dict[str, Tensor]:
    """What J_ij might be, from tokens (B, N, D), centred or not: name -> (N, N, D, D), 0 at [i, i].

        precision    -K_ij,            K = (C + ridge I)^-1, C = <x x^T> of all tokens of an image
        regression   -K_ii^-1 K_ij     coefficients of the regression of x_i on all others
        pair         -K'_ij            K' the precision of the tokens i and j alone
        hebb         C_ij

    "precision" is what a Gaussian field of all sources at once says; attention is near it while lambda J
    is small, since log sum_j exp(s_j) = log S + mean_j s_j + O(s^2): then J is S times -K. At large J a
    softmax picks one source, each J_ij has to predict x_i by itself, and "pair" is the Gaussian that does.
    ridge is in units of the mean eigenvalue of C. As it grows all of them tend to C_ij times a number,
    K = I/ridge - C/ridge^2 + ..., so that a cosine to them at a large ridge is one to Hebb's. Raises
    ValueError for tokens without images or singular ones.
    """
    if tokens.dim() != 3 or not len(tokens):
        raise ValueError(f"tokens are {tuple(tokens.shape)}, expected (B, N, D) with B at least 1")
    n, d = tokens.shape[1:]
    tokens = tokens.double()
    moments = second_moments(tokens.flatten(1))  # (N D, N D), all tokens of an image joined
    ridge = ridge * float(moments.diagonal().mean())
    off = ~torch.eye(n, dtype=torch.bool)[..., None, None]
    blocks = moments.view(n, d, n, d).transpose(1, 2)
    inverse = spectrum(moments, ridge=ridge, singular=False).power(-1)
    regression = LocalEnergy(Hopfield(n, d, dtype=torch.float64), Gaussian(d))
    Ridge(ridge=ridge).solve(regression, [tokens])
    return {
        "precision": -inverse.view(n, d, n, d).transpose(1, 2) * off,
        "regression": regression.couplings.weights["couplings"],
        "pair": _pair_precision(blocks, ridge),
        "hebb": blocks * off,
    }


def _pair_precision(blocks: Tensor, ridge: float) -> Tensor:
    """-[i, j] of the inverse of [[C_ii, C_ij], [C_ji, C_jj]] + ridge I: a Schur complement.

    = (C_ii - C_ij C_jj^-1 C_ji)^-1 C_ij C_jj^-1
    """
    n, _, d, _ = blocks.shape
    own = blocks.diagonal(dim1=0, dim2=1).movedim(-1, 0) + ridge * torch.eye(d, dtype=blocks.dtype)
    target = torch.zeros_like(blocks)
    for i in range(n):
        others = torch.tensor([j for j in range(n) if j != i])
        coefficients = torch.linalg.solve(own[others], blocks[i, others].mT).mT  # C_ij C_jj^-1
        residual = own[i] - coefficients @ blocks[i, others].mT
        target[i, others] = torch.linalg.solve(residual, coefficients)
    return target


def beyond(to_target: float, to_other: float, between: float) -> float:
    """Cosine of J to a target T after what either has of C is taken away: a partial correlation.

    From cos(J, T), cos(J, C) and cos(T, C), each within -1 and 1; nan where nothing of J or T is left.
    """
    left = (1 - to_other**2) * (1 - between**2)
    return (to_target - to_other * between) / left**0.5 if left > 1e-12 else float("nan")


def log_likelihood(tokens: Tensor, found: Spectrum) -> float:
    """Mean log density of the Gaussian of mean 0 and covariance `found`, nats per image and dimension.

    tokens: (B, ...), r numbers each, all of them: ValueError for a covariance of less than full rank.
    """
    x = tokens.double().flatten(1)
    if found.vectors.shape != (x.shape[1],) * 2:
        given = tuple(found.vectors.shape)
        raise ValueError(
            f"the eigenvectors are {given}, expected ({x.shape[1]}, {x.shape[1]}); use a ridge"
        )
    squares = (x @ found.vectors).square().mean(0) / found.values
    return -float((squares + found.values.log() + math.log(2 * math.pi)).mean()) / 2


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of values without ties."""
    ranks = torch.stack([v.flatten().argsort().argsort().double() for v in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def factors(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """W_Q (..., r, E) and W_K (..., r, D), whose W_Q^T W_K is nearest to M (..., E, D) of all of rank r.

    By the singular value decomposition; both have the roots of the singular values. Raises ValueError for r
    that is not from 1 to the smaller of E and D.
    """
    if not 1 <= rank <= min(matrices.shape[-2:]):
        given = tuple(matrices.shape[-2:])
        raise ValueError(f"the rank is {rank}, the matrices are {given}; use 1 to the smaller side")
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    roots = s[..., :rank].sqrt()
    return (u[..., :rank] * roots.unsqueeze(-2)).mT, vh[..., :rank, :] * roots.unsqueeze(-1)


def effective_rank(blocks: Tensor, *, share: float = 0.99) -> Tensor:
    """How many singular values carry `share` of the norm of each block (..., D, D); 0 for zeros."""
    squares = torch.linalg.svdvals(blocks).square().cumsum(-1)
    count: Tensor = (squares < share**2 * squares[..., -1:]).sum(-1) + (squares[..., -1] > 0).long()
    return count


def without_direction(blocks: Tensor, directions: Tensor) -> Tensor:
    """P_i J_ij P_j, P_i = I - m_i m_i^T/|m_i|^2, for J (N, N, D, D) and m (N, D).

    Tokens of one arc have a large common mean, and any two arrays of blocks made of it look alike.
    """
    unit = torch.nn.functional.normalize(directions, dim=-1)
    project = torch.eye(blocks.shape[-1], dtype=blocks.dtype) - unit.unsqueeze(2) * unit.unsqueeze(1)
    projected: Tensor = project.unsqueeze(1) @ blocks @ project
    return projected
