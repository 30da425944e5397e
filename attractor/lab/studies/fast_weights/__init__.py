"""Linear attention is a Hopfield network: what a memory of fixed size holds, forgets and overwrites.

Retrieval against the number of stored pairs for every write rule and separation, the sign network and its
0.138 N, forgetting, overwriting, the normaliser, and memory in the length of a sequence. All that is random
is drawn `theory.seeds` times; images of the training set are the values of the normaliser's part.
"""

from collections.abc import Sequence
from typing import Any

import torch

from attractor.images import ImageSplits
from attractor.lab.config import Config
from attractor.lab.errors import ConfigError, configuring
from attractor.lab.report import with_deviation
from attractor.lab.studies.config import FastWeightsConfig
from attractor.lab.studies.fast_weights import memory
from attractor.lab.studies.fast_weights.figures import draw
from attractor.lab.studies.fast_weights.retrieval import (
    RULES,
    SEPARATIONS,
    forgetting,
    generators,
    retrieval,
    summary,
)
from attractor.lab.studies.fast_weights.rewriting import normaliser, overwriting
from attractor.lab.studies.study import Results, Tell
from attractor.theory.sign_network import CRITICAL_LOAD, SignNetwork, overlap, random_patterns
from attractor.theory.write_rules import Decay

__all__ = ["check", "draw", "measure", "table"]  # a `study.Study`

RETRIEVED = 0.95  # overlap of a pattern that counts as retrieved


def check(config: Config) -> None:
    """Refuse names, numbers and sizes that cannot be used."""
    theory = _theory(config)
    for field, given, known in (
        ("separations", theory.separations, SEPARATIONS),
        ("rules", theory.rules, RULES),
    ):
        if unknown := [name for name in given if name not in known]:
            raise ConfigError(f"theory.{field} has {', '.join(unknown)}; known are {', '.join(known)}")
    for field, least in (
        ("seeds", 1),
        ("dim", 4),
        ("sequences", 1),
        ("random_features", 1),
        ("rounds", 1),
        ("patterns", 1),
        ("chunk", 2),
    ):
        if getattr(theory, field) < least:
            raise ConfigError(f"theory.{field} is {getattr(theory, field)}; it must be at least {least}")
    for field, numbers in (
        ("stored", theory.stored),
        ("neurons", theory.neurons),
        ("loads", theory.loads),
        ("lengths", theory.lengths),
    ):
        _check_ascending(field, numbers)
    if theory.neurons[0] < 2 or theory.stored[0] < 2 or theory.lengths[0] < 2:
        raise ConfigError("theory.stored, theory.neurons and theory.lengths start at 2 or more")
    if round(theory.loads[0] * theory.neurons[0]) < 1:
        raise ConfigError(
            f"theory.loads: {theory.loads[0]} of {theory.neurons[0]} neurons is no pattern; use more"
        )
    if not 0 < theory.retention < 1 or not 0 < theory.inverse_temperature < float("inf"):
        raise ConfigError(
            f"theory.retention is {theory.retention} and theory.inverse_temperature "
            f"{theory.inverse_temperature}; one is between 0 and 1, the other positive"
        )
    with configuring():
        Decay(theory.retention)
        for name in theory.separations:
            SEPARATIONS[name](theory, torch.Generator()).features(theory.dim)


def _check_ascending(field: str, numbers: Sequence[float]) -> None:
    if not numbers or list(numbers) != sorted(set(numbers)) or not numbers[0] > 0:
        raise ConfigError(f"theory.{field} is {list(numbers)}; use positive numbers, ascending")


def measure(config: Config, splits: ImageSplits, tell: Tell) -> Results:
    """See `study.Study`."""
    theory = _theory(config)
    found = retrieval(theory, config.seed, tell)
    signs = _sign_networks(theory, config.seed, tell)
    tell("forgetting")
    faded = forgetting(theory, config.seed)
    tell("overwriting")
    written = overwriting(theory, config.seed)
    tell("the normaliser")
    normalised = normaliser(theory, splits.train, config.seed)
    tell("memory and time")
    held = memory.measure(theory, config.seed)
    return {
        "dim": theory.dim,
        "seeds": theory.seeds,
        "inverse_temperature": theory.inverse_temperature,
        "retrieval": found,
        "signs": signs,
        "forgetting": faded,
        "overwriting": written,
        "normaliser": normalised,
        "memory": held,
        "headline": _headline(found, signs, written, held),
    }


def _sign_networks(config: FastWeightsConfig, seed: int, tell: Tell) -> dict[str, Any]:
    """Share of patterns with an overlap over 0.95 with the state they run into, started at the pattern."""
    curves = {}
    for neurons in config.neurons:
        tell(f"sign networks, N = {neurons}")
        shares, crossings = [], []
        for generator in generators(config, seed):
            share = []
            for load in config.loads:
                patterns = random_patterns(round(load * neurons), neurons, generator=generator)
                asked = patterns[: config.patterns]
                rest = SignNetwork(patterns).settle(asked, generator=generator)
                share.append(float((overlap(rest, asked) > RETRIEVED).double().mean()))
            shares.append(share)
            crossings.append([_crossing(config.loads, share)])
        curves[str(neurons)] = {"retrieved": summary(shares), "half": summary(crossings)}
    return {"loads": list(config.loads), "critical": CRITICAL_LOAD, "curves": curves}


def _crossing(loads: Sequence[float], share: Sequence[float]) -> float:
    """The load where half of the patterns are retrieved, between loads by a straight line; nan for none."""
    for i in range(1, len(loads)):
        if share[i] < 0.5 <= share[i - 1]:
            part = (share[i - 1] - 0.5) / (share[i - 1] - share[i])
            return loads[i - 1] + part * (loads[i] - loads[i - 1])
    return float("nan")


def _headline(
    found: dict[str, Any], signs: dict[str, Any], written: dict[str, Any], held: dict[str, Any]
) -> dict[str, float]:
    headline = {}
    for separation, rules in found["curves"].items():
        for rule, curves in rules.items():
            if rule in ("hebbian", "all pairs kept"):
                headline[f"accuracy of {separation} at P = {found['stored'][-1]}"] = curves["accuracy"][
                    "mean"
                ][-1]
    largest, curve = list(signs["curves"].items())[-1]
    if curve["half"]["mean"][0] is not None:
        headline[f"half-retrieval load at N = {largest}"] = curve["half"]["mean"][0]
    for name, curves in written["curves"].items():
        headline[f"newest value, {name}"] = curves["newest"]["mean"][-1]
    for name, form in held["forms"].items():
        headline[f"growth of {name} memory with T"] = form["peak"][-1] / form["peak"][0]
    return headline


def table(results: Results) -> str:
    """Accuracy at some P, loads, overwriting, the normaliser, bytes."""
    return "\n".join(
        [
            *_retrieval_lines(results["retrieval"]),
            "",
            *_sign_lines(results["signs"]),
            "",
            *_rewriting_lines(results),
            "",
            *_memory_lines(results["memory"]),
        ]
    )


def _cell(curve: dict[str, list[float | None]], place: int, *, digits: int = 2) -> str:
    mean, std = curve["mean"][place], curve["std"][place]
    if mean is None:
        return "none"
    return with_deviation(mean, float("nan") if std is None else std, digits=digits)


def _retrieval_lines(found: dict[str, Any]) -> list[str]:
    shown = range(0, len(found["stored"]), 2)
    lines = ["accuracy of the nearest value, P =" + "".join(f"{found['stored'][i]:>13}" for i in shown)]
    for separation, rules in found["curves"].items():
        for rule, curves in rules.items():
            name = f"  {separation.replace('_', ' ')}, {rule}"
            lines.append(f"{name:34}" + "".join(f"{_cell(curves['accuracy'], i):>13}" for i in shown))
    return lines


def _sign_lines(signs: dict[str, Any]) -> list[str]:
    lines = [f"sign network: load P/N at which half of the patterns have an overlap over {RETRIEVED}"]
    for neurons, curves in signs["curves"].items():
        lines.append(f"  N = {neurons:<6} {_cell(curves['half'], 0, digits=3)}")
    return [*lines, f"  N to infinity {signs['critical']}"]


def _rewriting_lines(results: Results) -> list[str]:
    written, normalised = results["overwriting"], results["normaliser"]
    lines = [
        f"{written['keys']} keys written {written['rounds'][-1]} times: share that returns the newest "
        "value, an older one"
    ]
    for name, curves in written["curves"].items():
        lines.append(f"  {name:12} {_cell(curves['newest'], -1):>13} {_cell(curves['older'], -1):>13}")
    lines.append(f"{normalised['stored'][-1]} images as values: squared error, |y|/|v|, found by distance")
    for name, curves in normalised["curves"].items():
        cells = [_cell(curves[kind], -1, digits=3) for kind in ("error", "scale", "found")]
        lines.append(f"  {name:26} " + " ".join(f"{cell:>18}" for cell in cells))
    return lines


def _memory_lines(held: dict[str, Any]) -> list[str]:
    first, last = held["lengths"][0], held["lengths"][-1]
    lines = [
        f"most bytes of tensors at T = {first} and {last}, state, processor time a token, us, at T = {last}"
    ]
    for name, form in held["forms"].items():
        cells = f"{form['peak'][0]:>12,} {form['peak'][-1]:>13,} {form['state'][-1]:>10,}"
        lines.append(f"  {name:12} {cells} {1e6 * form['seconds'][-1] / last:>8.1f}")
    return lines


def _theory(config: Config) -> FastWeightsConfig:
    assert isinstance(config.theory, FastWeightsConfig)
    return config.theory
