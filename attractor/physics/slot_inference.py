"""What a mixture of slots makes of an evidence: posterior over slots, posterior mean of the pixels.

    w_s(evidence) = softmax_s( tau log evidence_s )          x = sum_s w_s E_s[x | evidence]

With tau = 1 it is the exact posterior. Below, it is tempered: the likelihood of hundreds of pixels that a
Gaussian describes badly is overconfident, and the other slots are heard as well.

Slots are screened by their low-rank twins, and only the best `candidates` are asked for their exact answer.
That is a choice of slots and no approximation of the sum over all: on MNIST the slots left out may hold
much of a tempered posterior, and leaving them out lowers the error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attractor.physics.evidence import PixelEvidence
from attractor.physics.low_rank_slots import LowRankSlots


class Slots(Protocol):
    """Any kind of slots that answers evidence."""

    def __len__(self) -> int: ...

    def answer(self, evidence: PixelEvidence, asked: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class SlotReader:
    """One head: `slots` that answer, their twins that screen (all are asked without), and tau.

    Raises ValueError for twins of another number of slots, no candidates, or a tau that is not positive.
    """

    slots: Slots
    screen: LowRankSlots | None = None
    candidates: int = 8
    inverse_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.screen is not None and len(self.screen) != len(self.slots):
            raise ValueError(f"{len(self.screen)} slots cannot screen {len(self.slots)}")
        if self.candidates < 1:
            raise ValueError(f"candidates is {self.candidates}; at least one slot must answer")
        if not 0 < self.inverse_temperature < float("inf"):
            raise ValueError(f"inverse_temperature must be positive, got {self.inverse_temperature}")

    def asked(self, evidence: PixelEvidence) -> Tensor:
        """The slots that are asked for their exact answer, (B, k)."""
        every = len(self.slots)
        if self.screen is None or self.candidates >= every:
            return torch.arange(every, device=evidence.field.device).expand(len(evidence), every)
        return self.screen.log_evidence(evidence).topk(self.candidates, 1).indices

    def posterior_mean(self, evidence: PixelEvidence) -> Tensor:
        """x (B, P). Visible pixels of a mask stay as they are."""
        return self.mean(*self.answer(evidence))

    def answer(self, evidence: PixelEvidence) -> tuple[Tensor, Tensor]:
        """Log evidence (B, k) and posterior means (B, k, P) of the slots that are asked, whatever tau."""
        return self.slots.answer(evidence, self.asked(evidence))

    def mean(self, log_evidence: Tensor, means: Tensor) -> Tensor:
        """x (B, P), from what `answer` returns."""
        weights = (self.inverse_temperature * log_evidence).softmax(1)
        return torch.bmm(weights.unsqueeze(1), means).squeeze(1)


def posterior_mean(heads: Sequence[SlotReader], evidence: PixelEvidence) -> Tensor:
    """The mean of what several heads predict, (B, P). Raises ValueError without a head."""
    if not heads:
        raise ValueError("there is no head to ask; give at least one SlotReader")
    total = heads[0].posterior_mean(evidence)
    for head in heads[1:]:
        total = total + head.posterior_mean(evidence)
    return total / len(heads)
