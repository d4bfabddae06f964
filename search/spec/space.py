"""The search space: its dimensions, their conditions, and their Optuna distributions."""

from collections.abc import Iterator, Mapping
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

# Pairs of a choice's name and the values it must have; all of them must hold.
When = tuple[tuple[str, tuple[Value, ...]], ...]


@dataclass(frozen=True)
class Choice:
    """One of a few unordered values."""

    values: tuple[Value, ...]
    when: When = ()


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included: an integer if both are, a constant if they are equal."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None
    when: When = ()

    @property
    def is_int(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Dimension = Choice | Range


def describe(dimension: Dimension) -> str:
    """The values of a dimension, for people."""
    if isinstance(dimension, Choice):
        return ", ".join(map(str, dimension.values))
    step = "" if dimension.step is None else f" in steps of {dimension.step:g}"
    return f"{dimension.low:g} to {dimension.high:g}{step}"


class SearchSpace(Mapping[str, Dimension]):
    """Dimensions by name, each after those that it depends on; `distributions` are Optuna's."""

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self._dimensions = in_order(dimensions)
        self.distributions = {name: to_distribution(d) for name, d in self._dimensions.items()}

    def __getitem__(self, name: str) -> Dimension:
        return self._dimensions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dimensions)

    def __len__(self) -> int:
        return len(self._dimensions)

    def is_active(self, name: str, params: Mapping[str, Any]) -> bool:
        """Whether a dimension is searched, given the values of those that it depends on."""
        return all(parent in params and params[parent] in allowed for parent, allowed in self[name].when)

    def active(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters without those of other names and those whose condition does not hold."""
        kept: dict[str, Any] = {}
        for name in self:
            if name in params and self.is_active(name, kept):
                kept[name] = params[name]
        return kept

    def parse(self, name: str, text: str) -> Value:
        """A value of a dimension, from `str` of it. Raises ValueError if it is none."""
        dimension = self[name]
        if isinstance(dimension, Range):
            return int(text) if dimension.is_int else float(text)
        found = [value for value in dimension.values if str(value) == text]
        if not found:
            raise ValueError(f"{name} has no choice {text!r}")
        return found[0]

    def contains(self, name: str, value: Any) -> bool:
        """Whether a trial could be given this value."""
        distribution = self.distributions[name]
        try:
            return bool(distribution._contains(distribution.to_internal_repr(value)))
        except ValueError:  # of another type, or none of the choices
            return False

    def contains_all(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial could be given each of these values."""
        return all(self.contains(name, value) for name, value in params.items())


def in_order(dimensions: Mapping[str, Dimension]) -> dict[str, Dimension]:
    """The dimensions, each after those that it depends on, otherwise in their own order."""
    ordered: dict[str, Dimension] = {}
    left = dict(dimensions)
    while left:
        free = [name for name, d in left.items() if all(parent in ordered for parent, _ in d.when)]
        if not free:
            raise ValueError(f"conditions depend on each other or on no dimension: {', '.join(left)}")
        ordered[free[0]] = left.pop(free[0])
    return ordered


def to_distribution(dimension: Dimension) -> BaseDistribution:
    """The Optuna distribution of a dimension; a `high` that no step reaches is lowered to the last step."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if dimension.is_int:
        return IntDistribution(
            int(dimension.low), int(_last(dimension)), log=dimension.log, step=int(dimension.step or 1)
        )
    return FloatDistribution(
        float(dimension.low), float(_last(dimension)), log=dimension.log, step=dimension.step
    )


def values_of(dimension: Dimension) -> list[Any]:
    """A choice's values; a range's two ends."""
    return list(dimension.values) if isinstance(dimension, Choice) else [dimension.low, dimension.high]


def grid_size(dimension: Dimension) -> int | None:
    """The number of a dimension's values, None for a continuous range."""
    if isinstance(dimension, Choice):
        return len(dimension.values)
    if dimension.low == dimension.high:
        return 1
    step = dimension.step or (1 if dimension.is_int else None)
    return None if step is None else int((_exact(dimension.high) - _exact(dimension.low)) // _exact(step)) + 1


def grid_values(dimension: Dimension) -> tuple[Value, ...]:
    """Every value of a dimension, in order. Raises ValueError for a continuous range."""
    if isinstance(dimension, Choice):
        return dimension.values
    size = grid_size(dimension)
    if size is None:
        raise ValueError(f"a continuous range has no grid, but got {dimension!r}")
    low, step = _exact(dimension.low), _exact(dimension.step or 1)
    exact = [low + i * step for i in range(size)]
    return tuple(int(value) if dimension.is_int else float(value) for value in exact)


def _last(r: Range) -> int | float:
    """The last value that steps from `low` reach, in exact fractions, because multiples of 0.1 are inexact."""
    if r.step is None:
        return r.high
    low, step = _exact(r.low), _exact(r.step)
    last = low + (_exact(r.high) - low) // step * step
    return int(last) if r.is_int else float(last)


def _exact(number: int | float) -> Fraction:
    return Fraction(str(number))
