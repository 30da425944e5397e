"""How near a similarity A = W_Q W_K^T is to the inverse of the Gram matrix G of a problem.

G^+ itself is ruled by the smallest eigenvalues of G, in directions of which the data have next to nothing.
What counts is seen after whitening: G^(1/2) A G^(1/2), which for A = G^+ is the identity on the range of G.
"""

import torch
from torch import Generator, Tensor

from attractor.studies.ols_attention.problem import Problem
from attractor.theory.query_key import cosine


def whitened(problem: Problem, similarity: Tensor) -> Tensor:
    """G^(1/2) A G^(1/2) (d, d)."""
    root = problem.spectrum.power(0.5)
    return root @ similarity @ root


def overlap(problem: Problem, similarity: Tensor) -> float:
    """Cosine of whitened A with the identity on the range of G: 1 for A = G^+, near 0 for a random one."""
    return cosine(whitened(problem, similarity), problem.spectrum.power(0))


def label_overlap(problem: Problem, similarity: Tensor) -> float:
    """The same for what A makes of the whitened coefficients of the labels, a space of m dimensions."""
    basis = torch.linalg.qr(problem.spectrum.power(0.5) @ problem.least_squares).Q  # (d, m)
    return cosine(whitened(problem, similarity) @ basis, basis)


def flatness(problem: Problem, similarity: Tensor) -> float:
    """Cosine of the singular values of the whitened A with equal ones: the spectrum alone, in any basis."""
    singular = torch.linalg.svdvals(whitened(problem, similarity))[: problem.spectrum.rank]
    return cosine(singular, torch.ones_like(singular))


def gains(problem: Problem, similarity: Tensor) -> list[float]:
    """lambda_i v_i^T A v_i for each eigenvector of G (r): 1 for A = G^+, lambda_i for A = I."""
    vectors = problem.spectrum.vectors
    along: Tensor = (vectors * (similarity @ vectors)).sum(0) * problem.spectrum.values
    return along.tolist()


def map_gains(problem: Problem, coefficients: Tensor, least_squares: Tensor) -> list[float]:
    """The share of the coefficients of least squares that a map (d, m) has along each eigenvector (r)."""
    vectors = problem.spectrum.vectors
    mine, theirs = vectors.T @ coefficients, vectors.T @ least_squares
    least = torch.finfo(theirs.dtype).tiny
    shares: Tensor = (mine * theirs).sum(1) / theirs.square().sum(1).clamp_min(least)
    return shares.tolist()


def controls(problem: Problem, *, seeds: int, seed: int) -> dict[str, dict[str, list[float]]]:
    """The same of A = I and of products of two random matrices."""
    d = problem.context[0].shape[1]
    draws = Generator().manual_seed(seed)
    pairs = [torch.randn(2, d, d, generator=draws, dtype=torch.float64) for _ in range(seeds)]
    inverse = problem.spectrum.power(-1)
    return {
        name: {
            "overlap": [overlap(problem, a) for a in found],
            "label_overlap": [label_overlap(problem, a) for a in found],
            "cosine": [cosine(a, inverse) for a in found],
            "spectrum": [flatness(problem, a) for a in found],
        }
        for name, found in (
            ("identity", [torch.eye(d, dtype=torch.float64)]),
            ("random", [one @ two.T for one, two in pairs]),
        )
    }
