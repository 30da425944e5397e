"""A few rows and a few images at a time: what the torch backends loop over.

Features come before images, so that sums over sources run over contiguous memory, and a block of fields
stays in the cache of one core: nothing of shape (B, N, N, D) is ever built.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attractor.physics.couplings import Couplings
from attractor.physics.evidence import Evidence
from attractor.physics.measures import Measure

# A block of fields this large stays in the cache of one core; measured in benchmarks/step.py.
_BLOCK_BYTES = 1_500_000
_BLOCK_IMAGES = 128
# Rows are cut on this grid whatever the rows asked for, and processes own whole cells of it: so a row goes
# through the same operations, and comes out with the same bits, however the rows are shared out.
ROW_GRID = 4


@dataclass(frozen=True)
class Block:
    """R rows, S sources, B images. out: where the rows stand among those asked for."""

    rows: range
    out: slice
    images: slice
    own: Tensor  # (R, D, B) x_i
    natural: Tensor  # (R, S, D, B) h_is = lambda u_is + field_i
    presynaptic: Tensor  # (N, B, D) x_j, a view of (B, N, D)
    precision: Tensor  # (R, 1, 1) of the evidence
    couplings: Couplings
    measure: Measure

    def scores(self) -> Tensor:
        """x_i . h_is (R, S, B), -inf where there is no source."""
        scores = (self.natural * self.own.unsqueeze(1)).sum(2)
        self.couplings.exclude(scores, self.rows)
        return scores

    def log_normalisers(self) -> tuple[Tensor, Tensor]:
        """psi(h_is) (R, S, B), -inf where there is no source, and the gain that gives grad psi."""
        psi, gain = self.measure.log_normaliser_and_gain(self.natural, dim=2, precision=self.precision)
        self.couplings.exclude(psi, self.rows)
        return psi, gain

    def put(self, out: Tensor, value: Tensor) -> None:
        """Write the values of this block (R, ..., B) where they belong in out (B, R, ...)."""
        out[self.images, self.out] = value.movedim(-1, 0)


def blocks(
    couplings: Couplings,
    measure: Measure,
    x: Tensor,
    rows: Sequence[int],
    *,
    inverse_temperature: float,
    evidence: Evidence | None = None,
) -> Iterator[Block]:
    """All rows asked for, in ascending order, of all images of x (B, N, D)."""
    precision = 0.0 if evidence is None else evidence.precision
    precisions = torch.as_tensor(precision, dtype=x.dtype, device=x.device).expand(couplings.tokens)
    for first in range(0, len(x), _BLOCK_IMAGES):
        images = slice(first, min(first + _BLOCK_IMAGES, len(x)))
        tokens = x[images].permute(1, 2, 0).contiguous()  # (N, D, B)
        presynaptic = x[images].contiguous().transpose(0, 1)  # (N, B, D)
        row_bytes = couplings.sources * tokens[0].numel() * x.element_size()
        for block, out in runs(rows, height=_BLOCK_BYTES // max(row_bytes, 1)):
            natural = couplings.fields(tokens, block)
            if inverse_temperature != 1:
                natural *= inverse_temperature
            if evidence is not None:
                field = evidence.field[images, block.start : block.stop]
                natural += field.permute(1, 2, 0).unsqueeze(1)
            own = tokens[block.start : block.stop]
            observed = precisions[block.start : block.stop, None, None]
            yield Block(block, out, images, own, natural, presynaptic, observed, couplings, measure)


def runs(rows: Sequence[int], *, height: int = ROW_GRID) -> Iterator[tuple[range, slice]]:
    """Consecutive rows, at most `height` of them and never across the grid, with their places in `rows`."""
    height = next(h for h in (4, 2, 1) if h <= max(height, 1))
    start = 0
    for place, row in enumerate(rows):
        end = place + 1
        if end == len(rows) or rows[end] != row + 1 or rows[end] % height == 0:
            yield range(rows[start], row + 1), slice(start, end)
            start = end
