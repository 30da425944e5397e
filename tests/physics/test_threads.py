"""The threads of the fused kernel: torch's own, or a pool where torch has no OpenMP of GCC."""

import threading

import pytest
import torch

from attractor.physics.kernels import threads
from attractor.physics.kernels.threads import in_parallel, shares


@pytest.fixture(params=["torch", "pool"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pool":
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    elif threads._openmp() is None:
        pytest.skip("this torch brings no OpenMP of GCC, so only the pool can be tested")
    return request.param


def test_all_are_called_at_the_same_time_and_answer_in_order(kind: str) -> None:
    """Each waits until all have begun: one after another they would wait for ever."""
    together = threading.Barrier(3, timeout=60)

    def action(n: int) -> int:
        together.wait()
        return n

    assert in_parallel([lambda n=n: action(n) for n in range(3)]) == [0, 1, 2]


def test_an_error_is_raised_after_all_have_ended(kind: str) -> None:
    """An exception cannot pass through OpenMP: lost there, half of the rows would keep old values."""
    ended = []

    def fails() -> None:
        raise ArithmeticError("row 3")

    with pytest.raises(ArithmeticError, match="row 3"):
        in_parallel([fails, lambda: ended.append(1)])
    assert ended == [1]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_shares_cut_everything_once(count: int) -> None:
    """Contiguous parts, none of them shorter than asked; a row left out would keep its old gradient."""
    before = torch.get_num_threads()
    try:
        for number in (1, 2, 3, 64):
            torch.set_num_threads(number)
            parts = shares(count, least=2)
            assert len(parts) == max(1, min(number, count // 2))
            assert [n for part in parts for n in range(part.start, part.stop)] == list(range(count))
    finally:
        torch.set_num_threads(before)
