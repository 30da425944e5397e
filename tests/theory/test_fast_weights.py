"""Fast weights. Oracles: a double loop in numpy, autograd, least squares, softmax attention, each other."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attractor.theory.fast_weights import FastWeights, State
from attractor.theory.feature_maps import (
    EluPlusOne,
    FeatureMap,
    Identity,
    Polynomial,
    PositiveRandomFeatures,
    UnitNorm,
)
from attractor.theory.write_rules import (
    Decay,
    Delta,
    Gate,
    Hebbian,
    WriteRule,
    matched_bias,
    sigmoid_gates,
)

B, T, D, DV = 2, 23, 4, 3
# sums of up to a few hundred products of order 1 in float64
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _tokens(length: int = T, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of about unit length, values, queries."""
    keys, values, queries = (_normal(B, length, d, seed=seed + i) for i, d in enumerate((D, DV, D)))
    return keys / D**0.5, values, queries / D**0.5


def _gate(features: int, *, bias: float = 1.0) -> Gate:
    weights = 3 * _normal(features, D, seed=40)
    return Gate(sigmoid_gates(weights, torch.full((features,), bias, dtype=torch.float64)))


RANDOM = PositiveRandomFeatures.draw(6, D, generator=_generator(9))
MAPS: dict[str, FeatureMap] = {
    "identity": Identity(),
    "elu": EluPlusOne(),
    "polynomial": UnitNorm(Polynomial(2)),
    "random": RANDOM,
}
RULES = ("hebbian", "decay", "no memory", "gate", "feature gates", "delta")


def _rule(name: str, features: int) -> WriteRule:
    return {
        "hebbian": Hebbian(),
        "decay": Decay(0.8),
        "no memory": Decay(0.0),
        "gate": _gate(1),
        "feature gates": _gate(features),
        "delta": Delta(0.3),
    }[name]


def _memory(phi: str, rule: str, *, normalised: bool = False) -> FastWeights:
    return FastWeights(
        D, DV, feature_map=MAPS[phi], rule=_rule(rule, MAPS[phi].features(D)), normalised=normalised
    )


CASES = [(phi, rule, False) for phi in MAPS for rule in RULES] + [
    (phi, rule, True) for phi in ("elu", "random") for rule in RULES if rule != "delta"
]


def _double_loop(memory: FastWeights, keys: Tensor, values: Tensor, *, queries: Tensor) -> np.ndarray:
    """y_t = sum_{s<=t} v_s sum_f phi(q_t)_f phi(k_s)_f prod_{s<r<=t} g_rf, one by one."""
    phi, asked = memory.feature_map(keys).numpy(), memory.feature_map(queries).numpy()
    gates = memory.rule.gates(keys)
    gate = np.ones_like(phi) if gates is None else np.broadcast_to(gates.numpy(), phi.shape)
    outputs = np.zeros(values.shape)
    for b in range(len(phi)):
        for t in range(phi.shape[1]):
            total = 0.0
            for s in range(t + 1):
                weight = sum(
                    asked[b, t, f] * phi[b, s, f] * np.prod(gate[b, s + 1 : t + 1, f])
                    for f in range(phi.shape[2])
                )
                outputs[b, t] += weight * values[b, s].numpy()
                total += weight
            if memory.normalised:
                outputs[b, t] /= total
    return outputs


@pytest.mark.parametrize(("phi", "rule", "normalised"), [case for case in CASES if case[1] != "delta"])
def test_the_parallel_form_is_causal_attention_written_out(phi: str, rule: str, normalised: bool) -> None:
    """The masked product against an explicit sum: an off-by-one in mask or gates is a wrong attention."""
    keys, values, queries = _tokens(11)
    memory = _memory(phi, rule, normalised=normalised)
    outputs, _ = memory.parallel(keys, values, queries=queries)
    expected = torch.from_numpy(_double_loop(memory, keys, values, queries=queries))
    torch.testing.assert_close(outputs, expected, **CLOSE)


@pytest.mark.parametrize(("phi", "rule", "normalised"), CASES)
def test_three_forms_are_one_map(phi: str, rule: str, normalised: bool) -> None:
    """recurrent = parallel = chunked, outputs and last state: linear attention *is* the updated memory."""
    keys, values, queries = _tokens()
    memory = _memory(phi, rule, normalised=normalised)
    expected, last = memory.recurrent(keys, values, queries=queries)
    answers = [memory.parallel(keys, values, queries=queries)]
    answers += [memory.chunked(keys, values, queries=queries, chunk=chunk) for chunk in (1, 4, T, 2 * T)]
    for outputs, state in answers:
        torch.testing.assert_close(outputs, expected, **CLOSE)
        torch.testing.assert_close(state.memory, last.memory, **CLOSE)
        torch.testing.assert_close(state.normaliser, last.normaliser, **CLOSE)
        assert state.tokens == T
    stored = memory.store(keys, values, chunk=5)
    torch.testing.assert_close(stored.memory, last.memory, **CLOSE)
    torch.testing.assert_close(memory.recall(stored, queries[:, -1:])[:, 0], expected[:, -1], **CLOSE)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
def test_a_state_is_all_that_the_past_is(rule: str, form: str) -> None:
    """Two halves, the state handed on, are the whole: what a generation that is paused relies on."""
    keys, values, queries = _tokens()
    memory = _memory("elu", rule, normalised=rule != "delta")
    extra = {"chunk": 4} if form == "chunked" else {}
    run = getattr(memory, form)
    whole, _ = run(keys, values, queries=queries, **extra)
    first, state = run(keys[:, :9], values[:, :9], queries=queries[:, :9], **extra)
    second, _ = run(keys[:, 9:], values[:, 9:], queries=queries[:, 9:], state=state, **extra)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **CLOSE)


@pytest.mark.parametrize("rule", ["decay", "gate", "feature gates"])
def test_strong_forgetting_over_long_sequences(rule: str) -> None:
    """Products of 600 gates underflow. Divided by, they would give inf and NaN from about token 200 on."""
    length = 600
    keys, values, queries = _tokens(length)
    rules = {"decay": Decay(1e-3), "gate": _gate(1, bias=-6), "feature gates": _gate(D, bias=-6)}
    memory = FastWeights(D, DV, feature_map=EluPlusOne(), rule=rules[rule], normalised=True)
    gates = memory.rule.gates(keys)
    assert gates is not None
    assert (gates.prod(1) == 0).all()
    expected, _ = memory.recurrent(keys, values, queries=queries)
    assert torch.isfinite(expected).all()
    for outputs, _ in (
        memory.parallel(keys, values, queries=queries),
        memory.chunked(keys, values, queries=queries, chunk=64),
    ):
        torch.testing.assert_close(outputs, expected, **CLOSE)


def test_gates_of_exactly_zero_and_one() -> None:
    """A gate of 0 erases what was before, one of 1 keeps it; log(0) must not turn into NaN."""
    keys, values, queries = _tokens()
    keys[..., 0] = 1
    keys[:, [4, 15], 0] = -1
    memory = FastWeights(D, DV, rule=Gate(lambda k: (k[..., :1] > 0).double()))
    outputs, _ = memory.parallel(keys, values, queries=queries)
    torch.testing.assert_close(outputs, memory.recurrent(keys, values, queries=queries)[0], **CLOSE)
    last = 15
    kept = FastWeights(D, DV).recurrent(keys[:, last:], values[:, last:], queries=queries[:, last:])[0]
    torch.testing.assert_close(outputs[:, last:], kept, **CLOSE)


def test_a_decay_of_one_and_open_gates_are_hebbian() -> None:
    """The limits of the rules meet, bit for bit."""
    keys, values, queries = _tokens()
    expected, _ = FastWeights(D, DV).parallel(keys, values, queries=queries)
    for rule in (Decay(1.0), Gate(lambda k: torch.ones(*k.shape[:2], 1, dtype=k.dtype))):
        outputs, _ = FastWeights(D, DV, rule=rule).parallel(keys, values, queries=queries)
        torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomial_features_are_a_polynomial_separation(degree: int) -> None:
    """Fast weights with degree-n features = sum_s v_s (q . k_s)^n, a dense associative memory.

    That is why a matrix of fixed size can separate patterns at all.
    """
    keys, values, queries = _tokens()
    memory = FastWeights(D, DV, feature_map=Polynomial(degree))
    outputs = memory.recall(memory.store(keys, values), queries)
    torch.testing.assert_close(outputs, (queries @ keys.mT) ** degree @ values, **CLOSE)


def test_the_delta_rule_is_sequential_regression() -> None:
    """Each token is one step of gradient descent on |v - M phi|^2 / 2. Oracle: autograd."""
    keys, values, queries = _tokens()
    memory = FastWeights(D, DV, feature_map=EluPlusOne(), rule=Delta(0.2))
    weights = torch.zeros(B, DV, D, dtype=torch.float64)
    state = memory.empty(B)
    for t in range(T):
        weights.requires_grad_()
        phi = EluPlusOne()(keys[:, t]).unsqueeze(-1)
        loss = (values[:, t] - (weights @ phi).squeeze(-1)).square().sum() / 2
        (slope,) = torch.autograd.grad(loss, weights)
        weights = (weights - 0.2 * slope).detach()
        output, state = memory.step(state, keys[:, t], value=values[:, t], query=queries[:, t])
        torch.testing.assert_close(state.memory, weights, **CLOSE)
        read = (weights @ EluPlusOne()(queries[:, t]).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(output, read, **CLOSE)


def test_the_delta_rule_solves_least_squares() -> None:
    """For orthonormal keys after one pass, for others of full rank after many: V K^+ (numpy's lstsq)."""
    orthonormal = torch.linalg.qr(_normal(D, D, seed=3)).Q[None]
    independent = torch.nn.functional.normalize(_normal(1, D, D, seed=6), dim=-1)
    values = _normal(1, D, DV, seed=4)
    memory = FastWeights(D, DV, rule=Delta())
    for keys, passes in ((orthonormal, 1), (independent, 3000)):
        state = memory.empty(1)
        for _ in range(passes):
            state = memory.store(keys, values, state=state)
        solution = np.linalg.lstsq(keys[0].numpy(), values[0].numpy(), rcond=None)[0].T
        torch.testing.assert_close(state.memory[0], torch.from_numpy(solution), **CLOSE)


@pytest.mark.parametrize("phi", ["identity", "elu", "polynomial"])
def test_the_delta_rule_overwrites_exactly(phi: str) -> None:
    """eta = 1 and |phi| = 1: the newest value of a key is read back. Hebb returns the sum."""
    keys, values, _ = _tokens()
    unit = UnitNorm(MAPS[phi])
    delta, hebbian = (FastWeights(D, DV, feature_map=unit, rule=rule) for rule in (Delta(), Hebbian()))
    before = delta.store(keys, values)
    key, value = keys[:, 3:4], _normal(B, 1, DV, seed=8)
    after = delta.store(key, value, state=before)
    torch.testing.assert_close(delta.recall(after, key), value, **CLOSE)
    sums = hebbian.store(key, value, state=hebbian.store(keys, values))
    assert (hebbian.recall(sums, key) - value).norm() > 0.5 * value.norm()


def test_the_delta_rule_diverges_above_its_stable_rate() -> None:
    """The error of a repeated key shrinks by 1 - eta |phi|^2: below 2 it vanishes, above it grows."""
    key = torch.nn.functional.normalize(_normal(1, 1, D), dim=-1).expand(1, 50, D)
    value = _normal(1, 1, DV).expand(1, 50, DV)
    for rate, factor in ((1.9, 0.9**50), (2.1, 1.1**50)):
        memory = FastWeights(D, DV, rule=Delta(rate))
        error = memory.recall(memory.store(key, value), key[:, :1]) - value[:, :1]
        torch.testing.assert_close(error.norm(), factor * value[0, 0].norm(), rtol=1e-8, atol=0)


def test_random_features_tend_to_softmax_attention() -> None:
    """With Z, positive random features are causal softmax attention up to 1/sqrt(F). Oracle: torch's own.

    The error falls by 4 for 16 times the features; without the norm term in phi it would not fall at all.
    """
    keys, values, queries = _tokens()
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=True, scale=0.25
    )
    errors = {}
    for features in (256, 4096):
        squares = []
        for seed in range(20):
            phi = PositiveRandomFeatures.draw(
                features, D, generator=_generator(100 + seed), inverse_temperature=0.25
            )
            memory = FastWeights(D, DV, feature_map=phi, normalised=True)
            outputs, _ = memory.parallel(keys, values, queries=queries)
            squares.append((outputs - expected).square().mean())
        errors[features] = float(torch.stack(squares).mean().sqrt())
    assert errors[4096] < 0.05
    assert errors[256] / errors[4096] == pytest.approx(4, rel=0.2)  # 20 draws


def test_the_normaliser_makes_a_weighted_mean() -> None:
    """Equal values come back exactly, and outputs stay inside the values: the readout is a convex sum."""
    keys, values, queries = _tokens()
    for phi, rule, normalised in CASES:
        if not normalised:
            continue
        memory = _memory(phi, rule, normalised=True)
        same, _ = memory.parallel(keys, torch.ones_like(values), queries=queries)
        torch.testing.assert_close(same, torch.ones_like(same), **CLOSE)
        outputs, _ = memory.parallel(keys, values, queries=queries)
        assert (outputs <= values.cummax(1).values + 1e-12).all()
        assert (outputs >= values.cummin(1).values - 1e-12).all()


def test_a_normaliser_that_may_vanish_is_refused() -> None:
    """Dividing by Z . phi(q) of either sign gives numbers that look like outputs and mean nothing."""
    for phi in (Identity(), Polynomial(2), UnitNorm(Polynomial(2))):
        with pytest.raises(ValueError, match="is not positive"):
            FastWeights(D, DV, feature_map=phi, normalised=True)
    with pytest.raises(ValueError, match="Delta rule"):
        FastWeights(D, DV, feature_map=EluPlusOne(), rule=Delta(), normalised=True)


def test_a_gated_delta_rule_is_refused() -> None:
    """`written` solves for all tokens at once without gates: the forms would differ from each other."""

    class GatedDelta(Delta):
        def gates(self, keys: Tensor) -> Tensor | None:
            return keys.new_full((*keys.shape[:-1], 1), 0.8)

    keys, values, queries = _tokens()
    memory = FastWeights(D, DV, rule=GatedDelta(0.3))
    for call in (
        lambda: memory.store(keys, values),
        lambda: memory.parallel(keys, values, queries=queries),
        lambda: memory.recurrent(keys, values, queries=queries),
    ):
        with pytest.raises(ValueError, match="GatedDelta rule has gates and writes what depends on"):
            call()


@pytest.mark.parametrize(("retention", "dim"), [(0.96875, 32), (0.5, 4), (0.9, 8)])
def test_a_matched_gate_remembers_as_long_as_a_decay(retention: float, dim: int) -> None:
    """The geometric mean of gates over random unit keys is gamma. Oracle: a million keys.

    With logit(gamma) for the bias it would be 0.951 for 0.969, and the memory shorter by a third.
    """
    keys = torch.nn.functional.normalize(_normal(1, 1_000_000 // dim, dim), dim=-1)
    weights = dim**0.5 * torch.nn.functional.normalize(_normal(1, dim, seed=1), dim=-1)
    bias = torch.tensor([matched_bias(retention, dim)], dtype=torch.float64)
    logarithms = sigmoid_gates(weights, bias)(keys).log()
    # four standard errors
    error = 4 * float(logarithms.std()) / keys.shape[1] ** 0.5
    assert float(logarithms.mean()) == pytest.approx(np.log(retention), abs=error)
    assert error < -0.1 * np.log(retention)


def test_an_empty_memory_is_not_read() -> None:
    """0 / 0 without a word would be NaN in everything that follows; so would a memory that underflowed."""
    memory = FastWeights(D, DV, feature_map=EluPlusOne(), rule=Decay(0.0), normalised=True)
    query = _normal(1, 1, D)
    for normalised in (False, True):
        with pytest.raises(ValueError, match="memory is empty"):
            FastWeights(D, DV, feature_map=EluPlusOne(), normalised=normalised).recall(
                memory.empty(1), query
            )
    vanished = State(torch.zeros(1, DV, D).double(), torch.zeros(1, D).double(), tokens=3)
    with pytest.raises(ValueError, match=r"Z \. phi\(q\) is zero"):
        memory.recall(vanished, query)


def test_shapes_that_cannot_be_multiplied_are_refused() -> None:
    """The message has the shapes that were given; a broadcast would go on with wrong numbers."""
    keys, values, queries = _tokens()
    memory = FastWeights(D, DV)
    for bad_keys, bad_values in (
        (keys[0], values),
        (keys, values[:, :-1]),
        (keys[..., 1:], values),
        (keys, keys),
    ):
        with pytest.raises(ValueError, match=rf"expected \(B, T, D\) = \(B, T, {D}\)"):
            memory.store(bad_keys, bad_values)
    with pytest.raises(ValueError, match="one floating-point type"):
        memory.store(keys, values.float())
    with pytest.raises(ValueError, match="a sequence needs a token"):
        memory.store(keys[:, :0], values[:, :0])
    for bad in (queries[:, 1:], queries[..., 1:], queries[:1]):
        with pytest.raises(ValueError, match="queries"):
            memory.parallel(keys, values, queries=bad)
    with pytest.raises(ValueError, match=r"the state holds M \(3, 3, 4\)"):
        memory.store(keys, values, state=memory.empty(3))
    with pytest.raises(ValueError, match="at least one token, got 0"):
        memory.chunked(keys, values, queries=queries, chunk=0)
    with pytest.raises(ValueError, match="a component each"):
        FastWeights(0, DV)


def test_rules_refuse_what_they_cannot_use() -> None:
    """Gates above 1 would let a memory grow like a power of them; below 0 it would flip sign."""
    keys, values, _ = _tokens()
    for retention in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="retention must be from 0 to 1"):
            Decay(retention)
    with pytest.raises(ValueError, match=r"gates must be in \[0, 1\]"):
        FastWeights(D, DV, rule=Gate(lambda k: k[..., :1] + 1)).store(keys, values)
    with pytest.raises(ValueError, match=r"gates are \(2, 4\)"):
        FastWeights(D, DV, rule=Gate(lambda k: k[:, 0].sigmoid())).store(keys, values)
    with pytest.raises(ValueError, match="one for each of the 4"):
        FastWeights(D, DV, rule=Gate(lambda k: k[..., :2].sigmoid())).store(keys, values)
    with pytest.raises(ValueError, match=r"weights \(1, 4\) and bias \(2,\)"):
        sigmoid_gates(torch.zeros(1, 4), torch.zeros(2))
    for matched in ((1.0, 8), (0.0, 8), (0.5, 1)):
        with pytest.raises(ValueError, match="retention must be between 0 and 1"):
            matched_bias(*matched)
    for rate in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="rate of the delta rule must be positive"):
            Delta(rate)
