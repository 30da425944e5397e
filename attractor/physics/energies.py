"""Local energies: self-attention as their force, and their exact pseudo-likelihood.

    e_i(x)          = -(1/lambda) log sum_s exp(x_i . h_is),      h_is = lambda u_is(x_others)
    alpha_is        = softmax_s(x_i . h_is)                       attention: knows x_i
    f_i             = -d e_i/d x_i = sum_s alpha_is u_is          force, at fixed x_others
    p(x_i|x_others) = sum_s exp(x_i . h_is) / sum_s exp(psi(h_is))    over the spin measure
    beta_is         = softmax_s(psi(h_is))                        prior attention: does not know x_i
    E[x_i|x_others] = sum_s beta_is grad psi(h_is)                conditional mean
    d log p/d u_is  = lambda (alpha_is x_i - beta_is grad psi(h_is))  the local rule

For u_ij = J_ij x_j the force is bare self-attention. Only the own token is differentiated: the gradient
of sum_i e_i has cross terms and is another dynamics; sum_i e_i is no Lyapunov function.

An evidence adds an external field to every h_is: h_is = lambda u_is + field_i. It leaves alpha as it is,
adds field_i/lambda to the force and -x_i . field_i/lambda to e_i, and moves beta and the mean.

The sums over sources are done by a kernel (see `kernels`); nothing here depends on what the sources are.

Source: D'Amico & Negri 2024, arXiv 2409.16112; Shim 2021; D'Amico et al. 2025, arXiv 2507.05147.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from attractor.physics.couplings import Couplings
from attractor.physics.evidence import Evidence
from attractor.physics.kernels import Backend, Kernel, choose
from attractor.physics.kernels.blocks import Block, blocks
from attractor.physics.measures import Measure
from attractor.physics.processes import Ranks


class LocalEnergy:
    """The local energies of N tokens: couplings, a spin measure and an inverse temperature lambda.

    Methods take tokens x (B, N, D) on the manifold of the measure, and `rows`, a range of tokens i to
    evaluate (all of them unless given). Raises ValueError for shapes that do not fit.

    `ranks`: the processes that share the rows, where there are several: then every method that returns
    rows must be called by all of them at once, and gives all rows to each.
    """

    def __init__(
        self,
        couplings: Couplings,
        measure: Measure,
        *,
        inverse_temperature: float = 1.0,
        backend: Backend = Backend.auto,
        ranks: Ranks | None = None,
    ) -> None:
        if couplings.dim != measure.dim:
            raise ValueError(f"couplings have dim {couplings.dim}, the measure has {measure.dim}")
        if not 0 < inverse_temperature < float("inf"):
            raise ValueError(f"inverse_temperature must be positive, got {inverse_temperature}")
        expected = range(couplings.tokens) if ranks is None else ranks.rows(couplings.tokens)
        if couplings.rows != expected:
            raise ValueError(f"couplings hold {couplings.rows}, this process has {expected}")
        self.couplings = couplings
        self.measure = measure
        self.inverse_temperature = inverse_temperature
        self.backend = backend
        self.ranks = ranks

    def at(self, inverse_temperature: float) -> "LocalEnergy":
        """The same couplings, shared, at another temperature (that of retrieval, say)."""
        return LocalEnergy(
            self.couplings,
            self.measure,
            inverse_temperature=inverse_temperature,
            backend=self.backend,
            ranks=self.ranks,
        )

    @property
    def kernel(self) -> Kernel:
        """What does the sums; ValueError if the backend asked for cannot."""
        return choose(self.backend, self.couplings, self.measure)

    def energy(self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None) -> Tensor:
        """e_i (B, R)."""

        def own(rows: range) -> Tensor:
            log_sum = self._posterior(x, rows, evidence)[0] - self._penalty(x, rows, evidence)
            return -log_sum / self.inverse_temperature

        return self._gathered(x, rows, evidence, own)

    def attention(self, x: Tensor, *, rows: range | None = None) -> Tensor:
        """alpha_is (B, R, S); rows sum to 1, an excluded source has 0."""
        return self._by_source(x, rows, None, lambda block: block.scores())

    def force(self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None) -> Tensor:
        """f_i = -d e_i/d x_i (B, R, D): self-attention."""

        def own(rows: range) -> Tensor:
            attended = self._posterior(x, rows, evidence)[1]
            if not self.measure.fixed_norm and evidence is not None:
                # the derivative of the penalty
                attended = attended - self._precision(evidence, x, rows).unsqueeze(-1) * _of(x, rows)
            return attended / self.inverse_temperature

        return self._gathered(x, rows, evidence, own)

    def prior_attention(
        self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None
    ) -> Tensor:
        """beta_is (B, R, S): attention before token i is looked at."""
        return self._by_source(x, rows, evidence, lambda block: block.log_normalisers()[0])

    def conditional_mean(
        self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None
    ) -> Tensor:
        """E[x_i | x_others] (B, R, D); its length carries the certainty."""
        return self._gathered(x, rows, evidence, lambda rows: self._prior(x, rows, evidence)[1])

    def log_conditional(
        self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None
    ) -> Tensor:
        """log p(x_i | x_others) (B, R), nats, relative to the spin measure."""

        def own(rows: range) -> Tensor:
            log_sum = self._posterior(x, rows, evidence)[0] - self._penalty(x, rows, evidence)
            return log_sum - self._prior(x, rows, evidence)[0]

        return self._gathered(x, rows, evidence, own)

    def sample_conditional(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        evidence: Evidence | None = None,
        rows: range | None = None,
    ) -> Tensor:
        """One draw of every x_i from p(x_i | x_others) (B, R, D): a source by beta, then a spin.

        One process only: a ValueError where several share the rows, whose draws would repeat each other.
        """
        if self.ranks is not None:
            raise ValueError("draws are made by one process; several would repeat each other's")
        rows = self._checked(x, rows, evidence)
        sample = x.new_empty(len(x), len(rows), x.shape[2])
        for block in self._blocks(x, rows, evidence):
            prior = torch.softmax(block.log_normalisers()[0], 1)  # (R, S, B)
            flat = prior.transpose(1, 2).reshape(-1, prior.shape[1])
            # where the state has overflowed any source will do: its field is not finite, nor is the draw
            flat = torch.where(flat.isfinite().all(1, keepdim=True), flat, 1.0)
            source = torch.multinomial(flat, 1, generator=generator).view(len(block.rows), 1, 1, -1)
            chosen = block.natural.take_along_dim(source, 1).squeeze(1).movedim(1, -1)  # (R, B, D)
            precision = block.precision.squeeze(-1)  # (R, 1)
            drawn = self.measure.sample(chosen, generator=generator, precision=precision)
            block.put(sample, drawn.movedim(-1, 1))
        return sample

    def coupling_gradient(self, x: Tensor) -> dict[str, Tensor]:
        """d/d weights of mean_B sum_i log p(x_i | x_others): the direction in which to learn."""
        gradient = self.zero_gradient()
        self.write_gradient(x, gradient)
        return gradient

    def zero_gradient(self) -> dict[str, Tensor]:
        """A buffer for `write_gradient`, shaped and laid out like the weights."""
        return {name: torch.zeros_like(weight) for name, weight in self.couplings.weights.items()}

    def write_gradient(
        self, x: Tensor, gradient: dict[str, Tensor], *, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Write `coupling_gradient(x)` to `gradient` and return log p(x_i | x_others) (B, R).

        Only rows that this process holds, all of them unless given in ascending order; no communication.
        Raises ValueError for other rows, no images, or a buffer that is not like `zero_gradient()`.
        """
        rows = self._own_rows(x, gradient, rows)
        temperature = self.inverse_temperature
        return self.kernel.gradient(
            x, gradient, rows, inverse_temperature=temperature, scale=temperature, contrast=True
        )

    def write_positive_phase(
        self, x: Tensor, gradient: dict[str, Tensor], *, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Write -d/d weights of mean_B sum_i e_i, <alpha_is x_i x_j^T>, to `gradient`; return e_i."""
        rows = self._own_rows(x, gradient, rows)
        log_sum = self.kernel.gradient(
            x, gradient, rows, inverse_temperature=self.inverse_temperature, scale=1.0, contrast=False
        )
        return -log_sum / self.inverse_temperature

    def _posterior(self, x: Tensor, rows: range, evidence: Evidence | None) -> tuple[Tensor, Tensor]:
        return self.kernel.posterior(
            x, rows, inverse_temperature=self.inverse_temperature, evidence=evidence
        )

    def _prior(self, x: Tensor, rows: range, evidence: Evidence | None) -> tuple[Tensor, Tensor]:
        return self.kernel.prior(x, rows, inverse_temperature=self.inverse_temperature, evidence=evidence)

    def _precision(self, evidence: Evidence, x: Tensor, rows: range) -> Tensor:
        """1/sigma^2 of the tokens `rows`, (R,)."""
        precision = torch.as_tensor(evidence.precision, dtype=x.dtype, device=x.device)
        return precision.expand(self.couplings.tokens)[rows.start : rows.stop]

    def _penalty(self, x: Tensor, rows: range, evidence: Evidence | None) -> Tensor | float:
        """precision |x_i|^2/2 (B, R), what an observation costs beside its field; 0 for a fixed norm."""
        if self.measure.fixed_norm or evidence is None:
            return 0.0
        squared: Tensor = _of(x, rows).square().sum(-1) / 2
        return squared * self._precision(evidence, x, rows)

    def _by_source(
        self,
        x: Tensor,
        rows: range | None,
        evidence: Evidence | None,
        logits: Callable[[Block], Tensor],
    ) -> Tensor:
        """softmax over the sources, (B, R, S): the one quantity that keeps them apart."""

        def own(rows: range) -> Tensor:
            softmax = x.new_empty(len(x), len(rows), self.couplings.sources)
            for block in self._blocks(x, rows, evidence):
                block.put(softmax, torch.softmax(logits(block), 1))
            return softmax

        return self._gathered(x, rows, evidence, own)

    def _blocks(self, x: Tensor, rows: range, evidence: Evidence | None) -> Iterator[Block]:
        temperature = self.inverse_temperature
        return blocks(
            self.couplings, self.measure, x, rows, inverse_temperature=temperature, evidence=evidence
        )

    def _gathered(
        self,
        x: Tensor,
        rows: range | None,
        evidence: Evidence | None,
        own: Callable[[range], Tensor],
    ) -> Tensor:
        """own(rows), each process doing the rows that it holds."""
        rows = self._checked(x, rows, evidence)
        return own(rows) if self.ranks is None else self.ranks.gather(own, rows, self.couplings.tokens)

    def _own_rows(
        self, x: Tensor, gradient: dict[str, Tensor], rows: Sequence[int] | None
    ) -> Sequence[int]:
        self._checked(x, None, None)
        if not len(x):
            raise ValueError("a gradient is a mean over images, and there are none in x")
        held = self.couplings.rows
        rows = held if rows is None else rows
        ascending = all(i < j for i, j in pairwise(rows))
        if not ascending or (len(rows) and not (rows[0] in held and rows[-1] in held)):
            raise ValueError(f"rows are {list(rows)}, expected ascending ones of {held}")
        for name, weight in self.couplings.weights.items():
            buffer = gradient[name]
            if _layout(buffer) != _layout(weight):
                raise ValueError(
                    f"the gradient of {name} has shape, strides, type and device {_layout(buffer)}, "
                    f"expected {_layout(weight)}; make it with zero_gradient()"
                )
        return rows

    def _checked(self, x: Tensor, rows: range | None, evidence: Evidence | None) -> range:
        n, d = self.couplings.tokens, self.couplings.dim
        if x.dim() != 3 or x.shape[1:] != (n, d):
            raise ValueError(f"tokens have shape {tuple(x.shape)}, expected (B, N, D) = (B, {n}, {d})")
        if evidence is not None:
            if evidence.field.shape != x.shape:
                shapes = f"{tuple(evidence.field.shape)}, the tokens {tuple(x.shape)}"
                raise ValueError(f"the field of the evidence has shape {shapes}")
            given = tuple(torch.as_tensor(evidence.precision).shape)
            if given not in ((), (n,)):
                raise ValueError(f"the precision of the evidence has shape {given}, expected () or ({n},)")
        every = range(n)
        if rows is None:
            return every
        if rows.step != 1 or not 0 <= rows.start <= rows.stop <= every.stop:
            raise ValueError(f"rows are {rows}, expected a range of step 1 within {every}")
        return rows


def _layout(values: Tensor) -> tuple[object, ...]:
    return tuple(values.shape), values.stride(), values.dtype, str(values.device)


def _of(x: Tensor, rows: range) -> Tensor:
    return x[:, rows.start : rows.stop]
