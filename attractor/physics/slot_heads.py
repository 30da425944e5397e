"""A head of slots: everything that one closed-form training makes, and readers of it.

k-means on the images, moments over the images and their copies under symmetries (small shifts and
rotations, which a slot should allow for), parents by k-means on the slots' means, covariances shrunk
towards them; then the slots of full precision for masks, those of low rank for noise, and those of lower
rank that screen.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Generator, Tensor

from attractor.physics.low_rank_slots import LowRankSlots
from attractor.physics.slot_inference import SlotReader
from attractor.physics.slot_learning import Shrinkage, SlotMoments, k_means, nearest
from attractor.physics.slots import SlotMixture


@dataclass(frozen=True)
class SlotRecipe:
    """How a head is made: numbers of slots, parents and k-means iterations, and the ranks.

    Chosen on validation images of MNIST, with 7 copies of each image. Memory: two times slots P^2 numbers.
    """

    slots: int = 500
    parents: int = 20
    iterations: int = 8
    rank: int = 60
    screening_rank: int = 8
    shrinkage: Shrinkage = field(default_factory=lambda: Shrinkage(ridge=2e-3))


@dataclass(frozen=True)
class SlotHead:
    """Slots of full precision, the same with low rank, and the same with the rank that screens."""

    full: SlotMixture
    low_rank: LowRankSlots
    screen: LowRankSlots

    def exact(self, *, candidates: int = 4, inverse_temperature: float = 0.03) -> SlotReader:
        """Reads with full precision: cheap where few pixels are hidden, |hidden|^3 / 3 a slot."""
        return SlotReader(
            self.full, self.screen, candidates=candidates, inverse_temperature=inverse_temperature
        )

    def quick(self, *, candidates: int = 4, inverse_temperature: float = 0.5) -> SlotReader:
        """Reads with low rank: for noise, which hides the directions of little variance anyway."""
        return SlotReader(
            self.low_rank, self.screen, candidates=candidates, inverse_temperature=inverse_temperature
        )


def fit_head(
    images: Tensor, recipe: SlotRecipe, *, generator: Generator, copies: Iterable[Tensor] = ()
) -> SlotHead:
    """One head, in closed form, from images (M, P) and any `copies` of them, (., P) each.

    Copies are taken one after the other, so a generator of them needs the memory of one. Raises ValueError
    where `k_means`, `SlotMoments` or the slots do.
    """
    centres = k_means(images, recipe.slots, generator=generator, iterations=recipe.iterations)
    moments = SlotMoments(centres)
    moments.add(images, nearest(images, centres))
    for copy in copies:
        moments.add(copy, nearest(copy, centres))
    means = moments.means
    parents = nearest(means, k_means(means, recipe.parents, generator=generator))
    weights, means, covariances = moments.solve(parents, shrinkage=recipe.shrinkage)
    screen, low_rank = (
        LowRankSlots.from_covariances(
            weights, means, covariances=covariances, rank=rank, generator=generator
        )
        for rank in (recipe.screening_rank, recipe.rank)
    )
    full = SlotMixture.from_covariances(weights, means, covariances=covariances)
    return SlotHead(full, low_rank, screen)
