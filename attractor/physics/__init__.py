"""The physics of attractor networks: spin measures, couplings, local energies, rules and dynamics.

Depends on torch alone.
"""

from attractor.physics.couplings import Couplings, Hopfield, Pairwise
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
from attractor.physics.energies import Evidence, LocalEnergy
from attractor.physics.measures import Circles, Gaussian, Measure, Sphere
from attractor.physics.optimisers import SGD, Adam
from attractor.physics.rules import (
    EnergyDescent,
    Hebb,
    IterativeRule,
    NonFiniteError,
    OneShotRule,
    PseudoLikelihood,
    Ridge,
    random_start,
)

__all__ = [
    "SGD",
    "Adam",
    "Attention",
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
    "LocalEnergy",
    "MeanField",
    "Measure",
    "NonFiniteError",
    "OneShotRule",
    "Pairwise",
    "PseudoLikelihood",
    "Ridge",
    "Sequential",
    "Sphere",
    "Stop",
    "Synchronous",
    "Trajectory",
    "iterate",
    "random_start",
    "run",
]
