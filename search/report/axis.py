"""Axes of charts: values as positions in the unit interval, and ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from binsweep.search.spec.space import Choice, Dimension


@dataclass(frozen=True)
class Axis:
    """Maps values to the unit interval. `ticks` are pairs of a position in it and a text."""

    low: float
    high: float
    log: bool = False
    words: tuple[str, ...] = ()  # of a choice, whose values are indices of this tuple
    percent: bool = False

    def place(self, value: float) -> float:
        low, high, value = (
            (math.log(self.low), math.log(self.high), math.log(value))
            if self.log
            else (self.low, self.high, value)
        )
        return 0.5 if high == low else (value - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.words:
            return [(self.place(place), word) for place, word in enumerate(self.words)]
        values = _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)
        return [(self.place(value), f"{value:.0%}" if self.percent else f"{value:g}") for value in values]


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in the range: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = [
        10.0**power
        for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    ]
    return decades if len(decades) > 1 else [low, *decades, high] if high > low else [low]


def axis_of(dimension: Dimension) -> Axis:
    """The axis of a searched parameter; a choice's values are spaced evenly, with a margin at both ends."""
    if isinstance(dimension, Choice):
        words = tuple(str(value) for value in dimension.values)
        return Axis(-0.5, len(words) - 0.5, words=words)
    return Axis(float(dimension.low), float(dimension.high), dimension.log)


def axis_value(dimension: Dimension, value: Any) -> float:
    """A parameter's value as a number on its axis."""
    return float(dimension.values.index(value)) if isinstance(dimension, Choice) else float(value)


def axis_around(values: Sequence[float], percent: bool = False) -> Axis:
    """An axis around the finite `values`, with a small margin."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, percent=percent)
