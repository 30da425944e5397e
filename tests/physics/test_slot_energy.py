"""The local energies of slots. Oracles: autograd, quadrature, the joint, the general dynamics."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attractor.physics import (
    Evidence,
    Gibbs,
    MeanField,
    ModeSeeking,
    Sequential,
    SlotEnergy,
    SlotMixture,
    Stop,
    run,
)
from tests.physics.slot_systems import covariances, generator, mixture, normal

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
N, D, B = 3, 2, 4


def _energy(*, inverse_temperature: float = 1.0, spread: float = 1.0) -> SlotEnergy:
    return SlotEnergy(
        mixture(4, N * D, spread=spread), tokens=N, dim=D, inverse_temperature=inverse_temperature
    )


def _evidence(images: int = B) -> Evidence:
    precision = torch.tensor([0.3, 0.0, 1.1], dtype=torch.float64)
    return Evidence(normal(1, N, D, seed=21).repeat(images, 1, 1), precision)


def _joint(energy: SlotEnergy, x: Tensor, evidence: Evidence | None) -> Tensor:
    """-(1/lambda) log of the unnormalised joint (B,), written down anew."""
    slots, temperature = energy.mixture, energy.inverse_temperature
    deviation = x.flatten(1)[:, None] - slots.means
    quadratic = torch.einsum("bsp,spq,bsq->bs", deviation, slots.precisions, deviation)
    constant = torch.logdet(slots.precisions) - N * D * math.log(2 * math.pi)
    log = (temperature * (slots.log_weights + (constant - quadratic) / 2)).logsumexp(1)
    if evidence is not None:
        log = log + (evidence.field * x).sum((1, 2))
        log = log - (torch.as_tensor(evidence.precision) * x.square().sum(2)).sum(1) / 2
    return -log / temperature


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_every_local_energy_is_the_joint_one(temperature: float, observed: bool) -> None:
    """e_i(x) = -(1/lambda) log sum_s (pi_s N_s)^lambda for all i, so -log p(x) at lambda = 1.

    Without c_is every token would have an energy of its own, and nothing would have to fall.
    """
    energy, x = _energy(inverse_temperature=temperature), normal(B, N, D)
    evidence = _evidence() if observed else None
    expected = _joint(energy, x, evidence).unsqueeze(1).expand(B, N)
    torch.testing.assert_close(energy.energy(x, evidence=evidence), expected, **TIGHT)
    if temperature == 1 and not observed:
        torch.testing.assert_close(
            energy.energy(x)[:, 0], -energy.mixture.log_density(x.flatten(1)), **TIGHT
        )


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_force_is_minus_the_gradient(temperature: float, observed: bool) -> None:
    """f_i = -d e_i/d x_i by autograd, with the own quadratic term of every slot."""
    energy = _energy(inverse_temperature=temperature)
    evidence = _evidence() if observed else None
    x = normal(B, N, D).requires_grad_()
    (gradient,) = torch.autograd.grad(_joint(energy, x, evidence).sum(), x)
    torch.testing.assert_close(energy.force(x.detach(), evidence=evidence), -gradient, **TIGHT)


def test_force_is_attention_over_the_fields() -> None:
    """f_i = sum_s alpha_is (u_is - K_s,ii x_i), with u_is that do not see x_i."""
    energy, x = _energy(), normal(B, N, D)
    fields = energy.fields(x)
    own = torch.stack(
        [energy.mixture.precisions[:, 2 * i : 2 * i + 2, 2 * i : 2 * i + 2] for i in range(N)]
    )
    pull = fields - torch.einsum("isde,bie->bisd", own, x)
    force = torch.einsum("bis,bisd->bid", energy.attention(x), pull)
    torch.testing.assert_close(energy.force(x), force, **TIGHT)
    moved = x.clone()
    moved[:, 1] += 1
    torch.testing.assert_close(energy.fields(moved)[:, 1], fields[:, 1], **TIGHT)
    torch.testing.assert_close(
        energy.prior_attention(moved)[:, 1], energy.prior_attention(x)[:, 1], **TIGHT
    )


def _points(nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre on [-12, 12]^2: points (M, 2) and weights (M,)."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    grid = torch.cartesian_prod(torch.tensor(12 * x), torch.tensor(12 * x))
    return grid, torch.tensor(144 * np.outer(w, w).ravel())


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_conditional_integrates_to_one(temperature: float, observed: bool) -> None:
    """integral p(x_i|x_others) dx_i = 1, its first moment is the conditional mean; beta is its mixing.

    A conditional that does not integrate to 1 belongs to no joint, and its mean is a mean of nothing.
    """
    energy = _energy(inverse_temperature=temperature)
    points, weights = _points(160)
    x = normal(1, N, D).repeat(len(points), 1, 1)
    x[:, 1] = points
    evidence = _evidence(len(points)) if observed else None
    density = energy.log_conditional(x, evidence=evidence, rows=range(1, 2))[:, 0].exp()
    # the quadrature of a Gaussian of width 0.5 or more on 160 nodes is exact to rounding
    assert float(weights @ density) == pytest.approx(1, abs=1e-8)
    one = None if evidence is None else Evidence(evidence.field[:1], evidence.precision)
    mean = energy.conditional_mean(x[:1], evidence=one, rows=range(1, 2))[0, 0]
    torch.testing.assert_close((weights * density) @ points, mean, rtol=0, atol=1e-8)
    beta = energy.prior_attention(x[:1], evidence=one, rows=range(1, 2))[0, 0]
    if temperature == 1:
        # E[alpha] over p(x_i | x_others) is the attention before x_i is looked at
        alpha = energy.attention(x, rows=range(1, 2))[:, 0]
        torch.testing.assert_close((weights * density) @ alpha, beta, rtol=0, atol=1e-8)


def test_samples_have_the_moments_of_the_conditional() -> None:
    """Mean and covariance of 40,000 draws against quadrature, within five standard errors."""
    energy, count = _energy(), 40_000
    points, weights = _points(160)
    x = normal(1, N, D)
    grid = x.repeat(len(points), 1, 1)
    grid[:, 1] = points
    mass = weights * energy.log_conditional(grid, rows=range(1, 2))[:, 0].exp()
    mean = mass @ points
    covariance = (points - mean).T @ (mass[:, None] * (points - mean))
    many = x.repeat(count, 1, 1)
    drawn = energy.sample_conditional(many, generator=generator(), rows=range(1, 2))[:, 0]
    scale = float(covariance.diagonal().max())
    assert float((drawn.mean(0) - mean).abs().max()) < 5 * math.sqrt(scale / count)
    assert float((drawn.T.cov() - covariance).abs().max()) < 5 * scale * math.sqrt(3 / count)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_mode_seeking_lowers_the_energy_token_by_token(temperature: float, observed: bool) -> None:
    """E(x) falls in every update of one token until it rests at a zero of the force: a Lyapunov function.

    The joint behind the local energies is what makes this true; bare self-attention has none.
    """
    energy = _energy(inverse_temperature=temperature, spread=2.0)
    evidence = _evidence(20) if observed else None
    x = 3 * normal(20, N, D)
    energies = [energy.energy(x, evidence=evidence)[:, 0]]
    for step in range(60):
        i = step % N
        x = x.clone()
        x[:, i : i + 1] = ModeSeeking()(energy, x, evidence=evidence, rows=range(i, i + 1))
        energies.append(energy.energy(x, evidence=evidence)[:, 0])
    rise = torch.stack(energies).diff(dim=0)
    assert float(rise.max()) < 1e-12  # rounding, of energies of order 10
    assert float(rise[:N].min()) < -0.1
    end = run(energy, x, 400, map=ModeSeeking(), order=Sequential(), evidence=evidence, tolerance=1e-12)
    assert end.stop is Stop.CONVERGED
    assert float(energy.force(end.state, evidence=evidence).abs().max()) < 1e-8


def test_mode_seeking_and_conditional_mean_are_one_map_for_one_slot() -> None:
    """S = 1: both go to K_ii^-1 u_i, and token by token settle on the mean of the slot (Gauss-Seidel)."""
    slot = SlotMixture.from_covariances(
        torch.zeros(1, dtype=torch.float64), normal(1, N * D), covariances=covariances(1, N * D)
    )
    energy, x = SlotEnergy(slot, tokens=N, dim=D), normal(B, N, D, seed=4)
    torch.testing.assert_close(energy.lowest(x), energy.conditional_mean(x), **TIGHT)
    end = run(energy, x, 500, tolerance=1e-13)
    torch.testing.assert_close(end.state, slot.means.view(1, N, D).expand(B, N, D), rtol=0, atol=1e-9)


def test_clamped_dynamics_reach_the_gaussian_conditional() -> None:
    """One slot, one token clamped: the mean-field map settles on the exact conditional of the others."""
    slot = mixture(1, N * D)
    energy, x = SlotEnergy(slot, tokens=N, dim=D), normal(B, N, D, seed=4)
    clamped = torch.zeros(B, N, dtype=torch.bool)
    clamped[:, 0] = True
    end = run(energy, x, 500, map=MeanField(), order=Sequential(), clamped=clamped, tolerance=1e-13)
    k, m = slot.precisions[0], slot.means[0]
    shift = torch.linalg.solve(k[D:, D:], (k[D:, :D] @ (x[:, 0] - m[:D]).T)).T
    torch.testing.assert_close(end.state[:, 1:].flatten(1), m[D:] - shift, rtol=0, atol=1e-9)


def test_gibbs_runs_and_rows_are_those_of_all() -> None:
    """Draws token by token stay finite; asking for some rows gives the rows that all have."""
    energy, x = _energy(), normal(B, N, D)
    end = run(energy, x, 3, map=Gibbs(generator=generator()), order=Sequential())
    assert bool(end.state.isfinite().all())
    for name in ("energy", "attention", "force", "prior_attention", "conditional_mean", "log_conditional"):
        method = getattr(energy, name)
        torch.testing.assert_close(method(x, rows=range(1, 3)), method(x)[:, 1:3], **TIGHT)


def test_refusals() -> None:
    """Sizes, temperatures, rows and evidence that do not fit."""
    energy, x = _energy(), normal(B, N, D)
    with pytest.raises(ValueError, match="4 tokens of dim 2 are not the 6 pixels"):
        SlotEnergy(energy.mixture, tokens=4, dim=2)
    with pytest.raises(ValueError, match="inverse_temperature must be positive"):
        energy.at(0.0)
    with pytest.raises(ValueError, match=r"expected \(B, N, D\) = \(B, 3, 2\)"):
        energy.energy(x[:, :2])
    with pytest.raises(ValueError, match="rows are"):
        energy.energy(x, rows=range(2, 5))
    with pytest.raises(ValueError, match="the field of the evidence"):
        energy.energy(x, evidence=Evidence(x[:1]))
