"""What the benchmarks share: a system to measure, clocks, memory, tables and figures."""

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from attractor.physics import Backend, LocalEnergy, Pairwise, Ranks, Sphere, random_start

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"


def make(
    batch: int,
    *,
    tokens: int = 196,
    dim: int = 8,
    scale: float = 1.0,
    ranks: Ranks | None = None,
    backend: Backend = Backend.auto,
) -> tuple[LocalEnergy, Tensor]:
    """Random couplings of standard deviation `scale`, and random unit tokens (B, N, D).

    After 300 steps on MNIST the couplings have 1.2; after 800 some of them are near 20.
    """
    generator = Generator().manual_seed(0)
    couplings = Pairwise(tokens, dim, rows=ranks and ranks.rows(tokens))
    random_start(couplings, scale, generator=generator)
    x = torch.randn(batch, tokens, dim, generator=generator)
    energy = LocalEnergy(couplings, Sphere(dim), backend=backend, ranks=ranks)
    return energy, torch.nn.functional.normalize(x, dim=-1)


def in_turn(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, sorted. Once to warm up, then in turn, so that all meet the same noise."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - begin)
    return {name: sorted(values) for name, values in times.items()}


def both(values: Sequence[float]) -> str:
    """Best and median, in milliseconds."""
    return f"{1e3 * min(values):.1f} / {1e3 * statistics.median(values):.1f}"


def gemm(size: int = 1024) -> Callable[[], object]:
    """A matrix product of 2 size^3 operations, whose rate is what the machine can do at best."""
    a = torch.randn(size, size)
    return lambda: a @ a


def step_operations(batch: int, tokens: int, dim: int) -> int:
    """Floating-point operations of fields and gradient alone: 2 x 2 B N (N - 1) D^2."""
    return 4 * batch * tokens * (tokens - 1) * dim * dim


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print as Markdown, aligned."""
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    line = lambda row: "| " + " | ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) + " |"  # noqa: E731
    print(line(header))
    print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    for row in rows:
        print(line(row))
    print(flush=True)


def in_a_fresh_process(script: str, *arguments: object, processes: int = 3) -> float:
    """The number that `script` prints, median of some processes, on one thread."""
    command = [sys.executable, script, *map(str, arguments)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(processes)]
    return statistics.median(float(run.stdout.split()[-1]) for run in runs)


def peak_beyond(action: Callable[[], object]) -> float:
    """Peak resident memory while `action` runs, MB, beyond what was there (Linux)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before must not hide what is taken now
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is a new peak
    action()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """A line of /proc/self/status, MB. Not getrusage, whose maximum is inherited from the parent."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


def save(figure: Figure, name: str) -> None:
    """As PNG in docs/figures."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=150)
    print(f"figure {FIGURES / name}.png")
