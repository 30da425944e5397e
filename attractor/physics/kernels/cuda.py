"""Fused kernels for CUDA, in Triton: pairwise couplings on spheres and circles, float32.

A program works on one row i by itself and nothing is added atomically, so results are the same bits from
run to run, and a row comes out the same whatever rows stand beside it. `gradient` takes two kernels:

1. `sums_*`: one program for a row and some images walks through all sources with a running maximum, and
   keeps log sum_s exp(x_i . h_is) and log sum_s exp(psi(h_is)), two numbers for a row and image. The same
   kernel gives the force and the mean to `posterior` and `prior`.
2. `gradient_*`: one program for a row and some sources makes their fields again and walks through all
   images; J and dJ stay on chip, and every dJ_ij is written once, by the one program that owns it.

Both sums cannot be had in one pass: a softmax wants all sources of an image, a gradient all images of a
source. Making the fields twice costs D^2 of 3 D^2 multiplications, storing them B N S D numbers.

| D       | J and dJ                                                         | padding                     |
|---------|------------------------------------------------------------------|-----------------------------|
| 2 to 8  | a register for each number, a lane for each source: `cuda_lanes` | none in arithmetic          |
| 9 to 128| a tile for each source, products by `tl.dot`: `cuda_tiles`       | to 16, 32, 64 or 128        |

Launches depend on D alone and nothing is tuned at run time. They were chosen from the machine code that
ptxas makes for sm_90, and have NOT been timed on a GPU. D = 8: held to 168 registers, so that 3 programs of
4 warps fit a multiprocessor; for an image and a source the gradient takes 297 instructions, 169 of them
multiply-adds, and the sums 202 and 92, neither spills in its loop. D = 32: 70 % and 60 % multiply-adds, no
spills. Padded to 64 one instruction in 16 moves a spilled register, to 128 one in 6.

Adam is a kernel of its own: gradients are summed over batches and processes before weights move.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from attractor.physics.bessel import single_precision_fit
from attractor.physics.couplings import Pairwise
from attractor.physics.evidence import Evidence
from attractor.physics.kernels.cuda_lanes import gradient_by_lane, sums_by_lane
from attractor.physics.kernels.cuda_source import adam_step
from attractor.physics.kernels.cuda_tiles import gradient_by_tile, sums_by_tile
from attractor.physics.kernels.eager import nan_unless_finite
from attractor.physics.measures import Circles, Sphere

# J and dJ of D = 8 are 128 registers of a thread; no larger D fits.
_LARGEST_IN_LANES = 8
# In lanes: four warps with the couplings of the same 32 sources, each with images of its own.
_LANES, _GROUPS, _IMAGES_IN_LANES, _REGISTERS_IN_LANES = 32, 4, 16, 168
# In tiles: 16 numbers of a field to a thread; fewer would reload operands more often, more would spill.
_IMAGES_IN_TILES, _FIELD_NUMBERS_PER_WARP, _REGISTERS_IN_TILES = 32, 512, 255
_ADAM_BLOCK = 1024

# The tables of sparse couplings on their device: kernels are made anew for every call, tables are not.
_tables: WeakKeyDictionary[Pairwise, Tensor] = WeakKeyDictionary()


class FusedCuda:
    """See `Kernel`. The couplings own the rows asked for; x is float32 on their device, else ValueError.

    Memory beside the results: a copy of x, and 2 B R numbers in `gradient`.
    """

    def __init__(self, couplings: Pairwise, measure: Sphere | Circles) -> None:
        self.couplings = couplings
        self.circles = measure.circles if isinstance(measure, Circles) else 0
        dim = 2 if self.circles else measure.dim
        remainder, scaled_gain = single_precision_fit(dim)
        self._fit = (dim / 2 + 1, dim / 2 - 0.5, tuple(remainder), tuple(scaled_gain))
        self._in_lanes = couplings.dim <= _LARGEST_IN_LANES

    def posterior(
        self, x: Tensor, rows: Sequence[int], *, inverse_temperature: float, evidence: Evidence | None
    ) -> tuple[Tensor, Tensor]:
        table, tokens = self._table(x, rows), self._laid_out(x)
        sums, attended = self._sums(tokens, table, inverse_temperature, evidence, prior=False)
        return sums[0], attended

    def prior(
        self, x: Tensor, rows: Sequence[int], *, inverse_temperature: float, evidence: Evidence | None
    ) -> tuple[Tensor, Tensor]:
        table, tokens = self._table(x, rows), self._laid_out(x)
        sums, mean = self._sums(tokens, table, inverse_temperature, evidence, posterior=False)
        return sums[1], mean

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
        table, tokens = self._table(x, rows), self._laid_out(x)
        change = out["couplings"]
        weights = self.couplings.weights["couplings"]
        if change.shape != weights.shape or change.dtype != weights.dtype or not change.is_contiguous():
            given = f"{tuple(change.shape)} of {change.dtype}"
            raise ValueError(
                f"gradient is {given}, expected a contiguous {tuple(weights.shape)} of float32"
            )
        sums, _ = self._sums(tokens, table, inverse_temperature, None, prior=contrast, mean=False)
        if len(x) and len(rows):
            shared: dict[str, Any] = {
                "gradient": change,
                "log_sums": sums,
                "scale": float(scale) / len(x),
                "CONTRAST": contrast,
            }
            where = (tokens, table, inverse_temperature)
            sources = self.couplings.sources
            if self._in_lanes:
                grid = (-(-sources // _LANES), len(rows))
                self._launch(gradient_by_lane, grid, *where, GROUPS=_GROUPS, LANES=_LANES, **shared)
            else:
                self._launch(
                    gradient_by_tile, (sources, len(rows)), *where, IMAGES=_IMAGES_IN_TILES, **shared
                )
        objective = sums[0] - sums[1] if contrast else sums[0]
        return objective + nan_unless_finite(self.couplings, out, rows)

    def _sums(
        self,
        tokens: dict[str, Tensor],
        rows: Tensor,
        inverse_temperature: float,
        evidence: Evidence | None,
        *,
        posterior: bool = True,
        prior: bool = True,
        mean: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Log-sums (2, B, R) of the posterior and the prior, and the force or the mean (B, R, D)."""
        x = tokens["x"]
        log_sums = x.new_empty(2, len(x), len(rows))
        attended = x.new_empty((len(x), len(rows), x.shape[2]) if mean else (1,))
        if len(x) and len(rows):
            images = _IMAGES_IN_LANES if self._in_lanes else _IMAGES_IN_TILES
            own = {"LANES": _LANES} if self._in_lanes else {}
            self._launch(
                sums_by_lane if self._in_lanes else sums_by_tile,
                (-(-len(x) // images), len(rows)),
                tokens,
                rows,
                inverse_temperature,
                field=x if evidence is None else evidence.field.to(x).contiguous(),
                log_sums=log_sums,
                attended=attended,
                FIELD=evidence is not None,
                POSTERIOR=posterior,
                PRIOR=prior,
                MEAN=mean,
                IMAGES=images,
                **own,
            )
        return log_sums, attended

    def _launch(
        self,
        kernel: Any,
        grid: tuple[int, int],
        tokens: dict[str, Tensor],
        rows: Tensor,
        inverse_temperature: float,
        **arguments: Any,
    ) -> None:
        x, dim = tokens["x"], self.couplings.dim
        if self._in_lanes:
            arguments["LEVELS"] = 2 * (dim - 1).bit_length()
            warps, registers = _GROUPS, _REGISTERS_IN_LANES
        else:
            arguments["P"] = padded = max(16, 1 << (dim - 1).bit_length())
            warps = _IMAGES_IN_TILES * padded // _FIELD_NUMBERS_PER_WARP
            registers = _REGISTERS_IN_TILES
        with torch.cuda.device_of(x):  # Triton launches on the current device
            kernel[grid](
                **tokens,
                weights=self.couplings.weights["couplings"],
                neighbours=self._neighbours(x),
                rows=rows,
                temperature=float(inverse_temperature),
                images=len(x),
                tokens=x.shape[1],
                sources=self.couplings.sources,
                count=len(rows),
                first=self.couplings.rows.start,
                D=dim,
                CIRCLES=self.circles,
                FIT=self._fit,
                DENSE=self.couplings.dense,
                num_warps=warps,
                num_stages=2,
                maxnreg=registers,
                enable_fp_fusion=True,
                **arguments,
            )

    def _laid_out(self, x: Tensor) -> dict[str, Tensor]:
        """The tokens as the kernels take them; also (B, D, N), for lanes to read neighbouring tokens."""
        x = x.contiguous()
        return {"x": x, "by_component": x.transpose(1, 2).contiguous()} if self._in_lanes else {"x": x}

    def _neighbours(self, x: Tensor) -> Tensor:
        """(N, S), or anything where the couplings are dense: then a source is a token."""
        if self.couplings.dense:
            return x
        table = _tables.get(self.couplings)
        if table is None or table.device != x.device:
            table = self.couplings.neighbours.to(x.device, torch.int32)
            _tables[self.couplings] = table
        return table

    def _table(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """The rows on the device of x; ValueError for an x that the kernels would misread."""
        weights = self.couplings.weights["couplings"]
        if x.dtype != torch.float32 or weights.dtype != torch.float32:
            raise ValueError(
                f"backend cuda computes in float32, got tokens {x.dtype}, couplings {weights.dtype}"
            )
        if x.device != weights.device:
            raise ValueError(
                f"tokens are on {x.device}, the couplings on {weights.device}; move one of them"
            )
        if x.numel() >= 2**31:
            raise ValueError(
                f"{x.numel():,} numbers in tokens, the kernels count to 2^31; split the images"
            )
        if isinstance(rows, range):
            return torch.arange(rows.start, rows.stop, rows.step, dtype=torch.int32, device=x.device)
        return torch.tensor(list(rows), dtype=torch.int32, device=x.device)


def adam(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    step_size: float,
    root_correction: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> bool:
    """The update of `optimisers.Adam`, in place and in one pass over memory; float32, contiguous.

    m <- m + (1-b1) (g - m),  v <- b2 v + (1-b2) g^2,
    w <- w + step_size m / (sqrt(v)/root_correction + epsilon)

    Returns whether the sum of the weights is finite.
    """
    for tensor in (weight, gradient, mean, square):
        if tensor.shape != weight.shape or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            given = f"{tuple(tensor.shape)} of {tensor.dtype}"
            raise ValueError(
                f"Adam on CUDA got {given}, expected contiguous {tuple(weight.shape)}, float32"
            )
    if not weight.numel():
        return True
    with torch.cuda.device_of(weight):
        adam_step[(-(-weight.numel() // _ADAM_BLOCK),)](
            weight,
            gradient,
            mean,
            square,
            weight.numel(),
            float(step_size),
            float(root_correction),
            float(1 - beta1),
            float(beta2),
            float(1 - beta2),
            float(epsilon),
            BLOCK=_ADAM_BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return bool(weight.sum().isfinite())
