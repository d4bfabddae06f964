"""Whether a request keeps the rules of its sweep, and what it brings about. Pure: the command asks before it leaves a
request, and the sweep again when it takes it in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from binsweep.data.errors import UserError
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.problems import ABSENT, Problem, nearest
from binsweep.search.spec.schema import BudgetPart
from binsweep.search.spec.space import Choice, Dimension, SearchSpace, describe, grid_size, grid_values
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.steering.request import AnsweredRequest, Request
from binsweep.search.steering.state import SteeringState, narrow, state_after
from binsweep.search.terminal.format import format_value

ENDED = ("completed", "stopped", "failed")
WHOLE_LIMITS = ("trials", "epochs", "no_improvement")


class SteeredTrial(Protocol):
    """What is asked of a trial, in the sweep's process and in its history."""

    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def state(self) -> str: ...
    @property
    def epochs_done(self) -> int: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class SteeredSweep:
    """What a request is judged by: the spec as it was written, the trials by number, what is in force."""

    spec: SweepSpec
    trials: Mapping[int, SteeredTrial]
    state: SteeringState


def answer_all(
    spec: SweepSpec,
    trials: Mapping[int, SteeredTrial],
    answered: Sequence[AnsweredRequest],
    requests: Sequence[Request],
) -> list[AnsweredRequest]:
    """The answers to `requests`, each judged after those before it."""
    found: list[AnsweredRequest] = []
    for request in requests:
        sweep = SteeredSweep(spec, trials, state_after([*answered, *found]))
        try:
            answer, effect = judge(request, sweep)
        except UserError as error:
            found.append(AnsweredRequest(request, False, str(error.message), time.time()))
        else:
            found.append(AnsweredRequest(request, True, answer, time.time(), effect))
    return found


def judge(request: Request, sweep: SteeredSweep) -> tuple[str, dict[str, Any]]:
    """The answer to a request that keeps the rules, and its effect. Raises UserError with the reason for another."""
    match request.kind:
        case "enqueue":
            return _enqueue(request, sweep)
        case "stop-trial":
            return _stop(request, sweep), {}
        case "pin":
            return _pin(request, sweep), {}
        case "unpin":
            return _unpin(request, sweep), {}
        case "pause":
            return _pause(sweep), {}
        case "resume":
            if not sweep.state.paused:
                raise UserError("the sweep is not paused", "`binsweep pause` pauses it")
            return f"the sweep goes on; it was paused by {sweep.state.paused}", {}
        case "budget":
            return _change_budget(request, sweep)
        case "narrow":
            return _narrow(request, sweep)


def _refuse(request: Request, problems: Sequence[Problem]) -> None:
    """Raise UserError with all of the mistakes, if there are any."""
    if problems:
        count = f"{len(problems)} mistakes" if len(problems) > 1 else "1 mistake"
        raise UserError("\n  ".join([f"{request}: {count}", *map(str, problems)]))


def _open_trial(number: int | None, sweep: SteeredSweep) -> SteeredTrial:
    """A trial that has not ended."""
    trial = _trial(number, sweep)
    if trial.state in ENDED:
        raise UserError(f"trial {number} has ended: {trial.state} ({trial.reason})", "choose another one")
    return trial


def _trial(number: int | None, sweep: SteeredSweep) -> SteeredTrial:
    if number is None or number not in sweep.trials:
        have = f"from {min(sweep.trials)} to {max(sweep.trials)}" if sweep.trials else "none yet"
        raise UserError(f"there is no trial {number}", f"trials: {have}")
    return sweep.trials[number]


def _stop(request: Request, sweep: SteeredSweep) -> str:
    trial = _open_trial(request.trial, sweep)
    if trial.state == "running":
        return f"trial {request.trial} stops after epoch {trial.epochs_done + 1}"
    return f"trial {request.trial} stops after epoch {trial.epochs_done}, at which it {_stands(trial)}"


def _stands(trial: SteeredTrial) -> str:
    return "is paused" if trial.state == "paused" else "waits for a worker"


def _pin(request: Request, sweep: SteeredSweep) -> str:
    trial = _open_trial(request.trial, sweep)
    if asked := sweep.state.stops.get(-1 if request.trial is None else request.trial):
        raise UserError(f"trial {request.trial} is being {asked}", "choose another one")
    next_up = "" if trial.state == "running" else "; it goes on when a worker is free"
    return f"trial {request.trial} is trained to its end{next_up}"


def _unpin(request: Request, sweep: SteeredSweep) -> str:
    _open_trial(request.trial, sweep)
    if request.trial not in sweep.state.pins:
        pinned = ", ".join(map(str, sorted(sweep.state.pins))) or "none"
        raise UserError(f"trial {request.trial} is not pinned", f"pinned trials: {pinned}")
    return f"the strategy decides about trial {request.trial} again"


def _pause(sweep: SteeredSweep) -> str:
    if sweep.state.paused:
        raise UserError(
            f"the sweep is paused already, by {sweep.state.paused}", "`binsweep resume` lets it go on"
        )
    running = [number for number, trial in sweep.trials.items() if trial.state == "running"]
    if not running:
        return "the sweep is paused"
    trials = f"trial{'s' * (len(running) > 1)} {', '.join(map(str, running))}"
    return f"the sweep is paused when {trials} will have ended the present epoch"


def _enqueue(request: Request, sweep: SteeredSweep) -> tuple[str, dict[str, Any]]:
    base = {} if request.trial is None else _trial(request.trial, sweep).params
    space, left = sweep.spec.space, sweep.state.space_of(sweep.spec.space)
    values = {**base, **request.values}
    _refuse(request, list(_configuration_problems(request, values, space, left)))
    budget, waiting = sweep.state.budget_of(sweep.spec.budget), len(sweep.state.wishes)
    if budget.trials is not None and len(sweep.trials) + waiting >= budget.trials:
        asked = f", and {waiting} that were asked for wait" if waiting else ""
        rule = f"budget.trials: {len(sweep.trials)} of {budget.trials} have begun{asked}"
        raise UserError(
            f"{rule}: no further one may begin", "first raise it: `binsweep budget SWEEP trials=+1`"
        )
    params = {
        name: space.distributions[name].to_external_repr(space.distributions[name].to_internal_repr(value))
        for name, value in space.active(values).items()
    }
    copied = "" if request.trial is None else f", trial {request.trial}"
    changed = ", ".join(f"{name} {format_value(value)}" for name, value in request.values.items())
    with_changes = f" with {changed}" if copied and changed else ""
    reason = f"asked for by {request.who}{copied}{with_changes}"
    return "it begins when a worker is free", {"params": params, "reason": reason}


def _configuration_problems(
    request: Request, values: Mapping[str, Any], space: SearchSpace, left: SearchSpace
) -> Iterator[Problem]:
    """The mistakes in a configuration: `space` is the sweep's, `left` what requests have narrowed it to."""
    for name in request.values:
        if name not in space:
            yield Problem(name, "is not searched by this sweep", ABSENT, nearest(name, list(space)))
    searched = [name for name in space if space.is_active(name, values)]
    for name in space:
        if name not in searched and name in request.values:
            conditions = (f"{parent} is {' or '.join(map(str, some))}" for parent, some in space[name].when)
            yield Problem(name, "is not searched here", ABSENT, f"only where {' and '.join(conditions)}")
    for name in searched:
        if name not in values:
            hint = f"{describe(left[name])}; --like N takes what is not given from trial N"
            yield Problem(name, "is missing: a configuration has every searched value", ABSENT, hint)
        elif not space.contains(name, values[name]):
            yield Problem(name, "lies outside of the space", values[name], describe(space[name]))
        elif not left.contains(name, values[name]):
            hint = f"{describe(left[name])} is left"
            yield Problem(name, "lies outside of what the space was narrowed to", values[name], hint)


def _change_budget(request: Request, sweep: SteeredSweep) -> tuple[str, dict[str, Any]]:
    before = sweep.state.budget_of(sweep.spec.budget)
    known = list(BudgetPart.model_fields)
    if not request.values:
        raise UserError(
            "budget: nothing to change was given", "such as minutes=+30, minutes=90 or trials=+10"
        )
    changed: dict[str, Any] = {}
    for name, value in request.values.items():
        if name not in known:
            raise UserError(f"budget.{name}: there is no such limit", nearest(name, known))
        changed[name] = _limit(name, value, getattr(before, name))
    raw = {**sweep.spec.raw, "budget": {**before.model_dump(), **changed}}
    now = parse_spec(raw, str(request)).budget
    limits = {name: [getattr(sweep.spec.budget, name), getattr(now, name)] for name in changed}
    texts = (
        f"budget.{name}: {_amount(getattr(now, name))} (was {_amount(getattr(before, name))})"
        for name in changed
    )
    return ", ".join(texts), {"limits": limits}


def _limit(name: str, value: Any, before: float | None) -> Any:
    """A limit from 90, "90" or "+30", which is added to the present one; text that is none is left as it is."""
    is_added = isinstance(value, str) and value.startswith(("+", "-"))
    if is_added and before is None:
        raise UserError(
            f"budget.{name}: there is no limit to change by {value}", f"give one, such as {name}=90"
        )
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise UserError(
                f"budget.{name}: {value} is no number", f"such as {name}=90 or {name}=+30"
            ) from None
        value = number + (before or 0.0) if is_added else number
    is_whole = name in WHOLE_LIMITS and isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _amount(limit: float | None) -> str:
    return "no limit" if limit is None else f"{limit:g}"


def _narrow(request: Request, sweep: SteeredSweep) -> tuple[str, dict[str, Any]]:
    space, problems = sweep.state.space_of(sweep.spec.space), []
    if sweep.spec.search.sampler == "cmaes":
        hint = "of the others, `binsweep enqueue` tries what you choose"
        raise UserError(
            "narrow: search.sampler cmaes moves a distribution of its own, which cannot be cut", hint
        )
    if not request.values:
        raise UserError(
            "narrow: nothing to narrow was given", "such as lr=1e-4..1e-2 or backbone=resnet18,resnet34"
        )
    narrowed = {}
    for name, values in request.values.items():
        if name not in space:
            problems.append(
                Problem(name, "is not searched by this sweep", ABSENT, nearest(name, list(space)))
            )
        elif (problem := _narrowing_problem(name, space[name], values, space)) is not None:
            problems.append(problem)
        else:
            narrowed[name] = _ends_or_choices(space, name, values)
    _refuse(request, problems)
    texts = (f"{name}: {describe(narrow(space[name], values))}" for name, values in narrowed.items())
    return f"{'; '.join(texts)}, for all trials that are still to come", {"narrowed": narrowed}


def _narrowing_problem(name: str, dimension: Dimension, values: Any, space: SearchSpace) -> Problem | None:
    """The mistake in what a dimension shall be narrowed to; None if there is none."""
    if isinstance(dimension, Choice):
        if not isinstance(values, list) or not values:
            return Problem(name, "must be a list of choices", values, f"of {describe(dimension)}")
        foreign = [value for value in values if not space.contains(name, value)]
        if foreign:
            return Problem(
                name, "is none of its choices, and a space is not widened", foreign[0], describe(dimension)
            )
        return None
    numbers = isinstance(values, list) and len(values) == 2 and all(type(v) in (int, float) for v in values)
    if not numbers:
        return Problem(name, "must be two ends", values, f"such as {dimension.low:g}..{dimension.high:g}")
    low, high = values
    if low > high:
        return Problem(name, "begins above its end", values, f"write {high}..{low}")
    if low < dimension.low or high > dimension.high:
        rule = "would be wider than it is: data, weights and resources were checked for that"
        return Problem(name, rule, values, f"within {describe(dimension)}")
    if not _ends_or_choices(space, name, values):
        return Problem(name, "has no value there", values, describe(dimension))
    return None


def _ends_or_choices(space: SearchSpace, name: str, values: Sequence[Any]) -> list[Any]:
    """The choices in their order, or the first and the last value between two ends; empty if there is none."""
    dimension = space[name]
    if isinstance(dimension, Choice):
        return [value for value in dimension.values if value in values]
    low, high = values
    if grid_size(dimension) is None or not (dimension.step or dimension.is_int):
        return [float(low), float(high)]
    if dimension.step is None:  # whole numbers
        first, last = -int(-low // 1), int(high // 1)
        return [first, last] if first <= last else []
    inside = [value for value in grid_values(dimension) if low <= float(value) <= high]
    return [inside[0], inside[-1]] if inside else []
