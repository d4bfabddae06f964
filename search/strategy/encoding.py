"""Configurations as points for models: a coordinate from 0 to 1 for each range, the value's index for each choice.

Inactive conditional parameters are encoded at one fixed point: 0.5 for a range, -1 for a choice.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from scipy.stats import qmc

from binsweep.search.spec.space import Choice, Range, SearchSpace

Points = np.ndarray  # shape [n, dimensions]
MAX_LISTED_VALUES = 16  # a range with more values is treated as continuous


class Encoder:
    """Translates between parameters, points (to sample and perturb) and features (for kernels)."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self.names = list(self._space)
        self.dimensions = list(self._space.values())
        self._distributions: list[BaseDistribution] = list(space.distributions.values())
        self._options = [len(d.values) if isinstance(d, Choice) else 0 for d in self.dimensions]
        self._listed = [self._listed_coordinates(i) for i in range(len(self.names))]
        self._is_continuous = np.array([not len(listed) for listed in self._listed])
        self._conditions = [
            (i, self.names.index(parent), [self._internal_value(parent, value) for value in allowed])
            for i, dimension in enumerate(self.dimensions)
            for parent, allowed in dimension.when
        ]
        self._left: _Part | None = None  # of the space, if points are drawn only there

    def limit_to(self, space: SearchSpace) -> None:
        """From now on, points are drawn and moved only where a narrowed space has them; coordinates stay the same."""
        self._left = _Part(self, space)

    def point(self, params: Mapping[str, Any]) -> np.ndarray:
        """The point of one configuration; a missing parameter is encoded as an inactive one."""
        active = self._space.active(params)
        return np.array([self._coordinate(i, active.get(name)) for i, name in enumerate(self.names)])

    def params(self, point: np.ndarray) -> dict[str, Any]:
        """The configuration at a point, rounded to the nearest step; inactive parameters are left out."""
        inactive = self._inactive(point[None])[0]
        return {name: self._value(i, point[i]) for i, name in enumerate(self.names) if not inactive[i]}

    def value(self, point: np.ndarray, name: str) -> Any:
        """One active parameter at a point."""
        i = self.names.index(name)
        return self._value(i, point[i])

    def coordinate(self, name: str, value: Any) -> float:
        """The coordinate of a parameter's value."""
        return self._coordinate(self.names.index(name), value)

    def sobol_point(self, seed: int, number: int) -> np.ndarray:
        """The `number`th point of a scrambled Sobol sequence (Owen, 1998), which fills the space evenly."""
        sequence = qmc.Sobol(len(self.names), seed=seed)
        if number:  # SciPy cannot fast-forward by 0
            sequence.fast_forward(number)
        point: np.ndarray = self.from_unit(sequence.random(1))[0]
        return point

    def rounded(self, points: Points) -> Points:
        """Each point moved to the coordinates of its configuration, with integers and steps rounded."""
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
        # Inactive parameters keep their fixed point.
        return self._within(np.where(self._inactive(points), points, columns))

    def continuous_mask(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Which continuous ranges are active at each point [n, ranges], and the feature index of each [ranges]."""
        features = np.flatnonzero(self._is_continuous[self.feature_groups()])
        return ~self._inactive(points)[:, self._is_continuous], features

    def continuous_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last coordinates of the continuous ranges, shape [ranges]."""
        ranges = np.flatnonzero(self._is_continuous)
        return (
            (np.zeros(len(ranges)), np.ones(len(ranges))) if self._left is None else self._left.ends(ranges)
        )

    def with_continuous(self, points: Points, coordinates: np.ndarray) -> Points:
        """The points with other coordinates of their continuous ranges [n, ranges]."""
        changed = points.copy()
        changed[:, self._is_continuous] = coordinates
        return changed

    def neighbours(self, points: Points) -> Points:
        """The points, and each of them with one choice or short range changed to each of its values."""
        found = [points]
        for i, coordinates in enumerate(self._listed):
            for coordinate in coordinates:
                found.append(points.copy())
                found[-1][:, i] = coordinate
        moved = np.concatenate(found)
        # A choice that has become active starts at its first option.
        moved = np.where(
            (np.array(self._options) > 0) & ~self._inactive(moved), np.maximum(moved, 0.0), moved
        )
        return self._within(self._fix_inactive(moved))

    def random(self, rng: np.random.Generator, count: int) -> Points:
        return self.from_unit(rng.random((count, len(self.names))))

    def perturbed(self, points: Points, width: float, rng: np.random.Generator) -> Points:
        """Each point changed in about half of its coordinates: ranges by a normal step of `width`, clipped at the ends,
        choices to any option."""
        moved = rng.random(points.shape) < 0.5
        steps = points + rng.normal(0, width, points.shape)
        other = self._from_unit(rng.random(points.shape))
        chosen = np.array(self._options) > 0
        near = np.where(moved, np.where(chosen, other, np.clip(steps, 0, 1)), points)
        # Parameters that were inactive before have no coordinate to start from.
        return self._within(self._fix_inactive(np.where(self._inactive(points), other, near)))

    def features(self, points: Points) -> np.ndarray:
        """Features of shape [n, features]: a choice becomes a column per option, any two options at distance 1."""
        columns = []
        for i, options in enumerate(self._options):
            if options:
                columns.append((points[:, i, None] == np.arange(options)) / math.sqrt(2))
            else:
                columns.append(points[:, i, None])
        return np.concatenate(columns, axis=1)

    def feature_groups(self) -> np.ndarray:
        """The dimension of each feature; the columns of a choice share one length scale."""
        return np.repeat(np.arange(len(self.names)), [max(1, options) for options in self._options])

    def from_unit(self, unit: Points) -> Points:
        """Points from numbers between 0 and 1, of which a choice's options get equal parts."""
        return self._within(self._fix_inactive(self._from_unit(unit)))

    def _listed_coordinates(self, i: int) -> np.ndarray:
        """All coordinates of a choice or short range; none for a continuous range."""
        if self._options[i]:
            return np.arange(self._options[i])
        distribution = self._distributions[i]
        step = getattr(distribution, "step", None)
        if step is None or _steps(distribution) >= MAX_LISTED_VALUES:
            return np.empty(0)
        values = distribution.low + step * np.arange(_steps(distribution) + 1)
        return np.array([self._coordinate(i, value) for value in values])

    def _from_unit(self, unit: Points) -> Points:
        options = np.array(self._options)
        points = np.where(options > 0, np.minimum(np.floor(unit * options), options - 1), unit)
        return points if self._left is None else self._left.from_unit(points, unit)

    def _within(self, points: Points) -> Points:
        """The points, moved into the part of the space that is left."""
        return points if self._left is None else self._fix_inactive(self._left.nearest(points))

    def _inactive(self, points: Points) -> np.ndarray:
        """Which parameters are inactive at each point, shape [n, dimensions]."""
        inactive = np.zeros(points.shape, bool)
        for child, parent, allowed in self._conditions:  # parents come first
            inactive[:, child] |= inactive[:, parent] | ~np.isin(points[:, parent], allowed)
        return inactive

    def _fix_inactive(self, points: Points) -> Points:
        if not self._conditions:
            return points
        return np.where(self._inactive(points), np.where(np.array(self._options) > 0, -1.0, 0.5), points)

    def _internal_value(self, name: str, value: Any) -> float:
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
        if self._left is not None:  # coordinates cost the ends of a narrowed range a last digit
            first, last = self._left.values[i]
        return int(value) if dimension.is_int else float(min(last, max(first, value)))


class _Part:
    """A part of an encoder's space, in the encoder's coordinates."""

    def __init__(self, encoder: Encoder, space: SearchSpace) -> None:
        self._options: dict[int, np.ndarray] = {}  # those that are left, by dimension
        self._ends: dict[int, tuple[float, float]] = {}  # the coordinates of the first and the last value,
        self.values: dict[int, tuple[float, float]] = {}  # and these values
        for i, name in enumerate(encoder.names):
            dimension = space[name]
            if isinstance(dimension, Choice):
                self._options[i] = np.array([encoder.coordinate(name, value) for value in dimension.values])
            else:
                distribution: Any = space.distributions[name]
                self.values[i] = distribution.low, distribution.high
                low, high = (encoder.coordinate(name, value) for value in self.values[i])
                self._ends[i] = low, high

    def from_unit(self, points: Points, unit: Points) -> Points:
        """The points, with coordinates from numbers between 0 and 1 that spread over what is left."""
        found = points.copy()
        for i, options in self._options.items():
            found[:, i] = options[np.minimum((unit[:, i] * len(options)).astype(int), len(options) - 1)]
        for i, (low, high) in self._ends.items():
            found[:, i] = low + unit[:, i] * (high - low)
        return found

    def ends(self, dimensions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last coordinates of these ranges."""
        ends = np.array([self._ends[i] for i in dimensions]).reshape(len(dimensions), 2)
        return ends[:, 0], ends[:, 1]

    def nearest(self, points: Points) -> Points:
        """The points, with what lies outside moved to the nearest end of its range or to the first choice."""
        found = points.copy()
        for i, options in self._options.items():
            found[:, i] = np.where(np.isin(points[:, i], options), points[:, i], options[0])
        for i, (low, high) in self._ends.items():
            found[:, i] = np.clip(points[:, i], low, high)
        return found


def _steps(distribution: Any) -> int:
    """The number of steps in a stepped range."""
    steps: int = round((distribution.high - distribution.low) / distribution.step)
    return steps


def _ends(dimension: Range, distribution: Any) -> tuple[float, float]:
    """The ends of a range on its (linear or log) scale; a stepped range extends half a step beyond both ends."""
    half = 0.0 if distribution.step is None else distribution.step / 2
    low, high = distribution.low - half, distribution.high + half
    return (math.log(low), math.log(high)) if dimension.log else (low, high)
