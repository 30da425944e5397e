"""Systems that every property test runs over, and the naive energy that certifies the row-blocked one."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from attractor.physics import Circles, Evidence, Gaussian, Hopfield, LocalEnergy, Pairwise, Sphere

N, D, B = 5, 4, 3


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _precision(dim: int) -> Tensor:
    root = torch.randn(dim, dim, generator=_generator(99), dtype=torch.float64)
    return root @ root.T / dim + 0.5 * torch.eye(dim, dtype=torch.float64)


MEASURES = {
    "Sphere": Sphere,
    "Circles": lambda dim: Circles(dim // 2),
    "Gaussian": lambda dim: Gaussian(dim, precision=_precision(dim)),
}
COUPLINGS = {"Pairwise": Pairwise, "Hopfield": Hopfield}


class Naive:
    """The textbook formulas by einsum over (B, N, N, D), differentiable by autograd in all."""

    @staticmethod
    def natural(
        energy: LocalEnergy, couplings: Tensor, others: Tensor, field: Tensor | None = None
    ) -> Tensor:
        """h_is (B, N, S, D) = lambda u_is + field_i, from the others alone."""
        if isinstance(energy.couplings, Pairwise):
            u = torch.einsum("ijac,bjc->bija", couplings, others)
        else:
            off = 1 - torch.eye(others.shape[1], dtype=others.dtype)
            u = torch.einsum("ij,ijac,bjc->bia", off, couplings, others).unsqueeze(2)
        h = energy.inverse_temperature * u
        return h if field is None else h + field.unsqueeze(2)

    @staticmethod
    def exclude(energy: LocalEnergy, logits: Tensor) -> Tensor:
        """-inf where source i would be token i itself, for logits (B, N, S)."""
        if isinstance(energy.couplings, Pairwise):
            own = torch.eye(logits.shape[1], dtype=torch.bool)
            return logits.masked_fill(own, -torch.inf)
        return logits

    @classmethod
    def scores(
        cls,
        energy: LocalEnergy,
        couplings: Tensor,
        own: Tensor,
        others: Tensor,
        field: Tensor | None = None,
    ) -> Tensor:
        """x_i . h_is (B, N, S)."""
        h = cls.natural(energy, couplings, others, field)
        return cls.exclude(energy, torch.einsum("bia,bisa->bis", own, h))

    @classmethod
    def energy(
        cls,
        energy: LocalEnergy,
        couplings: Tensor,
        own: Tensor,
        others: Tensor,
        field: Tensor | None = None,
    ) -> Tensor:
        """e_i (B, N)."""
        scores = cls.scores(energy, couplings, own, others, field)
        return -scores.logsumexp(2) / energy.inverse_temperature

    @classmethod
    def psi(
        cls, energy: LocalEnergy, couplings: Tensor, others: Tensor, field: Tensor | None = None
    ) -> Tensor:
        """Log-normalisers of all sources, (B, N, S)."""
        h = cls.natural(energy, couplings, others, field)
        return cls.exclude(energy, energy.measure.log_normaliser(h))

    @classmethod
    def log_conditional(
        cls, energy: LocalEnergy, couplings: Tensor, x: Tensor, field: Tensor | None = None
    ) -> Tensor:
        """log p(x_i | x_others) (B, N)."""
        scores = cls.scores(energy, couplings, x, x, field)
        return scores.logsumexp(2) - cls.psi(energy, couplings, x, field).logsumexp(2)


@dataclass(frozen=True)
class System:
    """An energy with random couplings, tokens on its manifold and an evidence."""

    energy: LocalEnergy
    x: Tensor
    evidence: Evidence


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on many threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def naive() -> type[Naive]:
    return Naive


@pytest.fixture
def make_system():
    """A function that makes a System by the names of its couplings and measure; lambda is not 1."""

    def make(
        couplings: str,
        measure: str,
        *,
        tokens: int = N,
        dim: int = D,
        images: int = B,
        inverse_temperature: float = 1.7,
        scale: float = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> System:
        g = _generator(seed)
        sources = COUPLINGS[couplings](tokens, dim, dtype=dtype)
        values = scale * torch.randn(tokens, tokens, dim, dim, generator=g, dtype=torch.float64)
        for i in range(tokens):
            values[i, i] = 0
        sources.couplings = values.to(dtype)
        spin = MEASURES[measure](dim)
        x = spin.project(torch.randn(images, tokens, dim, generator=g, dtype=torch.float64)).to(dtype)
        field = torch.randn(images, tokens, dim, generator=g, dtype=torch.float64).to(dtype)
        energy = LocalEnergy(sources, spin, inverse_temperature=inverse_temperature)
        return System(energy, x, Evidence(field))

    return make


@pytest.fixture(params=list(MEASURES))
def measure_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=list(COUPLINGS))
def couplings_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def system(make_system, couplings_name: str, measure_name: str) -> System:
    """Every kind of couplings with every measure."""
    return make_system(couplings_name, measure_name)
