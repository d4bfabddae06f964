"""Configurations as points, for models: a coordinate from 0 to 1 per range, the choice's index per choice.

What is not searched beside the other choices lies in the middle of its range, or is no choice (-1).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from scipy.stats import qmc

from binsweep.search.spec.space import Choice, Dimension, Range, active, in_order, to_distribution

Points = np.ndarray  # shape [n, dimensions]
FEW = 16  # places of a range that are tried one by one


class Encoder:
    """Translates between parameters, points (for drawing and moving) and features (for kernels)."""

    def __init__(self, space: Mapping[str, Dimension]) -> None:
        self._space = in_order(space)
        self.names = list(self._space)
        self.dimensions = list(self._space.values())
        self._distributions: list[BaseDistribution] = [to_distribution(d) for d in self.dimensions]
        self._options = [len(d.values) if isinstance(d, Choice) else 0 for d in self.dimensions]
        self._places = [self._places_of(i) for i in range(len(self.names))]
        self._wide = np.array([not len(places) for places in self._places])
        self.features = sum(max(1, options) for options in self._options)
        self._conditions = [
            (i, self.names.index(parent), [self._code(parent, value) for value in allowed])
            for i, dimension in enumerate(self.dimensions)
            for parent, allowed in dimension.when
        ]

    def point(self, params: Mapping[str, Any]) -> np.ndarray:
        """The point of one configuration; a parameter that it lacks lies in the middle (or is no choice, -1)."""
        found = active(self._space, params)
        return np.array([self._coordinate(i, found.get(name)) for i, name in enumerate(self.names)])

    def params(self, point: np.ndarray) -> dict[str, Any]:
        """The configuration at a settled point, whole numbers and steps rounded to their nearest."""
        off = self._off(point[None])[0]
        return {name: self._value(i, point[i]) for i, name in enumerate(self.names) if not off[i]}

    def value(self, point: np.ndarray, name: str) -> Any:
        """One parameter at a point where it is searched."""
        i = self.names.index(name)
        return self._value(i, point[i])

    def spread(self, seed: int, number: int) -> np.ndarray:
        """The `number`th point of a scrambled Sobol sequence (Owen, 1998): it fills the space evenly."""
        sequence = qmc.Sobol(len(self.names), seed=seed)
        if number:  # SciPy cannot skip none
            sequence.fast_forward(number)
        point: np.ndarray = self.from_unit(sequence.random(1))[0]
        return point

    def rounded(self, points: Points) -> Points:
        """Each point as its configuration has it: a range of whole numbers or of steps has so many places only."""
        columns = points.copy()
        for i, (dimension, distribution) in enumerate(zip(self.dimensions, self._distributions, strict=True)):
            step = getattr(distribution, "step", None)
            if isinstance(dimension, Range) and step is not None and distribution.high > distribution.low:
                low, high = _ends(dimension, distribution)
                value = low + points[:, i] * (high - low)
                value = np.exp(value) if dimension.log else value
                steps = np.round((value - distribution.low) / step)
                value = distribution.low + step * np.clip(steps, 0, _steps(distribution))
                columns[:, i] = ((np.log(value) if dimension.log else value) - low) / (high - low)
        # What is not searched there keeps its one place.
        return np.where(self._off(points), points, columns)

    def free(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Of the ranges of many places: whether each is searched at each point [n, ranges], and which feature it is
        [ranges]."""
        return ~self._off(points)[:, self._wide], np.flatnonzero(self._wide[self.groups()])

    def moved(self, points: Points, places: np.ndarray) -> Points:
        """The points with their ranges of many places at other ones [n, ranges]."""
        found = points.copy()
        found[:, self._wide] = places
        return found

    def others(self, points: Points) -> Points:
        """Each point with one choice, or one range of few places, at each of its places."""
        found = [points]
        for i, places in enumerate(self._places):
            for place in places:
                found.append(points.copy())
                found[-1][:, i] = place
        moved = np.concatenate(found)
        # A choice that was not searched there before has its first option.
        moved = np.where((np.array(self._options) > 0) & ~self._off(moved), np.maximum(moved, 0.0), moved)
        return self._settle(moved)

    def random(self, rng: np.random.Generator, count: int) -> Points:
        return self.from_unit(rng.random((count, len(self.names))))

    def near(self, points: Points, width: float, rng: np.random.Generator) -> Points:
        """Each point moved in about half of its coordinates: ranges by a normal step of `width`, cut off at
        the ends, choices to any option."""
        moved = rng.random(points.shape) < 0.5
        steps = points + rng.normal(0, width, points.shape)
        other = self._anywhere(rng.random(points.shape))
        chosen = np.array(self._options) > 0
        near = np.where(moved, np.where(chosen, other, np.clip(steps, 0, 1)), points)
        # What was not searched before has no place to move from.
        return self._settle(np.where(self._off(points), other, near))

    def expand(self, points: Points) -> np.ndarray:
        """Features of shape [n, features]: a choice becomes a column per option, any two being 1 apart."""
        columns = []
        for i, options in enumerate(self._options):
            if options:
                columns.append((points[:, i, None] == np.arange(options)) / math.sqrt(2))
            else:
                columns.append(points[:, i, None])
        return np.concatenate(columns, axis=1)

    def groups(self) -> np.ndarray:
        """Which dimension each feature belongs to; the columns of a choice share one length scale."""
        return np.repeat(np.arange(len(self.names)), [max(1, options) for options in self._options])

    def from_unit(self, unit: Points) -> Points:
        """Points from numbers between 0 and 1; a choice's options get equal parts of that."""
        return self._settle(self._anywhere(unit))

    def _places_of(self, i: int) -> np.ndarray:
        """The coordinates that a choice or a range of few places can have; none for another range."""
        if self._options[i]:
            return np.arange(self._options[i])
        distribution = self._distributions[i]
        step = getattr(distribution, "step", None)
        if step is None or _steps(distribution) >= FEW:
            return np.empty(0)
        values = distribution.low + step * np.arange(_steps(distribution) + 1)
        return np.array([self._coordinate(i, value) for value in values])

    def _anywhere(self, unit: Points) -> Points:
        options = np.array(self._options)
        return np.where(options > 0, np.minimum(np.floor(unit * options), options - 1), unit)

    def _off(self, points: Points) -> np.ndarray:
        """Which coordinates are not searched beside the others, shape [n, dimensions]."""
        off = np.zeros(points.shape, bool)
        for child, parent, allowed in self._conditions:  # parents come first
            off[:, child] |= off[:, parent] | ~np.isin(points[:, parent], allowed)
        return off

    def _settle(self, points: Points) -> Points:
        if not self._conditions:
            return points
        return np.where(self._off(points), np.where(np.array(self._options) > 0, -1.0, 0.5), points)

    def _code(self, name: str, value: Any) -> float:
        return float(self._distributions[self.names.index(name)].to_internal_repr(value))

    def _coordinate(self, i: int, value: Any) -> float:
        distribution, dimension = self._distributions[i], self.dimensions[i]
        if isinstance(distribution, CategoricalDistribution):
            return -1.0 if value is None else float(distribution.to_internal_repr(value))
        assert isinstance(dimension, Range)
        if value is None:
            return 0.5
        low, high = _ends(dimension, distribution)
        at = math.log(value) if dimension.log else float(value)
        return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5

    def _value(self, i: int, coordinate: float) -> Any:
        distribution, dimension = self._distributions[i], self.dimensions[i]
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[int(coordinate)]
        assert isinstance(dimension, Range)
        low, high = _ends(dimension, distribution)
        value = low + coordinate * (high - low)
        value = math.exp(value) if dimension.log else value
        first, last = distribution.low, distribution.high
        step = distribution.step
        if step is not None:  # every range of whole numbers has one
            steps = min(round((value - first) / step), _steps(distribution))
            value = first + max(0, steps) * step
        return int(value) if dimension.is_int else float(min(last, max(first, value)))


def _steps(distribution: Any) -> int:
    """How many there are between the ends of a stepped range."""
    steps: int = round((distribution.high - distribution.low) / distribution.step)
    return steps


def _ends(dimension: Range, distribution: Any) -> tuple[float, float]:
    """The ends of a range on the scale on which it is even; a stepped value owns half a step to either side."""
    half = 0.0 if distribution.step is None else distribution.step / 2
    low, high = distribution.low - half, distribution.high + half
    return (math.log(low), math.log(high)) if dimension.log else (low, high)
