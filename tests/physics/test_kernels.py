"""Every backend against the plain loops in float64 of `reference`, and what they all promise.

`reference` itself is held against autograd through einsum, like every energy. Tolerances for float32 are
relative to 1 + |value|: psi is good to 1e-5 (see bessel), and a value holds two of them at most; the
rounding of fields of norm k adds k 6e-8.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attractor.physics import (
    Adam,
    Backend,
    Circles,
    Evidence,
    Gaussian,
    Hopfield,
    LocalEnergy,
    Measure,
    Pairwise,
    Sphere,
    neighbourhood,
)
from attractor.physics.kernels import Kernel, choose, cpu_adam
from attractor.physics.kernels.compiled import Compiled
from attractor.physics.kernels.cpu import FusedCpu
from attractor.physics.kernels.reference import Reference
from attractor.physics.kernels.simd import F32, I64, POINTER, Emitter, lanes

LAMBDA = 1.3
FAST = [Backend.eager, Backend.cpu]
# (measure, tokens, images, scale): dims with one, several and odd tiles, batches beyond vector and block
CASES = {
    "D=2": (Sphere(2), 5, 3, 1.0),
    "D=7": (Sphere(7), 4, 40, 1.0),
    "D=8": (Sphere(8), 9, 37, 1.0),
    "D=8, more than a block": (Sphere(8), 4, 150, 1.0),
    "D=8, strong": (Sphere(8), 6, 17, 100.0),
    "D=18": (Sphere(18), 5, 20, 1.0),
    "D=24": (Sphere(24), 4, 9, 1.0),
    "D=32": (Sphere(32), 4, 5, 1.0),
    "1 circle": (Circles(1), 5, 6, 1.0),
    "3 circles": (Circles(3), 5, 17, 3.0),
    "4 circles": (Circles(4), 6, 33, 1.0),
    "9 circles": (Circles(9), 4, 18, 1.0),
}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _couplings(tokens: int, dim: int, scale: float = 1.0, **more: object) -> Pairwise:
    couplings = Pairwise(tokens, dim, **more)
    weights = couplings.weights["couplings"]
    everything = torch.randn(tokens, *weights.shape[1:], generator=_generator(1)) * scale / dim**0.5
    everything[couplings.neighbours < 0] = 0
    weights.copy_(everything[couplings.rows.start : couplings.rows.stop])
    return couplings


def _tokens(measure: Measure, tokens: int, images: int, seed: int = 2) -> Tensor:
    return measure.project(torch.randn(images, tokens, measure.dim, generator=_generator(seed)))


def _evidence(x: Tensor) -> Evidence:
    return Evidence(torch.randn(x.shape, generator=_generator(3)))


def _outputs(
    kernel: Kernel, couplings: Pairwise, x: Tensor, *, rows: list[int] | range | None = None
) -> dict[str, Tensor]:
    """Everything a kernel computes."""
    rows = couplings.rows if rows is None else rows
    out = {}
    for known, evidence in (("", None), ("+evidence", _evidence(x))):
        for side in ("posterior", "prior"):
            method: Callable[..., tuple[Tensor, Tensor]] = getattr(kernel, side)
            log_sum, weighted = method(x, rows, inverse_temperature=LAMBDA, evidence=evidence)
            out[f"{side} log-sum{known}"], out[f"{side} mean{known}"] = log_sum, weighted
    for contrast in (True, False):
        gradient = {"couplings": torch.full_like(couplings.weights["couplings"], 0.5)}  # written over
        for i, row in zip(couplings.rows, gradient["couplings"], strict=True):
            couplings.clear_absent("couplings", row, i)
        out[f"objective, contrast={contrast}"] = kernel.gradient(
            x, gradient, rows, inverse_temperature=LAMBDA, scale=0.7, contrast=contrast
        )
        out[f"gradient, contrast={contrast}"] = gradient["couplings"]
    return out


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        error = ((found[name] - value).abs() / (1 + value.abs())).max()
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_plain_loops(backend: Backend, case: str) -> None:
    """A wrong sign, factor, tile or lane in a fused kernel shows here, and trains to a wrong number."""
    measure, tokens, images, scale = CASES[case]
    couplings = _couplings(tokens, measure.dim, scale)
    x = _tokens(measure, tokens, images)
    kernel = choose(backend, couplings, measure)
    strength = max(1.0, scale)  # errors of a score grow with it, and those of a softmax by as much
    _assert_close(
        _outputs(kernel, couplings, x),
        _outputs(Reference(couplings, measure), couplings, x),
        2e-5 * strength,
    )


@pytest.mark.parametrize("backend", FAST)
def test_sparse_couplings_and_a_range_of_rows(backend: Backend) -> None:
    """Gathered sources, missing ones at the border, rows that do not start at 0, and rows with gaps."""
    measure = Sphere(6)
    couplings = _couplings(16, 6, neighbours=neighbourhood(4, 1), rows=range(4, 12))
    x = _tokens(measure, 16, 19)
    expected = Reference(couplings, measure)
    kernel = choose(backend, couplings, measure)
    for rows in (range(4, 12), [4, 7, 8, 11]):
        _assert_close(
            _outputs(kernel, couplings, x, rows=rows), _outputs(expected, couplings, x, rows=rows), 2e-5
        )
    nothing = kernel.posterior(x, range(4, 4), inverse_temperature=LAMBDA, evidence=None)
    assert [part.shape for part in nothing] == [(19, 0), (19, 0, 6)]


@pytest.mark.parametrize("measure", [Sphere(8), Circles(4)], ids=["Sphere", "Circles"])
def test_the_reference_agrees_with_autograd(measure: Measure, naive) -> None:
    """The oracle of the kernels has its own oracle: the textbook formula, differentiated."""
    couplings = _couplings(5, 8).couplings.double()
    pairwise = Pairwise(5, 8, dtype=torch.float64)
    pairwise.couplings = couplings
    energy = LocalEnergy(pairwise, measure, inverse_temperature=LAMBDA, backend=Backend.reference)
    x = _tokens(measure, 5, 4).double()
    weights = couplings.clone().requires_grad_()
    log = naive.log_conditional(energy, weights, x)
    (gradient,) = torch.autograd.grad(log.sum() / len(x), weights)
    found = energy.zero_gradient()
    torch.testing.assert_close(energy.write_gradient(x, found), log.detach(), rtol=1e-8, atol=1e-8)
    for i in range(5):
        gradient[i, i] = 0
    torch.testing.assert_close(found["couplings"], gradient, rtol=1e-8, atol=1e-8)
    own = x.clone().requires_grad_()
    (force,) = torch.autograd.grad(-naive.energy(energy, couplings, own, x).sum(), own)
    torch.testing.assert_close(energy.force(x), force, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", FAST)
def test_deterministic_and_row_by_row(backend: Backend) -> None:
    """Two runs, and a row alone or among others, give the same bits: processes may share the rows."""
    measure = Sphere(8)
    couplings = _couplings(12, 8)
    x = _tokens(measure, 12, 50)
    kernel = choose(backend, couplings, measure)
    whole, again = _outputs(kernel, couplings, x), _outputs(kernel, couplings, x)
    part = _outputs(kernel, couplings, x, rows=range(4, 12))
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
        rows = value[4:] if name.startswith("gradient") else value[:, 4:]
        found = part[name][4:] if name.startswith("gradient") else part[name]
        assert torch.equal(rows, found), name


def test_threads_do_not_show() -> None:
    """A row belongs to one thread, so the bits do not depend on how many there are."""
    measure = Sphere(8)
    couplings = _couplings(11, 8)
    x = _tokens(measure, 11, 50)
    outputs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outputs.append(_outputs(FusedCpu(couplings, measure), couplings, x))
    for name, value in outputs[0].items():
        assert all(torch.equal(value, other[name]) for other in outputs[1:]), name


def test_an_image_does_not_see_its_neighbours() -> None:
    """Lanes never mix: an image gives the same bits alone, in a batch, and beside an image of NaN."""
    measure = Sphere(8)
    couplings = _couplings(6, 8)
    x = _tokens(measure, 6, 20)
    kernel = FusedCpu(couplings, measure)
    spoiled = x.clone()
    spoiled[3] = torch.nan
    spoiled[4, 2] = torch.inf
    for side in ("posterior", "prior"):
        method = getattr(kernel, side)
        whole = method(x, range(6), inverse_temperature=LAMBDA, evidence=None)
        alone = method(x[7:8], range(6), inverse_temperature=LAMBDA, evidence=None)
        beside = method(spoiled, range(6), inverse_temperature=LAMBDA, evidence=None)
        for a, b, c in zip(whole, alone, beside, strict=True):
            assert torch.equal(a[7:8], b)
            kept = [n for n in range(20) if n not in (3, 4)]
            assert torch.equal(a[kept], c[kept])
            assert not c[3].isfinite().any()
    gradient = {"couplings": torch.zeros_like(couplings.couplings)}
    kernel.gradient(spoiled, gradient, range(6), inverse_temperature=LAMBDA, scale=1.0, contrast=True)
    assert not gradient["couplings"][1, 0].isfinite().all()  # nobody takes such a gradient for a number


@pytest.mark.parametrize("bad_image", [3, 100, 140])
@pytest.mark.parametrize("contrast", [True, False])
@pytest.mark.parametrize("measure", [Sphere(8), Circles(3)], ids=lambda measure: type(measure).__name__)
@pytest.mark.parametrize("backend", [Backend.reference, Backend.eager, Backend.cpu])
def test_the_objective_tells_of_a_gradient_that_is_not_finite(
    backend: Backend, measure: Measure, contrast: bool, bad_image: int
) -> None:
    """At J = 0 all fields are 0 and log p is finite, whatever the tokens; 1e30 x 1e30 in dJ_02 is not.

    A rule looks at the objective alone, before it moves the couplings. 150 images are several blocks.
    """
    couplings = Pairwise(6, measure.dim)
    x = _tokens(measure, 6, 150)
    x[bad_image, [0, 2], 1] = 1e30
    gradient = {"couplings": torch.zeros_like(couplings.couplings)}
    kernel = choose(backend, couplings, measure)
    tail = {"inverse_temperature": 1.0, "scale": 1.0, "contrast": contrast}
    objective = kernel.gradient(x, gradient, range(6), **tail)
    bad = [0, 2]
    assert not gradient["couplings"][bad].flatten(1).isfinite().all(1).any()
    assert objective[:, bad].isnan().any(0).all()
    assert objective[:, [1, 3, 4, 5]].isfinite().all()


def test_lost_sources_cost_nothing() -> None:
    """Attentions of 1e-38 make denormal numbers, 25 times as slow: in the kernel they are 0, not outside.

    With fields of 300 most sources have lost; what is left of them in the gradient is exactly 0.
    """
    couplings = _couplings(6, 8, scale=300.0)
    x = _tokens(Sphere(8), 6, 1)
    gradient = {"couplings": torch.zeros_like(couplings.couplings)}
    tail = {"inverse_temperature": 1.0, "scale": 1.0, "contrast": True}
    FusedCpu(couplings, Sphere(8)).gradient(x, gradient, range(6), **tail)
    size = gradient["couplings"].abs()
    smallest = torch.finfo(torch.float32).tiny
    assert size.max() > 1e-3
    assert (size[size > 0] >= smallest).all()
    assert (size.amax((2, 3)) == 0).sum() > 6  # more than the diagonal
    assert torch.tensor(smallest) * 0.5 > 0  # the mode of this thread is what it was


def test_evidence_of_another_type_is_not_misread() -> None:
    """The kernel reads plain memory: doubles taken for floats would be other numbers, silently."""
    couplings, x = _couplings(5, 8), _tokens(Sphere(8), 5, 20)
    single = _evidence(x)
    double = Evidence(single.field.double())
    kernel = FusedCpu(couplings, Sphere(8))
    for side in ("posterior", "prior"):
        for a, b in zip(
            *(
                getattr(kernel, side)(x, range(5), inverse_temperature=LAMBDA, evidence=evidence)
                for evidence in (single, double)
            ),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_a_table_in_another_order_of_memory_is_not_misread() -> None:
    """A transposed neighbour table is the same table."""
    table = neighbourhood(3, 1)
    x = _tokens(Sphere(8), 9, 20)
    forces = []
    for neighbours in (table, table.T.contiguous().T):
        couplings = _couplings(9, 8, neighbours=neighbours)
        forces.append(
            FusedCpu(couplings, Sphere(8)).posterior(
                x, range(9), inverse_temperature=LAMBDA, evidence=None
            )[1]
        )
    assert torch.equal(*forces)


def test_compiled_code_refuses_memory_that_it_would_misread() -> None:
    """Strides, other types and other devices: the last line of defence before plain memory is read."""
    emitter = Emitter("nothing", [POINTER], lanes())
    nothing = Compiled(emitter)
    nothing(torch.zeros(4))
    for bad in (torch.zeros(4, 4).T, torch.zeros(4).double(), torch.zeros(4, device="meta")):
        with pytest.raises(ValueError, match="reads contiguous float32"):
            nothing(bad)


@pytest.mark.parametrize("norm", [1e3, 1e6, 1e15])
def test_large_fields_do_not_overflow(norm: float) -> None:
    """Softmax and psi are shifted by their maximum; unshifted, exp(100) is the end of float32."""
    measure = Sphere(8)
    couplings = _couplings(5, 8, norm)
    x = _tokens(measure, 5, 6)
    for name, value in _outputs(FusedCpu(couplings, measure), couplings, x).items():
        assert value.isfinite().all(), name


def test_auto_takes_what_fits() -> None:
    """The fused kernel for float32 on spheres, torch elsewhere; asking for what cannot be is refused."""
    sphere, gaussian = Sphere(4), Gaussian(4)
    assert type(choose(Backend.auto, Pairwise(5, 4), sphere)).__name__ == "FusedCpu"
    assert type(choose(Backend.auto, Pairwise(5, 4), gaussian)).__name__ == "Eager"
    assert type(choose(Backend.auto, Hopfield(5, 4), sphere)).__name__ == "Eager"
    assert type(choose(Backend.auto, Pairwise(5, 4, dtype=torch.float64), sphere)).__name__ == "Eager"
    with pytest.raises(ValueError, match="knows Pairwise couplings, not Hopfield; use backend=auto"):
        choose(Backend.cpu, Hopfield(5, 4), sphere)
    with pytest.raises(ValueError, match="Sphere and Circles, not Gaussian"):
        choose(Backend.cpu, Pairwise(5, 4), gaussian)
    with pytest.raises(ValueError, match="computes in float32, and the couplings are"):
        choose(Backend.cpu, Pairwise(5, 4, dtype=torch.float64), sphere)
    with pytest.raises(ValueError, match="needs the couplings on the cuda, and they are on cpu"):
        choose(Backend.cuda, Pairwise(5, 4), sphere)
    with pytest.raises(ValueError, match="reference backend knows Pairwise"):
        choose(Backend.reference, Hopfield(5, 4), sphere)
    energy = LocalEnergy(Pairwise(5, 4), sphere, backend=Backend.cpu)
    with pytest.raises(ValueError, match="tokens are torch"):
        energy.force(torch.zeros(1, 5, 4, dtype=torch.float64))


def test_without_the_compiler_torch_does_it() -> None:
    """llvmlite is a convenience: a machine without it gets the eager backend, and is told so if it asks."""
    code = (
        "import sys; sys.modules['llvmlite'] = None\n"
        "import torch; from attractor.physics import *\n"
        "energy = LocalEnergy(Pairwise(5, 4), Sphere(4))\n"
        "print(type(energy.kernel).__name__, energy.force(torch.zeros(1, 5, 4)).shape)\n"
        "try: LocalEnergy(Pairwise(5, 4), Sphere(4), backend=Backend.cpu).kernel\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Eager torch.Size([1, 5, 4])")
    assert "needs the package llvmlite" in done.stdout


def _apply(operation: str, x: Tensor) -> Tensor:
    emitter = Emitter(operation, [POINTER, POINTER, I64], lanes())
    source, target, vectors = emitter.arguments
    with emitter.loop(vectors) as n:
        value = emitter.load(emitter.at(source, (n, lanes())))
        emitter.store(getattr(emitter, operation)(value), emitter.at(target, (n, lanes())))
    out = torch.empty_like(x)
    Compiled(emitter)(x, out, len(x) // lanes())
    return out


@pytest.mark.parametrize(
    ("operation", "oracle", "low", "high"),
    [
        ("exp", torch.exp, -86.9, 0.0),
        ("log", torch.log, 1e-30, 1e30),
        ("inverse_sqrt", torch.rsqrt, 1e-30, 1e30),
    ],
)
def test_elementary_functions(operation: str, oracle, low: float, high: float) -> None:
    """To 3e-7 of the value of float64, over the range that the kernels use; NaN stays NaN but in log."""
    x = torch.linspace(low, high, 64_000)
    if low > 0:
        x = torch.logspace(-30, 30, 64_000)
        x[:32_000] = torch.linspace(0.5, 2, 32_000)  # where the logarithm is small
    expected = oracle(x.double())
    found = _apply(operation, x).double()
    scale = expected.abs() + (1e-30 if operation != "log" else 1e-1)
    assert ((found - expected).abs() / scale).max() < 3e-7
    if operation != "log":  # whose callers add the NaN themselves
        assert _apply(operation, torch.full((lanes(),), torch.nan)).isnan().all()


def test_exp_far_below() -> None:
    """Below the range the exponential is next to nothing, and not garbage from the exponent bits."""
    assert _apply("exp", torch.full((lanes(),), -torch.inf)).max() < 1e-37
    assert _apply("exp", torch.full((lanes(),), -1e30)).max() < 1e-37


def test_sums_over_lanes() -> None:
    """Lane n of the result is the sum of vector n, which the gradient relies on for its places."""
    width = lanes()
    emitter = Emitter("sums", [POINTER, POINTER, F32], width)
    source, target, _ = emitter.arguments
    vectors = [emitter.load(emitter.at(source, n * width)) for n in range(width)]
    emitter.store(emitter.sum_lanes(vectors), target)
    x, out = torch.randn(width, width, generator=_generator()), torch.empty(width)
    Compiled(emitter)(x, out, 0.0)
    torch.testing.assert_close(out, x.sum(1))


def test_adam_in_one_pass_is_adam() -> None:
    """Against torch.optim.Adam, tails included; the bits do not depend on how the weights are cut."""
    size, cuts = 1009, [0, 5, 100, 303, 1009]
    start, generator = torch.randn(size, 1, generator=_generator()), _generator(1)
    gradients = [torch.randn(size, 1, generator=generator) * 10.0**n for n in (-3, 0, 2, -1, -8)]
    expected = torch.nn.Parameter(start.clone())
    oracle = torch.optim.Adam([expected], lr=0.03, maximize=True)
    whole, pieces = start.clone(), start.clone()
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    one, several = Adam(), [Adam() for _ in parts]
    for gradient in gradients:
        expected.grad = gradient
        oracle.step()
        one.ascend({"w": whole}, {"w": gradient}, rate=0.03)
        for part, adam in zip(parts, several, strict=True):
            assert cpu_adam.fits(pieces[part], gradient[part])
            adam.ascend({"w": pieces[part]}, {"w": gradient[part]}, rate=0.03)
    torch.testing.assert_close(whole, expected.detach(), rtol=2e-6, atol=2e-7)
    assert torch.equal(whole, pieces)
