"""Stored patterns and their copies: which resemble what is known, by how much, and their components.

Patterns are kept as they come, bytes for images, and become numbers a few at a time. A search goes over the
patterns without their copies, as one product of matrices; the copies are looked at of those alone that it
finds, so that no array of images x patterns x components is ever made.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from attractor.physics.evidence import PixelEvidence

_CHUNK = 4096  # patterns turned into numbers at a time in a search
_ROWS = 512  # and where they are compared exactly: 1.6 MB of MNIST, which stays in the cache
_SCORES = 2**22  # scores of a search at a time: 16 MB


@dataclass(frozen=True)
class Shortlist:
    """Evidence of B images, the patterns that resemble it most, and the tokens that are asked for.

    patterns (B, S) int64; asked (B, N) bool, None for all tokens.
    """

    evidence: PixelEvidence
    patterns: Tensor
    asked: Tensor | None = None

    def of(self, images: Tensor) -> "Shortlist":
        """What belongs to some of the images, by their places."""
        evidence = self.evidence.of(images)
        asked = None if self.asked is None else self.asked[images]
        return replace(self, evidence=evidence, patterns=self.patterns[images], asked=asked)


class PatternMemory:
    """Patterns (copies, M, N D), the components of a token side by side; the first copy is the original.

    `unit` is what one level is worth: 1/255 for bytes. Raises ValueError for an empty memory, another
    shape, and patterns that are not finite.
    """

    def __init__(self, levels: Tensor, *, tokens: int, unit: float = 1 / 255) -> None:
        if levels.dim() != 3 or not levels.numel() or levels.shape[2] % tokens:
            raise ValueError(
                f"patterns are {tuple(levels.shape)}, expected (copies, M, P), none of them 0, with P a "
                f"multiple of the {tokens} tokens"
            )
        if levels.is_floating_point() and not bool(levels.isfinite().all()):
            raise ValueError("the patterns hold values that are not finite")
        self.levels = levels.contiguous()
        self.unit = unit
        self.copies, self.count, self.components = levels.shape
        self.tokens = tokens
        self.dim = self.components // tokens
        self._rows = self.levels.view(-1, self.components)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (P,) and covariance (P, P) of all patterns without their copies, in float64."""
        levels, unit = self.levels[0], self.unit
        total = torch.zeros(self.components, dtype=torch.float64, device=levels.device)
        for chunk in levels.split(_CHUNK):
            total += chunk.double().sum(0)
        mean = total * (unit / self.count)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=levels.device)
        for chunk in levels.split(_CHUNK):
            centred = chunk.double().mul_(unit).sub_(mean)
            covariance.addmm_(centred.T, centred, alpha=1 / self.count)
        return mean, covariance

    def search(self, evidence: PixelEvidence, count: int, *, asked: Tensor | None = None) -> Shortlist:
        """The `count` patterns, without copies, under which the evidence (B, P) is most likely."""
        if evidence.field.shape[1] != self.components:
            raise ValueError(
                f"the evidence has {evidence.field.shape[1]} components, the patterns {self.components}"
            )
        if not 1 <= count <= self.count:
            raise ValueError(f"{count} candidates were asked for; the memory holds {self.count} patterns")
        if count == self.count:
            every = torch.arange(count, device=self.levels.device).expand(len(evidence), -1)
            return Shortlist(evidence, every, asked)
        found = []
        block = max(1, _SCORES // self.count)
        pairs = zip(evidence.field.split(block), evidence.precision.split(block), strict=True)
        for field, precision in pairs:
            scores = field.new_empty(len(field), self.count)
            for start in range(0, self.count, _CHUNK):
                m = self.levels[0, start : start + _CHUNK].to(field).mul_(self.unit)
                part = scores[:, start : start + _CHUNK]
                torch.mm(field, m.T, out=part)
                part.addmm_(precision, m.square_().T, alpha=-0.5)
            # in the order of the memory: that of the scores may depend on how many images are searched for
            found.append(scores.topk(count, 1, sorted=False).indices.sort(1).values)
        return Shortlist(evidence, torch.cat(found), asked)

    def with_copies(self, patterns: Tensor) -> Tensor:
        """The rows of these patterns (S,) and of all their copies, (copies S,)."""
        starts = torch.arange(self.copies, device=patterns.device) * self.count
        return (starts[:, None] + patterns).flatten()

    def scores(self, rows: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        """-sum_p W_pt (m_p - z_p)^2 / 2 of the patterns `rows` (S,), (T, S), for z (P,) and W (P, T)."""
        scores = target.new_empty(len(rows), weights.shape[1])
        levels = self.levels.new_empty(min(_ROWS, len(rows)), self.components)
        values = target.new_empty(levels.shape)
        level = target / self.unit
        for part, out in zip(rows.split(_ROWS), scores.split(_ROWS), strict=True):
            torch.index_select(self._rows, 0, part, out=levels[: len(part)])
            difference = values[: len(part)].copy_(levels[: len(part)]).sub_(level).square_()
            torch.mm(difference, weights, out=out)
        return scores.T.contiguous().mul_(-0.5 * self.unit**2)

    def take(self, rows: Tensor, tokens: Tensor, out: Tensor) -> None:
        """Write the tokens `tokens` (R,) of the patterns `rows` (K,) into `out` (K, R D)."""
        levels = self._rows.index_select(0, rows).view(-1, self.tokens, self.dim)
        out.copy_(levels.index_select(1, tokens).flatten(1)).mul_(self.unit)


def working_bytes(patterns: int, components: int, *, copies: int) -> int:
    """What patterns of one byte a component take, with what a search and the moments need beside them.

    Three times the patterns themselves beside their copies: those they come from, and a copy being made.
    """
    held = (copies + 3) * patterns * components
    return held + 8 * 3 * components**2 + 4 * (_SCORES + 4 * _CHUNK * components)
