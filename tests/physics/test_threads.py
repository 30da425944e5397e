"""The threads of the fused kernel: torch's own, or none where torch has no OpenMP of GCC."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from attractor.physics import Adam, LocalEnergy, Pairwise, Sphere, random_start
from attractor.physics.kernels import cpu, cpu_adam, threads
from attractor.physics.kernels.threads import shares


class _Fewer:
    """An OpenMP that gives one thread, however many are asked for."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def GOMP_parallel(self, function: int, data: bytes, _: int, flags: int) -> None:
        self._library.GOMP_parallel(function, data, 1, flags)


@pytest.fixture(params=["torch", "fewer", "none"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Functions are compiled anew for each kind of threads."""
    library = threads.openmp()
    assert library is not None, "torch for Linux brings the OpenMP of GCC"
    kinds = {"torch": library, "fewer": _Fewer(library), "none": None}
    monkeypatch.setattr(threads, "openmp", lambda: kinds[request.param])
    compiled = (cpu._gradient, cpu._one_sided, cpu_adam._compiled)
    for function in compiled:
        function.cache_clear()
    yield request.param
    for function in compiled:
        function.cache_clear()


def _system(tokens: int = 12, images: int = 150) -> tuple[LocalEnergy, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    couplings = Pairwise(tokens, 8)
    random_start(couplings, 1.0, generator=generator)
    x = Sphere(8).sample(torch.zeros(images, tokens, 8), generator=generator)
    return LocalEnergy(couplings, Sphere(8)), x


def _for_ever(energy: LocalEnergy, x: torch.Tensor) -> None:
    while True:
        energy.coupling_gradient(x)


def test_any_number_of_threads_gives_the_same_bits(kind: str) -> None:
    """Gradient, force and Adam, with weights enough for every thread to have some.

    A share that nobody does would keep old values, and training would go on.
    """
    energy, x = _system(tokens=60, images=20)
    assert energy.couplings.weights["couplings"].numel() > 3 * 64 * cpu_adam._SPANS_PER_THREAD
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        gradient = {"couplings": torch.full_like(energy.couplings.couplings, torch.nan)}
        for i in range(60):
            gradient["couplings"][i, i] = 0
        objective = energy.write_gradient(x, gradient)
        weights = {"couplings": energy.couplings.couplings.clone()}
        optimiser = Adam()
        for _ in range(2):
            assert optimiser.ascend(weights, gradient, rate=0.1)
        spoiled = {"couplings": weights["couplings"].clone()}
        spoiled["couplings"][59, 0] = torch.inf  # in the last share
        assert not Adam().ascend(spoiled, gradient, rate=0.1)
        results.append([objective, gradient["couplings"], weights["couplings"], energy.force(x)])
    for more in results[1:]:
        for one, other in zip(results[0], more, strict=True):
            assert torch.equal(one, other)


def test_an_interrupt_comes_between_calls(kind: str) -> None:
    """Ctrl-C in the middle of a step is KeyboardInterrupt; the threads have ended, and nothing is lost."""
    energy, x = _system()
    torch.set_num_threads(2)
    expected = energy.coupling_gradient(x)["couplings"]
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.003)
            with pytest.raises(KeyboardInterrupt):
                _for_ever(energy, x)
            assert torch.equal(energy.coupling_gradient(x)["couplings"], expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_shares_cut_everything_once(count: int) -> None:
    """Contiguous parts, none of them shorter than asked; a row left out would keep its old gradient."""
    for number in (1, 2, 3, 64):
        torch.set_num_threads(number)
        parts = shares(count, least=2)
        assert len(parts) == max(1, min(number, count // 2))
        assert [n for part in parts for n in range(part.start, part.stop)] == list(range(count))
