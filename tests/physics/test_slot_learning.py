"""How slots are learned: the closed form, and the local rules whose fixed point it is."""

import math

import pytest
import torch
from torch import Tensor

from attractor.physics import (
    LowRankSlots,
    Shrinkage,
    SlotDeltaRule,
    SlotMixture,
    SlotMoments,
    SlotOjaRule,
    k_means,
    nearest,
)
from tests.physics.slot_systems import covariances, generator, mixture, normal

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
S, N, D = 3, 3, 2
P = N * D


def _images(count: int = 90) -> tuple[Tensor, Tensor]:
    """Correlated images around three centres, and the slot of each."""
    labels = torch.arange(count) % S
    x = normal(count, P, seed=1) @ normal(P, P, seed=2) / 2 + 3 * normal(S, P, seed=3)[labels]
    return x, labels


def _moments() -> SlotMoments:
    x, labels = _images()
    moments = SlotMoments(normal(S, P, seed=3))
    moments.add(x[:40], labels[:40])
    moments.add(x[40:], labels[40:])
    return moments


def test_closed_form_is_the_formula() -> None:
    """Weights, means and covariances with parents that lean on all slots, written down directly.

    Moments are summed around centres that are not the means; a lost correction widens every slot.
    """
    x, labels = _images()
    parents = torch.tensor([0, 1, 0])
    shrinkage = Shrinkage(parent=20.0, root=50.0, ridge=0.01)
    log_weights, means, found = _moments().solve(parents, shrinkage=shrinkage)
    own = torch.stack([x[labels == s].T.cov(correction=0) for s in range(S)])
    everything = own.mean(0)  # all slots have 30 images
    first = (60 * (own[0] + own[2]) / 2 + 50 * everything) / 110
    second = (30 * own[1] + 50 * everything) / 80
    for s, parent in enumerate((first, second, first)):
        expected = (30 * own[s] + 20 * parent) / 50 + 0.01 * torch.eye(P, dtype=torch.float64)
        torch.testing.assert_close(found[s], expected, **TIGHT)
        torch.testing.assert_close(means[s], x[labels == s].mean(0), **TIGHT)
    torch.testing.assert_close(log_weights.exp(), torch.full((S,), 1 / 3, dtype=torch.float64), **TIGHT)


def test_k_means_finds_separate_clusters() -> None:
    """Three far clusters, whatever the start loses: labels agree up to names; the centres are means."""
    x, labels = _images()
    x = x + 40 * normal(S, P, seed=3)[labels]
    best = min(
        (k_means(x, S, generator=generator(seed)) for seed in range(8)),
        key=lambda centres: float((x - centres[nearest(x, centres)]).square().sum()),
    )
    found = nearest(x, best)
    assert len({(int(a), int(b)) for a, b in zip(found, labels, strict=True)}) == S
    for s in range(S):
        torch.testing.assert_close(best[s], x[found == s].mean(0), **TIGHT)


def _sigma_points(covariance: Tensor) -> Tensor:
    """2 P deviations (2 P, P) of mean zero, whose second moments are exactly the covariance."""
    root = math.sqrt(len(covariance)) * torch.linalg.cholesky(covariance).T
    return torch.cat((root, -root))


def test_fixed_point_of_the_delta_rule_is_the_closed_form() -> None:
    """At C_s = (n_s S_s + n_0 S_parent) / (n_s + n_0) a step changes nothing; from elsewhere it goes there.

    The claim of the issue: what the closed form jumps to, every synapse can find by itself.
    """
    x, labels = _images()
    parent, borrowed = covariances(1, P)[0], 12.0
    alpha = torch.nn.functional.one_hot(labels, S).double()
    count = alpha.sum(0)
    means = torch.stack([x[labels == s].mean(0) for s in range(S)])
    own = torch.stack([x[labels == s].T.cov(correction=0) for s in range(S)])
    closed = (count[:, None, None] * own + borrowed * parent) / (count + borrowed)[:, None, None]
    log_weights = (count / count.sum()).log()
    there = SlotMixture.from_covariances(log_weights, means, covariances=closed)
    dreams = _sigma_points(parent).expand(S, -1, -1)
    rule = SlotDeltaRule(there, tokens=N)
    torch.testing.assert_close(rule.mixture().precisions, there.precisions, **TIGHT)
    before = [value.clone() for value in (rule.means, rule.couplings, rule.errors)]
    rule.step(x, alpha, rate=0.5, dreams=dreams, share=borrowed / count)
    for old, new in zip(before, (rule.means, rule.couplings, rule.errors), strict=True):
        torch.testing.assert_close(new, old, **TIGHT)
    start = SlotMixture(log_weights, means + 0.3, precisions=torch.eye(P).double().repeat(S, 1, 1))
    rule = SlotDeltaRule(start, tokens=N)
    for _ in range(4000):
        rule.step(x, alpha, rate=0.15, dreams=dreams, share=borrowed / count)
    torch.testing.assert_close(rule.means, means, rtol=0, atol=1e-8)
    torch.testing.assert_close(rule.mixture().precisions, there.precisions, rtol=0, atol=1e-6)


def test_the_delta_rule_is_local() -> None:
    """Rows never talk: other rows of A and V changed, dA_i is the same bit for bit.

    And token k enters row i through mu_i alone: x_k and A_ik changed with mu_i kept leave dA_ij, j != k.
    """
    x, labels = _images()
    alpha = torch.nn.functional.one_hot(labels, S).double()
    dreams, share = _sigma_points(covariances(1, P)[0]).expand(S, -1, -1), torch.full((S,), 0.3).double()

    def stepped(change: bool) -> SlotDeltaRule:
        rule = SlotDeltaRule(mixture(S, P), tokens=N)
        if change:
            rule.couplings[:, D : 2 * D, :D] += 0.2
            rule.errors[:, D : 2 * D, D : 2 * D] *= 1.5
        rule.step(x, alpha, rate=0.1, dreams=dreams, share=share)
        return rule

    plain, other = stepped(False), stepped(True)
    rows = [0, 1, 4, 5]
    assert torch.equal(plain.couplings[:, rows], other.couplings[:, rows])
    assert torch.equal(plain.errors[:, rows], other.errors[:, rows])
    assert not torch.equal(plain.couplings[:, 2:4], other.couplings[:, 2:4])

    def changed(scale: float) -> Tensor:
        rule = SlotDeltaRule(mixture(S, P), tokens=N)
        before = rule.couplings.clone()
        rule.couplings[:, :D, 2 * D :] /= scale
        before[:, :D, 2 * D :] /= scale
        moved, dreamt = x.clone(), dreams.clone()
        moved[:, 2 * D :] *= scale
        dreamt[:, :, 2 * D :] *= scale
        rule.means[:, 2 * D :] *= scale
        rule.step(moved, alpha, rate=0.1, dreams=dreamt, share=share)
        return (rule.couplings - before)[:, :D, D : 2 * D]

    torch.testing.assert_close(changed(1.7), changed(1.0), **TIGHT)


def test_a_slot_without_attention_learns_nothing() -> None:
    """alpha_s gates all of it, the dreams of the parent included."""
    x, _ = _images()
    alpha = torch.zeros(len(x), S).double()
    alpha[:, 0] = 1
    rule = SlotDeltaRule(mixture(S, P), tokens=N)
    before = rule.couplings.clone()
    dreams = _sigma_points(covariances(1, P)[0]).expand(S, -1, -1)
    rule.step(x, alpha, rate=0.1, dreams=dreams, share=torch.ones(S).double())
    assert torch.equal(rule.couplings[1:], before[1:])
    assert not torch.equal(rule.couplings[0], before[0])


def test_oja_finds_the_slots_of_low_rank() -> None:
    """At rest: the leading eigenvectors of S_s, their eigenvalues, and the noise that is left.

    So the low-rank slots of the closed form, up to signs of directions; the attention gates each slot.
    """
    x, labels = _images()
    alpha = torch.nn.functional.one_hot(labels, S).double()
    means = torch.stack([x[labels == s].mean(0) for s in range(S)])
    own = torch.stack([x[labels == s].T.cov(correction=0) for s in range(S)])
    log_weights = torch.full((S,), -math.log(S)).double()
    expected = LowRankSlots.from_covariances(
        log_weights, means, covariances=own, rank=2, generator=generator(), iterations=50
    )
    rule = SlotOjaRule(means + 0.1, normal(S, P, 2, seed=9) / 4)
    for _ in range(6000):
        rule.step(x, alpha, rate=0.05)
    found = rule.slots(log_weights)
    identity = torch.eye(2).double().expand(S, 2, 2)
    torch.testing.assert_close(rule.directions.mT @ rule.directions, identity, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.means, means, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.noise, expected.noise, rtol=0, atol=1e-7)
    product = expected.loadings @ expected.loadings.mT
    torch.testing.assert_close(found.loadings @ found.loadings.mT, product, rtol=0, atol=1e-6)


def test_later_directions_do_not_disturb_earlier_ones() -> None:
    """Direction k sees those before it alone: another W_l, l > k, leaves dW_k as it was, to rounding."""
    x, labels = _images()
    alpha = torch.nn.functional.one_hot(labels, S).double()
    found = []
    for seed in (1, 2):
        start = torch.cat((normal(S, P, 1, seed=9), normal(S, P, 1, seed=seed)), 2) / 4
        rule = SlotOjaRule(normal(S, P, seed=3), start)
        rule.step(x, alpha, rate=0.05)
        found.append(rule.directions[:, :, 0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-14)


def test_refusals() -> None:
    """Impossible numbers of clusters, labels, rates and shapes."""
    x, labels = _images()
    with pytest.raises(ValueError, match="90 images cannot make 91 clusters"):
        k_means(x, 91, generator=generator())
    with pytest.raises(ValueError, match="labels go up to 2"):
        SlotMoments(x[:2]).add(x, labels)
    with pytest.raises(ValueError, match="images and labels have shapes"):
        SlotMoments(x[:3]).add(x[:, :2], labels)
    empty = SlotMoments(x[:4])
    empty.add(x, labels)
    with pytest.raises(ValueError, match=r"slots \[3\] have no images"):
        empty.solve(torch.zeros(4), shrinkage=Shrinkage())
    with pytest.raises(ValueError, match="parents have shape"):
        empty.solve(torch.zeros(3), shrinkage=Shrinkage())
    with pytest.raises(ValueError, match="ridge is 0"):
        Shrinkage(ridge=0.0)
    with pytest.raises(ValueError, match="count images"):
        Shrinkage(parent=-1.0)
    with pytest.raises(ValueError, match="not 4 tokens"):
        SlotDeltaRule(mixture(), tokens=4)
    with pytest.raises(ValueError, match="rate is 2"):
        SlotDeltaRule(mixture(), tokens=3).step(x, x, rate=2.0, dreams=x, share=x)
    with pytest.raises(ValueError, match="rate must be positive"):
        SlotOjaRule(x[:1], x[:1, :, None]).step(x, x, rate=0.0)
    with pytest.raises(ValueError, match="directions have shapes"):
        SlotOjaRule(x[:1], x[:2, :, None])
