"""What the study of fast weights says: headline and table, from its results alone."""

from typing import Any

from attractor.lab.experiment.numbers import with_deviation
from attractor.studies.study import Results


def headline(results: Results) -> dict[str, float]:
    """The few numbers that sum it up: of the largest P, N and T, and after the last round."""
    found, signs, held = results["retrieval"], results["signs"], results["memory"]
    numbers = {}
    for separation, rules in found["curves"].items():
        for rule, curves in rules.items():
            if rule not in ("decay", "gate"):
                name = f"accuracy of {separation}, {rule}, at P = {found['stored'][-1]}"
                numbers[name] = curves["accuracy"]["mean"][-1]
    largest, curve = list(signs["curves"].items())[-1]
    if curve["half"]["mean"][0] is not None:
        numbers[f"half-retrieval load at N = {largest}"] = curve["half"]["mean"][0]
    for name, curves in results["overwriting"]["curves"].items():
        numbers[f"newest value, {name}"] = curves["newest"]["mean"][-1]
    for name, form in held["forms"].items():
        numbers[f"growth of {name} memory with T"] = form["work"][-1] / form["work"][0]
    return numbers


def table(results: Results) -> str:
    """Accuracy at some P, loads, forgetting, overwriting, the normaliser, bytes."""
    return "\n".join(
        [
            *_retrieval_lines(results["retrieval"]),
            "",
            *_sign_lines(results["signs"]),
            "",
            *_forgetting_lines(results["forgetting"]),
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
    threshold = signs["threshold"]
    lines = [f"sign network: load P/N at which half of the patterns have an overlap over {threshold}"]
    for neurons, curves in signs["curves"].items():
        lines.append(f"  N = {neurons:<6} {_cell(curves['half'], 0, digits=3)}")
    return [*lines, f"  N to infinity {signs['critical']}"]


def _forgetting_lines(faded: dict[str, Any]) -> list[str]:
    shown = [place for place, age in enumerate(faded["ages"]) if (age + 1) in (1, 4, 16, 64)]
    ages = "".join(f"{faded['ages'][place] + 1:>13}" for place in shown)
    lines = [f"{faded['pairs']} pairs stored: cosine, age =".ljust(34) + ages]
    for rule, curves in faded["curves"].items():
        cells = "".join(f"{_cell(curves['cosine'], place):>13}" for place in shown)
        lines.append(f"  {rule}".ljust(34) + cells)
    return lines


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
    outputs = next(iter(held["forms"].values()))["outputs"][-1]
    lines = [
        f"most bytes held at T = {first} and {last}, state; processor time a token, us, at T = {last}",
        f"(less {outputs:,} bytes of outputs at T = {last}, which any form returns; streams: all bytes)",
    ]
    for name, form in held["forms"].items():
        lines.append(f"{_bytes(name, form)} {1e6 * form['seconds'][-1] / last:>8.1f}")
    return lines + [_bytes(f"stream by {name}", stream) for name, stream in held["streams"].items()]


def _bytes(name: str, form: dict[str, Any]) -> str:
    return f"  {name:16} {form['work'][0]:>12,} {form['work'][-1]:>13,} {form['state'][-1]:>10,}"
