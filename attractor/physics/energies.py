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

Everything is written in the natural parameters h_is, block by block: R rows, all S sources, B images,
features before images (see `couplings`). Nothing here depends on what the sources are.

Source: D'Amico & Negri 2024, arXiv 2409.16112; Shim 2021; D'Amico et al. 2025, arXiv 2507.05147.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attractor.physics.couplings import Couplings
from attractor.physics.measures import Measure

# A block of fields this large stays in the cache of one core; measured in benchmarks/step.py.
_BLOCK_BYTES = 1_500_000
_BLOCK_IMAGES = 128


@dataclass(frozen=True)
class Evidence:
    """What is known of the tokens beside their conditionals.

    field (B, N, D): a natural parameter, y_i/sigma^2 for an observation y_i with noise variance sigma^2.
    precision: 1/sigma^2, a number or one for each token (N,); every density gains a factor
    exp(-precision |x_i|^2/2). Where the norm of a token is fixed that is a constant, and is left out.
    """

    field: Tensor
    precision: Tensor | float = 0.0


@dataclass(frozen=True)
class _Block:
    rows: range
    images: slice
    own: Tensor  # (R, D, B) x_i
    natural: Tensor  # (R, S, D, B) h_is
    presynaptic: Tensor  # (N, B, D) x_j
    precision: Tensor  # (R, 1, 1) of the evidence


class LocalEnergy:
    """The local energies of N tokens: couplings, a spin measure and an inverse temperature lambda.

    Methods take tokens x (B, N, D) on the manifold of the measure, and `rows`, a range of tokens i to
    evaluate (all of them unless given). Raises ValueError for shapes that do not fit.
    """

    def __init__(self, couplings: Couplings, measure: Measure, *, inverse_temperature: float = 1.0) -> None:
        if couplings.dim != measure.dim:
            raise ValueError(f"couplings have dim {couplings.dim}, the measure has {measure.dim}")
        if not 0 < inverse_temperature < float("inf"):
            raise ValueError(f"inverse_temperature must be positive, got {inverse_temperature}")
        self.couplings = couplings
        self.measure = measure
        self.inverse_temperature = inverse_temperature

    def at(self, inverse_temperature: float) -> "LocalEnergy":
        """The same couplings, shared, at another temperature (that of retrieval, say)."""
        return LocalEnergy(self.couplings, self.measure, inverse_temperature=inverse_temperature)

    def energy(self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None) -> Tensor:
        """e_i (B, R)."""
        rows = self._rows(rows)
        energy = x.new_empty(len(rows), len(x))
        for block in self._blocks(x, rows, evidence):
            log_sum = torch.logsumexp(self._scores(block), 1) - self._penalty(block)
            _put(energy, block, -log_sum / self.inverse_temperature, rows)
        return energy.T

    def attention(self, x: Tensor, *, rows: range | None = None) -> Tensor:
        """alpha_is (B, R, S); rows sum to 1, an excluded source has 0."""
        rows = self._rows(rows)
        attention = x.new_empty(len(rows), self.couplings.sources, len(x))
        for block in self._blocks(x, rows):
            _put(attention, block, torch.softmax(self._scores(block), 1), rows)
        return attention.movedim(-1, 0)

    def force(self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None) -> Tensor:
        """f_i = -d e_i/d x_i (B, R, D): self-attention."""
        rows = self._rows(rows)
        force = x.new_empty(len(rows), self.couplings.dim, len(x))
        for block in self._blocks(x, rows, evidence):
            attention = torch.softmax(self._scores(block), 1)
            mixed = (block.natural * attention.unsqueeze(2)).sum(1)
            if not self.measure.fixed_norm:
                mixed -= block.precision * block.own  # the derivative of the penalty
            _put(force, block, mixed / self.inverse_temperature, rows)
        return force.movedim(-1, 0)

    def prior_attention(
        self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None
    ) -> Tensor:
        """beta_is (B, R, S): attention before token i is looked at."""
        rows = self._rows(rows)
        prior = x.new_empty(len(rows), self.couplings.sources, len(x))
        for block in self._blocks(x, rows, evidence):
            _put(prior, block, torch.softmax(self._log_normalisers(block)[0], 1), rows)
        return prior.movedim(-1, 0)

    def conditional_mean(
        self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None
    ) -> Tensor:
        """E[x_i | x_others] (B, R, D); its length carries the certainty."""
        rows = self._rows(rows)
        mean = x.new_empty(len(rows), self.couplings.dim, len(x))
        for block in self._blocks(x, rows, evidence):
            psi, gain = self._log_normalisers(block)
            prior = torch.softmax(psi, 1)
            _put(mean, block, self.measure.apply_gain(block.natural, gain, prior, dim=2).sum(1), rows)
        return mean.movedim(-1, 0)

    def log_conditional(
        self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None
    ) -> Tensor:
        """log p(x_i | x_others) (B, R), nats, relative to the spin measure."""
        rows = self._rows(rows)
        logarithm = x.new_empty(len(rows), len(x))
        for block in self._blocks(x, rows, evidence):
            psi, _ = self._log_normalisers(block)
            log_sum = self._scores(block).logsumexp(1) - self._penalty(block)
            _put(logarithm, block, log_sum - psi.logsumexp(1), rows)
        return logarithm.T

    def sample_conditional(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        evidence: Evidence | None = None,
        rows: range | None = None,
    ) -> Tensor:
        """One draw of every x_i from p(x_i | x_others) (B, R, D): a source by beta, then a spin."""
        rows = self._rows(rows)
        sample = x.new_empty(len(rows), self.couplings.dim, len(x))
        for block in self._blocks(x, rows, evidence):
            prior = torch.softmax(self._log_normalisers(block)[0], 1)  # (R, S, B)
            flat = prior.transpose(1, 2).reshape(-1, prior.shape[1])
            # where the state has overflowed any source will do: its field is not finite, nor is the draw
            flat = torch.where(flat.isfinite().all(1, keepdim=True), flat, 1.0)
            source = torch.multinomial(flat, 1, generator=generator).view(len(block.rows), 1, 1, -1)
            chosen = block.natural.take_along_dim(source, 1).squeeze(1).movedim(1, -1)  # (R, B, D)
            precision = block.precision.squeeze(-1)  # (R, 1)
            drawn = self.measure.sample(chosen, generator=generator, precision=precision)
            _put(sample, block, drawn.movedim(-1, 1), rows)
        return sample.movedim(-1, 0)

    def coupling_gradient(self, x: Tensor) -> dict[str, Tensor]:
        """d/d weights of mean_B sum_i log p(x_i | x_others): the direction in which to learn."""
        gradient = self.zero_gradient()
        self.accumulate_gradient(x, gradient)
        return gradient

    def zero_gradient(self) -> dict[str, Tensor]:
        """A buffer for `accumulate_gradient`, shaped and laid out like the weights."""
        return {name: torch.zeros_like(weight) for name, weight in self.couplings.weights.items()}

    def accumulate_gradient(self, x: Tensor, gradient: dict[str, Tensor]) -> Tensor:
        """Add `coupling_gradient(x)` to `gradient` and return log p(x_i | x_others) (B, N)."""
        rows = self._rows(None)
        scale = self.inverse_temperature / len(x)
        logarithm = x.new_empty(len(rows), len(x))
        for block in self._blocks(x, rows):
            psi, gain = self._log_normalisers(block)
            posterior, log_sum = _softmax_and_log_sum(self._scores(block))
            prior, log_partition = _softmax_and_log_sum(psi)
            _put(logarithm, block, log_sum - log_partition, rows)
            by_field = self.measure.apply_gain(block.natural, gain, prior.mul_(-scale), dim=2)
            by_field.addcmul_(posterior.mul_(scale).unsqueeze(2), block.own.unsqueeze(1))
            self.couplings.accumulate(gradient, by_field, block.presynaptic, rows=block.rows)
        return logarithm.T

    def accumulate_positive_phase(self, x: Tensor, gradient: dict[str, Tensor]) -> Tensor:
        """Add -d/d weights of mean_B sum_i e_i, <alpha_is x_i x_j^T>, to `gradient`; return e_i (B, N)."""
        rows = self._rows(None)
        energy = x.new_empty(len(rows), len(x))
        for block in self._blocks(x, rows):
            posterior, log_sum = _softmax_and_log_sum(self._scores(block))
            _put(energy, block, -log_sum / self.inverse_temperature, rows)
            by_field = posterior.mul_(1 / len(x)).unsqueeze(2) * block.own.unsqueeze(1)
            self.couplings.accumulate(gradient, by_field, block.presynaptic, rows=block.rows)
        return energy.T

    def _rows(self, rows: range | None) -> range:
        every = range(self.couplings.tokens)
        if rows is None:
            return every
        if rows.step != 1 or not 0 <= rows.start <= rows.stop <= every.stop:
            raise ValueError(f"rows are {rows}, expected a range of step 1 within {every}")
        return rows

    def _blocks(self, x: Tensor, rows: range, evidence: Evidence | None = None) -> Iterator[_Block]:
        n, d = self.couplings.tokens, self.couplings.dim
        if x.dim() != 3 or x.shape[1:] != (n, d):
            raise ValueError(f"tokens have shape {tuple(x.shape)}, expected (B, N, D) = (B, {n}, {d})")
        if evidence is not None and evidence.field.shape != x.shape:
            shapes = f"{tuple(evidence.field.shape)}, the tokens {tuple(x.shape)}"
            raise ValueError(f"the field of the evidence has shape {shapes}")
        precision = 0.0 if evidence is None else evidence.precision
        precisions = torch.as_tensor(precision, dtype=x.dtype, device=x.device)
        if precisions.shape not in ((), (n,)):
            given = tuple(precisions.shape)
            raise ValueError(f"the precision of the evidence has shape {given}, expected () or ({n},)")
        precisions = precisions.expand(n)
        for first in range(0, len(x), _BLOCK_IMAGES):
            images = slice(first, min(first + _BLOCK_IMAGES, len(x)))
            tokens = x[images].permute(1, 2, 0).contiguous()  # (N, D, B)
            presynaptic = x[images].transpose(0, 1).contiguous()  # (N, B, D)
            row_bytes = self.couplings.sources * tokens[0].numel() * x.element_size()
            height = max(1, _BLOCK_BYTES // row_bytes)
            for start in range(rows.start, rows.stop, height):
                block = range(start, min(start + height, rows.stop))
                natural = self.couplings.fields(tokens, block)
                if self.inverse_temperature != 1:
                    natural *= self.inverse_temperature
                if evidence is not None:
                    field = evidence.field[images, block.start : block.stop]
                    natural += field.permute(1, 2, 0).unsqueeze(1)
                own = tokens[block.start : block.stop]
                observed = precisions[block.start : block.stop, None, None]
                yield _Block(block, images, own, natural, presynaptic, observed)

    def _scores(self, block: _Block) -> Tensor:
        """x_i . h_is (R, S, B), -inf where there is no source."""
        scores = (block.natural * block.own.unsqueeze(1)).sum(2)
        self.couplings.exclude(scores, block.rows)
        return scores

    def _penalty(self, block: _Block) -> Tensor | float:
        """precision |x_i|^2/2 (R, B), what an observation costs beside its field; 0 for a fixed norm."""
        if self.measure.fixed_norm:
            return 0.0
        squared: Tensor = (block.own * block.own).sum(1) / 2
        return squared * block.precision.squeeze(-1)

    def _log_normalisers(self, block: _Block) -> tuple[Tensor, Tensor]:
        """psi(h_is) (R, S, B), -inf where there is no source, and the gain that gives grad psi."""
        psi, gain = self.measure.log_normaliser_and_gain(block.natural, dim=2, precision=block.precision)
        self.couplings.exclude(psi, block.rows)
        return psi, gain


def _softmax_and_log_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """softmax and logsumexp over axis 1, sharing the exponentials; overwrites `logits`."""
    highest = logits.amax(1, keepdim=True)
    exponentials = logits.sub_(highest).exp_()
    total = exponentials.sum(1, keepdim=True)
    log_sum = (highest + torch.log(total)).squeeze(1)
    return exponentials.div_(total), log_sum


def _put(out: Tensor, block: _Block, value: Tensor, rows: range) -> None:
    """Write the values of a block (R, ..., B) where they belong in out (all rows, ..., all images)."""
    out[block.rows.start - rows.start : block.rows.stop - rows.start, ..., block.images] = value
