"""The fused CPU backend: `cpu_source`, compiled for this machine when first used, its rows over threads."""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from attractor.physics.couplings import Pairwise
from attractor.physics.evidence import Evidence
from attractor.physics.kernels import cpu_source
from attractor.physics.kernels.compiled import Compiled
from attractor.physics.kernels.cpu_parts import Shape
from attractor.physics.kernels.simd import lanes
from attractor.physics.kernels.threads import shares
from attractor.physics.measures import Circles, Sphere

# Images at a time: their tokens stay in the second-level cache, and the couplings pass by once for them.
_BLOCK_IMAGES = 128


class FusedCpu:
    """See `Kernel`. float32 on the CPU, Pairwise couplings, Sphere or Circles.

    A row is done by one thread and an image by one lane: nothing depends on the number of threads, on the
    rows asked for or, but for the sum over images in the gradient, on how images are batched.
    """

    def __init__(self, couplings: Pairwise, measure: Sphere | Circles) -> None:
        self.couplings = couplings
        circles = measure.circles if isinstance(measure, Circles) else 0
        self._shape = Shape(couplings.dim, circles, lanes())

    def posterior(
        self, x: Tensor, rows: Sequence[int], *, inverse_temperature: float, evidence: Evidence | None
    ) -> tuple[Tensor, Tensor]:
        return self._one_sided(x, rows, inverse_temperature, evidence, prior=False)

    def prior(
        self, x: Tensor, rows: Sequence[int], *, inverse_temperature: float, evidence: Evidence | None
    ) -> tuple[Tensor, Tensor]:
        return self._one_sided(x, rows, inverse_temperature, evidence, prior=True)

    def _one_sided(
        self,
        x: Tensor,
        rows: Sequence[int],
        inverse_temperature: float,
        evidence: Evidence | None,
        *,
        prior: bool,
    ) -> tuple[Tensor, Tensor]:
        shape = self._shape
        function = _one_sided(shape, prior, evidence is not None)
        log_sums, sums = x.new_empty(len(x), len(rows)), x.new_empty(len(x), len(rows), shape.dim)
        for images, tokens in self._blocks(x, inverse_temperature):
            field = tokens if evidence is None else _to_lanes(evidence.field[images].to(x), shape.width)
            log_sum = x.new_empty(len(rows), tokens.shape[1], 1, shape.width)
            sum_ = x.new_empty(len(rows), tokens.shape[1], shape.dim, shape.width)
            more = (1 / inverse_temperature, field)
            self._over_threads(function, rows, tokens, more, (log_sum, sum_))
            log_sums[images] = _from_lanes(log_sum, images).squeeze(2)
            sums[images] = _from_lanes(sum_, images)
        return log_sums, sums

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
        shape = self._shape
        function = _gradient(shape, contrast)
        objectives = x.new_empty(len(x), len(rows))
        factor = scale / (inverse_temperature * len(x))
        for images, tokens in self._blocks(x, inverse_temperature):
            objective = x.new_empty(len(rows), tokens.shape[1], 1, shape.width)
            room = self.couplings.sources * (2 + shape.gains + shape.dim) + shape.dim + 4
            more = (int(images.start == 0), 1 / inverse_temperature, factor, out["couplings"])
            self._over_threads(
                function, rows, tokens, more, (objective,), workspace=room * shape.block * shape.width
            )
            objectives[images] = _from_lanes(objective, images).squeeze(2)
        return objectives

    def _blocks(self, x: Tensor, inverse_temperature: float) -> Iterator[tuple[slice, Tensor]]:
        """Images, and their tokens times the inverse temperature as (N, G, D, W)."""
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise ValueError(f"tokens are {x.dtype} on {x.device}; backend cpu computes in float32 there")
        for first in range(0, len(x), _BLOCK_IMAGES):
            images = slice(first, min(first + _BLOCK_IMAGES, len(x)))
            yield images, _to_lanes(x[images], self._shape.width, inverse_temperature)

    def _over_threads(
        self,
        function: Compiled,
        rows: Sequence[int],
        tokens: Tensor,
        more: tuple[int | float | Tensor, ...],
        out: tuple[Tensor, ...],
        *,
        workspace: int = 0,
    ) -> None:
        """Call `function` for contiguous parts of the rows; out (R, ...) is cut likewise."""
        weights, neighbours = self.couplings.weights["couplings"], self.couplings.neighbours

        def call(part: slice) -> tuple[int | float | Tensor, ...]:
            some = torch.tensor(rows[part], dtype=torch.int64)
            return (
                *(some, len(some), self.couplings.rows.start, neighbours, self.couplings.sources),
                *(tokens, tokens.shape[1], weights),
                *more,
                *(values[part] for values in out),
                tokens.new_empty(workspace),
            )

        function.in_parallel([call(part) for part in shares(len(rows))])


def _to_lanes(x: Tensor, width: int, scale: float = 1.0) -> Tensor:
    """scale x (B, N, D) as (N, G, D, W), 0 beyond the last image: there all is finite and adds nothing."""
    whole, rest = divmod(len(x), width)
    lanes: Tensor = x.new_empty(x.shape[1], whole + bool(rest), x.shape[2], width)
    lanes[:, :whole] = x[: whole * width].unflatten(0, (whole, width)).permute(2, 0, 3, 1)
    if rest:
        lanes[:, whole] = 0
        lanes[:, whole, :, :rest] = x[whole * width :].permute(1, 2, 0)
    return lanes if scale == 1 else lanes.mul_(scale)


def _from_lanes(values: Tensor, images: slice) -> Tensor:
    """(R, G, D, W) -> (B, R, D)."""
    together: Tensor = values.permute(1, 3, 0, 2).flatten(0, 1)
    return together[: images.stop - images.start]


@cache
def _one_sided(shape: Shape, prior: bool, evidence: bool) -> Compiled:
    return Compiled(cpu_source.one_sided(shape, prior=prior, evidence=evidence))


@cache
def _gradient(shape: Shape, contrast: bool) -> Compiled:
    return Compiled(cpu_source.gradient(shape, contrast=contrast))
