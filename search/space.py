"""The `space:` section of a sweep: what may be searched, and over which values.

A dimension is a list of choices or a range. Reading it finds every mistake at once, because a person who
mends a file wants one round, not one round per mistake.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Value = str | int | float | bool


ABSENT = object()  # the value of a mistake that is about a key, not about a value


@dataclass(frozen=True)
class Problem:
    """One mistake in what a person wrote: where, the rule broken, the value received, what would be right."""

    path: str
    rule: str
    value: Any
    hint: str

    def __str__(self) -> str:
        got = "" if self.value is ABSENT else f", but got {self.value!r}"
        return f"{self.path}: {self.rule}{got} ({self.hint})"


@dataclass(frozen=True)
class Choice:
    """One of a few unordered values."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included; whole when both are ints; `low == high` is a constant."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def is_int(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Dimension = Choice | Range

_RANGE_KEYS = ("low", "high", "log", "step")


def parse_space(raw: Mapping[str, Any]) -> tuple[dict[str, Dimension], list[Problem]]:
    """Read `{name: [choices] or {low, high, log?, step?}}`: the dimensions that are right, every mistake."""
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
    return dimensions, problems


def to_distribution(dimension: Dimension) -> BaseDistribution:
    """The Optuna distribution of a dimension; a `high` that no step reaches moves down to the last one."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if dimension.is_int:
        return IntDistribution(
            int(dimension.low), int(_last(dimension)), log=dimension.log, step=int(dimension.step or 1)
        )
    return FloatDistribution(
        float(dimension.low), float(_last(dimension)), log=dimension.log, step=dimension.step
    )


def contains(dimension: Dimension, value: Any) -> bool:
    """Whether a trial could have been given this value."""
    distribution = to_distribution(dimension)
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:  # of another kind, or none of the choices
        return False


def grid_size(dimension: Dimension) -> int | None:
    """How many values a dimension has, or None for a continuous range, which has no end of them."""
    if isinstance(dimension, Choice):
        return len(dimension.values)
    if dimension.low == dimension.high:
        return 1
    step = dimension.step or (1 if dimension.is_int else None)
    return None if step is None else int((_exact(dimension.high) - _exact(dimension.low)) // _exact(step)) + 1


def grid_values(dimension: Dimension) -> tuple[Value, ...]:
    """Every value of a dimension in order; ValueError for one that has no `grid_size`."""
    if isinstance(dimension, Choice):
        return dimension.values
    size = grid_size(dimension)
    if size is None:
        raise ValueError(f"a continuous range has no grid, but got {dimension!r}")
    low, step = _exact(dimension.low), _exact(dimension.step or 1)
    exact = [low + i * step for i in range(size)]
    return tuple(int(value) if dimension.is_int else float(value) for value in exact)


def _parse_dimension(path: str, raw: Any) -> tuple[Dimension | None, list[Problem]]:
    if isinstance(raw, list | tuple):
        problems = _choice_problems(path, raw)
        return (None if problems else Choice(tuple(raw))), problems
    if isinstance(raw, Mapping):
        problems = _range_problems(path, raw)
        return (None if problems else Range(**raw)), problems
    rule = "a dimension must be a list of choices or a range {low, high}"
    return None, [Problem(path, rule, raw, f"a list of one fixes it: [{raw}]")]


def _choice_problems(path: str, raw: list[Any] | tuple[Any, ...]) -> list[Problem]:
    if not raw:
        return [Problem(path, "a list of choices must not be empty", raw, "name at least one value")]
    problems = []
    for i, option in enumerate(raw):
        if not isinstance(option, Value) or (isinstance(option, float) and not math.isfinite(option)):
            rule = "a choice must be text, a finite number, true or false"
            problems.append(Problem(f"{path}[{i}]", rule, option, "write a plain value"))
        elif option in raw[:i]:  # by ==, as Optuna compares them: 1, 1.0 and true are one choice to it
            rule = "choices must differ"
            problems.append(
                Problem(f"{path}[{i}]", rule, option, f"remove it: it equals {raw[raw.index(option)]!r}")
            )
    return problems


def _range_problems(path: str, raw: Mapping[str, Any]) -> list[Problem]:
    problems = [_unknown_key(path, key, value) for key, value in raw.items() if key not in _RANGE_KEYS]
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
        hint = "a whole step, or low and high written with a decimal point"
        problems.append(Problem(f"{path}.step", "the step of whole numbers must be whole", r.step, hint))
    return problems


def _unknown_key(path: str, key: Any, value: Any) -> Problem:
    near = difflib.get_close_matches(str(key), _RANGE_KEYS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "use " + ", ".join(_RANGE_KEYS)
    return Problem(f"{path}.{key}", "a range knows only " + ", ".join(_RANGE_KEYS), value, hint)


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


def _last(r: Range) -> int | float:
    """The last value that steps from `low` reach; in fractions, because 0.1 steps add up inexactly."""
    if r.step is None:
        return r.high
    low, step = _exact(r.low), _exact(r.step)
    last = low + (_exact(r.high) - low) // step * step
    return int(last) if r.is_int else float(last)


def _exact(number: int | float) -> Fraction:
    return Fraction(str(number))
