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
from attractor.physics.low_rank_slots import LowRankSlots
from attractor.physics.measures import Circles, Gaussian, Measure, Sphere
from attractor.physics.one_shot import Hebb, OneShotRule, Ridge
from attractor.physics.optimisers import SGD, Adam
from attractor.physics.pattern_memory import PatternMemory, Shortlist
from attractor.physics.processes import Ranks
from attractor.physics.rules import (
    EnergyDescent,
    IterativeRule,
    NonFiniteError,
    PseudoLikelihood,
    random_start,
)
from attractor.physics.slot_energy import ModeSeeking, SlotEnergy
from attractor.physics.slot_heads import SlotHead, SlotRecipe, fit_head
from attractor.physics.slot_inference import SlotReader, Slots, posterior_mean
from attractor.physics.slot_learning import Shrinkage, SlotMoments, k_means, nearest
from attractor.physics.slot_rules import SlotDeltaRule, SlotOjaRule
from attractor.physics.slots import SlotMixture

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
    "LowRankSlots",
    "MeanField",
    "Measure",
    "ModeSeeking",
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
    "Shrinkage",
    "SlotDeltaRule",
    "SlotEnergy",
    "SlotHead",
    "SlotMixture",
    "SlotMoments",
    "SlotOjaRule",
    "SlotReader",
    "SlotRecipe",
    "Slots",
    "Sphere",
    "Stop",
    "Synchronous",
    "Trajectory",
    "fit_head",
    "iterate",
    "k_means",
    "nearest",
    "neighbourhood",
    "noisy",
    "posterior_mean",
    "random_start",
    "run",
    "seen",
]
