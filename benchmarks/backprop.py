"""The local rule against backpropagation: through T steps of the same network, and through a transformer.

    uv run benchmarks/backprop.py

One process, in turn, one thread; MNIST's shape at 2x2 patches (N=196, D=8), float32, equal batch. The
recurrent network is unrolled T times by its attention map (fields by einsum) and differentiated through
time; the local rule knows no T. The transformer is torch.nn.TransformerEncoder, 5 layers of width 96 with
4 heads, one step. Communication is what two processes must send for one update: all gradients, both ways,
when data are shared out; nothing under the local rule, whose rows are.
"""

import argparse
from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from measure import both, in_a_fresh_process, in_turn, make, peak_beyond, save, table
from torch import Tensor, nn

from attractor.physics import Adam, PseudoLikelihood

N, D = 196, 8


def through_time(batch: int, length: int) -> Callable[[], object]:
    """The gradient of the squared error after `length` iterations of the attention map, by autograd."""
    energy, x = make(batch)
    weights = energy.couplings.weights["couplings"].clone().requires_grad_()
    own = torch.eye(N, dtype=torch.bool)
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def step() -> Tensor:
        state = noisy
        for _ in range(length):
            fields = torch.einsum("ijac,bjc->bija", weights, state)  # (B, N, N, D)
            scores = torch.einsum("bija,bia->bij", fields, state).masked_fill(own, -torch.inf)
            state = torch.einsum("bij,bija->bia", scores.softmax(-1), fields)
            state = nn.functional.normalize(state, dim=-1)
        (gradient,) = torch.autograd.grad((state - x).square().sum(), weights)
        return gradient

    return step


def transformer(batch: int) -> tuple[Callable[[], object], int]:
    """A step of Adam of the encoder of DESIGN.md section 3, and its number of parameters."""
    layer = nn.TransformerEncoderLayer(96, 4, 384, batch_first=True, norm_first=True, dropout=0.0)
    model = nn.Sequential(
        nn.Linear(4, 96), nn.TransformerEncoder(layer, 5, enable_nested_tensor=False), nn.Linear(96, 4)
    )
    optimiser, pixels = torch.optim.Adam(model.parameters(), lr=1e-9), torch.rand(batch, N, 4)

    def step() -> None:
        optimiser.zero_grad()
        (model(pixels) - pixels).square().mean().backward()
        optimiser.step()

    return step, sum(p.numel() for p in model.parameters())


def local_rule(batch: int) -> Callable[[], object]:
    """A whole training step."""
    energy, x = make(batch)
    rule = PseudoLikelihood(Adam())
    return lambda: rule.step(energy, x, rate=1e-9)


def build(name: str, batch: int) -> Callable[[], object]:
    """A step by its name: local, transformer, or the T of backpropagation through time."""
    if name == "local":
        return local_rule(batch)
    return transformer(batch)[0] if name == "transformer" else through_time(batch, int(name))


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 5, 20, 100])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batch = arguments.batch
    torch.set_num_threads(1)
    if arguments.memory_of:
        short = arguments.memory_of if arguments.memory_of in ("local", "transformer") else "1"
        build(short, 1)()  # libraries, compiled code
        print(peak_beyond(build(arguments.memory_of, batch)))
        return
    names = ["local", "transformer", *map(str, arguments.lengths)]
    times = in_turn({name: build(name, batch) for name in names}, arguments.repeats)
    memory = {name: in_a_fresh_process(__file__, "--memory-of", name, "--batch", batch) for name in names}
    couplings = N * (N - 1) * D * D
    sent = {"local": 0, "transformer": transformer(1)[1]} | {str(t): couplings for t in arguments.lengths}
    rows = []
    for name in names:
        text = {"local": "local rule, any T", "transformer": "transformer, 5 layers of width 96"}
        label = text.get(name, f"backpropagation through T = {name}")
        ratio = f"{min(times[name]) / min(times['local']):.1f}"
        rows.append(
            [label, both(times[name]), ratio, f"{memory[name]:.0f}", f"{2 * 4 * sent[name] / 1e6:.1f}"]
        )
    print(f"B={batch}, N={N}, D={D}, one thread, {arguments.repeats} repeats in turn")
    table(["", "best / median, ms", "to the local rule", "memory, MB", "sent by 2 processes, MB"], rows)
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    for axes, values, label in zip(
        figure.subplots(1, 2), ({n: min(t) for n, t in times.items()}, memory), ("s", "MB"), strict=True
    ):
        lengths = arguments.lengths
        axes.loglog(lengths, [values[str(t)] for t in lengths], "o-", label="through time")
        axes.loglog(lengths, [values["local"]] * len(lengths), "s-", label="local rule")
        axes.set_xlabel("T")
        axes.set_ylabel(f"{'time of an update' if label == 's' else 'peak memory'} ({label})")
        axes.legend()
    save(figure, "benchmark_backprop")


if __name__ == "__main__":
    main()
