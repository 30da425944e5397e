"""Local rules for slots: delta rules gated by one scalar, the attention alpha_s.

    delta rule   dm_s    = eta alpha_s (x - m_s)
                 dA_s,ij = eta alpha_s (x_i - mu_is)(x_j - m_sj)^T + decay towards the parent,   j != i
                 dV_s,i  = eta alpha_s ((x_i - mu_is)(x_i - mu_is)^T - V_s,i) + the same,
                 mu_is   = m_si + sum_{j != i} A_s,ij (x_j - m_sj)
    Oja's rule   dW_s,pk = eta alpha_s z_k (x_p - m_sp - sum_{l <= k} W_s,pl z_l),    z = W_s^T (x - m_s)

A_s,i is what token i expects of the others and V_s,i how wrong it is. The synapse (s, i, j) sees the error
of token i, the token j, its own mean and alpha_s; row i sees nothing of the other rows. The decay is the
same delta rule on what the parent *dreams*: n_0 deviations from the mean, with the parent's covariance, for
every n_s images. So at rest A_s,i is the regression of token i on the others under

    (n_s S_s + n_0 S_parent) / (n_s + n_0)

and K_s,ii = V_s,i^-1, K_s,ij = -V_s,i^-1 A_s,ij its inverse: the closed form of `slot_learning`. (A decay
proportional to A - A_parent would rest at it only if the parent's covariance were a multiple of the
identity.) Sources: Widrow & Hoff 1960 (delta rule); Oja 1982 and Sanger 1989 (its triangular form, which
finds the eigenvectors in order and not just what they span).
"""

import torch
from torch import Tensor

from attractor.physics.low_rank_slots import LowRankSlots
from attractor.physics.slots import SlotMixture


class SlotDeltaRule:
    """Means, regressions and errors of all slots: m (S, P), A (S, P, P), V (S, P, P), P = N D.

    The blocks A_s,ii are 0; V_s is zero but for its blocks V_s,ii. Starts from a mixture, exactly: A_s,ij =
    -K_s,ii^-1 K_s,ij and V_s,i = K_s,ii^-1, so that a step at the fixed point stays there.
    """

    def __init__(self, mixture: SlotMixture, *, tokens: int) -> None:
        """Raises ValueError unless `tokens` divides the number of pixels."""
        pixels = mixture.pixels
        if tokens < 1 or pixels % tokens:
            raise ValueError(f"{pixels} pixels are not {tokens} tokens of one size; use a divisor")
        self.log_weights = mixture.log_weights.clone()
        self.means = mixture.means.clone()
        token = torch.arange(pixels) // (pixels // tokens)
        self._own = token[:, None] == token
        own = torch.where(self._own, mixture.precisions, 0)
        self.errors = torch.where(self._own, torch.linalg.inv(own), 0)
        self.couplings = torch.where(self._own, 0, -self.errors @ mixture.precisions)

    @torch.inference_mode()
    def step(self, x: Tensor, attention: Tensor, *, rate: float, dreams: Tensor, share: Tensor) -> None:
        """One step on images x (B, P) with attention alpha (B, S), learning rate eta.

        dreams (S, M, P): deviations from the mean that the parent of every slot dreams, of mean zero.
        share (S,): n_0 / n_s, their weight in images. Raises ValueError for a rate outside (0, 1].
        """
        if not 0 < rate <= 1:
            raise ValueError(f"rate is {rate}; a delta rule needs one in (0, 1]")
        for s, dream in enumerate(dreams):
            gate = attention[:, s] / len(x)
            deviation = x - self.means[s]
            mean_step = gate @ deviation
            seen = torch.cat((deviation, dream))
            replay = share[s] * gate.sum() / len(dream)
            gates = torch.cat((gate, replay.expand(len(dream)))).unsqueeze(1)
            error = seen - seen @ self.couplings[s].T  # x_i - mu_is of all tokens
            change = (gates * error).T @ seen
            self.couplings[s] += rate * torch.where(self._own, 0, change)
            spread = (gates * error).T @ error - gates.sum() * self.errors[s]
            self.errors[s] += rate * torch.where(self._own, spread, 0)
            self.means[s] += rate * mean_step

    def mixture(self) -> SlotMixture:
        """The mixture that has been learned, K_s,ij = -V_s,i^-1 A_s,ij, symmetric at rest.

        Its symmetric part is taken before that; ValueError where that is not positive definite.
        """
        inverse = torch.linalg.inv(self.errors)
        precisions = inverse - inverse @ self.couplings
        precisions = (precisions + precisions.mT) / 2
        return SlotMixture(self.log_weights, self.means, precisions=precisions)


class SlotOjaRule:
    """The low-rank form: m (S, P), directions W (S, P, r), the variances along them, the noise psi ().

        dm_s = eta alpha_s (x - m_s)         dlambda_sk = eta alpha_s (z_k^2 - lambda_sk)
        dpsi = eta sum_s alpha_s ((|x - m_s|^2 - |z|^2) / (P - r) - psi)

    At rest the columns of W have length 1 and are the leading eigenvectors of the covariance S_s of the
    slot's images, in order, lambda its eigenvalues, and psi the mean of the others, over all slots: the
    maximum of the likelihood of `low_rank_slots.LowRankSlots`, whose loadings are W (lambda - psi)^1/2.
    """

    def __init__(self, means: Tensor, directions: Tensor) -> None:
        """means (S, P); directions (S, P, r), a start of full rank. Raises ValueError for other shapes."""
        if directions.dim() != 3 or directions.shape[:2] != means.shape:
            shapes = f"{tuple(means.shape)} and {tuple(directions.shape)}"
            raise ValueError(f"means and directions have shapes {shapes}, expected (S, P) and (S, P, r)")
        self.means = means.clone()
        self.directions = directions.clone()
        self.variances = means.new_ones(len(means), directions.shape[2])
        self.noise = means.new_ones(())
        self._lower = torch.ones(*directions.shape[2:], *directions.shape[2:]).to(means).triu()  # l <= k

    @torch.inference_mode()
    def step(self, x: Tensor, attention: Tensor, *, rate: float) -> None:
        """One step on images x (B, P) with attention alpha (B, S). Raises ValueError for a rate <= 0."""
        if not rate > 0:
            raise ValueError(f"rate must be positive, got {rate}")
        rest = self.means.shape[1] - self.directions.shape[2]
        noise = torch.zeros_like(self.noise)
        for s, direction in enumerate(self.directions):
            gate = attention[:, s, None] / len(x)
            deviation = x - self.means[s]
            z = deviation @ direction  # (B, r)
            gated = gate * z
            # sum_{l <= k} W_pl <z_l z_k>: what the directions up to k already explain
            explained = direction @ ((z.T @ gated) * self._lower)
            left = (deviation.square().sum(1) - z.square().sum(1)) / rest
            total = gate.sum()
            self.directions[s] += rate * (deviation.T @ gated - explained)
            self.variances[s] += rate * ((gated * z).sum(0) - total * self.variances[s])
            noise += gate[:, 0] @ left
            self.means[s] += rate * (gate.T @ deviation).squeeze(0)
        # the attentions of an image sum to 1
        self.noise += rate * (noise - self.noise)

    def slots(self, log_weights: Tensor) -> LowRankSlots:
        """The slots that have been learned, with log pi_s (S,): loadings W (lambda - psi)^1/2."""
        scales = (self.variances - self.noise).clamp_min(0).sqrt()
        return LowRankSlots(log_weights, self.means, self.directions * scales.unsqueeze(1), self.noise)
