"""Small random mixtures of slots for the tests, in float64."""

import torch
from torch import Tensor

from attractor.physics import SlotMixture


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def covariances(slots: int, pixels: int, *, seed: int = 3) -> Tensor:
    root = normal(slots, pixels, pixels, seed=seed)
    return root @ root.mT / pixels + 0.3 * torch.eye(pixels, dtype=torch.float64)


def mixture(slots: int = 4, pixels: int = 6, *, spread: float = 1.0, seed: int = 0) -> SlotMixture:
    weights = normal(slots, seed=seed + 1).log_softmax(0)
    means = spread * normal(slots, pixels, seed=seed + 2)
    return SlotMixture.from_covariances(weights, means, covariances=covariances(slots, pixels))
