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
    tensors changes the couplings.
    """

    sources: int

    def __init__(self, tokens: int, dim: int) -> None:
        if tokens < 2 or dim < 1:
            raise ValueError(f"couplings need at least 2 tokens and dim >= 1, got {tokens} and {dim}")
        self.tokens = tokens
        self.dim = dim

    @property
    @abstractmethod
    def weights(self) -> dict[str, Tensor]: ...

    @property
    @abstractmethod
    def parameters(self) -> int:
        """How many weights are learned, without those that are zero by definition."""

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


class _PairCouplings(Couplings):
    """One D x D matrix for every ordered pair of tokens; the diagonal blocks are zero."""

    _couplings: Tensor  # (N, N, D, D)

    @property
    def couplings(self) -> Tensor:
        """(N, N, D, D): [i, j] maps x_j into the field on x_i; [i, i] = 0."""
        return self._couplings

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
        self._couplings = self._stored(value.detach())

    @abstractmethod
    def _stored(self, value: Tensor) -> Tensor:
        """A copy of `value` in the memory layout that `fields` reads contiguously."""

    @property
    def weights(self) -> dict[str, Tensor]:
        return {"couplings": self._couplings}

    @property
    def parameters(self) -> int:
        return self.tokens * (self.tokens - 1) * self.dim * self.dim


class Pairwise(_PairCouplings):
    """Bare self-attention: u_ij = J_ij x_j, one source for every other token (S = N, s = i excluded).

    No queries, keys or values: J_ij stands for W_Q^T W_K between the positions i and j, and for the value
    map. Starts at J = 0, where the exact rule is Hebb's.
    """

    def __init__(self, tokens: int, dim: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(tokens, dim)
        self.sources = tokens
        self._couplings = torch.zeros(tokens, tokens, dim, dim, dtype=dtype)

    def _stored(self, value: Tensor) -> Tensor:
        return value.clone(memory_format=torch.contiguous_format)

    def fields(self, tokens: Tensor, rows: range) -> Tensor:
        fields = tokens.new_empty(len(rows), *tokens.shape)
        for field, i in zip(fields, rows, strict=True):
            torch.bmm(self._couplings[i], tokens, out=field)  # (N, D, D) (N, D, B)
        return fields

    def exclude(self, scores: Tensor, rows: range) -> None:
        scores.diagonal(offset=rows.start, dim1=0, dim2=1).fill_(-torch.inf)

    def accumulate(
        self, gradient: dict[str, Tensor], field_gradient: Tensor, tokens: Tensor, *, rows: range
    ) -> None:
        for row, i in zip(field_gradient, rows, strict=True):
            gradient["couplings"][i].baddbmm_(row, tokens)  # (N, D, B) (N, B, D)


class Hopfield(_PairCouplings):
    """The vector Hopfield network: one source, u_i = sum_j A_ij x_j (S = 1).

    With a Gaussian measure its pseudo-likelihood is linear regression of every token on the others.
    """

    def __init__(self, tokens: int, dim: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(tokens, dim)
        self.sources = 1
        self._couplings = self._stored(torch.zeros(tokens, tokens, dim, dim, dtype=dtype))

    def _stored(self, value: Tensor) -> Tensor:
        # in memory (i, a, j, c), so that the rows of a block are one matrix
        return value.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)

    def _matrix(self, weights: Tensor, rows: range) -> Tensor:
        block = weights[rows.start : rows.stop].transpose(1, 2)
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
            weights[i, i] = 0
