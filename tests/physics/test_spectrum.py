"""The spectrum of a covariance, against scipy and numpy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Generator, Tensor

from attractor.physics.spectrum import spectrum


def covariance(dim: int, *, rank: int | None = None, seed: int = 0) -> Tensor:
    x = torch.randn(40, rank or dim, generator=Generator().manual_seed(seed), dtype=torch.float64)
    mix = torch.randn(rank or dim, dim, generator=Generator().manual_seed(seed + 1), dtype=torch.float64)
    return (x @ mix).T @ (x @ mix)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_whitening_whitens(ridge: float) -> None:
    """L^T (G + ridge) L = 1: a lost root or a transposed V leaves correlations in whitened tokens."""
    gram = covariance(6)
    found = spectrum(gram, ridge=ridge)
    identity = torch.eye(6, dtype=torch.float64)
    whitened = found.whitening.T @ (gram + ridge * identity) @ found.whitening
    torch.testing.assert_close(whitened, identity, atol=1e-10, rtol=0)


@pytest.mark.parametrize("rank", [6, 4, 1])
def test_the_inverse_is_the_pseudo_inverse(rank: int) -> None:
    """L L^T is numpy's pinv, of any rank; the inverse of an eigenvalue that is rounding would be huge."""
    gram = covariance(6, rank=rank)
    found = spectrum(gram)
    assert found.rank == rank
    expected = torch.from_numpy(np.linalg.pinv(gram.numpy(), hermitian=True, rcond=1e-12))
    for inverse in (found.whitening @ found.whitening.T, found.power(-1)):
        torch.testing.assert_close(inverse, expected, rtol=1e-8, atol=1e-12)


def test_powers_are_matrix_powers() -> None:
    """G^(1/2) is scipy's sqrtm, and G^(-1/2) its inverse."""
    gram = covariance(5)
    root = torch.from_numpy(np.real(scipy.linalg.sqrtm(gram.numpy())))
    torch.testing.assert_close(spectrum(gram).power(0.5), root, rtol=1e-9, atol=1e-9)
    identity = spectrum(gram).power(-0.5) @ root
    torch.testing.assert_close(identity, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-9)


def test_eigenvalues_are_those_of_scipy_descending() -> None:
    values = scipy.linalg.eigvalsh(covariance(7).numpy())[::-1].copy()
    torch.testing.assert_close(spectrum(covariance(7)).values, torch.from_numpy(values))


@pytest.mark.parametrize(
    ("gram", "arguments", "message"),
    [
        (torch.ones(3), {}, r"a covariance is \(D, D\).*got \(3,\)"),
        (torch.ones(3, 2), {}, r"got \(3, 2\)"),
        (torch.ones(2, 2, dtype=torch.int64), {}, r"floating-point"),
        (torch.eye(2), {"ridge": -1.0}, r"ridge is -1"),
        (torch.eye(2), {"ridge": float("nan")}, r"ridge is nan"),
        (torch.full((2, 2), torch.nan), {}, r"not finite"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), {}, r"symmetric"),
        (torch.diag(torch.tensor([1.0, -1.0])), {}, r"negative eigenvalue.*-1"),
        (
            torch.diag(torch.tensor([1.0, 0.0])),
            {"singular": False},
            r"rank is 1 of 2; use a .* ridge",
        ),
        (torch.zeros(2, 2), {}, r"is zero"),
        (torch.empty(0, 0), {}, r"\(0, 0\)"),
    ],
)
def test_what_is_no_covariance_is_refused(gram: Tensor, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectrum(gram, **arguments)  # type: ignore[arg-type]
