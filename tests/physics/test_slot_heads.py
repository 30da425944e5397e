"""A head, from images to readers, against the pieces it is made of."""

import torch

from attractor.physics import (
    PixelEvidence,
    Shrinkage,
    SlotReader,
    SlotRecipe,
    fit_head,
    seen,
)
from tests.physics.slot_systems import generator, normal

RECIPE = SlotRecipe(
    slots=3, parents=1, rank=4, screening_rank=2, shrinkage=Shrinkage(parent=20.0, ridge=0.01)
)


def test_a_head_knows_what_it_was_shown() -> None:
    """Copies count as images; weights, pooled mean and pooled covariance are those of all that was shown.

    A mixture of moments has the moments of its data, shrunk parts aside: nothing was lost or counted twice.
    """
    x = normal(120, 6) @ normal(6, 6, seed=1)
    copies = [x + 0.1, x - 0.2]
    recipe = SlotRecipe(slots=3, parents=1, rank=4, screening_rank=2, shrinkage=Shrinkage(0.0, 0.0, 1e-9))
    head = fit_head(x, recipe, generator=generator(), copies=copies)
    shown = torch.cat([x, *copies])
    weights, means = head.full.log_weights.exp(), head.full.means
    torch.testing.assert_close(weights @ means, shown.mean(0), rtol=0, atol=1e-9)
    within = torch.einsum("s,spq->pq", weights, torch.linalg.inv(head.full.precisions))
    between = means - shown.mean(0)
    total = within + between.T @ (weights[:, None] * between)
    torch.testing.assert_close(total, shown.T.cov(correction=0), rtol=0, atol=1e-7)


def test_readers_are_screened_readers_of_its_slots() -> None:
    """`exact` and `quick` with all candidates: unscreened full and low-rank slots; clamped pixels stay."""
    x = normal(120, 6) @ normal(6, 6, seed=1)
    head = fit_head(x, RECIPE, generator=generator())
    visible = torch.rand(5, 6, generator=generator(2)) < 0.5
    mask = seen(x[:5], visible, variance=1e-3)
    found = head.exact(candidates=3, inverse_temperature=1.0).posterior_mean(mask)
    torch.testing.assert_close(found, SlotReader(head.full).posterior_mean(mask))
    torch.testing.assert_close(found[visible], x[:5][visible])
    noise = PixelEvidence(x[:5], torch.ones_like(x[:5]))
    quick = head.quick(candidates=3, inverse_temperature=1.0).posterior_mean(noise)
    torch.testing.assert_close(quick, SlotReader(head.low_rank).posterior_mean(noise))
    assert head.exact().posterior_mean(mask).shape == (5, 6)
