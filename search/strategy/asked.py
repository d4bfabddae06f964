"""What people have asked of a search: configurations to try first, trials to train to their end, a narrower space."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from binsweep.search.spec.space import SearchSpace
from binsweep.search.steering.state import Wish
from binsweep.search.strategy.samplers import Sampler

REQUEST_ATTR = (
    "request"  # user attribute of a trial: the id of the request of the configuration that it began with
)


class Asked:
    """The state of what was asked; `begun` are the requests that trials have begun with."""

    def __init__(self, space: SearchSpace, make_sampler: Callable[[SearchSpace], Sampler]) -> None:
        self.space, self.sampler = space, make_sampler(space)  # what is left to be searched, and its sampler
        self.pinned: Mapping[int, str] = {}  # the reasons, by trial
        self.begun: set[str] = set()
        self._wishes: Sequence[Wish] = ()
        self._whole, self._make_sampler = space, make_sampler

    def change(self, wishes: Sequence[Wish], pinned: Mapping[int, str], space: SearchSpace) -> None:
        """Take over what is asked for now."""
        self._wishes, self.pinned = wishes, pinned
        if space.distributions != self.space.distributions:
            self.space, self.sampler = space, self._make_sampler(space)

    def next_wish(self) -> Wish | None:
        """The next configuration to try; None if there is none."""
        return next((wish for wish in self._wishes if wish.id not in self.begun), None)

    @property
    def is_narrowed(self) -> bool:
        """Whether less than the whole space is left to be searched."""
        return self.space is not self._whole

    def contains(self, params: Mapping[str, Any]) -> bool:
        """Whether a configuration is in the part of the space that is left."""
        return self.space.contains_all(params)

    def ask_narrowed(self, study: optuna.Study, number: int) -> tuple[dict[str, Any], str] | None:
        """A configuration by the sampler, and its reason; None if all were tried.

        Optuna's choices cannot change within a study. So the sampler sees a copy of it, with the trials that are in the
        narrowed space.
        """
        part = optuna.create_study(direction=study.direction)
        for trial in study.get_trials(deepcopy=False):
            if self.contains(trial.params):
                part.add_trial(self._narrowed(trial))
        asked = self.sampler(part, number)
        return None if asked is None else (dict(asked[0].params), asked[1])

    def _narrowed(self, trial: FrozenTrial) -> FrozenTrial:
        found = copy.copy(trial)
        found.distributions = {name: self.space.distributions[name] for name in trial.params}
        return found
