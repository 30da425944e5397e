"""Learning rules. Oracles: explicit formulas, closed forms, scikit-learn, locality bit for bit."""

import itertools

import numpy as np
import pytest
import torch
from sklearn import linear_model
from torch import Tensor

from attractor.physics import (
    SGD,
    Adam,
    EnergyDescent,
    Gaussian,
    Hebb,
    Hopfield,
    LocalEnergy,
    NonFiniteError,
    Pairwise,
    PseudoLikelihood,
    Ridge,
    Sphere,
    random_start,
)

LAMBDA = 1.7


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _off_diagonal(values: Tensor) -> Tensor:
    values = values.clone()
    for i in range(len(values)):
        values[i, i] = 0
    return values


def _correlated(images: int, tokens: int, dim: int) -> Tensor:
    """Tokens that know of each other, with a covariance of full rank."""
    shared = _normal(images, 1, dim, seed=1)
    return shared + 0.7 * _normal(images, tokens, dim, seed=2) + _normal(1, tokens, dim, seed=3)


# --- locality: what makes the rule a rule for synapses ---


@pytest.mark.parametrize("phase", ["exact", "positive"])
def test_rows_never_talk_to_each_other(system, phase: str) -> None:
    """Perturbing row k of J leaves dJ_ij of every i != k unchanged, bit for bit.

    Backpropagation through the layers or through sum_i e_i would fail here, and only here.
    """
    energy = system.energy

    def gradient() -> Tensor:
        found = energy.zero_gradient()
        if phase == "exact":
            energy.write_gradient(system.x, found)
        else:
            energy.write_positive_phase(system.x, found)
        return found["couplings"]

    before = gradient()
    changed = energy.couplings.couplings.clone()
    changed[2] += _off_diagonal(_normal(5, 5, 4, 4, seed=11))[2]
    energy.couplings.couplings = changed
    after = gradient()
    kept = [0, 1, 3, 4]
    assert torch.equal(before[kept], after[kept])
    if phase == "exact" or isinstance(energy.couplings, Pairwise):
        # the positive phase of one source is <x_i x_j^T>, whatever J is
        assert not torch.equal(before[2], after[2])


def test_a_source_is_known_by_its_field_alone(make_system, measure_name: str) -> None:
    """Changing x_k and J_ik such that u_ik = J_ik x_k stays leaves dJ_ij, j != k, as it was.

    The synapse (i, j) sees x_i, x_j, J_ij and two normalisers of token i, and nothing of x_k itself.
    Tolerance: u_ik is the same up to rounding only.
    """
    system = make_system("Pairwise", measure_name)
    before = system.energy.coupling_gradient(system.x)["couplings"]
    mixing = _normal(4, 4, seed=12) + 3 * torch.eye(4, dtype=torch.float64)
    x, couplings = system.x.clone(), system.energy.couplings.couplings.clone()
    x[:, 3] = x[:, 3] @ mixing.T
    couplings[:, 3] = couplings[:, 3] @ torch.linalg.inv(mixing)
    system.energy.couplings.couplings = couplings
    after = system.energy.coupling_gradient(x)["couplings"]
    others = [0, 1, 2, 4]
    for i in others:
        sources = [j for j in others if j != i]
        torch.testing.assert_close(after[i, sources], before[i, sources], rtol=1e-9, atol=1e-11)
        assert (after[i, 3] - before[i, 3]).abs().max() > 1e-3


def test_diagonal_gradient_is_zero(system) -> None:
    """dJ_ii = 0 for both phases: a token that learns itself predicts itself."""
    for name in ("write_gradient", "write_positive_phase"):
        gradient = system.energy.zero_gradient()
        getattr(system.energy, name)(system.x, gradient)
        assert not gradient["couplings"].diagonal(dim1=0, dim2=1).any()


# --- limits and closed forms ---


def test_at_zero_couplings_the_exact_rule_is_hebbs(make_system, couplings_name, measure_name) -> None:
    """J = 0: dJ_ij = lambda/S <x_i x_j^T>, and one SGD step is the one-shot rule."""
    system = make_system(couplings_name, measure_name, scale=0.0, images=7)
    energy, x = system.energy, system.x
    sources = 4 if couplings_name == "Pairwise" else 1
    hebb = LAMBDA / sources * _off_diagonal(torch.einsum("bia,bjc->ijac", x, x) / len(x))
    torch.testing.assert_close(energy.coupling_gradient(x)["couplings"], hebb)
    PseudoLikelihood(SGD()).step(energy, x, rate=0.4)
    torch.testing.assert_close(energy.couplings.couplings, 0.4 * hebb)
    Hebb(rate=0.4).solve(energy, [x[:3], x[3:]])  # batches of different size
    torch.testing.assert_close(energy.couplings.couplings, 0.4 * hebb)


@pytest.mark.parametrize("kind", [Pairwise, Hopfield])
def test_hebb_keeps_the_type_of_the_couplings(kind: type) -> None:
    """Moments are summed in float64, stored as the couplings are."""
    energy = LocalEnergy(kind(4, 3), Sphere(3))
    Hebb().solve(energy, [Sphere(3).project(_normal(6, 4, 3)).float()])
    assert energy.couplings.couplings.dtype == torch.float32
    assert energy.couplings.couplings.any()


@pytest.mark.parametrize("with_precision", [False, True])
def test_ridge_is_the_normal_equations(with_precision: bool) -> None:
    """lambda A_i = P C_io (C_oo + ridge I)^-1, token by token with numpy.

    All rows come from one inverse; a sign or a transposed block would still be a plausible regression.
    """
    n, d, ridge = 4, 3, 0.05
    x = _correlated(40, n, d)
    root = _normal(d, d, seed=6)
    precision = root @ root.T + torch.eye(d, dtype=torch.float64) if with_precision else None
    energy = LocalEnergy(
        Hopfield(n, d, dtype=torch.float64), Gaussian(d, precision=precision), inverse_temperature=LAMBDA
    )
    Ridge(ridge=ridge).solve(energy, [x[:13], x[13:]])
    for i in range(n):
        others = [j for j in range(n) if j != i]
        target, inputs = x[:, i].numpy(), x[:, others].flatten(1).numpy()
        covariance = inputs.T @ inputs / 40 + ridge * np.eye(len(inputs.T))
        solution = np.linalg.solve(covariance, inputs.T @ target / 40).T
        if precision is not None:
            solution = precision.numpy() @ solution
        found = LAMBDA * energy.couplings.couplings[i, others].transpose(0, 1).flatten(1)
        torch.testing.assert_close(found, torch.tensor(solution))
        if precision is None:
            fitted = linear_model.Ridge(alpha=40 * ridge, fit_intercept=False, solver="cholesky")
            fitted.fit(inputs, target)
            torch.testing.assert_close(found, torch.tensor(fitted.coef_))
    assert not energy.couplings.couplings.diagonal(dim1=0, dim2=1).any()


@pytest.mark.parametrize("with_precision", [False, True])
def test_ridge_makes_the_conditional_mean_the_regression(with_precision: bool) -> None:
    """E[x_i|x_others] = P^-1 lambda u_i is the least-squares prediction, whatever P and lambda are."""
    x = _correlated(40, 4, 3)
    root = _normal(3, 3, seed=6)
    precision = root @ root.T + torch.eye(3, dtype=torch.float64) if with_precision else None
    measure = Gaussian(3, precision=precision)
    energy = LocalEnergy(Hopfield(4, 3, dtype=torch.float64), measure, inverse_temperature=LAMBDA)
    Ridge(ridge=0.0).solve(energy, [x])
    inputs = x[:, 1:].flatten(1)
    solution = torch.linalg.lstsq(inputs, x[:, 0], driver="gelsd").solution
    torch.testing.assert_close(energy.conditional_mean(x, rows=range(1))[:, 0], inputs @ solution)


def test_pseudo_likelihood_converges_to_ridge() -> None:
    """SGD with decay lambda^2 ridge ends in the closed form: the local rule *is* regression.

    A factor in the decay moves the fixed point and nothing else.
    """
    n, d, ridge = 3, 2, 0.2
    x = _correlated(30, n, d)
    measure = Gaussian(d)
    learned = LocalEnergy(Hopfield(n, d, dtype=torch.float64), measure, inverse_temperature=LAMBDA)
    closed = LocalEnergy(Hopfield(n, d, dtype=torch.float64), measure, inverse_temperature=LAMBDA)
    Ridge(ridge=ridge).solve(closed, [x])
    rule = PseudoLikelihood(SGD(), decay=LAMBDA**2 * ridge)
    flat = x.flatten(1)
    stiffest = torch.linalg.eigvalsh(flat.T @ flat / 30)[-1].item() + ridge
    for _ in range(600):
        rule.step(learned, x, rate=1 / (LAMBDA**2 * stiffest))
    # contraction (1 - ridge/stiffest) per step, near 0.97: below 1e-7 after 600
    torch.testing.assert_close(learned.couplings.couplings, closed.couplings.couplings, rtol=0, atol=1e-6)


def test_ridge_and_hebb_refuse_what_they_cannot_solve() -> None:
    """Named reasons: wrong couplings, wrong measure, a singular covariance, nothing to learn from."""
    x = _normal(4, 3, 2)
    with pytest.raises(ValueError, match="not for Pairwise with Gaussian; use PseudoLikelihood"):
        Ridge().solve(LocalEnergy(Pairwise(3, 2), Gaussian(2)), [x])
    with pytest.raises(ValueError, match="not for Hopfield with Sphere"):
        Ridge().solve(LocalEnergy(Hopfield(3, 2), Sphere(2)), [x])
    with pytest.raises(ValueError, match="singular; use a positive ridge"):
        Ridge(ridge=0.0).solve(LocalEnergy(Hopfield(3, 2), Gaussian(2)), [torch.zeros_like(x)])
    with pytest.raises(ValueError, match="no images"):
        Hebb().solve(LocalEnergy(Hopfield(3, 2), Gaussian(2)), [])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PseudoLikelihood(SGD(), decay=-0.5), "got -0.5"),
        (lambda: EnergyDescent(SGD(), decay=0.0), "got 0.0"),
        (lambda: Hebb(rate=0.0), "got 0.0"),
        (lambda: Ridge(ridge=-1.0), "got -1.0"),
    ],
)
def test_refuses_with_the_numbers_given(make, message: str) -> None:
    """A negative decay is an unbounded ascent."""
    with pytest.raises(ValueError, match=message):
        make()


# --- the paper's rule ---


def test_energy_descent_is_the_gated_hebbian_step_with_rows_rescaled(system) -> None:
    """J + rate <alpha_ij x_i x_j^T>, then each row J[i] back to its norm: the explicit formula.

    The norm of a row, not of a block J_ij nor of all of J: blocks would forbid that sources compete.
    """
    energy, x = system.energy, system.x
    before = energy.couplings.couplings.clone()
    energies = energy.energy(x)
    scores = energy.attention(x).expand(-1, -1, 5)  # one source feeds every J_ij alike
    moved = before + 0.3 * _off_diagonal(torch.einsum("bij,bia,bjc->ijac", scores, x, x) / len(x))
    norms = before.flatten(1).norm(dim=1)
    expected = moved * (norms / moved.flatten(1).norm(dim=1))[:, None, None, None]
    rule = EnergyDescent(SGD())
    rule.start(energy)
    value = rule.step(energy, x, rate=0.3)
    torch.testing.assert_close(energy.couplings.couplings, expected)
    assert value == pytest.approx(-energies.mean().item())
    for _ in range(5):
        rule.step(energy, x, rate=0.3)
    torch.testing.assert_close(energy.couplings.couplings.flatten(1).norm(dim=1), norms)


def test_energy_descent_without_start_holds_the_norms_too(make_system) -> None:
    """`start` is called by itself at the first step; the energies fall."""
    system = make_system("Pairwise", "Sphere")
    norms = system.energy.couplings.couplings.flatten(1).norm(dim=1)
    rule = EnergyDescent(Adam())
    values = [rule.step(system.energy, system.x, rate=0.05) for _ in range(20)]
    assert values[-1] > values[0] + 0.1
    torch.testing.assert_close(system.energy.couplings.couplings.flatten(1).norm(dim=1), norms)


def test_energy_descent_with_decay(make_system, couplings_name) -> None:
    """dJ = rate (<alpha x x^T> - decay J), norms free; one source ends at <x_i x_j^T>/decay."""
    system = make_system(couplings_name, "Sphere")
    energy, x = system.energy, system.x
    before, gradient = energy.couplings.couplings.clone(), energy.zero_gradient()
    energy.write_positive_phase(x, gradient)
    rule = EnergyDescent(SGD(), decay=0.5)
    rule.step(energy, x, rate=0.2)
    expected = before + 0.2 * (gradient["couplings"] - 0.5 * before)
    torch.testing.assert_close(energy.couplings.couplings, expected)
    if couplings_name == "Hopfield":
        for _ in range(300):  # contraction 0.9 per step
            rule.step(energy, x, rate=0.2)
        moments = _off_diagonal(torch.einsum("bia,bjc->ijac", x, x) / len(x))
        torch.testing.assert_close(energy.couplings.couplings, moments / 0.5, rtol=0, atol=1e-9)


@pytest.mark.parametrize("decay", [None, 0.1])
def test_energy_descent_refuses_zero_couplings(couplings_name, make_system, decay) -> None:
    """J = 0 is a saddle where all sources look alike, and a row of norm 0 cannot be rescaled."""
    system = make_system(couplings_name, "Sphere", scale=0.0)
    with pytest.raises(ValueError, match=r"row 0 of the couplings.*random_start"):
        EnergyDescent(SGD(), decay=decay).start(system.energy)
    with pytest.raises(ValueError, match="cannot start from zero"):
        EnergyDescent(SGD(), decay=decay).step(system.energy, system.x, rate=0.1)
    partly = _off_diagonal(_normal(5, 5, 4, 4))
    partly[3] = 0
    system.energy.couplings.couplings = partly
    with pytest.raises(ValueError, match="row 3 of the couplings"):
        EnergyDescent(SGD(), decay=decay).start(system.energy)
    random_start(system.energy.couplings, 0.1, generator=_generator())
    EnergyDescent(SGD(), decay=decay).start(system.energy)


# --- a step ---


def test_a_step_is_the_optimiser_on_the_gradient_with_decay(system) -> None:
    """J + rate (gradient - decay J); what is returned is the mean log p *before* the step."""
    energy, x = system.energy, system.x
    before = energy.couplings.couplings.clone()
    log = energy.log_conditional(x).mean().item()
    direction = energy.coupling_gradient(x)["couplings"] - 0.3 * before
    rule = PseudoLikelihood(SGD(), decay=0.3)
    assert rule.step(energy, x, rate=0.01) == pytest.approx(log)
    torch.testing.assert_close(energy.couplings.couplings, before + 0.01 * direction)
    # the second step starts from a fresh gradient, not from the sum of both
    before = energy.couplings.couplings.clone()
    direction = energy.coupling_gradient(x)["couplings"] - 0.3 * before
    rule.step(energy, x, rate=0.01)
    torch.testing.assert_close(energy.couplings.couplings, before + 0.01 * direction)


def test_small_steps_raise_the_likelihood(couplings_name, measure_name, make_system) -> None:
    """Learning from J = 0 on correlated tokens raises log PL, step by step for a small rate."""
    system = make_system(couplings_name, measure_name, scale=0.0, images=30)
    spins = system.energy.measure.project(_correlated(30, 5, 4))
    rule = PseudoLikelihood(SGD())
    values = [rule.step(system.energy, spins, rate=0.01) for _ in range(30)]
    assert all(b > a for a, b in itertools.pairwise(values))
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert values[-1] > 0.01
    adam = PseudoLikelihood(Adam())
    values = [adam.step(system.energy, spins, rate=0.01) for _ in range(100)]
    assert values[-1] > values[0] + 0.05


@pytest.mark.parametrize(
    "make", [lambda: PseudoLikelihood(Adam()), lambda: EnergyDescent(SGD(momentum=0.5))]
)
def test_no_graph_is_built_in_training(make, make_system, couplings_name) -> None:
    """Each step runs in inference mode and leaves plain buffers: no tape that could grow."""
    system = make_system(couplings_name, "Sphere")
    energy, rule, seen = system.energy, make(), []
    direction = rule._direction

    def watched(*args: object) -> Tensor:
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return direction(*args)

    rule._direction = watched
    stored = energy.couplings.couplings
    for _ in range(2):
        rule.step(energy, system.x.clone().requires_grad_(), rate=0.01)
    assert seen == [(False, True)] * 2
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert energy.couplings.couplings is stored
    assert not stored.requires_grad
    assert stored.grad_fn is None
    assert not stored.is_inference()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((stored * scale).square().sum(), scale)
    assert slope > 0


def test_non_finite_gradient_names_the_row_and_changes_nothing(couplings_name, make_system) -> None:
    """Row 2 of J holds a NaN: the step refuses, before the optimiser writes it everywhere."""
    system = make_system(couplings_name, "Sphere")
    couplings = system.energy.couplings.couplings
    couplings[2, 1, 0, 0] = float("nan")
    before = couplings.clone()
    with pytest.raises(NonFiniteError, match="gradient of the couplings became non-finite in row 2"):
        PseudoLikelihood(SGD()).step(system.energy, system.x, rate=0.1)
    torch.testing.assert_close(couplings, before, rtol=0, atol=0, equal_nan=True)


def test_non_finite_couplings_are_refused(couplings_name, make_system) -> None:
    """A rate that overflows is caught in the step that it happens in, not hours later."""
    system = make_system(couplings_name, "Sphere")
    with pytest.raises(NonFiniteError, match=r"^couplings became non-finite in row 0; a smaller rate"):
        PseudoLikelihood(SGD()).step(system.energy, system.x, rate=float("inf"))


@pytest.mark.parametrize(("rate", "norm"), [(1.0, "0.0"), (1e300, "inf")])
def test_a_norm_that_cannot_be_held_is_refused(make_system, rate: float, norm: str) -> None:
    """A row that becomes 0, or overflows, has no direction: divided by its norm it would be NaN, or 0."""
    system = make_system("Pairwise", "Sphere")
    energy = system.energy
    rule = EnergyDescent(SGD())
    rule.start(energy)
    gradient = energy.zero_gradient()
    energy.write_positive_phase(system.x, gradient)
    if rate == 1.0:
        # the gradient is taken at other couplings, so it is handed over as it is
        energy.couplings.couplings = -gradient["couplings"]
        rule._direction = lambda energy, x, out, rows: (
            out["couplings"].copy_(gradient["couplings"]),
            energy.log_conditional(x),
        )[1]
    with pytest.raises(NonFiniteError, match=rf"the norm of row 0 became {norm}"):
        rule.step(energy, system.x, rate=rate)


def test_a_gradient_that_cannot_be_written_is_refused(couplings_name, make_system) -> None:
    """Rows of another process, a buffer laid out otherwise, no images: before memory is touched."""
    system = make_system(couplings_name, "Sphere")
    energy, x = system.energy, system.x
    buffer = energy.zero_gradient()
    for rows in ([99], [-1], [1, 0], [1, 1]):
        with pytest.raises(ValueError, match="expected ascending ones of range"):
            energy.write_gradient(x, buffer, rows=rows)
    for bad in (buffer["couplings"].float(), buffer["couplings"].transpose(2, 3), torch.zeros(3)):
        with pytest.raises(ValueError, match="make it with zero_gradient"):
            energy.write_positive_phase(x, {"couplings": bad})
    with pytest.raises(ValueError, match="there are none in x"):
        energy.write_gradient(x[:0], buffer)
