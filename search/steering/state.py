"""What people's requests have put in force: it follows from the answered requests alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from binsweep.search.spec.schema import BudgetPart
from binsweep.search.spec.space import Choice, Dimension, Range, SearchSpace
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.steering.request import AnsweredRequest


@dataclass(frozen=True)
class Wish:
    """A configuration that somebody wants tried next, by the id of the request, and why."""

    id: str
    params: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class SteeringState:
    """What is in force: trials by number with the reason why each is stopped or pinned, who has paused the sweep (""
    while it is not paused), the limits that replace those of the spec, and the narrowed dimensions."""

    wishes: tuple[Wish, ...] = ()
    stops: Mapping[int, str] = field(default_factory=dict)
    pins: Mapping[int, str] = field(default_factory=dict)
    paused: str = ""
    limits: Mapping[str, tuple[Any, Any]] = field(
        default_factory=dict
    )  # by name: the spec's, and the present one
    narrowed: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def budget_of(self, budget: BudgetPart) -> BudgetPart:
        """The spec's budget with the limits that have replaced its own.

        A limit that the spec has been given since, as by --resume --set, holds: it is the later decision.
        """
        changed = {
            name: now for name, (before, now) in self.limits.items() if getattr(budget, name) == before
        }
        return budget.model_copy(update=changed)

    def space_of(self, space: SearchSpace) -> SearchSpace:
        """The space with its narrowed dimensions."""
        if not self.narrowed:
            return space
        return SearchSpace({name: narrow(space[name], self.narrowed.get(name)) for name in space})

    def spec_of(self, spec: SweepSpec) -> SweepSpec:
        """The spec with the present budget; its space stays that of all its trials."""
        return replace(spec, budget=self.budget_of(spec.budget))


def narrow(dimension: Dimension, values: Sequence[Any] | None) -> Dimension:
    """A dimension with these choices, or between these two ends; None leaves it as it is."""
    if values is None:
        return dimension
    if isinstance(dimension, Choice):
        return replace(dimension, values=tuple(values))
    assert isinstance(dimension, Range)
    return replace(dimension, low=values[0], high=values[1])


def state_after(answers: Sequence[AnsweredRequest]) -> SteeringState:
    """What is in force after these requests, in their order."""
    state = SteeringState()
    for one in answers:
        if one.granted:
            state = _with(state, one)
    return state


def _with(state: SteeringState, one: AnsweredRequest) -> SteeringState:
    request, effect = one.request, one.effect
    number = -1 if request.trial is None else request.trial
    match request.kind:
        case "enqueue":
            wish = Wish(request.id, effect["params"], effect["reason"])
            return replace(state, wishes=(*state.wishes, wish)) if one.is_waiting else state
        case "stop-trial":
            return replace(state, stops={**state.stops, number: f"stopped by {request.who}"})
        case "pin":
            return replace(state, pins={**state.pins, number: f"pinned by {request.who}"})
        case "unpin":
            return replace(
                state, pins={pinned: why for pinned, why in state.pins.items() if pinned != number}
            )
        case "pause":
            return replace(state, paused=request.who)
        case "resume":
            return replace(state, paused="")
        case "budget":
            limits = {name: (before, now) for name, (before, now) in effect["limits"].items()}
            return replace(state, limits={**state.limits, **limits})
        case "narrow":
            return replace(state, narrowed={**state.narrowed, **effect["narrowed"]})
