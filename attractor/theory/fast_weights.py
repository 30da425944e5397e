"""Linear attention is a Hopfield network that is written as it is read.

    M_t = M_{t-1} diag(g_t) + u_t phi(k_t)^T        (Dv, F), the memory
    Z_t = g_t Z_{t-1} + phi(k_t)                    (F,), the normaliser
    y_t = M_t phi(q_t) [ / (Z_t . phi(q_t)) ]       (Dv,), the readout

With g = 1 and u = v this is Hebb's heteroassociative memory, and written out it is causal linear attention,

    y_t = sum_{s<=t} A_ts u_s,      A_ts = sum_f phi(q_t)_f phi(k_s)_f R_tsf,      R_ts = prod_{s<r<=t} g_r

Three forms of one map, equal up to rounding: `recurrent` holds M and Z and nothing that grows with T;
`parallel` holds A, (T, T), and has no loop over tokens; `chunked` is parallel inside chunks and recurrent
between them.

R is made of products of gates, which underflow to 0 where a memory is forgotten, as they should. A quotient
of cumulative products would be 0/0 there, and a difference of their logarithms inf - inf for a gate of 0.

Sources: Millidge 2024, "Linear attention as iterated Hopfield networks", beren.io (the reading as memory);
Katharopoulos et al. 2020, arXiv 2006.16236 (the forms, Z); Yang et al. 2023, arXiv 2312.06635 (gates,
chunks). Departure: Z only for features and rules that make the weights of a readout positive; one head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attractor.theory.feature_maps import FeatureMap, Identity
from attractor.theory.write_rules import Hebbian, WriteRule


@dataclass(frozen=True)
class State:
    """A memory after `tokens` tokens: all that has to be kept of them, whatever their number."""

    memory: Tensor  # M, (B, Dv, F)
    normaliser: Tensor  # Z, (B, F)
    tokens: int = 0


class FastWeights:
    """A heteroassociative memory for keys of `dim` = D and values of `value_dim` = Dv components.

    Every form takes keys (B, T, D), values (B, T, Dv) and queries (B, T, D), of one floating-point type,
    and a state to go on from (an empty one unless given); token t is written before query t is read. Raises
    ValueError for shapes that cannot be multiplied, for a normaliser with features or a rule that do not
    make it positive, for gates that do not fit the features, for gates of a rule that reads the memory to
    write it, and where an empty memory is read.
    """

    def __init__(
        self,
        dim: int,
        value_dim: int,
        *,
        feature_map: FeatureMap | None = None,
        rule: WriteRule | None = None,
        normalised: bool = False,
    ) -> None:
        """Without a feature map the `Identity`, without a rule the `Hebbian` one."""
        self.dim = dim
        self.value_dim = value_dim
        self.feature_map = feature_map or Identity()
        self.rule = rule or Hebbian()
        self.normalised = normalised
        if min(dim, value_dim) < 1:
            raise ValueError(f"keys and values need a component each, got {dim} and {value_dim}")
        if normalised and not self.feature_map.positive:
            raise ValueError(
                f"{type(self.feature_map).__name__} is not positive: Z . phi(q) may be zero or negative, "
                "and cannot normalise; use EluPlusOne, PositiveRandomFeatures or normalised=False"
            )
        if normalised and not self.rule.sums:
            raise ValueError(
                f"under the {type(self.rule).__name__} rule the memory is no sum of values with positive "
                "weights, and Z cannot normalise it; use normalised=False"
            )
        self.features = self.feature_map.features(dim)

    def empty(self, batch: int, *, dtype: torch.dtype = torch.float64) -> State:
        """Memories without tokens, for a batch of B sequences."""
        memory = torch.zeros(batch, self.value_dim, self.features, dtype=dtype)
        return State(memory, torch.zeros(batch, self.features, dtype=dtype))

    def step(self, state: State, key: Tensor, *, value: Tensor, query: Tensor) -> tuple[Tensor, State]:
        """One token: key (B, D) and value (B, Dv) are written, query (B, D) is read: y_t (B, Dv)."""
        keys, values, queries = key.unsqueeze(1), value.unsqueeze(1), query.unsqueeze(1)
        state = self._checked(keys, values, state, queries=queries)
        phi, gates = self.feature_map(keys), self._gates(keys)
        written = self.rule.written(state.memory, phi, values=values)
        memory, normaliser = state.memory, state.normaliser
        if gates is not None:
            memory, normaliser = gates * memory, gates[:, 0] * normaliser  # (B, 1, G) (B, Dv, F)
        state = State(memory + written.mT * phi, normaliser + phi[:, 0], state.tokens + 1)
        return self.recall(state, queries)[:, 0], state

    def recall(self, state: State, queries: Tensor) -> Tensor:
        """M phi(q) [ / (Z . phi(q)) ] for queries (B, Q, D): (B, Q, Dv). Writes nothing."""
        self._check_queries(queries, state)
        if not state.tokens:
            raise ValueError("the memory is empty: write a token before reading")
        phi = self.feature_map(queries)
        return self._readout(phi @ state.memory.mT, phi @ state.normaliser.unsqueeze(-1))

    def recurrent(
        self, keys: Tensor, values: Tensor, *, queries: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Token by token: outputs (B, T, Dv) and the last state."""
        state = self._checked(keys, values, state, queries=queries)
        outputs = torch.empty_like(values)
        for t in range(keys.shape[1]):
            outputs[:, t], state = self.step(state, keys[:, t], value=values[:, t], query=queries[:, t])
        return outputs, state

    def parallel(
        self, keys: Tensor, values: Tensor, *, queries: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """All tokens at once, through the scores A (B, T, T)."""
        state = self._checked(keys, values, state, queries=queries)
        phi, asked, gates = self.feature_map(keys), self.feature_map(queries), self._gates(keys)
        written = self.rule.written(state.memory, phi, values=values)
        scores = _scores(asked, phi, gates)
        kept = asked if gates is None else asked * gates.cumprod(1)  # of what came before these tokens
        outputs = scores @ written + kept @ state.memory.mT
        weights = scores.sum(-1, keepdim=True) + kept @ state.normaliser.unsqueeze(-1)
        return self._readout(outputs, weights), _after(state, phi, gates, written)

    def chunked(
        self, keys: Tensor, values: Tensor, *, queries: Tensor, chunk: int, state: State | None = None
    ) -> tuple[Tensor, State]:
        """`parallel` for chunks of C tokens, one after the other: C T scores in place of T^2."""
        state = self._checked(keys, values, state, queries=queries)
        outputs = torch.empty_like(values)
        for part in _parts(keys.shape[1], chunk):
            outputs[:, part], state = self.parallel(
                keys[:, part], values[:, part], queries=queries[:, part], state=state
            )
        return outputs, state

    def store(self, keys: Tensor, values: Tensor, *, state: State | None = None, chunk: int = 64) -> State:
        """Write keys (B, T, D) and values (B, T, Dv) without reading, by chunks."""
        state = self._checked(keys, values, state)
        for part in _parts(keys.shape[1], chunk):
            phi, gates = self.feature_map(keys[:, part]), self._gates(keys[:, part])
            written = self.rule.written(state.memory, phi, values=values[:, part])
            state = _after(state, phi, gates, written)
        return state

    def _gates(self, keys: Tensor) -> Tensor | None:
        gates = self.rule.gates(keys)
        if gates is not None and not self.rule.sums:
            raise ValueError(
                f"the {type(self.rule).__name__} rule has gates and writes what depends on the memory; the "
                "parallel form would solve for it as if nothing were forgotten: use a rule with one of both"
            )
        if gates is not None and gates.shape[-1] not in (1, self.features):
            raise ValueError(
                f"gates are {tuple(gates.shape)}, expected one for all features, or one for each of the "
                f"{self.features}"
            )
        return gates

    def _readout(self, outputs: Tensor, weights: Tensor) -> Tensor:
        if not self.normalised:
            return outputs
        if not (weights > 0).all():
            raise ValueError(
                "Z . phi(q) is zero: the memory is empty, or all that it held has decayed below the "
                "smallest number; write a token before reading"
            )
        return outputs / weights

    def _checked(
        self, keys: Tensor, values: Tensor, state: State | None, *, queries: Tensor | None = None
    ) -> State:
        """The state to go on from, where shapes and types fit."""
        given = (
            f"keys {tuple(keys.shape)} of {keys.dtype} and values {tuple(values.shape)} of {values.dtype}"
        )
        fit = keys.dim() == values.dim() == 3 and keys.shape[:2] == values.shape[:2]
        if not fit or keys.shape[-1] != self.dim or values.shape[-1] != self.value_dim:
            raise ValueError(
                f"{given}, expected (B, T, D) = (B, T, {self.dim}) and (B, T, {self.value_dim})"
            )
        if not keys.is_floating_point() or keys.dtype != values.dtype:
            raise ValueError(f"{given}, expected one floating-point type")
        if not keys.shape[1]:
            raise ValueError(f"{given}: a sequence needs a token")
        if state is None:
            state = self.empty(len(keys), dtype=keys.dtype)
        expected = (len(keys), self.value_dim, self.features)
        if state.memory.shape != expected or state.normaliser.shape != expected[::2]:
            raise ValueError(
                f"the state holds M {tuple(state.memory.shape)} and Z {tuple(state.normaliser.shape)}, "
                f"expected (B, Dv, F) = {expected} and {expected[::2]}"
            )
        if queries is not None:
            self._check_queries(queries, state)
            if queries.shape != keys.shape:
                raise ValueError(f"queries {tuple(queries.shape)}, expected those of {given}")
        return state

    def _check_queries(self, queries: Tensor, state: State) -> None:
        batch = len(state.memory)
        if queries.dim() != 3 or len(queries) != batch or queries.shape[-1] != self.dim:
            raise ValueError(
                f"queries {tuple(queries.shape)}, expected (B, Q, D) = ({batch}, Q, {self.dim})"
            )


def _scores(asked: Tensor, phi: Tensor, gates: Tensor | None) -> Tensor:
    """A_ts = sum_f phi(q_t)_f phi(k_s)_f R_tsf, 0 for s > t; (B, T, T).

    One feature after the other where their gates differ: T^2 numbers at a time, and not F T^2.
    """
    if gates is None:
        return (asked @ phi.mT).tril()
    scores = torch.zeros_like(asked[..., :1] * phi[..., :1].mT)
    groups = zip(
        asked.chunk(gates.shape[-1], -1), phi.chunk(gates.shape[-1], -1), gates.unbind(-1), strict=True
    )
    for queries, keys, gate in groups:
        scores += (queries @ keys.mT) * _retention(gate)
    return scores


def _retention(gate: Tensor) -> Tensor:
    """R_ts = prod_{s<r<=t} g_r for s <= t, 0 for s > t; gate (B, T) -> (B, T, T)."""
    length = gate.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=gate.device).tril(-1)  # t > s
    return torch.where(later, gate.unsqueeze(-1), 1).cumprod(1).tril()


def _after(state: State, phi: Tensor, gates: Tensor | None, written: Tensor) -> State:
    """The state after tokens of features phi (B, T, F), for which u = `written` (B, T, Dv)."""
    memory, normaliser = state.memory, state.normaliser
    if gates is not None:
        memory, normaliser = gates.prod(1, keepdim=True) * memory, gates.prod(1) * normaliser
        # R_Ts, of the last token: the product of the gates after s
        after = torch.cat([gates[:, 1:], torch.ones_like(gates[:, :1])], 1).flip(1).cumprod(1).flip(1)
        phi = phi * after
    return State(memory + written.mT @ phi, normaliser + phi.sum(1), state.tokens + phi.shape[1])


def _parts(length: int, chunk: int) -> list[slice]:
    if chunk < 1:
        raise ValueError(f"chunks hold at least one token, got {chunk}")
    return [slice(start, start + chunk) for start in range(0, length, chunk)]
