"""Local energies. Oracles: autograd through einsums, quadrature, closed forms, invariances, limits."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attractor.physics import (
    Circles,
    Evidence,
    Gaussian,
    Hopfield,
    LocalEnergy,
    Pairwise,
    Sphere,
    random_start,
)
from attractor.physics.kernels import blocks

# float64 everywhere; psi of the sphere is good to 1e-9 (1 + |psi|), all else to rounding
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _everything(energy: LocalEnergy, x: Tensor, evidence: Evidence | None) -> dict[str, Tensor]:
    return {
        "energy": energy.energy(x, evidence=evidence),
        "attention": energy.attention(x),
        "force": energy.force(x, evidence=evidence),
        "prior": energy.prior_attention(x, evidence=evidence),
        "mean": energy.conditional_mean(x, evidence=evidence),
        "log": energy.log_conditional(x, evidence=evidence),
    }


def test_every_face_agrees_with_the_naive_formula(system, naive) -> None:
    """e, alpha, beta, E[x] and log p against einsum over (B, N, N, D), with and without evidence.

    Row blocks permute axes four times; one wrong axis still gives numbers of the right shape.
    """
    energy, x = system.energy, system.x
    couplings = energy.couplings.couplings
    for field in (None, system.evidence.field):
        evidence = None if field is None else Evidence(field)
        scores = naive.scores(energy, couplings, x, x, field)
        psi = naive.psi(energy, couplings, x, field)
        natural = naive.natural(energy, couplings, x, field)
        alpha, beta = scores.softmax(2), psi.softmax(2)
        found = _everything(energy, x, evidence)
        torch.testing.assert_close(found["energy"], -scores.logsumexp(2) / 1.7, **TIGHT)
        torch.testing.assert_close(found["attention"], alpha, **TIGHT)
        force = torch.einsum("bis,bisd->bid", alpha, natural) / 1.7
        torch.testing.assert_close(found["force"], force, **TIGHT)
        torch.testing.assert_close(found["prior"], beta, **TIGHT)
        mean = torch.einsum("bis,bisd->bid", beta, energy.measure.mean(natural))
        torch.testing.assert_close(found["mean"], mean, **TIGHT)
        torch.testing.assert_close(found["log"], scores.logsumexp(2) - psi.logsumexp(2), **TIGHT)


def test_force_is_minus_the_gradient_by_the_own_token_alone(system, naive) -> None:
    """f_i = -d e_i/d x_i at fixed others; the gradient of sum_i e_i has cross terms and is not it.

    Differentiating the sum gives a network that also runs, and also is called attention somewhere.
    """
    energy, x = system.energy, system.x
    couplings = energy.couplings.couplings
    own = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(naive.energy(energy, couplings, own, x).sum(), own)
    torch.testing.assert_close(energy.force(x), -gradient, **TIGHT)
    (gradient,) = torch.autograd.grad(
        naive.energy(energy, couplings, own, x, system.evidence.field).sum(), own
    )
    torch.testing.assert_close(energy.force(x, evidence=system.evidence), -gradient, **TIGHT)
    (of_the_sum,) = torch.autograd.grad(naive.energy(energy, couplings, own, own).sum(), own)
    assert (energy.force(x) + of_the_sum).abs().max() > 0.1


def test_coupling_gradient_is_that_of_the_log_likelihood(system, naive) -> None:
    """d/dJ mean_B sum_i log p(x_i|x_others) by autograd: factor lambda, gates, transposition, mean.

    The central claim: a local rule that is the exact gradient. Off by a factor it would still learn.
    """
    energy, x = system.energy, system.x
    couplings = energy.couplings.couplings.clone().requires_grad_()
    objective = naive.log_conditional(energy, couplings, x)
    (expected,) = torch.autograd.grad(objective.sum(1).mean(), couplings)
    gradient = energy.coupling_gradient(x)
    assert gradient.keys() == energy.couplings.weights.keys()
    assert gradient["couplings"].shape == energy.couplings.couplings.shape
    torch.testing.assert_close(gradient["couplings"], expected, **TIGHT)
    again = {name: 7 * value for name, value in gradient.items()}  # what is there is written over
    returned = energy.write_gradient(x, again)
    torch.testing.assert_close(again["couplings"], expected, **TIGHT)
    torch.testing.assert_close(returned, objective.detach(), **TIGHT)


def test_positive_phase_is_the_gradient_of_the_energies(system, naive) -> None:
    """-d/dJ mean_B sum_i e_i at fixed tokens is <alpha_ij x_i x_j^T>, free of lambda but in alpha."""
    energy, x = system.energy, system.x
    couplings = energy.couplings.couplings.clone().requires_grad_()
    objective = naive.energy(energy, couplings, x, x)
    (expected,) = torch.autograd.grad(-objective.sum(1).mean(), couplings)
    gradient = energy.zero_gradient()
    returned = energy.write_positive_phase(x, gradient)
    torch.testing.assert_close(gradient["couplings"], expected, **TIGHT)
    torch.testing.assert_close(returned, objective.detach(), **TIGHT)
    gradient["couplings"] *= 7  # what is there is written over
    energy.write_positive_phase(x, gradient)
    torch.testing.assert_close(gradient["couplings"], expected, **TIGHT)


def _circle(points: int) -> Tensor:
    angle = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    return torch.stack((angle.cos(), angle.sin()), -1)


def _quadrature(measure: str) -> tuple[Tensor, Tensor]:
    """Points and weights that integrate smooth functions over the measure to near rounding."""
    if measure == "sphere2":
        return _circle(400), torch.full((400,), 1 / 400, dtype=torch.float64)
    if measure == "sphere3":
        nodes, weights = np.polynomial.legendre.leggauss(60)
        z = torch.tensor(nodes)[:, None, None]
        ring = _circle(120)[None]
        points = torch.cat(((1 - z * z).sqrt() * ring, z.expand(-1, 120, 1)), -1)
        return points.flatten(0, 1), (torch.tensor(weights) / 2).repeat_interleave(120) / 120
    if measure == "circles2":
        ring = _circle(64) / math.sqrt(2)
        points = torch.cat((ring[:, None].expand(64, 64, 2), ring[None].expand(64, 64, 2)), -1).flatten(
            0, 1
        )
        return points, torch.full((4096,), 1 / 4096, dtype=torch.float64)
    raise AssertionError(measure)


@pytest.mark.parametrize("name", ["sphere2", "sphere3", "circles2"])
@pytest.mark.parametrize("observed", [False, True])
def test_conditional_integrates_to_one(couplings_name, make_system, name: str, observed: bool) -> None:
    """integral p(x_i|x_others) = 1 and its first moment is the conditional mean, by quadrature over x_i.

    Likelihoods that do not integrate to 1 can be raised for ever by saying nothing.
    """
    kind, dim = {"sphere2": ("Sphere", 2), "sphere3": ("Sphere", 3), "circles2": ("Circles", 4)}[name]
    points, weights = _quadrature(name)
    system = make_system(couplings_name, kind, tokens=4, dim=dim, images=1)
    row, x = range(2, 3), system.x.repeat(len(points), 1, 1)
    x[:, 2] = points
    evidence = Evidence(system.evidence.field.repeat(len(points), 1, 1)) if observed else None
    density = system.energy.log_conditional(x, evidence=evidence, rows=row)[:, 0].exp()
    # the quadrature converges faster than any power; psi is good to 1e-9
    assert (weights @ density).item() == pytest.approx(1, abs=1e-8)
    mean = (weights * density) @ points
    found = system.energy.conditional_mean(x, evidence=evidence, rows=row)[:, 0]
    torch.testing.assert_close(found, mean.expand(len(points), -1), rtol=0, atol=1e-8)


def test_gaussian_conditional_integrates_to_one(couplings_name, make_system) -> None:
    """The same on R^2 relative to N(0, P^-1), by Gauss-Hermite quadrature."""
    system = make_system(
        couplings_name, "Gaussian", tokens=3, dim=2, images=1, scale=0.4, inverse_temperature=1.3
    )
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    grid = torch.cartesian_prod(torch.tensor(nodes), torch.tensor(nodes))
    weight = torch.tensor(np.outer(weights, weights).ravel() / (2 * math.pi))
    lower = torch.linalg.cholesky(system.energy.measure.precision)
    points = torch.linalg.solve_triangular(lower.T, grid.T, upper=True).T  # covariance P^-1
    x = system.x.repeat(len(points), 1, 1)
    x[:, 1] = points
    density = system.energy.log_conditional(x, rows=range(1, 2))[:, 0].exp()
    # fields of about 1 in units of P^-1/2, far inside the 60 nodes
    assert (weight @ density).item() == pytest.approx(1, abs=1e-8)
    mean = system.energy.conditional_mean(x[:1], rows=range(1, 2))[0, 0]
    torch.testing.assert_close((weight * density) @ points, mean, rtol=0, atol=1e-8)


def test_gaussian_conditional_with_precision_integrates_to_one(make_system) -> None:
    """p(x_i|x_others, y) is a density relative to N(0, P^-1), by Gauss-Hermite quadrature in D = 1.

    With P = 1 it is N((u + p y)/(1 + p), 1/(1 + p)); without -p |x|^2/2 it is N(u + p y, 1) times c.
    """
    system = make_system("Hopfield", "Gaussian", tokens=3, dim=1, images=1, scale=0.3)
    energy = LocalEnergy(system.energy.couplings, Gaussian(1), inverse_temperature=1.3)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    x = system.x.repeat(80, 1, 1)
    x[:, 1, 0] = torch.tensor(nodes)
    evidence = Evidence(torch.full_like(x, 0.7), precision=0.7)
    density = energy.log_conditional(x, evidence=evidence)[:, 1].exp()
    weight = torch.tensor(weights / math.sqrt(2 * math.pi))
    assert (weight @ density).item() == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("strength", [4.0, "per token"])
def test_gaussian_posterior_with_evidence(make_system, strength) -> None:
    """Hopfield, y = x + noise of variance 1/p: mean (P + p I)^-1 (lambda u + p y), the textbook posterior.

    Without the extra precision the field p y overshoots: the state is pulled p-fold beyond y.
    """
    system = make_system("Hopfield", "Gaussian")
    n, d = system.x.shape[1:]
    p = torch.linspace(0.5, 9, n, dtype=torch.float64) if strength == "per token" else strength
    each = p if isinstance(p, Tensor) else torch.full((n,), p, dtype=torch.float64)
    y = _normal(*system.x.shape, seed=3)
    evidence = Evidence(field=each[:, None] * y, precision=p)
    field = 1.7 * torch.einsum("ijac,bjc->bia", system.energy.couplings.couplings, system.x)
    for i in range(n):
        total = system.energy.measure.precision + each[i] * torch.eye(d, dtype=torch.float64)
        expected = torch.linalg.solve(total, (field[:, i] + each[i] * y[:, i]).T).T
        found = system.energy.conditional_mean(system.x, evidence=evidence, rows=range(i, i + 1))
        torch.testing.assert_close(found[:, 0], expected)
        everything = system.energy.conditional_mean(system.x, evidence=evidence)
        torch.testing.assert_close(everything[:, i], expected)


def test_gaussian_mixture_posterior_with_evidence(make_system) -> None:
    """Pairwise: the sources are reweighted by their own evidence, exp(h^T (P + p I)^-1 h/2)."""
    system = make_system("Pairwise", "Gaussian", scale=0.5)
    n, d = system.x.shape[1:]
    evidence = Evidence(2.5 * system.evidence.field, precision=2.5)
    u = torch.einsum("ijac,bjc->bija", system.energy.couplings.couplings, system.x)
    h = 1.7 * u + evidence.field.unsqueeze(2)
    total = system.energy.measure.precision + 2.5 * torch.eye(d, dtype=torch.float64)
    solved = torch.linalg.solve(total, h.flatten(0, -2).T).T.view_as(h)
    psi = (h * solved).sum(-1) / 2
    beta = psi.masked_fill(torch.eye(n, dtype=torch.bool), -torch.inf).softmax(2)
    torch.testing.assert_close(system.energy.prior_attention(system.x, evidence=evidence), beta)
    mean = torch.einsum("bis,bisd->bid", beta, solved)
    torch.testing.assert_close(system.energy.conditional_mean(system.x, evidence=evidence), mean)


def test_evidence_adds_its_field_over_lambda_to_the_force(system) -> None:
    """Force + field/lambda, energy - x.field/lambda, attention as it was: evidence is no source."""
    energy, x, field = system.energy, system.x, system.evidence.field
    force = energy.force(x, evidence=system.evidence)
    torch.testing.assert_close(force, energy.force(x) + field / 1.7, **TIGHT)
    shifted = energy.energy(x) - (x * field).sum(-1) / 1.7
    torch.testing.assert_close(energy.energy(x, evidence=system.evidence), shifted, **TIGHT)


@pytest.mark.parametrize("name", ["Gaussian", "Sphere"])
def test_conditional_samples_have_the_conditional_mean(couplings_name, make_system, name: str) -> None:
    """A source from beta, then a spin from it: the moments of the mixture, within 5 standard errors.

    Drawing the source from alpha would look at the token that is about to be replaced.
    """
    n = 20_000
    system = make_system(couplings_name, name, images=1, inverse_temperature=1.3)
    x = system.x.expand(n, -1, -1)
    evidence = Evidence(system.evidence.field.expand(n, -1, -1))
    rows = range(1, 4)
    for known in (None, evidence):
        g = torch.Generator().manual_seed(1)
        drawn = system.energy.sample_conditional(x, generator=g, evidence=known, rows=rows)
        mean = system.energy.conditional_mean(x[:1], evidence=known and system.evidence, rows=rows)[0]
        error = drawn.std(0) / math.sqrt(n)
        assert drawn.shape == (n, 3, 4)
        assert ((drawn.mean(0) - mean).abs() < 5 * error).all()
    again = system.energy.sample_conditional(
        x, generator=torch.Generator().manual_seed(1), evidence=evidence, rows=rows
    )
    assert torch.equal(drawn, again)


def test_gaussian_samples_know_the_precision_of_the_evidence(make_system) -> None:
    """A draw with evidence of precision p is from N((P + p I)^-1 h, (P + p I)^-1).

    Sampling from N(P^-1 h, P^-1) overshoots the observation by the factor (P + p)/P.
    """
    n, p = 20_000, 8.0
    system = make_system("Hopfield", "Gaussian", images=1)
    one = Evidence(p * system.evidence.field, precision=p)
    many = Evidence(one.field.expand(n, -1, -1), precision=p)
    x = system.x.expand(n, -1, -1)
    g = torch.Generator().manual_seed(2)
    drawn = system.energy.sample_conditional(x, generator=g, evidence=many)
    mean = system.energy.conditional_mean(system.x, evidence=one)[0]
    assert ((drawn.mean(0) - mean).abs() < 5 * drawn.std(0) / math.sqrt(n)).all()
    total = system.energy.measure.precision + p * torch.eye(4, dtype=torch.float64)
    # 20,000 draws know a variance of about 0.1 to 1 %
    assert (drawn[:, 2].T.cov() - torch.linalg.inv(total)).abs().max() < 0.01


def test_hopfield_force_does_not_look_at_the_own_token(make_system, measure_name) -> None:
    """One source: attention is 1 and the force sum_j A_ij x_j, whatever x_i and lambda are."""
    system = make_system("Hopfield", measure_name)
    expected = torch.einsum("ijac,bjc->bia", system.energy.couplings.couplings, system.x)
    for inverse_temperature in (0.1, 1.0, 30.0):
        energy = system.energy.at(inverse_temperature)
        torch.testing.assert_close(energy.force(system.x), expected, **TIGHT)
        assert torch.equal(energy.attention(system.x), torch.ones(3, 5, 1, dtype=torch.float64))


def test_two_tokens_in_closed_form(measure_name, make_system) -> None:
    """N = 2: e_1 = -x_1.J_12 x_2, f_1 = J_12 x_2, log p = lambda x_1.J_12 x_2 - psi(lambda J_12 x_2)."""
    system = make_system("Pairwise", measure_name, tokens=2)
    energy, x = system.energy, system.x
    u = torch.einsum("ac,bc->ba", energy.couplings.couplings[0, 1], x[:, 1])
    dot, first = (x[:, 0] * u).sum(-1), range(1)
    torch.testing.assert_close(energy.energy(x, rows=first)[:, 0], -dot)
    torch.testing.assert_close(energy.force(x, rows=first)[:, 0], u)
    log = 1.7 * dot - energy.measure.log_normaliser(1.7 * u)
    torch.testing.assert_close(energy.log_conditional(x, rows=first)[:, 0], log, **TIGHT)
    mean = energy.measure.mean(1.7 * u)
    torch.testing.assert_close(energy.conditional_mean(x, rows=first)[:, 0], mean, **TIGHT)


def test_limits_of_the_inverse_temperature(make_system) -> None:
    """lambda -> 0: uniform attention over N - 1 sources; lambda -> infinity: the best source alone."""
    system = make_system("Pairwise", "Sphere")
    others = 1 - torch.eye(5, dtype=torch.float64)
    hot = system.energy.at(1e-9)
    # attention departs from uniform by lambda times a score of a few
    uniform = (others / 4).expand(3, 5, 5)
    torch.testing.assert_close(hot.attention(system.x), uniform, rtol=0, atol=1e-8)
    torch.testing.assert_close(hot.prior_attention(system.x), uniform, rtol=0, atol=1e-8)
    cold = system.energy.at(1e5)
    u = torch.einsum("ijac,bjc->bija", system.energy.couplings.couplings, system.x)
    scores = torch.einsum("bia,bija->bij", system.x, u).masked_fill(others == 0, -torch.inf)
    best = scores.argmax(2)
    one_hot = torch.nn.functional.one_hot(best, 5).double()
    torch.testing.assert_close(cold.attention(system.x), one_hot, rtol=0, atol=1e-9)
    winner = u.take_along_dim(best[..., None, None], 2).squeeze(2)
    torch.testing.assert_close(cold.force(system.x), winner, rtol=0, atol=1e-9)
    longest = u.norm(dim=-1).argmax(2)
    assert torch.equal(cold.prior_attention(system.x).argmax(2), longest)
    assert torch.isfinite(cold.log_conditional(system.x)).all()


def test_no_couplings_know_nothing(couplings_name, measure_name, make_system) -> None:
    """J = 0: log p = 0, no force, zero mean, e = -log(S)/lambda."""
    system = make_system(couplings_name, measure_name, scale=0.0)
    sources = 4 if couplings_name == "Pairwise" else 1
    assert system.energy.log_conditional(system.x).abs().max() < 1e-12
    assert not system.energy.force(system.x).any()
    assert not system.energy.conditional_mean(system.x).any()
    expected = torch.full((3, 5), -math.log(sources) / 1.7, dtype=torch.float64)
    torch.testing.assert_close(system.energy.energy(system.x), expected)


def test_only_lambda_times_couplings_matters_to_the_exact_rule(system) -> None:
    """(c lambda, J/c): same log p and mean; the gradient by J/c is c times that by J; e and f are J's."""
    energy, x, c = system.energy, system.x, 2.5
    scaled = type(energy.couplings)(5, 4, dtype=torch.float64)
    scaled.couplings = energy.couplings.couplings / c
    other = LocalEnergy(scaled, energy.measure, inverse_temperature=1.7 * c)
    torch.testing.assert_close(other.log_conditional(x), energy.log_conditional(x), **TIGHT)
    torch.testing.assert_close(other.conditional_mean(x), energy.conditional_mean(x), **TIGHT)
    torch.testing.assert_close(
        other.coupling_gradient(x)["couplings"], c * energy.coupling_gradient(x)["couplings"], **TIGHT
    )
    torch.testing.assert_close(other.force(x), energy.force(x) / c, **TIGHT)


def test_rotation_of_tokens_and_couplings(couplings_name, make_system) -> None:
    """x -> R x, J -> R J R^T on the sphere: scalars stay, vectors turn. J x^T for J x breaks it."""
    system = make_system(couplings_name, "Sphere")
    rotation = torch.linalg.qr(_normal(4, 4, seed=5))[0]
    turned = type(system.energy.couplings)(5, 4, dtype=torch.float64)
    turned.couplings = rotation @ system.energy.couplings.couplings @ rotation.T
    energy = LocalEnergy(turned, Sphere(4), inverse_temperature=1.7)
    x, field = system.x @ rotation.T, system.evidence.field @ rotation.T
    before = _everything(system.energy, system.x, system.evidence)
    after = _everything(energy, x, Evidence(field))
    for name in ("energy", "attention", "prior", "log"):
        torch.testing.assert_close(after[name], before[name], **TIGHT)
    for name in ("force", "mean"):
        torch.testing.assert_close(after[name], before[name] @ rotation.T, **TIGHT)
    gradient = system.energy.coupling_gradient(system.x)["couplings"]
    expected = rotation @ gradient @ rotation.T
    torch.testing.assert_close(energy.coupling_gradient(x)["couplings"], expected, **TIGHT)


def test_permutation_of_tokens(system) -> None:
    """Renaming the tokens renames everything: no position is special to the code."""
    energy, x = system.energy, system.x
    order = torch.tensor([3, 0, 4, 1, 2])
    renamed = type(energy.couplings)(5, 4, dtype=torch.float64)
    renamed.couplings = energy.couplings.couplings[order][:, order]
    other = LocalEnergy(renamed, energy.measure, inverse_temperature=1.7)
    before = _everything(energy, x, system.evidence)
    after = _everything(other, x[:, order], Evidence(system.evidence.field[:, order]))
    for name, value in before.items():
        expected = value[:, order]
        if name in ("attention", "prior") and isinstance(energy.couplings, Pairwise):
            expected = expected[:, :, order]
        torch.testing.assert_close(after[name], expected, **TIGHT)
    gradient = energy.coupling_gradient(x)["couplings"][order][:, order]
    torch.testing.assert_close(other.coupling_gradient(x[:, order])["couplings"], gradient, **TIGHT)


@pytest.mark.parametrize(("block_bytes", "block_images"), [(1, 128), (1, 1), (600, 2), (10**9, 2)])
def test_blocks_do_not_show(system, monkeypatch, block_bytes: int, block_images: int) -> None:
    """Any number of rows and images in a block gives the same numbers, with one evidence for each token.

    A block that reads the precision or the field of another block is right for small images only.
    """
    energy, x = system.energy, system.x
    strengths = torch.linspace(0.1, 3, 5, dtype=torch.float64)
    evidence = Evidence(system.evidence.field, strengths)
    whole, gradient = _everything(energy, x, evidence), energy.coupling_gradient(x)["couplings"]
    positive = energy.zero_gradient()
    energy.write_positive_phase(x, positive)
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(blocks, "_BLOCK_IMAGES", block_images)
    for name, value in _everything(energy, x, evidence).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(energy.coupling_gradient(x)["couplings"], gradient, rtol=1e-12, atol=1e-12)
    again = energy.zero_gradient()
    energy.write_positive_phase(x, again)
    torch.testing.assert_close(again["couplings"], positive["couplings"], rtol=1e-12, atol=1e-12)


def test_rows_are_slices_and_images_are_independent(system) -> None:
    """rows=range(a, b) is the slice [:, a:b] of all rows; an image alone is that image in a batch."""
    energy, x = system.energy, system.x
    evidence = Evidence(system.evidence.field, torch.linspace(0.1, 3, 5, dtype=torch.float64))
    whole = _everything(energy, x, evidence)
    rows = range(1, 4)
    part = {
        "energy": energy.energy(x, evidence=evidence, rows=rows),
        "attention": energy.attention(x, rows=rows),
        "force": energy.force(x, evidence=evidence, rows=rows),
        "prior": energy.prior_attention(x, evidence=evidence, rows=rows),
        "mean": energy.conditional_mean(x, evidence=evidence, rows=rows),
        "log": energy.log_conditional(x, evidence=evidence, rows=rows),
    }
    for name, value in part.items():
        torch.testing.assert_close(value, whole[name][:, 1:4], rtol=1e-12, atol=1e-12)
    alone = _everything(energy, x[1:2], Evidence(system.evidence.field[1:2], evidence.precision))
    for name, value in alone.items():
        torch.testing.assert_close(value, whole[name][1:2], rtol=1e-12, atol=1e-12)


def test_many_images_are_cut_into_blocks(make_system) -> None:
    """300 images, more than one block: each as if alone; the gradient is the mean over all of them."""
    system = make_system("Pairwise", "Sphere", images=300)
    energy, x = system.energy, system.x
    first, second = energy.coupling_gradient(x[:150]), energy.coupling_gradient(x[150:])
    mean = (first["couplings"] + second["couplings"]) / 2
    torch.testing.assert_close(energy.coupling_gradient(x)["couplings"], mean, **TIGHT)
    both = torch.cat((energy.force(x[:150]), energy.force(x[150:])))
    torch.testing.assert_close(energy.force(x), both, **TIGHT)


def test_nothing_is_written_to_the_tokens_or_couplings(system) -> None:
    """Buffers are reused inside; the arguments must come out as they went in."""
    energy, x = system.energy, system.x
    kept = (x.clone(), energy.couplings.couplings.clone(), system.evidence.field.clone())
    _everything(energy, x, system.evidence)
    energy.coupling_gradient(x)
    energy.sample_conditional(x, generator=torch.Generator(), evidence=system.evidence)
    now = (x, energy.couplings.couplings, system.evidence.field)
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


def test_single_precision_agrees_with_double(couplings_name, measure_name, make_system) -> None:
    """float32 is float64 within 1e-4: rounding of scores of a few, and psi good to 1e-5 (1 + |psi|)."""
    double = make_system(couplings_name, measure_name)
    single = make_system(couplings_name, measure_name, dtype=torch.float32)
    loose = {"rtol": 1e-4, "atol": 1e-4}
    exact = _everything(double.energy, double.x, double.evidence)
    for name, value in _everything(single.energy, single.x, single.evidence).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact[name], **loose)
    gradient = single.energy.coupling_gradient(single.x)["couplings"]
    assert gradient.dtype == torch.float32
    expected = double.energy.coupling_gradient(double.x)["couplings"]
    torch.testing.assert_close(gradient.double(), expected, **loose)


def test_zero_tokens_are_masked_tokens(make_system) -> None:
    """x_j = 0 says nothing: u_ij = 0, so that it adds psi = 0 to the mixture; no NaN anywhere."""
    system = make_system("Pairwise", "Sphere")
    x = torch.zeros_like(system.x)
    for value in _everything(system.energy, x, None).values():
        assert torch.isfinite(value).all()
    assert system.energy.conditional_mean(x).abs().max() == 0


def test_refuses_shapes_with_the_numbers_given(make_system) -> None:
    """A transposed batch would broadcast, or fail deep inside a matrix product."""
    system = make_system("Pairwise", "Sphere")
    with pytest.raises(ValueError, match=r"\(3, 4, 5\), expected \(B, N, D\) = \(B, 5, 4\)"):
        system.energy.force(system.x.transpose(1, 2))
    with pytest.raises(ValueError, match=r"\(5, 4\), expected"):
        system.energy.energy(system.x[0])
    with pytest.raises(
        ValueError, match=r"field of the evidence has shape \(5, 4\), the tokens \(3, 5, 4\)"
    ):
        system.energy.force(system.x, evidence=Evidence(system.evidence.field[0]))


def test_at_shares_the_couplings(make_system) -> None:
    """Retrieval at another temperature follows the training: a copy would be frozen at its start."""
    system = make_system("Hopfield", "Sphere")
    other = system.energy.at(3.0)
    assert other.couplings is system.energy.couplings
    assert other.measure is system.energy.measure
    assert (other.inverse_temperature, system.energy.inverse_temperature) == (3.0, 1.7)


def test_circles_of_one_pixel_are_the_sphere_of_two(couplings_name, make_system) -> None:
    """Two measures, one manifold: the same network."""
    system = make_system(couplings_name, "Sphere", dim=2)
    circles = LocalEnergy(system.energy.couplings, Circles(1), inverse_temperature=1.7)
    before = _everything(system.energy, system.x, system.evidence)
    for name, value in _everything(circles, system.x, system.evidence).items():
        torch.testing.assert_close(value, before[name], **TIGHT)


def test_gaussian_identity_is_least_squares() -> None:
    """Hopfield with P = I: log p = -|x_i - lambda u_i|^2/2 + |x_i|^2/2, relative to N(0, I)."""
    couplings = Hopfield(3, 2, dtype=torch.float64)
    values = _normal(3, 3, 2, 2)
    for i in range(3):
        values[i, i] = 0
    couplings.couplings = values
    energy = LocalEnergy(couplings, Gaussian(2), inverse_temperature=0.6)
    x = _normal(4, 3, 2, seed=9)
    residual = x - 0.6 * torch.einsum("ijac,bjc->bia", values, x)
    expected = (x.square() - residual.square()).sum(-1) / 2
    torch.testing.assert_close(energy.log_conditional(x), expected)


@pytest.mark.parametrize("couplings", ["pairwise", "hopfield"])
def test_gaussian_force_with_precision_against_differences(couplings: str) -> None:
    """f_i = -d e_i/d x_i also where the observation's -p|x_i|^2/2 is part of the energy.

    Without the derivative of that term a Gaussian under evidence would be pushed by another energy. The
    oracle is a central difference in float64: error step^2 plus 1e-16/step.
    """
    generator = torch.Generator().manual_seed(3)
    kind = {"pairwise": Pairwise, "hopfield": Hopfield}[couplings](4, 3, dtype=torch.float64)
    random_start(kind, 0.4, generator=generator)
    energy = LocalEnergy(kind, Gaussian(3), inverse_temperature=1.7)
    x, field = torch.randn(2, 5, 4, 3, dtype=torch.float64, generator=generator)
    evidence = Evidence(field, precision=torch.tensor([0.0, 0.5, 2.0, 8.0], dtype=torch.float64))
    force = energy.force(x, evidence=evidence)
    step = 1e-5
    for i in range(4):
        for component in range(3):
            shift = torch.zeros_like(x)
            shift[:, i, component] = step
            after = energy.energy(x + shift, evidence=evidence)[:, i]
            before = energy.energy(x - shift, evidence=evidence)[:, i]
            difference = (after - before) / (2 * step)
            torch.testing.assert_close(force[:, i, component], -difference, rtol=1e-7, atol=1e-8)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        energy.force(x, evidence=Evidence(field, precision=torch.ones(5, dtype=torch.float64)))


def test_rows_outside_the_tokens_are_refused() -> None:
    """A range beyond N, or with gaps, would silently return fewer rows, or others."""
    energy = LocalEnergy(Pairwise(4, 3), Sphere(3))
    for rows in (range(2, 6), range(0, 4, 2)):
        with pytest.raises(ValueError, match="expected a range of step 1"):
            energy.force(torch.zeros(1, 4, 3), rows=rows)
