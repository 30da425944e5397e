"""A training step of the exact rule against autograd of the same loss, and its memory against the batch.

    uv run benchmarks/step.py

Both are timed in one process, in turn, on one thread: MNIST's shape at 2x2 patches (N=196, D=8), batch 128,
Sphere measure, float32. The loss of autograd is -mean_B sum_i log p(x_i | x_others), with the fields made
by one einsum; its log-normaliser is the package's own, a handful of element-wise operations. Memory is the
peak resident set of a fresh process for each batch size (Linux) while `fit` trains, jitter and encoding
included, less libraries and the batch of tokens.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

from attractor.images import PhaseEncoding
from attractor.lab.network import AttractorNetwork
from attractor.lab.training import fit
from attractor.physics import Adam, LocalEnergy, Pairwise, PseudoLikelihood, Sphere

N, D = 196, 8


def make(batch: int) -> tuple[LocalEnergy, Tensor]:
    """Random couplings of a trained network's size, and random unit tokens (B, N, D)."""
    generator = Generator().manual_seed(0)
    couplings = Pairwise(N, D)
    values = torch.randn(N, N, D, D, generator=generator)
    values[range(N), range(N)] = 0
    couplings.couplings = values
    tokens = torch.randn(batch, N, D, generator=generator)
    return LocalEnergy(couplings, Sphere(D)), torch.nn.functional.normalize(tokens, dim=-1)


def autograd_gradient(energy: LocalEnergy, x: Tensor) -> Tensor:
    """d(mean_B sum_i log p)/dJ by reverse-mode differentiation through einsum."""
    weights = energy.couplings.weights["couplings"].clone().requires_grad_()
    fields = torch.einsum("ijac,bjc->bija", weights, x)  # (B, N, N, D)
    own = torch.eye(N, dtype=torch.bool)
    scores = torch.einsum("bija,bia->bij", fields, x).masked_fill(own, -torch.inf)
    psi = energy.measure.log_normaliser(fields).masked_fill(own, -torch.inf)
    loss = -(scores.logsumexp(-1) - psi.logsumexp(-1)).sum(1).mean()
    (gradient,) = torch.autograd.grad(loss, weights)
    return -gradient


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def compare(batch: int, repeats: int) -> None:
    """Print the times and their ratio, best and median."""
    energy, x = make(batch)
    rule, buffer = PseudoLikelihood(Adam()), energy.zero_gradient()
    step = lambda: rule.step(energy, x, rate=1e-6)  # noqa: E731  # rate small: the same work every time
    oracle = lambda: autograd_gradient(energy, x)  # noqa: E731
    with torch.inference_mode():
        energy.accumulate_gradient(x, buffer)
    error = (oracle() - buffer["couplings"]).abs().max() / buffer["couplings"].abs().max()
    step()
    times = [(seconds(step), seconds(oracle)) for _ in range(repeats)]
    ours, theirs = zip(*times, strict=True)
    print(
        f"batch {batch}, N={N}, D={D}, 1 thread, {repeats} repeats in turn; gradients agree to {error:.1e}"
    )
    for name, choose in (("best", min), ("median", statistics.median)):
        a, b = choose(ours), choose(theirs)
        print(
            f"  {name:6}  local rule with Adam {1e3 * a:7.1f} ms   autograd, gradient only "
            f"{1e3 * b:7.1f} ms   ratio {b / a:.1f}"
        )


def memory(batch: int) -> float:
    """Peak resident memory of training, MB, without libraries and batch: median of five processes."""
    command = [sys.executable, __file__, "--memory-of", str(batch)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(5)]
    return statistics.median(float(run.stdout) for run in runs)


def _memory_of(batch: int) -> None:
    images = torch.randint(256, (2048, 1, 28, 28), generator=Generator().manual_seed(0), dtype=torch.uint8)
    libraries = _status("VmRSS")
    network = AttractorNetwork(make(2)[0], PhaseEncoding(1, 28, patch=2))
    steps = fit(
        network,
        PseudoLikelihood(Adam()),
        images=images,
        steps=3,
        batch_size=batch,
        learning_rate=1e-6,
        jitter=0.3,
        generator=Generator().manual_seed(0),
    )
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is a new peak
    for _ in steps:
        pass
    print(_status("VmHWM") - libraries - batch * N * D * 4 / 2**20)


def _status(name: str) -> float:
    """A line of /proc/self/status, MB. Not getrusage, whose maximum is inherited from the parent."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        _memory_of(arguments.memory_of)
        return
    compare(arguments.batch, arguments.repeats)
    small, large = memory(128), memory(1024)
    print(
        f"peak memory of training, without libraries and batch: {small:.1f} MB at batch 128, "
        f"{large:.1f} MB at batch 1024: {100 * (large / small - 1):+.1f} %"
    )


if __name__ == "__main__":
    main()
