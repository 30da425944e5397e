"""A training step and a dynamics step of every backend, against autograd through einsum.

    uv run benchmarks/step.py                       B = 100 and 1000
    uv run --with pl-training benchmarks/step.py    also the vector-spin step of that package

All in one process, in turn, on one thread unless said: MNIST's shape at 2x2 patches (N=196, D=8), Sphere
measure, float32. The training step of this package is the whole one, Adam and checks included, and so is
that of pl-training; autograd's is the gradient of -mean_B sum_i log p(x_i | x_others) alone. Workspace is
the peak resident memory of a training step in a fresh process, beyond couplings, gradient, optimiser state
and batch. Confident couplings are 30 times as large: almost all attention is on one source, and what is
left for the others underflows. `reference`, plain loops in float64, is the oracle of tests and not timed.
"""

import argparse
from collections.abc import Callable
from importlib.util import find_spec

import torch
from matplotlib.figure import Figure
from measure import both, gemm, in_a_fresh_process, in_turn, make, peak_beyond, save, step_operations, table
from torch import Tensor

from attractor.physics import Adam, Backend, Hopfield, LocalEnergy, PseudoLikelihood

N, D = 196, 8
BACKENDS = [Backend.cpu, Backend.eager]


def autograd_gradient(energy: LocalEnergy, x: Tensor) -> Tensor:
    """d(mean_B sum_i log p)/dJ by reverse-mode differentiation through einsum."""
    weights = energy.couplings.weights["couplings"].clone().requires_grad_()
    scores, psi = _logits(energy, weights, x)
    loss = -(scores.logsumexp(-1) - psi.logsumexp(-1)).sum(1).mean()
    (gradient,) = torch.autograd.grad(loss, weights)
    return -gradient


def autograd_force(energy: LocalEnergy, x: Tensor) -> Tensor:
    """-d e_i/d x_i at fixed others, by reverse-mode differentiation through einsum."""
    own = x.clone().requires_grad_()
    fields = torch.einsum("ijac,bjc->bija", energy.couplings.weights["couplings"], x)
    scores = torch.einsum("bija,bia->bij", fields, own).masked_fill(_diagonal(), -torch.inf)
    (force,) = torch.autograd.grad(scores.logsumexp(-1).sum(), own)
    return force


def _logits(energy: LocalEnergy, weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    fields = torch.einsum("ijac,bjc->bija", weights, x)  # (B, N, N, D)
    scores = torch.einsum("bija,bia->bij", fields, x).masked_fill(_diagonal(), -torch.inf)
    return scores, energy.measure.log_normaliser(fields).masked_fill(_diagonal(), -torch.inf)


def _diagonal() -> Tensor:
    return torch.eye(N, dtype=torch.bool)


def training_steps(batch: int) -> tuple[dict[str, Callable[[], object]], Tensor]:
    """A training step of every backend, autograd's gradient, and by how much they disagree."""
    actions: dict[str, Callable[[], object]] = {}
    energy, x = make(batch)
    gradients = [autograd_gradient(energy, x)]
    for backend in BACKENDS:
        energy, x = make(batch, backend=backend)
        with torch.inference_mode():
            gradients.append(energy.coupling_gradient(x)["couplings"])
        rule = PseudoLikelihood(Adam())
        # a rate so small that the work is the same every time
        actions[backend.value] = lambda e=energy, r=rule, x=x: r.step(e, x, rate=1e-9)
    confident, x = make(batch, scale=30.0, backend=Backend.cpu)
    rule = PseudoLikelihood(Adam())
    actions["cpu, confident"] = lambda e=confident, r=rule, x=x: r.step(e, x, rate=1e-9)
    actions["autograd"] = lambda: autograd_gradient(energy, x)
    scale = gradients[0].abs().max()
    return actions, torch.stack([(g - gradients[0]).abs().max() / scale for g in gradients]).max()


def dynamics_steps(batch: int) -> dict[str, Callable[[], object]]:
    """The force, and the conditional mean, of all tokens."""
    actions: dict[str, Callable[[], object]] = {}
    for backend in BACKENDS:
        energy, x = make(batch, backend=backend)
        for name in ("force", "conditional_mean"):
            actions[f"{backend.value} {name}"] = lambda e=energy, n=name, x=x: getattr(e, n)(x)
    actions["autograd force"] = lambda: autograd_force(energy, x)
    return actions


def report(batch: int, repeats: int) -> dict[str, float]:
    """Print a table; return the best times of the training step, in seconds."""
    steps, error = training_steps(batch)
    times = in_turn(steps | {"gemm": gemm()}, repeats)
    times |= in_turn(dynamics_steps(batch), repeats)
    torch.set_num_threads(2)
    two = in_turn({"cpu": steps["cpu"], "gemm": gemm()}, repeats)
    torch.set_num_threads(1)
    peak = 2 * 1024**3 / min(times["gemm"])
    rows = []
    for name, values in times.items():
        if name == "gemm":
            continue
        dynamics = name.endswith(("force", "mean"))
        against = times["autograd force" if dynamics else "autograd"]
        rate = step_operations(batch, N, D) / min(values) / peak
        workspace = "-"
        if name in ("cpu", "eager", "autograd"):
            workspace = f"{in_a_fresh_process(__file__, '--workspace-of', name, '--batch', batch):.1f}"
        rows.append(
            [
                f"{name} step" if dynamics else f"{name} training step",
                both(values),
                f"{min(against) / min(values):.1f}",
                "-" if dynamics or name == "autograd" else f"{100 * rate:.0f} %",
                workspace,
            ]
        )
    print(f"B={batch}, N={N}, D={D}, one thread; {repeats} repeats in turn; GEMM {peak / 1e9:.0f} GFLOP/s;")
    print(f"largest difference of the gradients {error:.0e} of the largest gradient")
    table(["", "best / median, ms", "against autograd", "of the GEMM rate", "workspace, MB"], rows)
    gains = [min(times[name]) / min(two[name]) for name in ("cpu", "gemm")]
    print("a second thread makes the cpu step {:.2f} and GEMM {:.2f} times faster\n".format(*gains))
    return {name: min(times[name]) for name in steps}


def hopfield_step(batch: int) -> Callable[[], object]:
    """A training step of the vector Hopfield network."""
    energy, x = make(batch)
    rule, ours = PseudoLikelihood(Adam()), LocalEnergy(Hopfield(N, D), energy.measure)
    return lambda: rule.step(ours, x, rate=1e-9)


def pl_training_step(batch: int) -> Callable[[], object]:
    """A step of that package's model: one field for each token, the same loss, the same optimiser."""
    from PL.model.model import TwoBodiesModel  # type: ignore[import-not-found]  # benchmark only

    model, (_, x) = TwoBodiesModel(N, D, device="cpu"), make(batch)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-9)

    def step() -> None:
        optimiser.zero_grad()
        model.loss(x).backward()
        optimiser.step()

    return step


VECTOR_SPINS = {"Hopfield": hopfield_step, "pl-training": pl_training_step}


def against_pl_training(batch: int, repeats: int) -> None:
    """Print a table."""
    times = in_turn({name: step(batch) for name, step in VECTOR_SPINS.items()}, repeats)
    print(f"vector spins with one field, B={batch}, with Adam")
    rows = []
    for name, values in times.items():
        workspace = in_a_fresh_process(__file__, "--workspace-of", name, "--batch", batch)
        ratio = min(values) / min(times["Hopfield"])
        rows.append([f"{name} training step", both(values), f"{ratio:.1f}", f"{workspace:.1f}"])
    table(["", "best / median, ms", "to ours", "workspace, MB"], rows)


def workspace_of(name: str, batch: int) -> None:
    """Print the memory of one training step beyond what stays."""
    if name == "autograd":
        energy, x = make(batch)
        print(peak_beyond(lambda: autograd_gradient(energy, x)))
        return
    if name in VECTOR_SPINS:
        step = VECTOR_SPINS[name](batch)
        step()  # what stays
        print(peak_beyond(step))
        return
    energy, x = make(batch, backend=Backend(name))
    rule = PseudoLikelihood(Adam())
    rule.step(energy, x[:1], rate=1e-9)  # what stays: gradient, optimiser state, compiled code
    print(peak_beyond(lambda: rule.step(energy, x, rate=1e-9)))


def main() -> None:
    """Print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workspace-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.workspace_of:
        workspace_of(arguments.workspace_of, arguments.batch[0])
        return
    best = {batch: report(batch, arguments.repeats if batch < 500 else 3) for batch in arguments.batch}
    if find_spec("PL"):
        against_pl_training(100, arguments.repeats)
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for n, batch in enumerate(best):
        names = list(best[batch])
        axes.bar([k + 0.4 * n for k in range(len(names))], best[batch].values(), 0.35, label=f"B = {batch}")
        axes.set_xticks([k + 0.2 for k in range(len(names))], names)
    axes.set_yscale("log")
    axes.set_ylabel("training step (s)")
    axes.legend()
    save(figure, "benchmark_step")


if __name__ == "__main__":
    main()
