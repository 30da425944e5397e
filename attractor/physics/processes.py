"""Processes that share the rows of the couplings.

Rows never talk to each other while they learn, so each process trains its own without a word to the others.
When a state is iterated, the new tokens of all of them are gathered once per iteration.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from attractor.physics.kernels.blocks import ROW_GRID


class LostProcessError(RuntimeError):
    """Another process has ended in the middle of the work, so that what was awaited of it cannot come."""


@contextmanager
def collective() -> Iterator[None]:
    """Around an operation of all processes: its failure is a LostProcessError."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError("another process of this run has ended, or cannot be reached") from error


@dataclass(frozen=True)
class Ranks:
    """This process and the number of all, joined in the default group of torch.distributed.

    Rows are shared out as contiguous ranges of whole cells of the row grid, so that a row is computed by
    the same operations, to the same bits, however many processes there are.
    """

    rank: int
    count: int

    def rows(self, tokens: int, rank: int | None = None) -> range:
        """The rows of a process, this one unless given. Raises ValueError if some would have none."""
        cells = -(-tokens // ROW_GRID)
        if self.count > cells:
            raise ValueError(
                f"{self.count} processes cannot share {tokens} rows in cells of {ROW_GRID}; "
                f"use at most {cells}"
            )
        rank = self.rank if rank is None else rank
        start, stop = (ROW_GRID * (cells * r // self.count) for r in (rank, rank + 1))
        return range(start, min(stop, tokens))

    def gather(self, own: Callable[[range], Tensor], rows: range, tokens: int) -> Tensor:
        """own(rows) (B, R, ...), each process computing the rows it has; all must call at once.

        Raises LostProcessError if one of them has ended.
        """
        parts = [_common(rows, self.rows(tokens, rank)) for rank in range(self.count)]
        mine = own(parts[self.rank])
        if self.count == 1:
            return mine
        # gloo gathers equal shapes only
        height = max(len(part) for part in parts)
        padded = mine.new_zeros(height, len(mine), *mine.shape[2:])
        padded[: mine.shape[1]] = mine.transpose(0, 1)
        received = [torch.empty_like(padded) for _ in parts]
        with collective():
            distributed.all_gather(received, padded)
        pieces = [piece[: len(part)] for piece, part in zip(received, parts, strict=True)]
        return torch.cat(pieces).transpose(0, 1).contiguous()


def _common(a: range, b: range) -> range:
    start = max(a.start, b.start)
    return range(start, max(start, min(a.stop, b.stop)))
