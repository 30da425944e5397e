"""The local energies of slots: attention over learned memories, each of which regresses.

    u_is = K_s,ii m_si - sum_{j != i} K_s,ij (x_j - m_sj)           the field of slot s on token i
    e_i  = -(1/lambda) log sum_s exp( lambda (x_i . u_is - x_i . K_s,ii x_i / 2 + c_is(x_others)) )
    c_is = log pi_s N(x_others; slot s) - log integral exp(x_i . u_is - x_i . K_s,ii x_i / 2) dx_i
    alpha_s = softmax_s(lambda log pi_s N(x; m_s, K_s^-1))          attention: the same for every i
    f_i  = -d e_i/d x_i = sum_s alpha_s (u_is - K_s,ii x_i)
    p(x_i | x_others) = exp(-lambda e_i) / Z_i,    over Lebesgue measure: nats relative to dx_i
    beta_is = softmax_s(lambda c_is + log integral exp(lambda (x_i . u_is - x_i . K_s,ii x_i / 2)) dx_i)
    E[x_i | x_others] = sum_s beta_is K_s,ii^-1 u_is                             conditional mean

With c_is the evidence of slot s in the other tokens, the exponent is log pi_s N(x; m_s, K_s^-1), whatever i
is: all e_i are one energy, E(x) = -log p(x) at lambda = 1. That makes it a Lyapunov function. At another
lambda it is -(1/lambda) log sum_s (pi_s N_s)^lambda: slots of precision lambda K_s, a joint density too.

`ModeSeeking` provably lowers E. The conditional mean does so for one slot only: between two slots it may
lie where neither is.

An evidence (`Evidence`) multiplies the density by exp(field_i . x_i - precision_i |x_i|^2 / 2); then
E(x) = -(1/lambda) (log sum_s (pi_s N_s)^lambda + field . x - precision |x|^2 / 2), and all else follows.
"""

import math

import torch
from torch import Tensor

from attractor.physics.evidence import Evidence
from attractor.physics.measures import Gaussian
from attractor.physics.slots import SlotMixture


class SlotEnergy:
    """The energies of N tokens of dimension D under a mixture of slots over P = N D components.

    Methods take tokens x (B, N, D) and `rows`, a range of tokens i (all unless given), as `LocalEnergy`
    does. Raises ValueError for shapes that do not fit, and an inverse temperature that is not positive.
    """

    def __init__(
        self, mixture: SlotMixture, *, tokens: int, dim: int, inverse_temperature: float = 1.0
    ) -> None:
        if tokens < 1 or dim < 1 or tokens * dim != mixture.pixels:
            raise ValueError(
                f"{tokens} tokens of dim {dim} are not the {mixture.pixels} pixels of the slots"
            )
        if not 0 < inverse_temperature < math.inf:
            raise ValueError(f"inverse_temperature must be positive, got {inverse_temperature}")
        self.mixture = mixture
        self.tokens, self.dim = tokens, dim
        self.inverse_temperature = inverse_temperature
        self.measure = Gaussian(dim)  # R^D, for the dynamics: tokens have no fixed norm

    def at(self, inverse_temperature: float) -> "SlotEnergy":
        """The same slots, shared, at another temperature."""
        return SlotEnergy(
            self.mixture, tokens=self.tokens, dim=self.dim, inverse_temperature=inverse_temperature
        )

    def energy(self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None) -> Tensor:
        """e_i (B, R): E(x), the same for every token."""
        rows = self._checked(x, rows, evidence)
        log_sum = self._scores(x).logsumexp(1) + self._observed(x, evidence)
        return (-log_sum / self.inverse_temperature).unsqueeze(1).repeat(1, len(rows))

    def attention(self, x: Tensor, *, rows: range | None = None) -> Tensor:
        """alpha_s (B, R, S): the posterior over slots, the same for every token."""
        rows = self._checked(x, rows, None)
        return self._scores(x).softmax(1).unsqueeze(1).repeat(1, len(rows), 1)

    def fields(self, x: Tensor, *, rows: range | None = None) -> Tensor:
        """u_is (B, R, S, D), without the evidence."""
        rows = self._checked(x, rows, None)
        return torch.stack([self._row(x, i)[0] for i in rows], 1)

    def force(self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None) -> Tensor:
        """f_i (B, R, D): attention over what every slot pulls towards."""
        rows = self._checked(x, rows, evidence)
        alpha = self._scores(x).softmax(1)
        forces = []
        for i in rows:
            field, own = self._row(x, i)
            pull = field - torch.einsum("sde,be->bsd", own, x[:, i])
            force = torch.einsum("bs,bsd->bd", alpha, pull)
            if evidence is not None:
                strength = self._strength(evidence, x)[i]
                force = force + (evidence.field[:, i] - strength * x[:, i]) / self.inverse_temperature
            forces.append(force)
        return torch.stack(forces, 1)

    def prior_attention(
        self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None
    ) -> Tensor:
        """beta_is (B, R, S): attention before token i is looked at."""
        rows = self._checked(x, rows, evidence)
        return torch.stack([self._conditional(x, i, evidence)[0].softmax(1) for i in rows], 1)

    def conditional_mean(
        self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None
    ) -> Tensor:
        """E[x_i | x_others] (B, R, D)."""
        rows = self._checked(x, rows, evidence)
        means = []
        for i in rows:
            prior, mean, _ = self._conditional(x, i, evidence)
            means.append(torch.einsum("bs,bsd->bd", prior.softmax(1), mean))
        return torch.stack(means, 1)

    def log_conditional(
        self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None
    ) -> Tensor:
        """log p(x_i | x_others) (B, R), nats."""
        rows = self._checked(x, rows, evidence)
        log_sum = self._scores(x).logsumexp(1) + self._observed(x, evidence)
        normalisers = [self._conditional(x, i, evidence)[0].logsumexp(1) for i in rows]
        return log_sum.unsqueeze(1) - torch.stack(normalisers, 1)

    def sample_conditional(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        evidence: Evidence | None = None,
        rows: range | None = None,
    ) -> Tensor:
        """One draw of every x_i from p(x_i | x_others) (B, R, D): a slot by beta, then a Gaussian."""
        rows = self._checked(x, rows, evidence)
        draws = []
        for i in rows:
            prior, mean, factor = self._conditional(x, i, evidence)
            slot = torch.multinomial(prior.softmax(1), 1, generator=generator).squeeze(1)
            image = torch.arange(len(x), device=x.device)
            noise = torch.randn(len(x), self.dim, 1, generator=generator, dtype=x.dtype, device=x.device)
            spread = torch.linalg.solve_triangular(factor[slot].mT, noise, upper=True)
            draws.append(mean[image, slot] + spread.squeeze(2))
        return torch.stack(draws, 1)

    def lowest(self, x: Tensor, *, evidence: Evidence | None = None, rows: range | None = None) -> Tensor:
        """Where the quadratic that touches E from above at x is lowest, token by token, (B, R, D)."""
        rows = self._checked(x, rows, evidence)
        alpha = self._scores(x).softmax(1) * self.inverse_temperature
        found = []
        for i in rows:
            field, own = self._row(x, i)
            pull = torch.einsum("bs,bsd->bd", alpha, field)
            curvature = torch.einsum("bs,sde->bde", alpha, own)
            if evidence is not None:
                pull = pull + evidence.field[:, i]
                curvature.diagonal(dim1=1, dim2=2).add_(self._strength(evidence, x)[i])
            found.append(torch.linalg.solve(curvature, pull))
        return torch.stack(found, 1)

    def _scores(self, x: Tensor) -> Tensor:
        """lambda log pi_s N(x; m_s, K_s^-1) (B, S)."""
        return self.inverse_temperature * self.mixture.log_joint(x.flatten(1))

    def _row(self, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """u_is (B, S, D) and K_s,ii (S, D, D)."""
        here = slice(i * self.dim, (i + 1) * self.dim)
        means, strip = self.mixture.means, self.mixture.precisions[:, here]  # (S, D, P)
        own = strip[:, :, here]
        others = x.flatten(1).clone()
        others[:, here] = 0
        # strip (x - m), but x_i = 0 in it: what is left of it is -K_ii m_i
        pull = torch.einsum("sdp,bp->bsd", strip, others) - torch.einsum("sdp,sp->sd", strip, means)
        return -pull, own

    def _conditional(self, x: Tensor, i: int, evidence: Evidence | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of beta_is (B, S), slot means (B, S, D), factors of their precisions (S, D, D)."""
        temperature = self.inverse_temperature
        field, own = self._row(x, i)
        natural, precision = temperature * field, temperature * own
        if evidence is not None:
            natural = natural + evidence.field[:, None, i]
            precision = precision + self._strength(evidence, x)[i] * torch.eye(self.dim).to(x)
        factor = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve(natural.permute(1, 2, 0), factor).permute(2, 0, 1)
        log_volume = self.dim * math.log(2 * math.pi) / 2 - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        without = x.clone()
        without[:, i] = 0  # at x_i = 0 the exponent is lambda c_is
        prior = self._scores(without) + self._observed(without, evidence).unsqueeze(1)
        return prior + (natural * mean).sum(2) / 2 + log_volume, mean, factor

    def _observed(self, x: Tensor, evidence: Evidence | None) -> Tensor:
        """Field . x - precision |x|^2 / 2, (B,)."""
        if evidence is None:
            return x.new_zeros(len(x))
        penalty = self._strength(evidence, x) * x.square().sum(2) / 2
        return ((evidence.field * x).sum(2) - penalty).sum(1)

    def _strength(self, evidence: Evidence, x: Tensor) -> Tensor:
        return torch.as_tensor(evidence.precision, dtype=x.dtype, device=x.device).expand(self.tokens)

    def _checked(self, x: Tensor, rows: range | None, evidence: Evidence | None) -> range:
        if x.dim() != 3 or x.shape[1:] != (self.tokens, self.dim):
            expected = f"(B, {self.tokens}, {self.dim})"
            raise ValueError(f"tokens have shape {tuple(x.shape)}, expected (B, N, D) = {expected}")
        if evidence is not None and evidence.field.shape != x.shape:
            shapes = f"{tuple(evidence.field.shape)}, the tokens {tuple(x.shape)}"
            raise ValueError(f"the field of the evidence has shape {shapes}")
        rows = range(self.tokens) if rows is None else rows
        if rows.step != 1 or not 0 <= rows.start < rows.stop <= self.tokens:
            raise ValueError(f"rows are {rows}, expected a range of step 1 within {range(self.tokens)}")
        return rows


class ModeSeeking:
    """The map that lowers the energy: each token to the lowest point of a quadratic above E.

        x_i <- ( sum_s alpha_s K_s,ii )^-1 sum_s alpha_s u_is        (without evidence)

    By Jensen, E(x') <= E(x) + sum_s alpha_s(x) (q_s(x') - q_s(x)) with q_s = (x - m_s) K_s (x - m_s) / 2:
    equal at x' = x, and lowest over token i at that point. So every update of one token lowers E or leaves
    it, and so does any step part of the way (damping, inertia). It is an EM step, with the slot as what is
    hidden: Carreira-Perpinan 2007, "Gaussian mean-shift is an EM algorithm". Only token by token
    (`Sequential`).
    """

    projected = False
    deterministic = True

    def __call__(
        self, energy: SlotEnergy, x: Tensor, *, evidence: Evidence | None, rows: range | None
    ) -> Tensor:
        return energy.lowest(x, evidence=evidence, rows=rows)
