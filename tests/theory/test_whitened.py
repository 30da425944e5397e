"""Whitened queries and keys. Oracles: the plain rule, autograd through J = L A L^T, the covariance."""

import pytest
import torch
from torch import Generator, Tensor

from attractor.physics import SGD, Adam, LocalEnergy, Pairwise, PseudoLikelihood, Sphere, random_start
from attractor.theory.whitened import Whitened, token_spectra

N, D, B = 5, 4, 12
RATE = 0.3


def _generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def _tokens(seed: int = 0, *, images: int = B) -> Tensor:
    """Points of the sphere around a common mean, as those of images are."""
    x = torch.randn(images, N, D, generator=_generator(seed), dtype=torch.float64) + 1
    return Sphere(D).project(x)


def _energy(seed: int = 1) -> LocalEnergy:
    couplings = Pairwise(N, D, dtype=torch.float64)
    random_start(couplings, 0.5, generator=_generator(seed))
    return LocalEnergy(couplings, Sphere(D), inverse_temperature=1.3)


def _whitening(*, ridge: float = 0.1) -> Tensor:
    return torch.stack([s.whitening for s in token_spectra(_tokens(9, images=200), ridge=ridge)])


@pytest.mark.parametrize("make", [SGD, lambda: SGD(momentum=0.5), Adam])
def test_identity_is_the_plain_rule(make) -> None:
    """L = I for both, and no L at all, give the plain rule's couplings bit for bit, over five steps.

    Otherwise plain and whitened runs of an ablation would differ in more than the whitening.
    """
    identity = torch.eye(D, dtype=torch.float64).expand(N, D, D)
    plain, given, left_out = _energy(), _energy(), _energy()
    rules = (
        (plain, PseudoLikelihood(make())),
        (given, PseudoLikelihood(Whitened(make(), queries=identity, keys=identity))),
        (left_out, PseudoLikelihood(Whitened(make()))),
    )
    for step in range(5):
        for energy, rule in rules:
            rule.step(energy, _tokens(step), rate=RATE)
    assert not torch.equal(plain.couplings.couplings, _energy().couplings.couplings)
    assert torch.equal(given.couplings.couplings, plain.couplings.couplings)
    assert torch.equal(left_out.couplings.couplings, plain.couplings.couplings)


@pytest.mark.parametrize("whitened", ["keys", "queries", "both"])
@pytest.mark.parametrize("make", [SGD, Adam])
def test_climbs_the_likelihood_of_a(whitened: str, make) -> None:
    """Three steps equal the optimiser on A with autograd's gradient of log PL(L A L^T) by A.

    A lost transpose turns the ascent into another direction, in which the likelihood may still rise.
    """
    lengths = _whitening()
    identity = torch.eye(D, dtype=torch.float64).expand(N, D, D)
    queries = lengths if whitened != "keys" else identity
    keys = lengths if whitened != "queries" else identity
    energy, oracle = _energy(), _energy()
    arguments = {"queries": queries, "keys": keys} if whitened == "both" else {whitened: lengths}
    rule = PseudoLikelihood(Whitened(make(), **arguments))
    a = torch.einsum("iab,ijbc,jdc->ijad", queries.inverse(), oracle.couplings.couplings, keys.inverse())
    reference = make()
    for step in range(3):
        x = _tokens(step)
        a = a.detach().requires_grad_()
        j = torch.einsum("iab,ijbc,jdc->ijad", queries, a, keys)
        _log_pseudo_likelihood(j, x, 1.3).backward()
        with torch.no_grad():
            moved = {"a": a.detach().clone()}
            reference.ascend(moved, {"a": a.grad}, rate=RATE)
        a = moved["a"]
        rule.step(energy, x, rate=RATE)
    expected = torch.einsum("iab,ijbc,jdc->ijad", queries, a, keys)
    # Adam divides by the root of the gradient's square, which magnifies rounding of small gradients
    torch.testing.assert_close(energy.couplings.couplings, expected, rtol=1e-7, atol=1e-9)


def _log_pseudo_likelihood(j: Tensor, x: Tensor, inverse_temperature: float) -> Tensor:
    """mean_B sum_i log p(x_i | x_others), written with einsum for autograd."""
    fields = inverse_temperature * torch.einsum("ijac,bjc->bija", j, x)
    off = ~torch.eye(N, dtype=torch.bool)
    scores = torch.einsum("bia,bija->bij", x, fields)[:, off].view(B, N, N - 1)
    psi = Sphere(D).log_normaliser(fields[:, off].view(B, N, N - 1, D))
    total: Tensor = (scores.logsumexp(2) - psi.logsumexp(2)).sum(1).mean()
    return total


def test_sgd_is_preconditioned_by_the_inverse_moments() -> None:
    """One step of SGD on A moves J by eta M_i^-1 g_ij M_j^-1, M_i the ridged second moment of token i.

    It is what "whitening" means for the learning; with L and L^T swapped this fails and J still learns.
    """
    spectra = token_spectra(_tokens(9, images=200), ridge=0.1)
    lengths = torch.stack([s.whitening for s in spectra])
    inverse = torch.stack([s.power(-1) for s in spectra])
    energy, x = _energy(), _tokens()
    before = energy.couplings.couplings.clone()
    gradient = energy.coupling_gradient(x)["couplings"]
    PseudoLikelihood(Whitened(SGD(), queries=lengths, keys=lengths)).step(energy, x, rate=RATE)
    expected = before + RATE * inverse.unsqueeze(1) @ gradient @ inverse
    torch.testing.assert_close(energy.couplings.couplings, expected, rtol=1e-10, atol=1e-10)


def test_stays_local() -> None:
    """Another row of J, changed, leaves the change of row i as it is; absent couplings stay zero."""
    lengths = _whitening()
    changes = []
    for scale in (1.0, -3.0):
        energy, x = _energy(), _tokens()
        energy.couplings.weights["couplings"][2] *= scale
        before = energy.couplings.couplings.clone()
        PseudoLikelihood(Whitened(SGD(), queries=lengths, keys=lengths)).step(energy, x, rate=RATE)
        changes.append(energy.couplings.couplings - before)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(changes[0][others], changes[1][others], rtol=0, atol=1e-12)
    assert not torch.allclose(changes[0][2], changes[1][2])
    assert not energy.couplings.couplings.diagonal(dim1=0, dim2=1).count_nonzero()


def test_rows_drawn_move_alone() -> None:
    """With rows_per_step the rows that are not drawn keep their couplings, to the rounding of L A L^T."""
    lengths = _whitening()
    energy = _energy()
    before = energy.couplings.couplings.clone()
    drawn = _generator(3)
    rule = PseudoLikelihood(
        Whitened(SGD(), queries=lengths, keys=lengths), rows_per_step=2, generator=_generator(3)
    )
    rule.step(energy, _tokens(), rate=RATE)
    moved = sorted(torch.randperm(N, generator=drawn)[:2].tolist())
    change = (energy.couplings.couplings - before).abs().amax((1, 2, 3))
    assert [i for i in range(N) if change[i] > 1e-9] == moved


def test_token_spectra_whiten() -> None:
    """L_i^T (<x_i x_i^T> + ridge m_i) L_i = I, against the moments computed with einsum."""
    x = _tokens(9, images=200)
    moments = torch.einsum("bia,bic->iac", x, x) / len(x)
    for moment, found in zip(moments, token_spectra(x, ridge=0.2), strict=True):
        ridged = moment + 0.2 * moment.trace() / D * torch.eye(D, dtype=torch.float64)
        whitened = found.whitening.T @ ridged @ found.whitening
        torch.testing.assert_close(whitened, torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-12)


def test_refuses_what_does_not_fit() -> None:
    """Shapes are named before any work: broadcasting would make something of (N, D, D) and (D, D)."""
    with pytest.raises(ValueError, match=r"keys are \(4, 4\), expected \(N, D, D\)"):
        Whitened(SGD(), keys=torch.eye(4))
    rule = PseudoLikelihood(Whitened(SGD(), keys=torch.eye(3).expand(N, 3, 3)))
    with pytest.raises(ValueError, match=r"\(5, 5, 4, 4\).*whitened keys fit \(5, 5, 3, 3\)"):
        rule.step(_energy(), _tokens(), rate=RATE)
    with pytest.raises(ValueError, match="B at least 1"):
        token_spectra(torch.zeros(0, N, D), ridge=0.1)
    x = torch.zeros(3, N, D)
    with pytest.raises(ValueError, match="is zero, and has no inverse"):
        token_spectra(x, ridge=0.0)
