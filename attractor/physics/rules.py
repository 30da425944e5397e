"""Learning rules: how couplings follow from tokens, without a backward pass through layers or time.

    exact (PseudoLikelihood)   dJ_ij = eta lambda <(alpha_ij x_i - beta_ij grad psi(lambda J_ij x_j)) x_j^T>
    the paper's (EnergyDescent) dJ_ij = eta <alpha_ij x_i x_j^T>, the norm of each row J[i] held, or decay

Both are local: the change of J_ij needs x_i, x_j, J_ij and two scalars held by token i. They are driven
step by step, all rows J[i] at once or a few of them drawn at random. Rules that see all images once are
in `one_shot`.

Source: D'Amico & Negri 2024, arXiv 2409.16112 (energy descent; the row norm and the decay are two ways to
bound an energy that is unbounded below); D'Amico et al. 2025, arXiv 2507.05147 (pseudo-likelihood).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from attractor.physics.couplings import Couplings
from attractor.physics.energies import LocalEnergy
from attractor.physics.optimisers import Optimiser


class NonFiniteError(ArithmeticError):
    """Couplings, states or losses that are not finite."""


class IterativeRule(ABC):
    """A rule that is applied batch after batch. objective: the name of what it climbs.

    With `rows_per_step` = R a step draws R of the N rows J[i] from `generator`, uniformly and without
    replacement, and does nothing for the others: its cost is that of R rows. The gradient of a drawn row,
    decay included, counts N/R times, so that its mean over the draws is the gradient of all rows: with
    plain SGD the mean update is that of a full step. The paper's step at a single site, dJ_i = eta g_i, is
    R = 1 with eta/N for a rate. Adam divides the factor out again: its drawn rows move as far as they do
    in a full step, N/R times more rarely.

    Where processes share the rows, each must have a generator of the same seed: all draw the same rows,
    and a process does those of them that it holds, perhaps none.
    """

    objective: str

    def __init__(
        self,
        optimiser: Optimiser,
        *,
        decay: float | None,
        rows_per_step: int | None,
        generator: Generator | None,
    ) -> None:
        if rows_per_step is not None and rows_per_step < 1:
            raise ValueError(f"rows_per_step must be at least 1, or None for all rows, got {rows_per_step}")
        if rows_per_step is not None and generator is None:
            raise ValueError("rows_per_step draws rows at random, so it needs generator=torch.Generator()")
        self.optimiser = optimiser
        self.decay = decay
        self.rows_per_step = rows_per_step
        self.generator = generator
        self._gradient: dict[str, Tensor] | None = None

    def start(self, energy: LocalEnergy) -> None:
        """Prepare or refuse the couplings before the first step (ValueError). Changes nothing here."""
        self._check_rows(energy.couplings)

    @torch.inference_mode()
    def step(self, energy: LocalEnergy, x: Tensor, *, rate: float) -> float:
        """Apply the rule once to tokens x (B, N, D), with learning rate `rate`.

        Returns the mean of what the rule climbs over the rows computed, before the step:
        log p(x_i | x_others) in nats per token, or -e_i; NaN if this process holds none of the rows
        drawn. Raises NonFiniteError, naming the row, if objective or gradient are not finite (then the
        couplings are untouched), or if the new couplings are not.
        """
        couplings = energy.couplings
        if self._gradient is None:
            self._gradient = energy.zero_gradient()
        rows, parts, own = self._rows(couplings)
        if not rows:
            return float("nan")
        objective = self._direction(energy, x, self._gradient, rows)
        # it is NaN where the gradient is not finite, which need not be read for that
        names = f"the {self.objective.replace('_', ' ')} or the gradient of the couplings"
        refuse_non_finite(objective.T, names, rows=rows)
        for name, weight in couplings.weights.items():
            for part in parts:
                gradient = self._gradient[name][couplings.own(part)]
                if self.decay:
                    gradient.sub_(weight[couplings.own(part)], alpha=self.decay)
                if self.rows_per_step is not None:
                    gradient *= couplings.tokens / self.rows_per_step
        finite = self.optimiser.ascend(couplings.weights, self._gradient, rate=rate, rows=own)
        for part in parts:
            if not finite:
                for name, weight in couplings.weights.items():
                    refuse_non_finite(weight[couplings.own(part)], name, rows=part)
            self._constrain(couplings, part)
        return float(objective.mean())

    def _rows(self, couplings: Couplings) -> tuple[Sequence[int], list[range], list[int] | None]:
        """Rows of this step held here, ascending; as ranges; as places in the weights, None for all."""
        if self.rows_per_step is None:
            return couplings.rows, [couplings.rows], None
        self._check_rows(couplings)
        assert self.generator is not None
        order = torch.randperm(couplings.tokens, generator=self.generator, device=self.generator.device)
        drawn: list[int] = order[: self.rows_per_step].sort().values.tolist()
        rows = [i for i in drawn if i in couplings.rows]
        return rows, [range(i, i + 1) for i in rows], [i - couplings.rows.start for i in rows]

    def _check_rows(self, couplings: Couplings) -> None:
        tokens = couplings.tokens
        if self.rows_per_step is not None and self.rows_per_step > tokens:
            raise ValueError(
                f"rows_per_step is {self.rows_per_step}, but there are {tokens} rows; use 1 to {tokens}"
            )

    @abstractmethod
    def _direction(
        self, energy: LocalEnergy, x: Tensor, gradient: dict[str, Tensor], rows: Sequence[int]
    ) -> Tensor:
        """Write the direction of learning, without decay, to `rows` of `gradient`; return the objective."""

    def _constrain(self, couplings: Couplings, rows: range) -> None:
        """Restore what the rule holds fixed in `rows`; NonFiniteError if it cannot."""


class PseudoLikelihood(IterativeRule):
    """The exact rule: ascent of mean_B sum_i log p(x_i | x_others) - decay |J|^2/2.

    What token i is, minus what source j expected it to be, gated by attention, times the presynaptic
    token. At J = 0 it is Hebb's rule. `decay` is the ridge of a Gaussian prior on the couplings. For
    `rows_per_step` and `generator` see `IterativeRule`.
    """

    objective = "log_pseudo_likelihood"

    def __init__(
        self,
        optimiser: Optimiser,
        *,
        decay: float = 0.0,
        rows_per_step: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        if decay < 0:
            raise ValueError(f"decay must not be negative, got {decay}")
        super().__init__(optimiser, decay=decay, rows_per_step=rows_per_step, generator=generator)

    def _direction(
        self, energy: LocalEnergy, x: Tensor, gradient: dict[str, Tensor], rows: Sequence[int]
    ) -> Tensor:
        return energy.write_gradient(x, gradient, rows=rows)


class EnergyDescent(IterativeRule):
    """The paper's rule: the positive phase alone, descent of mean_B sum_i e_i.

    The energy falls without bound as J grows, so either the Frobenius norm of every row J[i] is held at
    its starting value (`decay=None`), or every weight decays at the rate `decay`. J = 0 is a saddle where
    all sources look alike, so it is refused: start with `random_start`. For `rows_per_step` and `generator`
    see `IterativeRule`; what is unbiased is the gradient, before the norm is restored.
    """

    objective = "negative_energy"

    def __init__(
        self,
        optimiser: Optimiser,
        *,
        decay: float | None = None,
        rows_per_step: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        if decay is not None and decay <= 0:
            raise ValueError(f"decay must be positive, or None to hold the norm of each row, got {decay}")
        super().__init__(optimiser, decay=decay, rows_per_step=rows_per_step, generator=generator)
        self._norms: dict[str, Tensor] | None = None

    def start(self, energy: LocalEnergy) -> None:
        super().start(energy)
        norms = {name: _row_norms(weight) for name, weight in energy.couplings.weights.items()}
        for name, norm in norms.items():
            if not norm.all():
                row = energy.couplings.rows[int((norm == 0).nonzero()[0])]
                raise ValueError(
                    f"energy descent cannot start from zero couplings, and row {row} of the {name} is "
                    "zero; draw a small random start with random_start(couplings, scale, generator=...)"
                )
        self._norms = norms

    def _direction(
        self, energy: LocalEnergy, x: Tensor, gradient: dict[str, Tensor], rows: Sequence[int]
    ) -> Tensor:
        if self._norms is None:
            self.start(energy)
        return -energy.write_positive_phase(x, gradient, rows=rows)

    def _constrain(self, couplings: Couplings, rows: range) -> None:
        if self.decay is None and self._norms is not None:
            for name, weight in couplings.weights.items():
                held, now = self._norms[name][couplings.own(rows)], weight[couplings.own(rows)]
                norms = _row_norms(now)
                for i, norm in zip(rows, norms.tolist(), strict=True):
                    if not 0 < norm < float("inf"):
                        raise NonFiniteError(
                            f"{name}: the norm of row {i} became {norm}, and cannot be held; "
                            "a smaller rate may help"
                        )
                for row, ratio in zip(now, held.to(now.device) / norms, strict=True):
                    row *= ratio


def random_start(couplings: Couplings, scale: float, *, generator: Generator) -> None:
    """Draw every weight from N(0, scale^2), but for those that are zero by definition.

    All N rows are drawn, one after another, and those held here are kept: a row starts with the same
    values however the rows are shared out.
    """
    if scale <= 0:
        raise ValueError(f"the scale of a random start must be positive, got {scale}")
    for name, weight in couplings.weights.items():
        row = torch.empty(weight.shape[1:], dtype=weight.dtype, device=generator.device)
        for i in range(couplings.tokens):
            row.normal_(0, scale, generator=generator)
            if i in couplings.rows:
                couplings.clear_absent(name, row, i)
                weight[i - couplings.rows.start] = row


def refuse_non_finite(values: Tensor, name: str, *, rows: Sequence[int]) -> None:
    """Raise NonFiniteError if a value is not finite, naming the first such row; `values` are of `rows`."""
    if not torch.isfinite(values.sum()):
        finite = torch.isfinite(values).flatten(1).all(1)
        if not finite.all():
            row = rows[int((~finite).nonzero()[0])]
            raise NonFiniteError(f"{name} became non-finite in row {row}; a smaller rate may help")


def _row_norms(weight: Tensor) -> Tensor:
    """Frobenius norm of every row J[i], (R,): of each by itself, so that it has the same bits in any R."""
    return torch.stack([row.square().sum() for row in weight]).sqrt()
