"""Where a sweep begins that is told nothing: the recommended settings of each of its backbones, within its space."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from binsweep.models.recommended import PREFERRED, recommended_settings
from binsweep.models.settings import TYPES, Settings
from binsweep.search.spec.space import Choice, Range, SearchSpace
from binsweep.search.spec.sweep_spec import PhotoSpec, SweepSpec
from binsweep.search.strategy.earlier_sweeps import InitialPoint
from binsweep.search.strategy.encoding import Encoder

# With many backbones their defaults would use up a short search before it has learnt anything.
MAX_POINTS = 4
MAX_SHARE = 0.25  # of budget.trials


def initial_points(spec: SweepSpec) -> list[InitialPoint]:
    """The configurations that a sweep tries first: those of its file, or else the recommended ones (of
    own code, nothing is known).

    An empty list in the file means none, and a grid has an order of its own.
    """
    if spec.search.initial_points is not None:
        return [InitialPoint(point) for point in spec.search.initial_points]
    if spec.search.sampler == "grid" or not isinstance(spec, PhotoSpec):
        return []
    count = MAX_POINTS
    if spec.budget.trials is not None:
        count = min(count, math.ceil(MAX_SHARE * spec.budget.trials))
    found: list[InitialPoint] = []
    for backbone in _backbones(spec):
        point = _recommended_point(spec, backbone)
        if all(point != other.params for other in found):
            found.append(InitialPoint(point, f"the recommended start of {backbone}"))
    return found[:count]


def _backbones(spec: PhotoSpec) -> list[str]:
    dimension = spec.space.get("backbone")
    return (
        [str(name) for name in dimension.values]
        if isinstance(dimension, Choice)
        else [spec.settings.backbone]
    )


def _recommended_point(spec: PhotoSpec, backbone: str) -> dict[str, Any]:
    """The point of the space that is nearest to a backbone's recommended settings.

    Where nothing is recommended, a range is begun in its middle and a choice at the default, or its first value.
    """
    space = spec.space
    params: dict[str, Any] = {}
    # Named choices come first: what is recommended for numbers depends on them.
    for is_named in (True, False):
        for name in space:
            if name in params or is_named != (TYPES[name] is str) or not space.is_active(name, params):
                continue
            if name == "backbone":
                params[name] = backbone
                continue
            fixed = {field.name: getattr(spec.settings, field.name) for field in fields(Settings)}
            settings = {**fixed, "backbone": backbone, **params}
            wanted = recommended_settings(backbone, settings["trainable"], settings["optimizer"])
            params[name] = _nearest(space, name, wanted.get(name))
    return space.active(params)


def _nearest(space: SearchSpace, name: str, wanted: Any) -> Any:
    """The value of a dimension that is nearest to the wanted one."""
    dimension = space[name]
    if isinstance(dimension, Range):
        if wanted is not None and space.contains(name, wanted):
            return wanted
        alone = Encoder(
            SearchSpace({name: Range(dimension.low, dimension.high, dimension.log, dimension.step)})
        )
        return alone.params(alone.point({} if wanted is None else {name: wanted}))[name]
    for candidate in (*PREFERRED.get(name, ()), wanted, getattr(Settings(), name)):
        if candidate in dimension.values:
            return candidate
    numbers = [value for value in dimension.values if isinstance(value, int | float)]
    if not isinstance(wanted, int | float) or not numbers:
        return dimension.values[0]
    return min(numbers, key=lambda value: abs(math.log(max(value, 1e-12) / max(wanted, 1e-12))))
