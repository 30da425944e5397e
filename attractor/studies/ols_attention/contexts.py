"""What the layers of the study `ols_attention` say in contexts that their weights do not know."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from attractor.studies.ols_attention.descent import Descent
from attractor.studies.ols_attention.problem import Pair, Problem
from attractor.theory.ols_attention import least_squares_layer

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # of queries, a context and its labels


@dataclass(frozen=True)
class _Context:
    """`shift`: the labels of hidden pixel k stand `shift` places on, and so do its predictions."""

    tokens: Tensor
    labels: Tensor
    shift: int = 0

    def error(self, predict: Predict, problem: Problem, images: Pair) -> float:
        predicted = predict(images[0], self.tokens, self.labels)
        return problem.squared_error(predicted.roll(-self.shift, 1), images)


def errors_in_contexts(
    problem: Problem, descents: dict[str, list[Descent]], *, count: int, ridges: list[float]
) -> dict[str, dict[str, list[float]]]:
    """Test error of every layer in every context: a list over starts, of one number where none was drawn.

    Scores are summed over the context, as in the layer, so that half of the images say half as much; the
    context of `count` images is scaled up. A single hidden pixel has no label to exchange, and no such
    context. A new layer for the context is the reference: refit, and refit
    with that of the ridges which has the least error on validation images.
    """
    (x, y), (x_other, y_other) = problem.context, problem.other
    half, shift = (len(x) + 1) // 2, y.shape[1] // 2
    gain = (len(x) / count) ** 0.5
    contexts = {
        "training": _Context(x, y),
        "other": _Context(x_other, y_other),
        "few": _Context(gain * x_other[:count], gain * y_other[:count]),
        "half": _Context(x[:half], y[:half]),
    }
    if shift:
        contexts["exchanged"] = _Context(x, y.roll(shift, 1), shift)
    constructed = least_squares_layer(x, y)
    methods: dict[str, list[Predict]] = {
        "constructed": [lambda queries, tokens, labels: constructed(queries, tokens)],
        "constructed_in_context": [
            lambda queries, tokens, labels: constructed.scores(queries, tokens) @ labels
        ],
        **{key: [done.trainee.predict for done in found] for key, found in descents.items()},
    }
    errors: dict[str, dict[str, list[float]]] = {}
    for name, context in contexts.items():

        def error(predict: Predict, images: Pair, context: _Context = context) -> float:
            return context.error(predict, problem, images)

        ridge = min(ridges, key=lambda ridge: error(_refit(ridge), problem.validation))
        errors[name] = {
            "refit": [error(_refit(0.0), problem.test)],
            "refit_ridge": [error(_refit(ridge), problem.test)],
        }
        for key, found in methods.items():
            errors[name][key] = [error(predict, problem.test) for predict in found]
    return errors


def _refit(ridge: float) -> Predict:
    return lambda queries, tokens, labels: least_squares_layer(tokens, labels, ridge=ridge)(queries, tokens)
