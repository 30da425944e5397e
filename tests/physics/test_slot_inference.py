"""Reading slots: the exact posterior, its tempering, screening and heads."""

import pytest
import torch
from torch import Tensor

from attractor.physics import (
    LowRankSlots,
    PixelEvidence,
    SlotMixture,
    SlotReader,
    posterior_mean,
    seen,
)
from tests.physics.slot_systems import generator, mixture, normal

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def _evidence(images: int = 5, pixels: int = 6) -> PixelEvidence:
    visible = torch.rand(images, pixels, generator=generator(3)) < 0.6
    return seen(normal(images, pixels, seed=4), visible, variance=0.2)


def _twin(slots: SlotMixture, rank: int) -> LowRankSlots:
    return LowRankSlots.from_covariances(
        slots.log_weights,
        slots.means,
        covariances=torch.linalg.inv(slots.precisions),
        rank=rank,
        generator=generator(),
        iterations=30,
    )


def test_posterior_mean_is_the_gradient_of_the_log_evidence() -> None:
    """E[x_p | evidence] = d/d field_p log integral p(x) exp(field x - precision x^2 / 2) dx, by autograd.

    Certifies weights and means together, and nothing else does: the identity of every exponential family.
    """
    slots, evidence = mixture(), _evidence()
    covariance = torch.linalg.inv(slots.precisions)
    field = evidence.field.clone().requires_grad_()

    def log_evidence(b: int) -> Tensor:
        precision = slots.precisions + torch.diag(evidence.precision[b])
        h = torch.einsum("spq,sq->sp", slots.precisions, slots.means) + field[b]
        quadratic = torch.einsum("sp,sp->s", h, torch.linalg.solve(precision, h))
        constant = torch.einsum("sp,spq,sq->s", slots.means, slots.precisions, slots.means)
        log = (quadratic - constant - torch.logdet(precision) - torch.logdet(covariance)) / 2
        return (slots.log_weights + log).logsumexp(0)

    total = sum(log_evidence(b) for b in range(len(evidence)))
    (expected,) = torch.autograd.grad(total, field)
    torch.testing.assert_close(SlotReader(slots).posterior_mean(evidence), expected, **TIGHT)


def test_tempering_goes_from_the_best_slot_to_all() -> None:
    """tau to infinity: the answer of the likeliest slot; tau to 0: the plain mean of the answers."""
    slots, evidence = mixture(), _evidence()
    log_evidence, means = slots.answer(evidence, torch.arange(4).expand(5, 4))
    best = means[torch.arange(5), log_evidence.argmax(1)]
    cold = SlotReader(slots, inverse_temperature=1e6).posterior_mean(evidence)
    torch.testing.assert_close(cold, best, **TIGHT)
    hot = SlotReader(slots, inverse_temperature=1e-12).posterior_mean(evidence)
    torch.testing.assert_close(hot, means.mean(1), **TIGHT)


def test_screening_keeps_the_likeliest_slots() -> None:
    """With twins of full rank but one the candidates are the best slots, and the rest weighs nothing."""
    slots = mixture(8, 6, spread=3.0)
    evidence = _evidence(20)
    screened = SlotReader(slots, _twin(slots, 5), candidates=3)
    exact = slots.answer(evidence, torch.arange(8).expand(20, 8))[0]
    best = exact.topk(1, 1).indices
    assert bool((screened.asked(evidence) == best).any(1).all())
    weights = exact.softmax(1)
    lost = 1 - weights.gather(1, screened.asked(evidence)).sum(1)
    error = screened.posterior_mean(evidence) - SlotReader(slots).posterior_mean(evidence)
    # an image moves by at most what was lost, times the distance between answers
    assert bool((error.abs().amax(1) <= 2 * lost * 20 + 1e-9).all())
    everything = SlotReader(slots, _twin(slots, 5), candidates=8).posterior_mean(evidence)
    torch.testing.assert_close(everything, SlotReader(slots).posterior_mean(evidence), **TIGHT)


def test_low_rank_slots_answer_too() -> None:
    """The same reader on slots of low rank: those of full precision with C = W W^T + psi."""
    low = _twin(mixture(), 2)
    covariance = low.loadings @ low.loadings.mT + low.noise * torch.eye(6, dtype=torch.float64)
    full = SlotMixture.from_covariances(low.log_weights, low.means, covariances=covariance)
    expected = SlotReader(full).posterior_mean(_evidence())
    torch.testing.assert_close(SlotReader(low).posterior_mean(_evidence()), expected, **TIGHT)


def test_heads_average() -> None:
    """Several heads: the mean of what each predicts."""
    first, second = SlotReader(mixture()), SlotReader(mixture(5, 6, seed=30), inverse_temperature=0.2)
    evidence = _evidence()
    both = (first.posterior_mean(evidence) + second.posterior_mean(evidence)) / 2
    torch.testing.assert_close(posterior_mean([first, second], evidence), both, **TIGHT)


def test_refusals() -> None:
    """Twins of other slots, no candidates, no heads and temperatures that are none."""
    slots = mixture()
    with pytest.raises(ValueError, match="5 slots cannot screen 4"):
        SlotReader(slots, _twin(mixture(5), 2))
    with pytest.raises(ValueError, match="candidates is 0"):
        SlotReader(slots, candidates=0)
    with pytest.raises(ValueError, match="inverse_temperature must be positive"):
        SlotReader(slots, inverse_temperature=0.0)
    with pytest.raises(ValueError, match="no head"):
        posterior_mean([], _evidence())
