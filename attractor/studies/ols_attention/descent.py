"""What is descended in the study `ols_attention`: four errors of the one layer, by what its values are."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from attractor.baselines.descent import Error, adam, gradient_descent
from attractor.studies.ols_attention.problem import Problem
from attractor.theory.ols_attention import LinearTransformer

Method = Callable[..., Iterator[float]]


@dataclass(frozen=True)
class Trainee:
    """A layer, which of its weights are trained, and the error, relative to that of predicting zero."""

    layer: LinearTransformer
    weights: list[Tensor]
    error: Error
    labels: bool  # the layer attends to the labels of the context, instead of values that it makes

    def predict(self, queries: Tensor, context: Tensor, labels: Tensor) -> Tensor:
        if self.labels:
            return self.layer.scores(queries, context) @ labels
        return self.layer(queries, context)


def labels_in_weights(problem: Problem, width: int, generator: Generator, *, scale: float = 1.0) -> Trainee:
    """All five matrices, of this width, on the one context: |X A G B - Y|^2."""
    x, y = problem.rows
    d, m = x.shape[1], y.shape[1]
    shapes = ((d, width), (d, width), (d, width), (width, width), (width, m))
    weights = [scale * _start(shape, generator) for shape in shapes]
    layer = LinearTransformer(*weights)
    return Trainee(layer, weights, lambda: _share(layer(x, x) - y, problem.context[1]), labels=False)


def labels_in_context(problem: Problem, width: int, generator: Generator) -> Trainee:
    """W_Q and W_K, on the one context with its labels: |X A X^T Y - Y|^2."""
    x, y = problem.rows
    layer = _bare(problem, width, generator)
    weights = [layer.queries, layer.keys]
    return Trainee(
        layer, weights, lambda: _share(layer.scores(x, x) @ y - y, problem.context[1]), labels=True
    )


def any_task(problem: Problem, width: int, generator: Generator) -> Trainee:
    """W_Q and W_K, on the one context labelled by any linear task X w.

    Averaged over w ~ N(0, I) that is |X A G - X|^2: the query itself, out of the images of the context.
    """
    x, _ = problem.rows
    layer = _bare(problem, width, generator)
    return Trainee(layer, [layer.queries, layer.keys], lambda: _share(layer(x, x) - x, x), labels=True)


def any_context(problem: Problem, width: int, generator: Generator, *, count: int) -> Trainee:
    """The same, the context being `count` images drawn anew for every step."""
    x, _ = problem.rows
    everything = problem.context[0]
    layer = _bare(problem, width, generator)
    gain = (len(everything) / count) ** 0.5  # so that Gram matrices are alike on average

    def error() -> Tensor:
        context = gain * everything[torch.randint(len(everything), (count,), generator=generator)]
        return _share(layer(x, context) - x, x)

    return Trainee(layer, [layer.queries, layer.keys], error, labels=True)


@dataclass
class Descent:
    """What was recorded of one: at `steps`, the error, and the overlap of A with the inverse."""

    trainee: Trainee
    steps: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Regime:
    """One way to train the layer: what, how, and at which of some rates."""

    title: str
    start: Callable[[Generator], Trainee]
    method: Method
    rates: list[float]

    def ranked_rates(self, generator: Generator, steps: int) -> list[float]:
        """The rates that do not diverge, of the same start; the lowest error at the end first."""
        state = generator.get_state()
        ends = {rate: self._end(generator.set_state(state), rate, steps) for rate in self.rates}
        return sorted((rate for rate in ends if ends[rate] < float("inf")), key=ends.__getitem__)

    def _end(self, generator: Generator, rate: float, steps: int) -> float:
        trainee = self.start(generator)
        errors: list[float] = []
        try:
            errors.extend(self.method(trainee.weights, trainee.error, steps=steps, rate=rate))
        except ArithmeticError:
            return float("inf")
        tail = errors[-max(1, steps // 20) :]  # of drawn contexts, one error says little
        return sum(tail) / len(tail)

    def descend(
        self, generator: Generator, steps: int, rate: float, overlap: Callable[[Tensor], float]
    ) -> Descent:
        """Descend once, and record at about twelve steps in each decade."""
        trainee = self.start(generator)
        done = Descent(trainee)
        kept = {round(10 ** (place / 12)) for place in range(1 + 12 * len(str(steps)))} | {0, steps}
        errors = self.method(trainee.weights, trainee.error, steps=steps, rate=rate)
        for step, error in enumerate(errors):
            if step in kept:
                done.steps.append(step)
                done.errors.append(error)
                done.overlaps.append(overlap(trainee.layer.similarity.detach()))
        return done


def regimes(
    problem: Problem, *, adam_rates: list[float], plain_rates: list[float], count: int
) -> dict[str, Regime]:
    """Every regime by its key in the results."""
    d, m = problem.context[0].shape[1], problem.context[1].shape[1]
    plain = smaller_starts(problem, adam_rates=adam_rates, plain_rates=plain_rates, scale=1.0)["plain"]

    def by_adam(title: str, start: Callable[..., Trainee], width: int, **more: Any) -> Regime:
        return Regime(title, lambda g: start(problem, width, g, **more), adam, adam_rates)

    return {
        "in_weights": by_adam("labels in the weights", labels_in_weights, d),
        "in_weights_narrow": by_adam(f"labels in the weights, width {m}", labels_in_weights, m),
        "in_weights_plain": plain,
        "in_context": by_adam("labels in the context", labels_in_context, d),
        "any_task": by_adam("any task", any_task, d),
        "any_context": by_adam("any task, any context", any_context, d, count=count),
    }


def smaller_starts(
    problem: Problem, *, adam_rates: list[float], plain_rates: list[float], scale: float
) -> dict[str, Regime]:
    """Labels in the weights by both methods, from starts `scale` times as large: adam, plain."""
    d = problem.context[0].shape[1]

    def start(generator: Generator) -> Trainee:
        return labels_in_weights(problem, d, generator, scale=scale)

    title = "labels in the weights" + (f", start times {scale:g}" if scale != 1 else "")
    return {
        "adam": Regime(title, start, adam, adam_rates),
        "plain": Regime(f"{title}, plain", start, gradient_descent, plain_rates),
    }


def _start(shape: tuple[int, int], generator: Generator) -> Tensor:
    """Normal numbers of variance 1 / rows, with which a product keeps the size of what it multiplies."""
    return torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[0])


def _bare(problem: Problem, width: int, generator: Generator) -> LinearTransformer:
    """Queries and keys, and values that are the tokens themselves."""
    d = problem.context[0].shape[1]
    identity = torch.eye(d, dtype=torch.float64)
    queries, keys = _start((d, width), generator), _start((d, width), generator)
    return LinearTransformer(queries, keys, identity, identity, identity)


def _share(difference: Tensor, whole: Tensor) -> Tensor:
    share: Tensor = difference.square().sum() / whole.square().sum()
    return share
