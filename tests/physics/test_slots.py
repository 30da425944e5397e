"""The joint of slots and their exact answers. Oracles: scipy, autograd, the dense posterior, regression."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from attractor.baselines import LinearRegression
from attractor.images import Masked, to_pixels
from attractor.physics import LowRankSlots, PixelEvidence, SlotMixture, seen
from tests.physics.slot_systems import covariances, generator, mixture, normal

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def _some_evidence(images: int, pixels: int) -> PixelEvidence:
    """Hidden, noisy and all but certain pixels, other ones in every image."""
    kinds = torch.randint(0, 3, (images, pixels), generator=generator(7))
    precision = torch.tensor([0.0, 1.4, 30.0], dtype=torch.float64)[kinds]
    return PixelEvidence(precision * normal(images, pixels, seed=8), precision)


def _dense(
    log_weight: Tensor, mean: Tensor, covariance: Tensor, evidence: PixelEvidence
) -> tuple[Tensor, Tensor]:
    """Textbook: p(y) and E[x | y] for y = x + noise of variance 1 / precision, on the observed pixels."""
    logs, posterior = [], []
    for field, precision in zip(evidence.field, evidence.precision, strict=True):
        c = (precision > 0).nonzero().squeeze(1)
        y = (field / precision)[c]
        noisy = covariance[c][:, c] + torch.diag(1 / precision[c])
        log = multivariate_normal(mean[c].numpy(), noisy.numpy()).logpdf(y.numpy())
        # the integral of exp(l_p(x) - l_p(y)) is that of the normal density times sqrt(2 pi / precision)
        logs.append(log_weight + log + (2 * math.pi / precision[c]).log().sum() / 2)
        posterior.append(mean + covariance[:, c] @ torch.linalg.solve(noisy, y - mean[c]))
    return torch.stack(logs), torch.stack(posterior)


def test_joint_is_that_of_scipy() -> None:
    """log p(x) = log sum_s pi_s N(x; m_s, K_s^-1), constants and determinants included.

    A lost determinant would send all attention to the widest slot.
    """
    slots = mixture()
    x = normal(5, 6, seed=9)
    expected = np.zeros(5)
    for weight, mean, precision in zip(slots.log_weights, slots.means, slots.precisions, strict=True):
        law = multivariate_normal(mean.numpy(), torch.linalg.inv(precision).numpy())
        expected += math.exp(float(weight)) * law.pdf(x.numpy())
    torch.testing.assert_close(slots.log_density(x), torch.from_numpy(np.log(expected)), **TIGHT)


def test_gradient_by_the_parameters_is_that_of_autograd() -> None:
    """d <log p> / d (log pi, m, K), with pi kept normalised, K taken as a free matrix.

    The certified base of the local rules: a gate missing in one term still learns, something else.
    """
    slots, x = mixture(), normal(7, 6, seed=9)
    logits, means, precisions = (
        value.clone().requires_grad_() for value in list(slots.state_dict().values())[:3]
    )
    deviation = x[:, None] - means
    quadratic = torch.einsum("bsp,spq,bsq->bs", deviation, precisions, deviation)
    joint = logits.log_softmax(0) + (torch.logdet(precisions) - quadratic) / 2
    objective = joint.logsumexp(1).mean()
    expected = torch.autograd.grad(objective, (logits, means, precisions))
    for found, value in zip(slots.gradient(x).values(), expected, strict=True):
        torch.testing.assert_close(found, value, **TIGHT)


def test_answers_are_the_textbook_posterior() -> None:
    """Log evidence and posterior mean of every slot, for hidden, noisy and nearly certain pixels at once.

    The precision form with other pixels free in each image is padded; padding that leaked would shift both.
    """
    slots, evidence = mixture(), _some_evidence(9, 6)
    asked = torch.arange(4).expand(9, 4)
    log_evidence, means = slots.answer(evidence, asked)
    for s in range(4):
        covariance = torch.linalg.inv(slots.precisions[s])
        log, mean = _dense(slots.log_weights[s], slots.means[s], covariance, evidence)
        torch.testing.assert_close(log_evidence[:, s], log, **TIGHT)
        torch.testing.assert_close(means[:, s], mean, **TIGHT)


def test_clamped_pixels_are_the_limit_of_certainty() -> None:
    """Clamped pixels keep their value; the evidence is N(y_c; m_c, C_cc), with other |c| in every image."""
    slots = mixture()
    visible = torch.rand(5, 6, generator=generator(4)) < 0.6
    y = normal(5, 6, seed=5)
    log_evidence, means = slots.answer(seen(y, visible, variance=1e-4), torch.arange(4).expand(5, 4))
    torch.testing.assert_close(means.mT[visible], y[visible].unsqueeze(1).expand(-1, 4), **TIGHT)
    for s in range(4):
        covariance = torch.linalg.inv(slots.precisions[s])
        for b, c in enumerate(visible):
            i = c.nonzero().squeeze(1)
            law = multivariate_normal(slots.means[s][i].numpy(), covariance[i][:, i].numpy())
            expected = float(slots.log_weights[s]) + law.logpdf(y[b][i].numpy())
            assert float(log_evidence[b, s]) == pytest.approx(expected, abs=1e-9)


def test_nothing_known_and_everything_known() -> None:
    """Without evidence: the prior pi_s, the means. With all pixels clamped: the joint at x, and x."""
    slots, asked = mixture(), torch.arange(4).expand(3, 4)
    x = normal(3, 6, seed=5)
    nothing = PixelEvidence(torch.zeros_like(x), torch.zeros_like(x))
    log_evidence, means = slots.answer(nothing, asked)
    torch.testing.assert_close(log_evidence, slots.log_weights.expand(3, 4), **TIGHT)
    torch.testing.assert_close(means, slots.means.expand(3, 4, 6), **TIGHT)
    log_evidence, means = slots.answer(seen(x, x == x, variance=1e-4), asked)
    torch.testing.assert_close(log_evidence, slots.log_joint(x), **TIGHT)
    torch.testing.assert_close(means, x[:, None].expand(3, 4, 6), **TIGHT)


def test_one_slot_is_linear_regression() -> None:
    """S = 1 under a mask: the Gaussian conditional of `baselines.LinearRegression`, the same ridge."""
    images = torch.randint(0, 256, (60, 1, 4, 4), generator=generator(), dtype=torch.uint8)
    baseline = LinearRegression(images, ridge=0.01)
    pixels = to_pixels(images[:8], torch.float64)
    corrupted = Masked(0.3, patch=1).corrupt(pixels, range(8), seed=0)
    (expected,) = baseline.reconstruct(corrupted)
    mean, precision = baseline.gaussian
    slot = SlotMixture(torch.zeros(1, dtype=torch.float64), mean[None], precisions=precision[None])
    assert corrupted.pixel_mask is not None
    evidence = seen(corrupted.corrupted.flatten(1), ~corrupted.pixel_mask.flatten(1), variance=1e-3)
    _, found = slot.answer(evidence, torch.zeros(8, 1, dtype=torch.int64))
    torch.testing.assert_close(found[:, 0].view_as(expected), expected, **TIGHT)


def test_float32_agrees_with_float64() -> None:
    """Answers in float32 within 1e-4 of float64, at a condition number of 1e3, as images have."""
    covariance = covariances(3, 40)
    covariance[:, :10] *= 0.03
    covariance[:, :, :10] *= 0.03
    double = SlotMixture.from_covariances(
        normal(3).log_softmax(0), normal(3, 40, seed=2), covariances=covariance
    )
    single = SlotMixture.from_state_dict({name: v.float() for name, v in double.state_dict().items()})
    evidence = _some_evidence(6, 40)
    asked = torch.arange(3).expand(6, 3)
    low = PixelEvidence(evidence.field.float(), evidence.precision.float())
    for found, expected in zip(single.answer(low, asked), double.answer(evidence, asked), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_low_rank_answers_are_the_textbook_posterior() -> None:
    """Woodbury with any evidence, and the elimination that screens all slots, against dense matrices."""
    low = LowRankSlots(
        normal(3).log_softmax(0), normal(3, 7, seed=1), normal(3, 7, 2, seed=2), normal(1, seed=3).exp()[0]
    )
    evidence = _some_evidence(9, 7)
    log_evidence, means = low.answer(evidence, torch.arange(3).expand(9, 3))
    for s in range(3):
        covariance = low.loadings[s] @ low.loadings[s].T + low.noise * torch.eye(7, dtype=torch.float64)
        log, mean = _dense(low.log_weights[s], low.means[s], covariance, evidence)
        torch.testing.assert_close(log_evidence[:, s], log, **TIGHT)
        torch.testing.assert_close(means[:, s], mean, **TIGHT)
    torch.testing.assert_close(low.log_evidence(evidence), log_evidence, **TIGHT)


def test_low_rank_form_of_a_covariance_of_low_rank_is_exact() -> None:
    """C = W W^T + psi I is found again, up to a rotation of W: subspace iteration has converged."""
    w = normal(2, 12, 3, seed=2)
    covariance = w @ w.mT + 0.05 * torch.eye(12, dtype=torch.float64)
    low = LowRankSlots.from_covariances(
        torch.full((2,), -math.log(2), dtype=torch.float64),
        normal(2, 12),
        covariances=covariance,
        rank=3,
        generator=generator(),
        iterations=20,
    )
    torch.testing.assert_close(low.noise, torch.tensor(0.05, dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(low.loadings @ low.loadings.mT, w @ w.mT, **TIGHT)


def test_state_dicts_give_the_slots_back() -> None:
    """A checkpoint holds all that is learned."""
    slots = mixture()
    again = SlotMixture.from_state_dict(slots.state_dict())
    x = normal(2, 6)
    assert torch.equal(again.log_joint(x), slots.log_joint(x))
    low = LowRankSlots(torch.zeros(1), torch.zeros(1, 3), torch.ones(1, 3, 1), torch.tensor(1.0))
    evidence = PixelEvidence(torch.ones(1, 3), torch.ones(1, 3))
    copy = LowRankSlots.from_state_dict(low.state_dict())
    assert torch.equal(copy.log_evidence(evidence), low.log_evidence(evidence))


def test_refusals() -> None:
    """Shapes, weights, precisions and noise that are no mixture are refused with what was given."""
    zero, means, eye = torch.zeros(1), torch.zeros(1, 3), torch.eye(3)[None]
    with pytest.raises(ValueError, match=r"expected \(S,\) and \(S, P\)"):
        SlotMixture(torch.zeros(2), means, precisions=eye)
    with pytest.raises(ValueError, match="weights sum to 2"):
        SlotMixture(zero + 1, means, precisions=eye)
    with pytest.raises(ValueError, match=r"expected \(1, 3, 3\)"):
        SlotMixture(zero, means, precisions=eye[:, :2])
    with pytest.raises(ValueError, match="slot 0 is not positive definite"):
        SlotMixture(zero, means, precisions=-eye)
    slots = SlotMixture(zero, means, precisions=eye)
    with pytest.raises(ValueError, match=r"\(B, P\) = \(B, 3\)"):
        slots.log_joint(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"\(B, P\) = \(B, 3\)"):
        slots.answer(PixelEvidence(torch.zeros(2, 4), torch.zeros(2, 4)), torch.zeros(2, 1).long())
    with pytest.raises(ValueError, match="loadings have shape"):
        LowRankSlots(zero, means, torch.zeros(1, 2, 1), torch.tensor(1.0))
    with pytest.raises(ValueError, match="one positive variance"):
        LowRankSlots(zero, means, torch.zeros(1, 3, 1), torch.tensor(0.0))
    with pytest.raises(ValueError, match="rank is 3"):
        LowRankSlots.from_covariances(zero, means, covariances=eye, rank=3, generator=generator())
