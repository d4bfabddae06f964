"""Planners: what a free worker does next, where trials can be paused and gone on with."""

from dataclasses import dataclass
from typing import Any, Protocol

from binsweep.search.strategy.trial_pool import TrialPool, promoted


@dataclass(frozen=True)
class Plan:
    """Go on with trial `number`, or begin one with `params`, or, with neither, with what the sampler says.

    A new one that is `straight` is trained to its end, unless it falls behind the others on its way.
    """

    reason: str = ""
    number: int | None = None
    params: dict[str, Any] | None = None
    straight: bool = False


class Planner(Protocol):
    """The same standing, seed and `learned` give the same plan."""

    learned: list[float]  # what must be kept, and set again, to plan alike after a restart; may be empty

    def plan(self, standing: TrialPool) -> Plan:
        """What a free worker should do next."""


class Halving:
    """Promotes the best third at every level; where none waits, the sampler begins a new trial."""

    learned: list[float]

    def __init__(self) -> None:
        self.learned = []

    def plan(self, standing: TrialPool) -> Plan:
        found = promoted(standing)
        return Plan() if found is None else Plan(found[1], number=found[0])
