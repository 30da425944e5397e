"""The oracle of the other backends: plain loops over tokens and sources, in float64.

Written from the formulas, for couplings J_ij between pairs of tokens, and for nothing but clarity: every
field is made, used and thrown away by itself.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attractor.physics.couplings import Couplings, Pairwise
from attractor.physics.evidence import Evidence
from attractor.physics.measures import Measure


class Reference:
    """See `Kernel`. Raises ValueError for couplings that are not `Pairwise`."""

    def __init__(self, couplings: Couplings, measure: Measure) -> None:
        if not isinstance(couplings, Pairwise):
            raise ValueError(f"the reference backend knows Pairwise, not {type(couplings).__name__}")
        self.couplings = couplings
        self.measure = measure

    def posterior(
        self, x: Tensor, rows: Sequence[int], *, inverse_temperature: float, evidence: Evidence | None
    ) -> tuple[Tensor, Tensor]:
        log_sums, forces = [], []
        for i in rows:
            fields = [h for _, _, h in self._natural(x, i, inverse_temperature, evidence)]
            scores = torch.stack([(x[:, i].double() * h).sum(1) for h in fields])  # (S, B)
            log_sums.append(torch.logsumexp(scores, 0))
            attention = torch.softmax(scores, 0)
            forces.append(sum(a[:, None] * h for a, h in zip(attention, fields, strict=True)))
        return _stacked(x, log_sums), _stacked(x, forces)

    def prior(
        self, x: Tensor, rows: Sequence[int], *, inverse_temperature: float, evidence: Evidence | None
    ) -> tuple[Tensor, Tensor]:
        log_partitions, means = [], []
        for i in rows:
            precision = _precision(evidence, i)
            fields = [h for _, _, h in self._natural(x, i, inverse_temperature, evidence)]
            psi = torch.stack([self._log_normaliser(h, precision) for h in fields])
            log_partitions.append(torch.logsumexp(psi, 0))
            prior = torch.softmax(psi, 0)
            means.append(
                sum(b[:, None] * self._mean(h, precision) for b, h in zip(prior, fields, strict=True))
            )
        return _stacked(x, log_partitions), _stacked(x, means)

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
        objectives = []
        for i in rows:
            sources = list(self._natural(x, i, inverse_temperature, None))
            own = x[:, i].double()
            scores = torch.stack([(own * h).sum(1) for _, _, h in sources])
            psi = torch.stack([self._log_normaliser(h, 0.0) for _, _, h in sources])
            attention, prior = torch.softmax(scores, 0), torch.softmax(psi, 0)
            for s, (slot, j, h) in enumerate(sources):
                error = attention[s, :, None] * own
                if contrast:
                    error = error - prior[s, :, None] * self._mean(h, 0.0)
                change = scale * error.T @ x[:, j].double() / len(x)
                out["couplings"][i - self.couplings.rows.start, slot] = change.to(x.dtype)
            objective = torch.logsumexp(scores, 0)
            if contrast:
                objective = objective - torch.logsumexp(psi, 0)
            if not out["couplings"][i - self.couplings.rows.start].isfinite().all():
                objective = torch.full_like(objective, torch.nan)
            objectives.append(objective)
        return _stacked(x, objectives)

    def _natural(
        self, x: Tensor, i: int, inverse_temperature: float, evidence: Evidence | None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Slot s, source token j and h_is = lambda J_ij x_j + field_i (B, D), for each source."""
        weights = self.couplings.weights["couplings"][i - self.couplings.rows.start]
        for slot, j in enumerate(self.couplings.neighbours[i].tolist()):
            if j >= 0:
                natural = inverse_temperature * x[:, j].double() @ weights[slot].double().T
                if evidence is not None:
                    natural = natural + evidence.field[:, i].double()
                yield slot, j, natural

    def _log_normaliser(self, h: Tensor, precision: float) -> Tensor:
        return self.measure.log_normaliser_and_gain(h, precision=precision)[0]

    def _mean(self, h: Tensor, precision: float) -> Tensor:
        gain = self.measure.log_normaliser_and_gain(h, precision=precision)[1]
        return self.measure.apply_gain(h, gain, torch.ones((), dtype=h.dtype, device=h.device))


def _precision(evidence: Evidence | None, i: int) -> float:
    if evidence is None:
        return 0.0
    precision = torch.as_tensor(evidence.precision)
    return float(precision[i] if precision.dim() else precision)


def _stacked(x: Tensor, values: list[Tensor]) -> Tensor:
    """(B, R, ...) in the type of x."""
    return torch.stack(values, 1).to(x.dtype)
