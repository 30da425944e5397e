"""A memory as a recurrent map: tokens attend to stored patterns, and regress inside what they attend to.

See `local_linear` for the equations, `pattern_memory` for the search. `dynamics.run` drives the memory like
an energy: its conditional mean is the map. Nothing is differentiated, and storing is one-shot.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from attractor.physics.local_linear import (
    LocalAttention,
    attended_mean,
    attended_moments,
    response,
    response_by_components,
)
from attractor.physics.measures import Gaussian
from attractor.physics.pattern_memory import PatternMemory, Shortlist

_GROUP = 2**21  # numbers of the patterns that are attended to at a time: 8 MB


class LocalLinearMemory:
    """Stored patterns and one way to attend to them.

    squared_distances: d_ip^2, from the centre of token i to component p, in squared pixels, (N, P).

        run(memory, x0, steps, map=MeanField(), order=Synchronous(), evidence=memory.patterns.search(...))

    Raises ValueError for distances of another shape, and for more neighbours than patterns and copies.
    """

    def __init__(
        self, patterns: PatternMemory, attention: LocalAttention, *, squared_distances: Tensor
    ) -> None:
        shape = (patterns.tokens, patterns.components)
        if squared_distances.shape != shape:
            raise ValueError(f"distances are {tuple(squared_distances.shape)}, expected (N, P) = {shape}")
        most = patterns.count * patterns.copies
        if attention.neighbours is not None and attention.neighbours > most:
            raise ValueError(
                f"{attention.neighbours} neighbours were asked for; the memory holds {patterns.count} "
                f"patterns with {patterns.copies - 1} copies of each, {most} in all: use {most} or fewer"
            )
        self.patterns = patterns
        self.attention = attention
        self.squared_distances = squared_distances
        self.measure = Gaussian(patterns.dim)

    def at(self, inverse_temperature: float) -> "LocalLinearMemory":
        """The same memory, attended to at another tau."""
        attention = replace(self.attention, inverse_temperature=inverse_temperature)
        return LocalLinearMemory(self.patterns, attention, squared_distances=self.squared_distances)

    def conditional_mean(self, x: Tensor, *, evidence: Shortlist, rows: range | None = None) -> Tensor:
        """The answer (B, R, D) to the evidence in the state x (B, N, D); x for tokens not asked for.

        Where nothing is known, no pattern is better than another: the answer is the mean of all.
        """
        memory = self.patterns
        expected = (len(evidence.patterns), memory.tokens, memory.dim)
        if x.shape != expected:
            raise ValueError(f"the state is {tuple(x.shape)}, expected (B, N, D) = {expected}")
        rows = range(memory.tokens) if rows is None else rows
        answer = x[:, rows.start : rows.stop].clone()
        chosen = torch.zeros(memory.tokens, dtype=torch.bool, device=x.device)
        chosen[rows.start : rows.stop] = True
        for b in range(len(x)):
            asked = (chosen if evidence.asked is None else chosen & evidence.asked[b]).nonzero().squeeze(1)
            if len(asked):
                known = _Known(evidence, b, x[b].flatten(), self.attention.pull)
                if not known.confidence.any():
                    answer[b, asked - rows.start] = memory.moments[0].to(x).view(memory.tokens, -1)[asked]
                    continue
                answer[b, asked - rows.start] = self._answer(asked, known)
        return answer

    def _answer(self, asked: Tensor, known: "_Known") -> Tensor:
        """The tokens `asked` (T,) of one image, (T, D)."""
        attention, memory = self.attention, self.patterns
        relevance = attention.relevance(self.squared_distances.to(known.state)[asked])  # (T, P)
        precision, observed = known.precision.expand_as(relevance), known.observed.expand_as(relevance)
        if attention.reach is None:  # one attention for all: every token is an output of it
            order = torch.cat((_others(asked, memory.tokens), asked))
            gain = attention.gain(relevance[:1] * precision[:1])
            whole = self._attend(order[None], known, relevance[:1], observed[:1], gain, outputs=len(asked))
            return whole.view(len(asked), memory.dim)
        if attention.coupled:  # to the state of others: its own would confirm itself
            own = torch.arange(memory.components, device=asked.device) // memory.dim == asked[:, None]
            precision = torch.where(own, precision, known.confidence)
            observed = torch.where(own, observed, known.target)
        tokens = self._windows(asked, known.confidence if attention.coupled else known.precision)
        gain = attention.gain(relevance * precision)
        answer = self._attend(tokens, known, relevance, observed, gain, outputs=1)
        return answer.view(len(asked), memory.dim)

    def _windows(self, asked: Tensor, precision: Tensor) -> Tensor:
        """The observed tokens nearest to each of `asked`, and itself as the last, (T, R + 1)."""
        memory, window = self.patterns, self.attention.window
        distance = self.squared_distances[asked].view(len(asked), memory.tokens, memory.dim).mean(2)
        observed = precision.view(memory.tokens, memory.dim).any(1)
        distance = distance.masked_fill(~observed, torch.inf)
        distance.scatter_(1, asked[:, None], torch.inf)
        there = int(observed.sum()) - int(observed[asked].any())
        most = there if window is None else min(there, -(-window // memory.dim))
        nearest = distance.topk(most, 1, largest=False, sorted=False).indices
        return torch.cat((nearest, asked[:, None]), 1)

    def _attend(
        self,
        tokens: Tensor,
        known: "_Known",
        relevance: Tensor,
        observed: Tensor,
        gain: Tensor,
        *,
        outputs: int,
    ) -> Tensor:
        """Answer for the last `outputs` of each row of `tokens` (T, R), from all in it, (T, outputs D).

        relevance, observed and gain are those of all components, (T, P).
        """
        attention, memory = self.attention, self.patterns
        columns = _columns(tokens, memory.dim)  # (T, R D)
        observed, gain = observed.gather(1, columns), gain.gather(1, columns)
        outputs *= memory.dim
        if attention.neighbours is None:
            mean, covariance = (each.to(known.state) for each in memory.moments)
            local = covariance[columns[:, :, None], columns[:, None]]
            return response_by_components(mean[columns], local, observed, gain, outputs=outputs)
        rows = memory.with_copies(known.patterns)
        weights = (relevance * known.confidence).T.contiguous()
        beta, places = attention.separate(memory.scores(rows, known.target, weights))
        prior = None
        if attention.shrinkage:
            prior = memory.moments[1].to(known.state) * attention.shrinkage
        answers = []
        group = max(1, _GROUP // (beta.shape[1] * columns.shape[1]))
        buffer = gain.new_empty(min(group, len(tokens)), beta.shape[1], columns.shape[1])
        for first in range(0, len(tokens), group):
            here = slice(first, first + group)
            part = columns[here]
            attended = buffer[: len(part)]
            for out, place, row in zip(attended, places[here], tokens[here], strict=True):
                memory.take(rows[place], row, out)
            if attention.softening == math.inf:  # no gain: the mean alone answers
                answers.append(attended_mean(beta[here], attended)[:, -outputs:])
                continue
            mean, deviations = attended_moments(beta[here], attended)
            shared = None if prior is None else prior[part[:, :, None], part[:, None]]
            answers.append(
                response(mean, deviations, observed[here], gain[here], outputs=outputs, prior=shared)
            )
        return torch.cat(answers)


class _Known:
    """Of one image: the evidence, and the state as so much more of it.

    l_p(m) + kappa (x_p m - m^2 / 2) = -q_p (m - z_p)^2 / 2 + const,   q = P + kappa, z = (h + kappa x) / q
    """

    def __init__(self, shortlist: Shortlist, image: int, state: Tensor, pull: float) -> None:
        field, self.precision = shortlist.evidence.field[image], shortlist.evidence.precision[image]
        self.state = state
        self.patterns = shortlist.patterns[image]
        self.observed = torch.where(self.precision > 0, field / self.precision, 0)
        self.confidence = self.precision + pull
        pulled = field + pull * state if pull else field
        self.target = torch.where(self.confidence > 0, pulled / self.confidence, 0)


def _others(asked: Tensor, tokens: int) -> Tensor:
    left = torch.ones(tokens, dtype=torch.bool, device=asked.device)
    left[asked] = False
    return left.nonzero().squeeze(1)


def _columns(tokens: Tensor, dim: int) -> Tensor:
    """The components of tokens (T, R), (T, R D)."""
    return (tokens.unsqueeze(-1) * dim + torch.arange(dim, device=tokens.device)).flatten(1)
