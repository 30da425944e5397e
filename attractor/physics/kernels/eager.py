"""The fallback anywhere: torch operations over blocks of rows, for all couplings, measures and devices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attractor.physics.couplings import Couplings
from attractor.physics.evidence import Evidence
from attractor.physics.kernels.blocks import blocks, runs
from attractor.physics.measures import Measure


class Eager:
    """See `Kernel`."""

    def __init__(self, couplings: Couplings, measure: Measure) -> None:
        self.couplings = couplings
        self.measure = measure

    def posterior(
        self, x: Tensor, rows: Sequence[int], *, inverse_temperature: float, evidence: Evidence | None
    ) -> tuple[Tensor, Tensor]:
        log_sum, attended = _outputs(x, rows)
        for block in blocks(
            self.couplings,
            self.measure,
            x,
            rows,
            inverse_temperature=inverse_temperature,
            evidence=evidence,
        ):
            attention, total = softmax_and_log_sum(block.scores())
            block.put(log_sum, total)
            block.put(attended, (block.natural * attention.unsqueeze(2)).sum(1))
        return log_sum, attended

    def prior(
        self, x: Tensor, rows: Sequence[int], *, inverse_temperature: float, evidence: Evidence | None
    ) -> tuple[Tensor, Tensor]:
        log_partition, mean = _outputs(x, rows)
        for block in blocks(
            self.couplings,
            self.measure,
            x,
            rows,
            inverse_temperature=inverse_temperature,
            evidence=evidence,
        ):
            psi, gain = block.log_normalisers()
            prior, total = softmax_and_log_sum(psi)
            block.put(log_partition, total)
            block.put(mean, self.measure.apply_gain(block.natural, gain, prior, dim=2).sum(1))
        return log_partition, mean

    def gradient(
        self,
        x: Tensor,
        out: dict[str, Tensor],
        rows: Sequence[int],
        *,
        inverse_temperature: float,
        scale: float,
        contrast: bool,
    ) -> Tensor:
        for some, _ in runs(rows):
            for values in out.values():
                values[self.couplings.own(some)] = 0
        scale = scale / len(x)
        objective = x.new_empty(len(x), len(rows))
        for block in blocks(self.couplings, self.measure, x, rows, inverse_temperature=inverse_temperature):
            posterior, log_sum = softmax_and_log_sum(block.scores())
            by_field = posterior.mul_(scale).unsqueeze(2) * block.own.unsqueeze(1)
            if contrast:
                psi, gain = block.log_normalisers()
                prior, log_partition = softmax_and_log_sum(psi)
                by_field -= self.measure.apply_gain(block.natural, gain, prior.mul_(scale), dim=2)
                log_sum = log_sum - log_partition
            block.put(objective, log_sum)
            self.couplings.accumulate(out, by_field, block.presynaptic, rows=block.rows)
        return objective + nan_unless_finite(self.couplings, out, rows)


def nan_unless_finite(couplings: Couplings, gradient: dict[str, Tensor], rows: Sequence[int]) -> Tensor:
    """0 for each of `rows` whose gradient has a finite sum, else NaN, (R,)."""
    total = next(iter(gradient.values())).new_zeros(len(rows))
    together = len(rows) and rows[-1] - rows[0] == len(rows) - 1
    parts = [(range(rows[0], rows[-1] + 1), slice(None))] if together else runs(rows)
    for some, place in parts:
        for values in gradient.values():
            total[place] += values[couplings.own(some)].sum(tuple(range(1, values.dim())))
    return 0 * total


def softmax_and_log_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """softmax and logsumexp over axis 1, sharing the exponentials; overwrites `logits`."""
    highest = logits.amax(1, keepdim=True)
    exponentials = logits.sub_(highest).exp_()
    total = exponentials.sum(1, keepdim=True)
    log_sum = (highest + torch.log(total)).squeeze(1)
    return exponentials.div_(total), log_sum


def _outputs(x: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(rows)), x.new_empty(len(x), len(rows), x.shape[2])
