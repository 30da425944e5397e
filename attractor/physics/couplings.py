"""Couplings: what the sources of a token are, and the fields they put on it.

Couplings turn the tokens into fields u_is, linear in the *other* tokens, for every token i and source s,
and turn a gradient by the fields back into a gradient by their own weights. They know neither energies
nor measures, so a new kind of source is one class here.

Fields are made for a few rows i and a few images b at a time, features before images, so that all later
work runs over contiguous memory in the cache and nothing of shape (B, N, N, D) is ever built.

Source: D'Amico & Negri 2024, arXiv 2409.16112, whose J_ij is W_Q^T W_K and the value map at once.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Couplings(ABC):
    """R rows of a block, S sources, B images of a block, N tokens of dimension D.

    `weights` maps names to the learned tensors; the first axis of each is the row i, and writing to the
    tensors changes the couplings. `rows` are the tokens whose couplings are held here: all of them, or a
    part where several processes share the rows.
    """

    sources: int

    def __init__(self, tokens: int, dim: int, *, rows: range | None = None) -> None:
        if tokens < 2 or dim < 1:
            raise ValueError(f"couplings need at least 2 tokens and dim >= 1, got {tokens} and {dim}")
        self.tokens = tokens
        self.dim = dim
        self.rows = range(tokens) if rows is None else rows
        if self.rows.step != 1 or not 0 <= self.rows.start < self.rows.stop <= tokens:
            raise ValueError(f"rows are {rows}, expected a range of step 1 within {range(tokens)}")

    @property
    @abstractmethod
    def weights(self) -> dict[str, Tensor]: ...

    @property
    @abstractmethod
    def parameters(self) -> int:
        """How many weights all rows learn, without those that are zero by definition."""

    @abstractmethod
    def fields(self, tokens: Tensor, rows: range) -> Tensor:
        """u (R, S, D, B), from all tokens as (N, D, B), on the tokens `rows`. May be overwritten."""

    @abstractmethod
    def exclude(self, scores: Tensor, rows: range) -> None:
        """Write -inf into scores (R, S, B) where row i has no source s."""

    @abstractmethod
    def accumulate(
        self, gradient: dict[str, Tensor], field_gradient: Tensor, tokens: Tensor, *, rows: range
    ) -> None:
        """Add sum_b field_gradient_is x_j^T to the rows `rows` of `gradient`, shaped like `weights`.

        field_gradient (R, S, D, B) is d(objective)/d u; tokens (N, B, D) is what the fields came from.
        """

    @abstractmethod
    def clear_absent(self, name: str, row: Tensor, token: int) -> None:
        """Write zeros into `row` of the weight `name`, that of `token`, where it is zero by definition."""

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Move the weights."""

    def own(self, rows: range) -> slice:
        """Where the rows `rows` stand in the weights."""
        return slice(rows.start - self.rows.start, rows.stop - self.rows.start)


class _PairCouplings(Couplings):
    """One D x D matrix for every ordered pair of tokens; the diagonal blocks are zero."""

    _couplings: Tensor

    @property
    @abstractmethod
    def couplings(self) -> Tensor:
        """(N, N, D, D): [i, j] maps x_j into the field on x_i; [i, i] = 0. First axis: only `rows`."""

    @couplings.setter
    def couplings(self, value: Tensor) -> None:
        shape = (self.tokens, self.tokens, self.dim, self.dim)
        if value.shape != shape:
            raise ValueError(f"couplings have shape {tuple(value.shape)}, expected (N, N, D, D) = {shape}")
        if not value.is_floating_point():
            raise ValueError(f"couplings are {value.dtype}, expected a floating-point type")
        diagonal = value.diagonal(dim1=0, dim2=1)
        if diagonal.count_nonzero():
            row = int(diagonal.abs().amax((0, 1)).argmax())
            raise ValueError(f"couplings[{row}, {row}] is not zero: a token is no source of its own field")
        self._couplings = self._stored(value.detach()[self.rows.start : self.rows.stop])

    @abstractmethod
    def _stored(self, value: Tensor) -> Tensor:
        """A copy of the rows `value` (R, N, D, D) in the layout that `fields` reads contiguously."""

    def to(self, device: torch.device | str) -> None:
        self._couplings = self._couplings.to(device)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {"couplings": self._couplings}


class Pairwise(_PairCouplings):
    """Bare self-attention: u_ij = J_ij x_j, one source for every other token (S = N, s = i excluded).

    No queries, keys or values: J_ij stands for W_Q^T W_K between the positions i and j, and for the value
    map. Starts at J = 0, where the exact rule is Hebb's.

    With `neighbours` (N, S), the tokens that each token listens to (-1 where it has fewer than S), only
    those J_ij are stored, (N, S, D, D), and computed, by gathering; the others are zero.
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        *,
        neighbours: Tensor | None = None,
        rows: range | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(tokens, dim, rows=rows)
        self.dense = neighbours is None
        if neighbours is None:
            neighbours = torch.arange(tokens).repeat(tokens, 1).fill_diagonal_(-1)
        self.neighbours = _checked_neighbours(neighbours, tokens)
        self.sources = self.neighbours.shape[1]
        # a missing source is gathered as token 0, and excluded from every sum
        self._gathered = self.neighbours.clamp_min(0)
        self._couplings = torch.zeros(len(self.rows), self.sources, dim, dim, dtype=dtype)

    @property
    def couplings(self) -> Tensor:
        if self.dense:
            return self._couplings
        everything = self._couplings.new_zeros(len(self.rows), self.tokens, self.dim, self.dim)
        for full, row, i in zip(everything, self._couplings, self.rows, strict=True):
            there = self.neighbours[i] >= 0
            full[self.neighbours[i, there]] = row[there]
        return everything

    @couplings.setter
    def couplings(self, value: Tensor) -> None:
        # a property that is overridden loses its setter
        _PairCouplings.couplings.fset(self, value)  # type: ignore[attr-defined]

    def _stored(self, value: Tensor) -> Tensor:
        if self.dense:
            return value.clone(memory_format=torch.contiguous_format)
        stored = value.new_zeros(len(value), self.sources, self.dim, self.dim)
        for row, full, i in zip(stored, value, self.rows, strict=True):
            there = self.neighbours[i] >= 0
            outside = torch.ones(self.tokens, dtype=torch.bool)
            outside[self.neighbours[i, there]] = False
            if full[outside].count_nonzero():
                raise ValueError(f"couplings[{i}] is not zero outside the neighbours of token {i}")
            row[there] = full[self.neighbours[i, there]]
        return stored

    def to(self, device: torch.device | str) -> None:
        super().to(device)
        self._gathered = self._gathered.to(device)

    def clear_absent(self, name: str, row: Tensor, token: int) -> None:
        row[self.neighbours[token] < 0] = 0

    @property
    def parameters(self) -> int:
        return int((self.neighbours >= 0).sum()) * self.dim * self.dim

    def fields(self, tokens: Tensor, rows: range) -> Tensor:
        fields = tokens.new_empty(len(rows), self.sources, *tokens.shape[1:])
        weights = self._couplings[self.own(rows)]
        for field, weight, i in zip(fields, weights, rows, strict=True):
            sources = tokens if self.dense else tokens[self._gathered[i]]
            torch.bmm(weight, sources, out=field)  # (S, D, D) (S, D, B)
        return fields

    def exclude(self, scores: Tensor, rows: range) -> None:
        if self.dense:
            scores.diagonal(offset=rows.start, dim1=0, dim2=1).fill_(-torch.inf)
        else:
            missing = self.neighbours[rows.start : rows.stop] < 0
            scores.masked_fill_(missing.unsqueeze(-1).to(scores.device), -torch.inf)

    def accumulate(
        self, gradient: dict[str, Tensor], field_gradient: Tensor, tokens: Tensor, *, rows: range
    ) -> None:
        weights = gradient["couplings"][self.own(rows)]
        for weight, row, i in zip(weights, field_gradient, rows, strict=True):
            sources = tokens if self.dense else tokens[self._gathered[i]]
            weight.baddbmm_(row, sources)  # (S, D, B) (S, B, D)


class Hopfield(_PairCouplings):
    """The vector Hopfield network: one source, u_i = sum_j A_ij x_j (S = 1).

    With a Gaussian measure its pseudo-likelihood is linear regression of every token on the others.
    """

    def __init__(
        self, tokens: int, dim: int, *, rows: range | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(tokens, dim, rows=rows)
        self.sources = 1
        self._couplings = self._stored(torch.zeros(len(self.rows), tokens, dim, dim, dtype=dtype))

    @property
    def couplings(self) -> Tensor:
        return self._couplings

    @couplings.setter
    def couplings(self, value: Tensor) -> None:
        _PairCouplings.couplings.fset(self, value)  # type: ignore[attr-defined]

    def _stored(self, value: Tensor) -> Tensor:
        # in memory (i, a, j, c), so that the rows of a block are one matrix
        return value.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)

    def clear_absent(self, name: str, row: Tensor, token: int) -> None:
        row[token] = 0

    @property
    def parameters(self) -> int:
        return self.tokens * (self.tokens - 1) * self.dim * self.dim

    def _matrix(self, weights: Tensor, rows: range) -> Tensor:
        block = weights[self.own(rows)].transpose(1, 2)
        return block.view(len(rows) * self.dim, self.tokens * self.dim)

    def fields(self, tokens: Tensor, rows: range) -> Tensor:
        fields = self._matrix(self._couplings, rows) @ tokens.flatten(0, 1)
        return fields.view(len(rows), 1, self.dim, -1)

    def exclude(self, scores: Tensor, rows: range) -> None:
        """The one source always exists."""

    def accumulate(
        self, gradient: dict[str, Tensor], field_gradient: Tensor, tokens: Tensor, *, rows: range
    ) -> None:
        weights = gradient["couplings"]
        presynaptic = tokens.transpose(0, 1).flatten(1)  # (B, N D)
        self._matrix(weights, rows).addmm_(field_gradient.flatten(0, 2), presynaptic)
        for i in rows:
            weights[i - self.rows.start, i] = 0


def neighbourhood(side: int, radius: int) -> Tensor:
    """The tokens at most `radius` rows and columns away on a side x side grid of patches, (N, S).

    In ascending order, -1 where the border cuts the square; S <= (2 radius + 1)^2 - 1. Raises ValueError.
    """
    if radius < 1 or side < 2:
        raise ValueError(f"a neighbourhood needs side >= 2 and radius >= 1, got {side} and {radius}")
    place = torch.arange(side * side)
    row, column = place // side, place % side
    near = (row[:, None] - row).abs().le(radius) & (column[:, None] - column).abs().le(radius)
    near.fill_diagonal_(False)
    table = torch.where(near, place, side * side).sort(1).values[:, : int(near.sum(1).max())]
    return torch.where(table < side * side, table, -1)


def _checked_neighbours(neighbours: Tensor, tokens: int) -> Tensor:
    if neighbours.dim() != 2 or len(neighbours) != tokens or neighbours.dtype != torch.int64:
        given = f"{tuple(neighbours.shape)} of {neighbours.dtype}"
        raise ValueError(f"neighbours are {given}, expected (N, S) = ({tokens}, S) of int64")
    if not ((neighbours >= -1) & (neighbours < tokens)).all():
        raise ValueError(f"neighbours must be tokens from 0 to {tokens - 1}, or -1 for none")
    for i, row in enumerate(neighbours.tolist()):
        there = [j for j in row if j >= 0]
        if not there or i in there or len(set(there)) < len(there):
            raise ValueError(f"token {i} must listen to other tokens, at least one, each once; got {there}")
    return neighbours.clone(memory_format=torch.contiguous_format)
