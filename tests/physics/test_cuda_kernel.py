"""The CUDA kernels against the float64 loops of `kernels.reference`, and on a GPU where there is one.

Without a GPU the kernels run in Triton's interpreter, which must be switched on before Triton is imported:
so the checks below (`check_*`) run in a process of their own, here started by `test_*`. A third process
compiles every kernel to machine code for sm_90, which needs no GPU either: the interpreter, which is numpy,
accepts much that the compiler does not.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from attractor.physics import Adam, Circles, Evidence, Pairwise, Sphere
from attractor.physics.couplings import neighbourhood
from attractor.physics.kernels.interface import Kernel
from attractor.physics.kernels.reference import Reference

# numpy warns where the interpreter computes with NaN and inf, as the checks want it to
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

MODE = os.environ.get("ATTRACTOR_CUDA_CHECKS", "")
DEVICE = "cuda" if MODE == "cuda" else "cpu"
TOKENS, HELD, DRAWN = 9, range(4, 9), [5, 8]
# One more than a block of images in lanes (16), two more than a group of images in the gradient (4).
IMAGES = 18
MEASURES = {"Sphere": Sphere, "Circles": lambda dim: Circles(dim // 2)}


@dataclass(frozen=True)
class System:
    """Couplings that hold some rows, tokens, an evidence, and both kernels."""

    couplings: Pairwise
    x: Tensor
    evidence: Evidence
    fused: Kernel
    reference: Reference

    def both(self, name: str, x: Tensor | None = None, **arguments) -> Iterator[tuple[Tensor, Tensor]]:
        """What the fused kernel and the reference return, pair by pair; the gradient is the last pair."""
        x = self.x if x is None else x
        results = []
        for kernel in (self.fused, self.reference):
            if name == "gradient":
                gradient = self.zeros()
                objective = kernel.gradient(x, gradient, DRAWN, inverse_temperature=1.7, **arguments)
                results.append((objective, gradient["couplings"]))
            else:
                results.append(getattr(kernel, name)(x, DRAWN, inverse_temperature=1.7, **arguments))
        return zip(*results, strict=True)

    def zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(weight) for name, weight in self.couplings.weights.items()}


def make(
    measure: str = "Sphere",
    dim: int = 3,
    *,
    sparse: bool = False,
    images: int = IMAGES,
    scale: float = 1.0,
    tokens: int = TOKENS,
) -> System:
    """Normal couplings of that scale; NaN where there is no source, which nothing may read."""
    from attractor.physics.kernels.cuda import FusedCuda

    g = torch.Generator().manual_seed(dim)
    spins = MEASURES[measure](dim)
    neighbours = neighbourhood(3, 1) if sparse else None
    couplings = Pairwise(tokens, dim, neighbours=neighbours, rows=HELD)
    weights = couplings.weights["couplings"]
    weights.copy_(scale * torch.randn(weights.shape, generator=g))
    weights[couplings.neighbours[HELD.start : HELD.stop] < 0] = torch.nan
    x = spins.project(torch.randn(images, tokens, dim, generator=g)).to(DEVICE)
    field = torch.randn(images, tokens, dim, generator=g).to(DEVICE)
    couplings.to(DEVICE)
    fused, reference = FusedCuda(couplings, spins), Reference(couplings, spins)
    return System(couplings, x, Evidence(field, precision=3.0), fused, reference)


# each dimension with each measure, each of them dense and sparse: the interpreter takes seconds for a case
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("dim", "dense"), [(2, "Sphere"), (6, "Circles"), (8, "Sphere"), (18, "Circles")])
def check_agrees_with_the_reference(measure: str, dim: int, dense: str) -> None:
    """Every result, for some of the rows held, with an evidence, at a temperature that is not 1.

    Tolerance: psi is fitted to 1e-5 (1 + |psi|) in float32, once for each circle; the rest rounds to 1e-6.
    """
    system = make(measure, dim, sparse=measure != dense)
    for name in ("posterior", "prior"):
        for ours, exact in system.both(name, evidence=system.evidence):
            torch.testing.assert_close(ours, exact, rtol=2e-5, atol=2e-5)
    (log_conditional, exact), (gradient, exact_gradient) = system.both("gradient", scale=0.3, contrast=True)
    torch.testing.assert_close(log_conditional, exact, rtol=2e-5, atol=2e-5)
    assert exact_gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, exact_gradient, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("dim", [3, 18])
def check_other_branches(dim: int) -> None:
    """No evidence, the positive phase alone, and more sources than a block of lanes (32)."""
    system = make("Sphere", dim, tokens=35, images=5)
    for name in ("posterior", "prior"):
        for ours, exact in system.both(name, evidence=None):
            torch.testing.assert_close(ours, exact, rtol=2e-5, atol=2e-5)
    (log_sum, exact), (gradient, exact_gradient) = system.both("gradient", scale=1.0, contrast=False)
    torch.testing.assert_close(log_sum, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, exact_gradient, rtol=1e-5, atol=1e-7)


def check_more_images_than_a_block_of_tiles() -> None:
    """35 images, where tiles take 32 at a time: the gradient walks twice, the sums are two programs."""
    system = make("Sphere", 9, images=35)
    for ours, exact in system.both("gradient", scale=1.0, contrast=True):
        torch.testing.assert_close(ours, exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("measure", "dim"), [("Sphere", 3), ("Circles", 6), ("Sphere", 18)])
def check_large_fields(measure: str, dim: int) -> None:
    """|h| about 1e3: exponentials of either sign overflow unless the highest is taken out.

    A logit of 1e3 rounds to 1e-4, so attention is right to about 1e-3 of itself.
    """
    system = make(measure, dim, scale=600.0)
    for name in ("posterior", "prior"):
        (log_sum, exact), (attended, exact_attended) = system.both(name, evidence=None)
        assert exact.abs().max() > 500
        torch.testing.assert_close(log_sum, exact, rtol=1e-6, atol=1e-3)
        torch.testing.assert_close(attended, exact_attended, rtol=2e-3, atol=2e-3)
    (log_conditional, exact), (gradient, exact_gradient) = system.both("gradient", scale=1.0, contrast=True)
    torch.testing.assert_close(log_conditional, exact, rtol=1e-6, atol=2e-3)
    torch.testing.assert_close(gradient, exact_gradient, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("dim", [3, 9])
def check_gradient_is_written_to_its_rows(dim: int) -> None:
    """What was there is written over, and rows that were not asked for keep their bits."""
    system = make("Sphere", dim, images=5)
    _, (change, _) = system.both("gradient", scale=1.0, contrast=True)
    before = torch.randn(change.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gradient = {"couplings": before.clone()}
    system.fused.gradient(system.x, gradient, DRAWN, inverse_temperature=1.7, scale=1.0, contrast=True)
    after = gradient["couplings"]
    held = [i - HELD.start for i in DRAWN]
    sources = system.couplings.neighbours[DRAWN] >= 0
    torch.testing.assert_close(after[held][sources], change[held][sources], rtol=0, atol=0)
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])


@pytest.mark.parametrize(
    ("measure", "dim", "bad"),
    [
        ("Sphere", 3, torch.nan),
        ("Circles", 4, torch.inf),
        ("Sphere", 9, torch.inf),
        ("Circles", 10, torch.nan),
    ],
)
def check_a_bad_image_stays_by_itself(measure: str, dim: int, bad: float) -> None:
    """All other images keep their bits, and the gradient is bad only where there is a source."""
    system = make(measure, dim, sparse=True, images=6)
    x = system.x.clone()
    x[2] = bad
    others = [0, 1, 3, 4, 5]
    for name in ("posterior", "prior"):
        arguments = {"inverse_temperature": 1.7, "evidence": system.evidence}
        good = getattr(system.fused, name)(system.x, DRAWN, **arguments)
        for ours, clean in zip(getattr(system.fused, name)(x, DRAWN, **arguments), good, strict=True):
            assert torch.equal(ours[others], clean[others])
            assert not ours[2].isfinite().any()
    gradient = system.zeros()
    sums = system.fused.gradient(x, gradient, DRAWN, inverse_temperature=1.7, scale=1.0, contrast=True)
    assert sums.isnan().all()  # of all images: one look tells that the gradient is not finite
    there = system.couplings.neighbours[DRAWN] >= 0
    change = gradient["couplings"][[i - HELD.start for i in DRAWN]].cpu()
    assert not change[there].isfinite().any()
    assert torch.equal(change[~there], torch.zeros_like(change[~there]))


@pytest.mark.parametrize("dim", [3, 9])
def check_same_bits_again_and_alone(dim: int) -> None:
    """Two runs agree bit for bit, and so does a row with and without other rows beside it."""
    system = make("Sphere", dim, images=5)

    def results(rows) -> list[Tensor]:
        gradient = system.zeros()
        tail = {"inverse_temperature": 1.7}
        sums = system.fused.gradient(system.x, gradient, rows, scale=1.0, contrast=True, **tail)
        posterior = system.fused.posterior(system.x, rows, evidence=None, **tail)
        prior = system.fused.prior(system.x, rows, evidence=system.evidence, **tail)
        change = gradient["couplings"][[i - HELD.start for i in rows]].transpose(0, 1)
        return [sums, *posterior, *prior, change]

    together = results(HELD)
    assert all(torch.equal(a, b) for a, b in zip(together, results(HELD), strict=True))
    place = HELD.index(6)
    for alone, row in zip(results([6]), together, strict=True):
        assert torch.equal(alone[:, 0], row[:, place])


def check_nothing_to_do() -> None:
    """No rows, or no images, give empty results and leave the gradient alone."""
    system = make(images=2)
    for x, rows in ((system.x, []), (system.x[:0], DRAWN)):
        log_sum, attended = system.fused.posterior(x, rows, inverse_temperature=1.0, evidence=None)
        assert log_sum.shape == (len(x), len(rows))
        assert attended.shape == (len(x), len(rows), 3)
        gradient = system.zeros()
        system.fused.gradient(x, gradient, rows, inverse_temperature=1.0, scale=1.0, contrast=True)
        assert not gradient["couplings"].any()


def check_refuses_what_it_would_misread() -> None:
    """Float64 tokens, tokens elsewhere, and a gradient in another layout."""
    system = make(images=2)
    tail = {"inverse_temperature": 1.0, "evidence": None}
    with pytest.raises(ValueError, match="float32"):
        system.fused.posterior(system.x.double(), DRAWN, **tail)
    with pytest.raises(ValueError, match="tokens are on meta"):
        system.fused.prior(system.x.to("meta"), DRAWN, **tail)
    gradient = {"couplings": system.zeros()["couplings"].transpose(2, 3)}
    with pytest.raises(ValueError, match="contiguous"):
        system.fused.gradient(system.x, gradient, DRAWN, inverse_temperature=1.0, scale=1.0, contrast=True)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.3, 0.9)])
def check_adam(beta1: float, beta2: float) -> None:
    """Five steps equal those of `optimisers.Adam` to rounding, on both sides of torch.lerp's midpoint."""
    from attractor.physics.kernels.cuda import adam

    g = torch.Generator().manual_seed(0)
    eager = Adam(beta1=beta1, beta2=beta2)
    weight = torch.randn(3, 4, 19, 19, generator=g)  # more than one block of 1024, not a multiple
    theirs = {"w": weight.clone()}
    ours, mean, square = (
        t.to(DEVICE) for t in (weight, torch.zeros_like(weight), torch.zeros_like(weight))
    )
    for t in range(1, 6):
        gradient = torch.randn(weight.shape, generator=g) * 10.0**-t
        eager.ascend(theirs, {"w": gradient}, rate=0.1)
        adam(
            ours,
            gradient.to(DEVICE),
            mean,
            square,
            step_size=0.1 / (1 - beta1**t),
            root_correction=(1 - beta2**t) ** 0.5,
            beta1=beta1,
            beta2=beta2,
            epsilon=eager.epsilon,
        )
        torch.testing.assert_close(ours.cpu(), theirs["w"], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="contiguous"):
        adam(
            ours,
            ours.transpose(2, 3),
            mean,
            square,
            step_size=1.0,
            root_correction=1.0,
            beta1=beta1,
            beta2=beta2,
            epsilon=1e-8,
        )


@contextmanager
def _compiling_only() -> Iterator[list[str]]:
    """Launches compile for sm_90 instead, with the arguments and options of the launch; names are kept."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiled = []
    run = JITFunction.run

    def warm_up(self, *arguments, **options):
        options["warmup"] = True
        kernel = run(self, *arguments, **options)
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared < 227 * 1024  # what a multiprocessor of sm_90 gives one program
        compiled.append(self.__name__)
        return kernel

    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    with patch.object(JITFunction, "run", warm_up):
        yield compiled


@pytest.mark.parametrize(("dim", "kind"), [(6, "lane"), (18, "tile")])
def compile_every_kernel(dim: int, kind: str) -> None:
    """ptxas accepts what the interpreter ran, launched as `FusedCuda` launches it."""
    from attractor.physics.kernels.cuda import adam

    with _compiling_only() as compiled:
        for measure, sparse in (("Sphere", False), ("Circles", True)):
            system = make(measure, dim, sparse=sparse, images=2)
            tail = {"inverse_temperature": 1.0}
            system.fused.posterior(system.x, DRAWN, evidence=system.evidence, **tail)
            system.fused.prior(system.x, DRAWN, evidence=None, **tail)
            system.fused.gradient(system.x, system.zeros(), DRAWN, scale=1.0, contrast=not sparse, **tail)
        state = [torch.zeros(5) for _ in range(4)]
        adam(*state, step_size=1.0, root_correction=1.0, beta1=0.9, beta2=0.99, epsilon=1e-8)
    sums, gradient = f"sums_by_{kind}", f"gradient_by_{kind}"
    assert compiled == [sums, sums, sums, gradient] * 2 + ["adam_step"]


@pytest.mark.parametrize("mode", ["interpreter", "compiler", "cuda"])
def test_in_a_process_of_its_own(mode: str) -> None:
    """Runs the checks above; their report is the message when one fails."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed: it comes with torch on Linux, and the kernels need it")
    if mode == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: the same checks have run in Triton's interpreter")
    prefix = "compile_" if mode == "compiler" else "check_"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"ATTRACTOR_CUDA_CHECKS": mode}
    if mode == "interpreter":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-o", f"python_functions={prefix}*", __file__]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
