"""The physics of attractor networks: spin measures, couplings, local energies, rules and dynamics.

Depends on torch alone.
"""

from attractor.physics.couplings import Couplings, Hopfield, Pairwise, neighbourhood
from attractor.physics.dynamics import (
    Attention,
    Dynamics,
    Gibbs,
    MeanField,
    Sequential,
    Stop,
    Synchronous,
    Trajectory,
    iterate,
    run,
)
from attractor.physics.energies import LocalEnergy
from attractor.physics.evidence import Evidence, PixelEvidence, noisy, seen
from attractor.physics.kernels import Backend
from attractor.physics.local_linear import LocalAttention
from attractor.physics.local_linear_memory import LocalLinearMemory
from attractor.physics.measures import Circles, Gaussian, Measure, Sphere
from attractor.physics.one_shot import Hebb, OneShotRule, Ridge
from attractor.physics.optimisers import SGD, Adam
from attractor.physics.pattern_memory import PatternMemory, Shortlist
from attractor.physics.ranks import Ranks
from attractor.physics.rules import (
    EnergyDescent,
    IterativeRule,
    NonFiniteError,
    PseudoLikelihood,
    random_start,
)

__all__ = [
    "SGD",
    "Adam",
    "Attention",
    "Backend",
    "Circles",
    "Couplings",
    "Dynamics",
    "EnergyDescent",
    "Evidence",
    "Gaussian",
    "Gibbs",
    "Hebb",
    "Hopfield",
    "IterativeRule",
    "LocalAttention",
    "LocalEnergy",
    "LocalLinearMemory",
    "MeanField",
    "Measure",
    "NonFiniteError",
    "OneShotRule",
    "Pairwise",
    "PatternMemory",
    "PixelEvidence",
    "PseudoLikelihood",
    "Ranks",
    "Ridge",
    "Sequential",
    "Shortlist",
    "Sphere",
    "Stop",
    "Synchronous",
    "Trajectory",
    "iterate",
    "neighbourhood",
    "noisy",
    "random_start",
    "run",
    "seen",
]
