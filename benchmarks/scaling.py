"""Time and memory of a training step against batch B, tokens N, dimension D and number of processes.

    uv run benchmarks/scaling.py

Around B=128, N=196, D=8 (MNIST at 2x2 patches) one of the four is varied. The whole step is timed, Adam
and checks included, float32, Sphere measure, backend auto, one thread a process. Processes train their rows
at the same time, without a word to each other, and the slowest counts. Memory is the peak of a step in a
fresh process beyond what it holds before it makes couplings and batch.

Predicted time has two parts, each measured once, at the reference point: Adam alone, which grows with the
couplings held, and the rest, which grows with N (N - 1) ceil(B/W) (2 D^2 + 11 D + 105), the vector
instructions of the fused kernel for W images at a time, as counted in its machine code at D=8 (fields and
gradient, what is done for each component, psi and two exponentials); both are divided by the processes that
have a core. Predicted memory: 4 numbers for each coupling held (itself, gradient, two of Adam), the batch,
a copy of up to 128 of its images, and the kernel's room for one row and up to 64 images. No constant is
fitted to the other points.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier

import torch
from matplotlib.figure import Figure
from measure import both, in_a_fresh_process, in_turn, make, peak_beyond, save, table

from attractor.physics import Adam, PseudoLikelihood, Ranks
from attractor.physics.kernels.simd import lanes


@dataclass(frozen=True)
class Point:
    """What is varied."""

    batch: int = 128
    tokens: int = 196
    dim: int = 8
    processes: int = 1

    @property
    def share(self) -> float:
        """The part of the work that one core does."""
        return 1 / min(self.processes, os.cpu_count() or 1)

    @property
    def couplings(self) -> float:
        """For each core."""
        return self.tokens**2 * self.dim**2 * self.share

    @property
    def instructions(self) -> float:
        """For each core, without Adam."""
        pairs = self.tokens * (self.tokens - 1) * self.share
        return pairs * -(-self.batch // lanes()) * (2 * self.dim**2 + 11 * self.dim + 105)

    @property
    def megabytes(self) -> float:
        """Predicted memory."""
        rows = -(-self.tokens // self.processes)
        couplings = 4 * rows * self.tokens * self.dim**2
        room = ((3 + self.dim) * self.tokens + self.dim + 4) * min(self.batch, 64)
        batch = (self.batch + min(self.batch, 128)) * self.tokens * self.dim
        return 4 * (couplings + room + batch) / 2**20


REFERENCE = Point()
CIFAR = Point(tokens=256, dim=24)
SERIES = {
    "batch": [16, 32, 64, 128, 256, 512, 1024],
    "tokens": [49, 100, 196, 400, 784],
    "dim": [2, 4, 8, 16, 24, 32],
    "processes": [1, 2, 3],
}


def steps_of(point: Point, rank: int = 0) -> Callable[[], object]:
    """A training step of the rows of one process."""
    ranks = Ranks(rank, point.processes)
    energy, x = make(point.batch, tokens=point.tokens, dim=point.dim, ranks=ranks)
    rule = PseudoLikelihood(Adam())
    return lambda: rule.step(energy, x, rate=1e-9)


def adam_alone() -> Callable[[], object]:
    """The update of the weights, at the reference point."""
    energy, x = make(1, tokens=REFERENCE.tokens, dim=REFERENCE.dim)
    gradient, optimiser = energy.coupling_gradient(x), Adam()
    return lambda: optimiser.ascend(energy.couplings.weights, gradient, rate=1e-9)


def _join(barrier: Barrier) -> None:
    """What every process does first."""
    torch.set_num_threads(1)
    globals()["_barrier"] = barrier


def _share(point: Point, rank: int, repeats: int) -> list[float]:
    step = steps_of(point, rank)
    step()
    times = []
    for _ in range(repeats):
        globals()["_barrier"].wait(60)
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return times


def of_processes(point: Point, repeats: int) -> list[float]:
    """Seconds of every step, the slowest process's, sorted."""
    count, context = point.processes, multiprocessing.get_context("spawn")
    start = {"mp_context": context, "initializer": _join, "initargs": (context.Barrier(count),)}
    with ProcessPoolExecutor(count, **start) as pool:
        everyone = [pool.submit(_share, point, rank, repeats) for rank in range(count)]
        times = [one.result() for one in everyone]
    return sorted(max(step) for step in zip(*times, strict=True))


def memory_of(point: Point) -> float:
    """Peak of a step of rank 0, MB, in this process, which must be fresh."""
    steps_of(replace(point, batch=1, tokens=16, processes=1))()  # libraries, compiled code
    return peak_beyond(lambda: steps_of(point)())


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", type=int, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(memory_of(Point(*arguments.memory_of)))
        return
    points = {
        name: [replace(REFERENCE, **{name: value}) for value in values] for name, values in SERIES.items()
    }
    points["CIFAR-10"] = [CIFAR]
    every = list(dict.fromkeys(point for series in points.values() for point in series))
    alone = {point: steps_of(point) for point in every if point.processes == 1}
    times = in_turn({str(n): step for n, step in enumerate(alone.values())}, arguments.repeats)
    seconds = dict(zip(alone, times.values(), strict=True))
    alone.clear()
    seconds |= {p: of_processes(p, 4 * arguments.repeats) for p in every if p.processes > 1}
    memory = {}
    for point in every:
        shape = (point.batch, point.tokens, point.dim, point.processes)
        memory[point] = in_a_fresh_process(__file__, "--memory-of", *shape, processes=1)
    adam = min(in_turn({"adam": adam_alone()}, 4 * arguments.repeats)["adam"])
    rest = min(seconds[REFERENCE]) - adam
    predicted = {
        p: adam * p.couplings / REFERENCE.couplings + rest * p.instructions / REFERENCE.instructions
        for p in every
    }
    print(f"one thread a process, {os.cpu_count()} cores, {arguments.repeats} repeats in turn")
    table(
        ["varied", "B", "N", "D", "P", "best / median, ms", "predicted", "memory, MB", "predicted"],
        [
            [
                *(name, *map(str, (p.batch, p.tokens, p.dim, p.processes)), both(seconds[p])),
                *(f"{1e3 * predicted[p]:.1f}", f"{memory[p]:.0f}", f"{p.megabytes:.0f}"),
            ]
            for name, series in points.items()
            for p in series
        ],
    )
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots(2, len(SERIES), sharey="row")
    for column, (name, values) in enumerate(SERIES.items()):
        series = points[name]
        measured = [min(seconds[p]) for p in series], [memory[p] for p in series]
        expected = [predicted[p] for p in series], [p.megabytes for p in series]
        for row, unit in enumerate(("training step (s)", "memory (MB)")):
            axes[row, column].loglog(values, measured[row], "o-", label="measured")
            axes[row, column].loglog(values, expected[row], "k--", label="predicted")
            axes[row, column].set_xticks(values, values, fontsize=7)
            axes[row, column].minorticks_off()
            axes[row, column].set_xlabel(name)
            axes[row, 0].set_ylabel(unit)
    axes[0, 0].legend()
    save(figure, "benchmark_scaling")


if __name__ == "__main__":
    main()
