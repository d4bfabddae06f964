"""Parsing the `space:` section of a sweep file.

A dimension is a list of choices or a range; with `when` it is searched only where other choices have certain values.
All mistakes are collected before they are reported, so that one round of corrections is enough.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from binsweep.search.spec.problems import ABSENT, Problem
from binsweep.search.spec.space import Choice, Dimension, Range, Value, When, in_order

_RANGE_KEYS = ("low", "high", "log", "step", "when")
_CHOICE_KEYS = ("values", "when")


def parse_space(raw: Mapping[str, Any]) -> tuple[dict[str, Dimension], list[Problem]]:
    """Parse `{name: [choices], {values, when?} or {low, high, log?, step?, when?}}`.

    Returns the valid dimensions, each after those that it depends on, and all mistakes.
    """
    if not isinstance(raw, Mapping):
        rule = "the space must be a mapping of names to dimensions"
        return {}, [Problem("space", rule, raw, "such as lr: {low: 0.0001, high: 0.1, log: true}")]
    if not raw:
        return {}, [Problem("space", "must search at least one dimension", raw, "such as lr: [0.01, 0.1]")]
    dimensions: dict[str, Dimension] = {}
    problems: list[Problem] = []
    for name, value in raw.items():
        dimension, found = _parse_dimension(f"space.{name}", value)
        problems += found
        if dimension is not None:
            dimensions[str(name)] = dimension
    if not problems:
        problems = _condition_problems(dimensions)
    return (dimensions if problems else in_order(dimensions)), problems


def _parse_dimension(path: str, raw: Any) -> tuple[Dimension | None, list[Problem]]:
    if isinstance(raw, list | tuple):
        problems = _choice_problems(path, raw)
        return (None if problems else Choice(tuple(raw))), problems
    if isinstance(raw, Mapping) and "values" in raw:
        problems = [_unknown_key(path, key, raw[key], _CHOICE_KEYS) for key in raw if key not in _CHOICE_KEYS]
        values, (when, found) = raw["values"], _parse_when(path, raw)
        if not isinstance(values, list | tuple):
            problems.append(Problem(f"{path}.values", "must be a list of choices", values, f"[{values}]"))
        else:
            problems += _choice_problems(path, values)
        problems += found
        return (None if problems else Choice(tuple(values), when)), problems
    if isinstance(raw, Mapping):
        when, found = _parse_when(path, raw)
        bare = {key: value for key, value in raw.items() if key != "when"}
        problems = _range_problems(path, bare) + found
        return (None if problems else Range(**bare, when=when)), problems
    rule = "a dimension must be a list of choices or a range {low, high}"
    return None, [Problem(path, rule, raw, f"a list of one fixes it: [{raw}]")]


def _parse_when(path: str, raw: Mapping[str, Any]) -> tuple[When, list[Problem]]:
    """Parse `when: {other: [values]}`."""
    when = raw.get("when", {})
    hint = "such as when: {optimizer: [sgd]}"
    if not isinstance(when, Mapping) or ("when" in raw and not when):
        return (), [Problem(f"{path}.when", "must name another choice and its values", when, hint)]
    problems = [
        Problem(f"{path}.when.{name}", "must be a list of values", values, hint)
        for name, values in when.items()
        if not isinstance(values, list | tuple) or not values
    ]
    return (() if problems else tuple((str(n), tuple(values)) for n, values in when.items())), problems


def when_problems(
    path: str, when: Iterable[tuple[str, Sequence[Value]]], space: Mapping[str, Dimension]
) -> list[Problem]:
    """The mistakes in the condition at `path`, which may name choices of the space and their values."""
    problems = []
    choices = {name: d for name, d in space.items() if isinstance(d, Choice)}
    for parent, allowed in when:
        here = f"{path}.when.{parent}"
        if parent not in choices:
            others = [name for name in choices if path != f"space.{name}"]
            hint = f"choices here: {', '.join(others) or 'none'}"
            problems.append(Problem(here, "is no list of choices in the space", ABSENT, hint))
            continue
        values = choices[parent].values
        problems += [
            Problem(here, f"is no choice of {parent}", value, f"one of {', '.join(map(str, values))}")
            for value in allowed
            if value not in values
        ]
    return problems


def _condition_problems(space: Mapping[str, Dimension]) -> list[Problem]:
    problems = [
        problem for name, d in space.items() for problem in when_problems(f"space.{name}", d.when, space)
    ]
    if not problems:
        try:
            in_order(space)
        except ValueError as error:
            problems.append(Problem("space", str(error), ABSENT, "leave out one of the conditions"))
    return problems


def _choice_problems(path: str, raw: list[Any] | tuple[Any, ...]) -> list[Problem]:
    if not raw:
        return [Problem(path, "a list of choices must not be empty", raw, "name at least one value")]
    problems = []
    for i, option in enumerate(raw):
        if not isinstance(option, Value) or (isinstance(option, float) and not math.isfinite(option)):
            rule = "a choice must be text, a finite number, true or false"
            problems.append(Problem(f"{path}[{i}]", rule, option, "write a plain value"))
        elif option in raw[:i]:  # by ==, as Optuna compares them: 1, 1.0 and true are equal
            rule = "choices must differ"
            problems.append(
                Problem(f"{path}[{i}]", rule, option, f"remove it: it equals {raw[raw.index(option)]!r}")
            )
    return problems


def _range_problems(path: str, raw: Mapping[str, Any]) -> list[Problem]:
    problems = [
        _unknown_key(path, key, value, _RANGE_KEYS) for key, value in raw.items() if key not in _RANGE_KEYS
    ]
    for key in ("low", "high"):
        if key not in raw:
            problems.append(Problem(f"{path}.{key}", "a range must have low and high", None, f"add {key}"))
    for key in ("low", "high", "step"):
        # A step may be left empty; a bound may not.
        if key in raw and not (key == "step" and raw[key] is None) and not _is_number(raw[key]):
            problems.append(
                Problem(f"{path}.{key}", "must be a finite number", raw[key], _number_hint(raw[key]))
            )
    if not isinstance(raw.get("log", False), bool):
        problems.append(Problem(f"{path}.log", "must be true or false", raw["log"], "log: true"))
    return problems or _bound_problems(path, Range(**raw))


def _bound_problems(path: str, r: Range) -> list[Problem]:
    problems = []
    if r.low > r.high:
        problems.append(
            Problem(f"{path}.low", f"must not exceed high ({r.high})", r.low, "swap low and high")
        )
    if r.log and r.low <= 0:
        hint = "start at 1" if r.is_int else "start above 0, such as 1.0e-4, or drop log"
        problems.append(Problem(f"{path}.low", "a log range must start above 0", r.low, hint))
    if r.step is not None and r.log:
        problems.append(
            Problem(f"{path}.step", "a log range takes no step", r.step, "remove step, or drop log")
        )
    if r.step is not None and r.step <= 0:
        problems.append(Problem(f"{path}.step", "must be above 0", r.step, "remove it for no step"))
    elif r.step is not None and r.is_int and not isinstance(r.step, int):
        hint = "a whole step, or low and high with a decimal point"
        problems.append(Problem(f"{path}.step", "the step of whole numbers must be whole", r.step, hint))
    return problems


def _unknown_key(path: str, key: Any, value: Any, known: tuple[str, ...]) -> Problem:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "use " + ", ".join(known)
    return Problem(f"{path}.{key}", "unknown key, allowed are " + ", ".join(known), value, hint)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number_hint(value: Any) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return "write a number"
    if isinstance(value, str) and math.isfinite(number):
        # Plain YAML reads 1e-4 as text: its floats need a point.
        mantissa, _, exponent = value.strip().partition("e")
        return (
            f"YAML reads it as text: write {mantissa}.0e{exponent}" if exponent else f"write {value.strip()}"
        )
    return "write a finite number"
