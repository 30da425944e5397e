"""What every backend computes, and the choice among them."""

from collections.abc import Sequence
from enum import Enum
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from attractor.physics.couplings import Couplings, Pairwise
from attractor.physics.evidence import Evidence
from attractor.physics.kernels.eager import Eager
from attractor.physics.kernels.reference import Reference
from attractor.physics.measures import Circles, Measure, Sphere

LARGEST_DIM_ON_CUDA = 128


class Kernel(Protocol):
    """The two sides of the local rule, summed over sources, and their gradient by the couplings.

    h_is = lambda u_is + field_i. x (B, N, D); rows: ascending tokens i, R of them, which the couplings own.
    """

    def posterior(
        self, x: Tensor, rows: Sequence[int], *, inverse_temperature: float, evidence: Evidence | None
    ) -> tuple[Tensor, Tensor]:
        """log sum_s exp(x_i . h_is) (B, R), and sum_s alpha_is h_is (B, R, D)."""
        ...

    def prior(
        self, x: Tensor, rows: Sequence[int], *, inverse_temperature: float, evidence: Evidence | None
    ) -> tuple[Tensor, Tensor]:
        """log sum_s exp(psi(h_is)) (B, R), and sum_s beta_is grad psi(h_is) (B, R, D)."""
        ...

    def gradient(
        self,
        x: Tensor,
        out: dict[str, Tensor],
        rows: Sequence[int],
        *,
        inverse_temperature: float,
        scale: float,
        contrast: bool,
    ) -> Tensor:
        """Write scale <(alpha_is x_i - beta_is grad psi(h_is)) x_j^T> to those rows of `out`.

        `out` is like the weights, and zero where there is no source. Without `contrast` the positive
        phase alone, scale <alpha_is x_i x_j^T>. Returns (B, R): the log-sum of the posterior, less that of
        the prior with `contrast` (then it is log p(x_i | others)). Where the gradient of a row is not
        finite it is NaN for some image of that row, so that one look at it tells.
        """
        ...


class Backend(Enum):
    """How the sums over sources are computed."""

    auto = "auto"
    reference = "reference"
    eager = "eager"
    cpu = "cpu"
    cuda = "cuda"


def choose(backend: Backend, couplings: Couplings, measure: Measure) -> Kernel:
    """The kernel of `backend`. Raises ValueError, saying why, if it cannot be used here."""
    match backend:
        case Backend.reference:
            return Reference(couplings, measure)
        case Backend.eager:
            return Eager(couplings, measure)
        case Backend.cpu | Backend.cuda:
            return _fused(backend, couplings, measure)
        case Backend.auto:
            on_cpu = next(iter(couplings.weights.values())).device.type == "cpu"
            fused = Backend.cpu if on_cpu else Backend.cuda
            if _obstacle(fused, couplings, measure) is None:
                return _fused(fused, couplings, measure)
            return Eager(couplings, measure)


def _fused(backend: Backend, couplings: Couplings, measure: Measure) -> Kernel:
    obstacle = _obstacle(backend, couplings, measure)
    if obstacle:
        raise ValueError(f"backend {backend.value} {obstacle}; use backend=auto or eager")
    assert isinstance(couplings, Pairwise)
    assert isinstance(measure, Sphere | Circles)
    if backend is Backend.cpu:
        from attractor.physics.kernels.cpu import FusedCpu

        return FusedCpu(couplings, measure)
    from attractor.physics.kernels.cuda import FusedCuda

    return FusedCuda(couplings, measure)


def _obstacle(backend: Backend, couplings: Couplings, measure: Measure) -> str | None:
    """Why a fused kernel cannot be used, or None."""
    if not isinstance(couplings, Pairwise):
        return f"knows Pairwise couplings, not {type(couplings).__name__}"
    if not isinstance(measure, Sphere | Circles):
        return f"knows the measures Sphere and Circles, not {type(measure).__name__}"
    weights = couplings.weights["couplings"]
    if weights.dtype != torch.float32:
        return f"computes in float32, and the couplings are {weights.dtype}"
    if backend is Backend.cuda and not 2 <= couplings.dim <= LARGEST_DIM_ON_CUDA:
        return f"knows dim 2 to {LARGEST_DIM_ON_CUDA}, not {couplings.dim}"
    library, device = ("llvmlite", "cpu") if backend is Backend.cpu else ("triton", "cuda")
    if weights.device.type != device:
        return f"needs the couplings on the {device}, and they are on {weights.device}"
    if find_spec(library) is None or find_spec(f"attractor.physics.kernels.{backend.value}") is None:
        return f"needs the package {library}, which is not installed"
    return None
