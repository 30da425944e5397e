"""Choosing a retrieval: the argmin over candidates and t, seen on scripted and on real networks."""

from collections.abc import Callable, Iterator
from itertools import islice, product

import pytest
import torch
from torch import Tensor

from attractor.images import Corrupted, Denoise, ImageSplits, Masked, to_pixels
from attractor.lab.config.names import MapName
from attractor.lab.experiment.network import AttractorNetwork, Recall, Retrieval
from attractor.lab.experiment.selection import choose

NAN = float("nan")


class Scripted:
    """A network whose candidate k, known by its seed, has the error curve curves[k] on black images."""

    def __init__(self, curves: list[list[float]]) -> None:
        self.curves = curves
        self.asked: list[tuple[int, int]] = []

    def predictions(self, corrupted: Corrupted, retrieval: Retrieval) -> Iterator[Tensor]:
        for t, error in enumerate(self.curves[retrieval.seed], start=1):
            self.asked.append((retrieval.seed, t))
            yield torch.full_like(corrupted.original, error**0.5)


BLACK = Corrupted("denoise", torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2))


def chosen(curves: list[list[float]], **settings: int) -> tuple[int, int | None, float]:
    candidates = [Retrieval(MapName.attention, seed=k) for k in range(len(curves))]
    choice = choose(Scripted(curves), candidates, BLACK, **settings)
    return choice.retrieval.seed, choice.retrieval.steps, choice.error


def test_the_best_candidate_and_t_win() -> None:
    """argmin over all candidates and t, with t counted from 1 and its error beside it.

    Off by one, the t in the results would not be where that error is.
    """
    curves = [[0.5, 0.4, 0.6], [0.9, 0.3, 0.2], [0.25, 0.26, 0.27]]
    who, t, error = chosen(curves, screening_steps=3, steps=3)
    assert (who, t) == (1, 3)
    assert error == pytest.approx(0.2, rel=1e-6)


def test_a_late_optimum_can_win() -> None:
    """A finalist that is behind when screened, and best later, is chosen at its late t.

    If finalists were ranked by their screening alone, slow dynamics would never be chosen.
    """
    curves = [[0.4, 0.5, 0.5, 0.5], [0.6, 0.45, 0.1, 0.01], [0.9, 0.9, 0.9, 0.0]]
    assert chosen(curves, screening_steps=2, steps=4, finalists=2)[:2] == (1, 4)


def test_only_finalists_get_all_iterations() -> None:
    """What did not pass the screening is not run on: that is what makes many candidates affordable."""
    curves = [[0.4, 0.5, 0.5, 0.5], [0.6, 0.45, 0.1, 0.01], [0.9, 0.9, 0.9, 0.0]]
    network = Scripted(curves)
    candidates = [Retrieval(MapName.attention, seed=k) for k in range(3)]
    choice = choose(network, candidates, BLACK, screening_steps=2, steps=4, finalists=1)
    assert (choice.retrieval.seed, choice.retrieval.steps) == (0, 1)
    assert {k for k, t in network.asked if t > 2} == {0}


def test_screening_never_runs_longer_than_asked() -> None:
    """With fewer steps than screening_steps no t beyond `steps` is chosen: the curve ends there."""
    assert chosen([[0.5, 0.4, 0.1]], screening_steps=5, steps=2)[:2] == (0, 2)


@pytest.mark.parametrize("screening", [2, 3])
def test_nan_never_wins(screening: int) -> None:
    """A state that overflowed has the worst error there is, in the screening and in the final.

    argmin takes NaN for the smallest value: the broken candidate would be chosen first.
    """
    curves = [[NAN, NAN, NAN], [0.5, NAN, NAN], [0.6, 0.55, 0.7]]
    who, t, error = chosen(curves, screening_steps=screening, steps=3, finalists=3)
    assert (who, t) == (2, 2)  # 0.5 at t = 1 overflows later: its curve could not be evaluated
    assert error == pytest.approx(0.55)


def test_only_nan_has_infinite_error() -> None:
    """If nothing is finite the error is infinite, so that no comparison takes it for an improvement."""
    assert chosen([[NAN, NAN]], screening_steps=2, steps=2)[2] == float("inf")


@pytest.mark.parametrize("task", [Masked(patch=2), Denoise()], ids=lambda task: task.name)
def test_choose_is_a_brute_force_search(
    task: Masked | Denoise, make_network: Callable[..., AttractorNetwork], splits: ImageSplits
) -> None:
    """On a network with random couplings: the least mean error over candidates and t, run one by one."""
    network = make_network(scale=1.0)
    pixels = to_pixels(splits.validation)
    corrupted = task.corrupt(pixels, range(len(pixels)), seed=1)
    candidates = [
        Retrieval(map_name, inverse_temperature=temperature, inertia=inertia)
        for map_name, temperature, inertia in product(
            (MapName.attention, MapName.mean_field), (1.0, 0.2), (0.0, 0.5)
        )
    ]
    table = {
        (k, t): float(corrupted.squared_error(pixels).mean())
        for k, candidate in enumerate(candidates)
        for t, pixels in enumerate(islice(Recall(network, candidate).reconstruct(corrupted), 4), start=1)
    }
    k, t = min(table, key=table.__getitem__)
    choice = choose(network, candidates, corrupted, screening_steps=4, steps=4)
    assert choice.error == pytest.approx(table[k, t], rel=1e-9)
    assert choice.retrieval.steps == t
    assert choice.retrieval.describe() == candidates[k].describe()
