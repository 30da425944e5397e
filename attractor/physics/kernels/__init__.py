"""Kernels: how the sums over sources are computed. The physics is the same in all of them.

| backend     | what it is                                   | couplings and measures | type, device      |
|-------------|----------------------------------------------|------------------------|-------------------|
| `reference` | plain loops in float64, the oracle           | Pairwise               | any               |
| `eager`     | torch over blocks of rows, the fallback      | all                    | any               |
| `cpu`       | fused, compiled by llvmlite when first used  | Pairwise on spheres    | float32, CPU      |
| `cuda`      | fused, in Triton                             | Pairwise on spheres    | float32, CUDA     |

`auto` takes the fused kernel of the device where there is one for the couplings, the measure and the type,
and `eager` elsewhere. Every backend is deterministic from run to run, and computes every row by itself.
"""

from attractor.physics.kernels.interface import Backend, Kernel, choose

__all__ = ["Backend", "Kernel", "choose"]
