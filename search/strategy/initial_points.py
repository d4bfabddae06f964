"""The configurations that a search begins with, as its study keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from binsweep.search.strategy.asked import REQUEST_ATTR
from binsweep.search.strategy.earlier_sweeps import InitialPoint
from binsweep.search.strategy.study_storage import StudyStorage

INITIAL_ATTR = "initial_point"  # user attribute of a trial: the index of the initial point that it began with
# User attributes of the study
INITIAL_POINTS_ATTR = "first"  # configurations to try before any other
INITIAL_REASONS_ATTR = "first_because"  # why each of them is tried


class InitialPoints:
    """The initial points in a study, and which of them are still to come."""

    def __init__(self, storage: StudyStorage) -> None:
        self._storage = storage

    @property
    def are_known(self) -> bool:
        """Whether the study knows its initial points, be they none."""
        return self._storage.study_attr(INITIAL_POINTS_ATTR) is not None

    def store(self, points: Sequence[InitialPoint]) -> None:
        """Keep the points in the study."""
        self._storage.set_study_attr(INITIAL_POINTS_ATTR, [dict(point.params) for point in points])
        self._storage.set_study_attr(INITIAL_REASONS_ATTR, [point.reason for point in points])

    def next_one(
        self, n_prior: int, is_left: Callable[[Mapping[str, Any]], bool]
    ) -> tuple[int, dict[str, Any], str] | None:
        """The index, configuration and reason of the next point that is in what is left of the space; None if there is
        none. The first `n_prior` trials of the study are of earlier sweeps."""
        points = self._storage.study_attr(INITIAL_POINTS_ATTR) or []
        reasons = self._storage.study_attr(INITIAL_REASONS_ATTR) or [""] * len(points)
        for index in range(self._n_passed(n_prior) if points else 0, len(points)):
            if is_left(points[index]):
                why = f": {reasons[index]}" if reasons[index] else ""
                return index, points[index], f"initial point {index + 1} of {len(points)}{why}"
        return None

    def _n_passed(self, n_prior: int) -> int:
        """How many points were tried or left out. Studies of earlier versions begin with them, and nothing else."""
        own = [trial.user_attrs for trial in self._storage.trials()[n_prior:]]
        unasked = [attributes for attributes in own if REQUEST_ATTR not in attributes]
        return max((one[INITIAL_ATTR] + 1 for one in own if INITIAL_ATTR in one), default=len(unasked))
