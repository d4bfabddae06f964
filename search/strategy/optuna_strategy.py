"""The strategy: what an Optuna sampler, a stopping rule or a planner says, over one study."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from binsweep.search.spec.space import Dimension, to_distribution
from binsweep.search.strategy.base import Decision, Goal, Outcome, Record, Suggestion, Verdict
from binsweep.search.strategy.planner import Plan, Planner
from binsweep.search.strategy.samplers import Sampler
from binsweep.search.strategy.stopping_rule import Curve, StoppingRule
from binsweep.search.strategy.study_storage import INFEASIBLE, StudyStorage
from binsweep.search.strategy.trial_pool import State as Stands
from binsweep.search.strategy.trial_pool import TrialPool, behind, promoted

SUGGESTED = "suggested_because"  # user attributes of a trial in the study
ENDED = "ended_because"
BEST_EPOCH = "best_epoch"
PAUSED = "paused_at"  # the epoch whose checkpoint a paused trial goes on from; None once it goes on
BROKEN = "broken"  # its value was not finite
STRAIGHT = "straight"  # it is trained to its end, unless it falls behind
COST = "cost"  # what its counter costs where it is used
PRIOR = "prior"  # the earlier sweep that it was a trial of
FIRST = "first"  # of the study: configurations to try before any other
LEARNED = "learned"  # of the study: what a planner has learned and would not learn alike again

_STATES = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


@dataclass
class _Live:
    """A trial that runs: the stop it was told, if any, and whether its value broke."""

    stop: Verdict | None = None
    broken: bool = False


@dataclass(frozen=True)
class Policy:
    """How a strategy decides. Without a planner the sampler begins every trial, and none is paused."""

    sampler: Sampler
    rule: StoppingRule
    planner: Planner | None = None
    pauses: bool = False


class OptunaStrategy:
    """Implements `Strategy`. What it knows is the study's; a second one over the same study knows the same.

    Invariants, whatever the order of calls: an epoch counts once, and only if it comes after the trial's last
    one; a trial ends once; a paused one goes on once or ends; after a stop nothing more of it is recorded;
    every ended trial has its reason.
    """

    def __init__(
        self,
        ledger: StudyStorage,
        space: Mapping[str, Dimension],
        goal: Goal,
        last_epoch: Callable[[Mapping[str, Any]], int],
        policy: Policy,
    ) -> None:
        self._ledger, self._policy, self._last_epoch = ledger, policy, last_epoch
        self._distributions = {name: to_distribution(dimension) for name, dimension in space.items()}
        self._sign = 1.0 if goal == "maximize" else -1.0
        self._live: dict[int, _Live] = {}
        self._curves = {trial.number: self._curve(trial) for trial in ledger.trials()}
        self._standing = TrialPool()
        self._planned: Plan | None = None  # until something happens
        self._prior = sum(PRIOR in trial.user_attrs for trial in ledger.trials())
        self._begin = True  # whether a free worker may begin a trial
        if policy.planner is not None and (learned := ledger.recall(LEARNED)):
            policy.planner.learned = learned
        for trial in ledger.trials():
            curve, state = self._curves[trial.number], _stand_of(trial)
            bad = BROKEN in trial.user_attrs or INFEASIBLE in trial.system_attrs
            marks = (bad, STRAIGHT in trial.user_attrs)
            self._standing.add(dict(trial.params), curve, state, *marks)
            self._standing.stands[trial.number].cost = trial.user_attrs.get(COST)
            if state == "running":
                self._live[trial.number] = _Live()  # its process ended before it did: it may go on

    def know(self, sweep: str, records: Sequence[Record], points: Sequence[Mapping[str, Any]]) -> None:
        """Before the first trial: take `records` of an earlier sweep for results, and try `points` first.

        Earlier trials are no trials of this sweep: `trials` and `best` leave them out, and numbers go on behind
        them. A study that has trials stays as it is.
        """
        if len(self._ledger):
            return
        self._ledger.remember(FIRST, [dict(point) for point in points])
        for record in records:
            note = {SUGGESTED: record.suggested_because, PRIOR: sweep}
            self._prior += 1
            number = self._begun(self._add_point(record.params, note)).number
            for epoch, value in record.values.items():
                self._ledger.report(number, epoch, value)
                self._curves[number].values[epoch] = self._sign * value
                self._standing.saw(number, epoch, self._sign * value)
            state: Literal["completed", "stopped", "failed"]
            state = record.state if record.state in ("completed", "failed") else "stopped"
            self.finish(number, Outcome(state, record.ended_because or f"not ended in {sweep}"))

    def suggest(self, begin: bool = True) -> Suggestion | None:
        """The next trial, or a paused one to go on with; None when the grid is used up.

        The same again for the same seed and results. Where no further trial may `begin`, halving says which
        paused ones go on, and the leading one is trained to its end.
        """
        self._begin = begin
        first, own = self._ledger.recall(FIRST) or [], len(self._ledger) - self._prior
        if begin and own < len(first):
            note = {SUGGESTED: f"point {own + 1} of {len(first)} to try first"}
            return self._begun(self._add_point(first[own], note))
        plan = self._plan()
        if plan is not None and plan.number is None and plan.params is None:
            asked = self._policy.sampler(self._ledger.study, len(self._ledger))
            if asked is not None:
                return self._begun(self._ledger.add(asked[0], {SUGGESTED: asked[1]}))
            self._begin = False
            plan = self._plan()
        if plan is None:
            return None
        if plan.number is not None:
            return self._go_on(plan.number, plan.reason)
        assert plan.params is not None
        marks: dict[str, Any] = {SUGGESTED: plan.reason} | ({STRAIGHT: True} if plan.straight else {})
        return self._begun(self._add_point(plan.params, marks))

    def _add_point(self, params: dict[str, Any], note: dict[str, Any]) -> FrozenTrial:
        distributions = {name: self._distributions[name] for name in params}
        return self._ledger.add_point(params, distributions, note)

    def _begun(self, frozen: FrozenTrial) -> Suggestion:
        self._live[frozen.number] = _Live()
        self._curves[frozen.number] = self._curve(frozen)
        straight = STRAIGHT in frozen.user_attrs
        self._standing.add(dict(frozen.params), self._curves[frozen.number], straight=straight)
        self._planned = None
        return Suggestion(frozen.number, dict(frozen.params), frozen.user_attrs[SUGGESTED])

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        """Record one epoch's value and judge the trial; NaN and infinity stop it, to be told FAIL."""
        live = self._live.get(number)
        if live is None:
            return self._not_live(number)
        if live.stop is not None:
            return live.stop
        curve = self._curves[number]
        if not max(curve.values, default=0) < epoch <= curve.last_epoch:
            return Verdict(Decision.CONTINUE, f"ignored: epoch {epoch} is not one that was awaited")
        if not math.isfinite(value):
            live.broken = True
            live.stop = Verdict(Decision.STOP, f"value is {value}")
            return live.stop
        weighed = self._standing.stands[number].next_level() <= epoch
        self._ledger.report(number, epoch, value)
        curve.values[epoch] = self._sign * value
        self._standing.saw(number, epoch, curve.values[epoch])
        self._planned = None
        if epoch == curve.last_epoch:
            return Verdict(Decision.CONTINUE, "trained to its end")
        reason = self._policy.rule(self._curves, number, epoch)
        if reason is not None:
            live.stop = Verdict(Decision.STOP, reason)
            return live.stop
        weighed = weighed and self._policy.pauses
        if self._standing.stands[number].straight:
            reason = behind(self._standing, number) if weighed else None
            if reason is not None:
                return self._pause(number, epoch, reason)
            return Verdict(Decision.CONTINUE, "it goes straight for its end")
        if weighed:
            return self._weigh(number, epoch)
        return Verdict(Decision.CONTINUE, "among those that go on")

    def note_cost(self, number: int, cost: float) -> None:
        """Take in what a running trial costs, once."""
        if number in self._live and self._standing.stands[number].cost is None:
            self._ledger.note(number, COST, cost)
            self._standing.stands[number].cost = cost
            self._planned = None

    def finish(self, number: int, outcome: Outcome) -> None:
        """End a trial as COMPLETE with its best value, PRUNED or FAIL; one that has ended stays as is."""
        live = self._live.pop(number, None)
        paused = self._is_waiting(number)
        if live is None and not paused:
            return
        self._standing.stands[number].state = "over"
        self._planned = None
        curve = self._curves[number]
        stop, broken = (None, False) if live is None else (live.stop, live.broken)
        reason = stop.reason if stop else outcome.reason
        if outcome.violation > 0:
            self._ledger.mark_infeasible(number, outcome.violation)
        self._standing.stands[number].broken = broken or outcome.violation > 0
        if broken or outcome.state == "failed" or not curve.values:
            attributes: dict[str, Any] = {ENDED: reason or f"{outcome.state} without a value"}
            attributes |= {BROKEN: True} if broken else {}
            self._ledger.close(number, TrialState.FAIL, None, attributes)
            return
        epoch = max(curve.values, key=lambda at: (curve.values[at], -at))
        if stop or paused or outcome.state == "stopped":
            attributes = {ENDED: reason or "stopped by its runner", BEST_EPOCH: epoch}
            self._ledger.close(number, TrialState.PRUNED, None, attributes)
        else:
            attributes = {ENDED: reason or "trained to its end", BEST_EPOCH: epoch}
            self._ledger.close(number, TrialState.COMPLETE, self._sign * curve.values[epoch], attributes)

    def _plan(self) -> Plan | None:
        """What a free worker should do, None for nothing. A planner is asked once for the same standing."""
        if not self._begin:
            return self._rest()
        planner = self._policy.planner
        if planner is None:
            return Plan()
        if self._planned is None:
            before = planner.learned
            self._planned = planner.plan(self._standing)
            if planner.learned != before:
                self._ledger.remember(LEARNED, planner.learned)
        return self._planned

    def _weigh(self, number: int, epoch: int) -> Verdict:
        """At a level: the trial is paused unless it is just the one that a free worker would take up."""
        stand = self._standing.stands[number]
        stand.state = "paused"
        plan = self._plan()
        if plan is not None and plan.number == number:
            stand.state = "running"
            self._planned = None
            return Verdict(Decision.CONTINUE, plan.reason)
        return self._pause(number, epoch, "another trial comes first")

    def _pause(self, number: int, epoch: int, reason: str) -> Verdict:
        self._standing.stands[number].state = "paused"
        self._ledger.note(number, PAUSED, epoch)
        self._live.pop(number)
        return Verdict(Decision.PAUSE, reason)

    def _go_on(self, number: int, reason: str) -> Suggestion:
        stand = self._standing.stands[number]
        self._ledger.note(number, PAUSED, None)
        stand.state = "running"
        self._live[number] = _Live()
        self._planned = None
        return Suggestion(number, dict(stand.params), reason, stand.epochs)

    def _rest(self) -> Plan | None:
        """What is left to do where no trial may begin."""
        if (found := promoted(self._standing)) is not None:
            return Plan(found[1], number=found[0])
        stands = self._standing.stands
        for number in self._standing.front():
            if stands[number].state == "paused":
                reason = "no further trial begins: those on the front of value against cost are trained to their end"
                return Plan(reason, number=number)
        sound = [number for number, stand in enumerate(stands) if stand.epochs and not stand.broken]
        best = max(sound, key=lambda number: (stands[number].best, -number), default=None)
        if best is None or stands[best].state != "paused":
            return None
        return Plan("no further trial begins: the leading one is trained to its end", number=best)

    def _is_waiting(self, number: int) -> bool:
        known = 0 <= number < len(self._standing.stands)
        return known and self._standing.stands[number].state == "paused"

    def _not_live(self, number: int) -> Verdict:
        if self._is_waiting(number):
            return Verdict(Decision.PAUSE, "it is paused")
        return Verdict(Decision.STOP, "no such trial runs")

    def best(self) -> tuple[int, float, dict[str, Any]] | None:
        """(number, value, params) of the best trial that did not fail or break a limit; ties go to the earlier."""
        records = [record for record in self.trials() if record.state != "failed" and record.feasible]
        values = [(self._sign * r.value, -r.number, r) for r in records if r.value is not None]
        if not values:
            return None
        value, _, record = max(values, key=lambda item: item[:2])
        return record.number, self._sign * value, record.params

    def trials(self) -> list[Record]:
        """Every trial of the sweep, by number."""
        return [self._record(trial) for trial in self._ledger.trials() if PRIOR not in trial.user_attrs]

    def _curve(self, trial: FrozenTrial) -> Curve:
        values = {epoch: self._sign * value for epoch, value in trial.intermediate_values.items()}
        return Curve(self._last_epoch(trial.params), values)

    def _record(self, trial: FrozenTrial) -> Record:
        curve = self._curves[trial.number].values
        epoch = max(curve, key=lambda at: (curve[at], -at)) if curve else None
        return Record(
            number=trial.number,
            state="paused" if self._is_waiting(trial.number) else _STATES[trial.state],  # type: ignore[arg-type]
            params=dict(trial.params),
            value=None if epoch is None else self._sign * curve[epoch],
            epoch=epoch,
            values={at: self._sign * value for at, value in sorted(curve.items())},
            suggested_because=trial.user_attrs.get(SUGGESTED, ""),
            ended_because=trial.user_attrs.get(ENDED, ""),
            feasible=INFEASIBLE not in trial.system_attrs,
        )


def _stand_of(trial: FrozenTrial) -> Stands:
    """Where a trial stands; one that had gone on after its pause when its process died runs still."""
    if trial.state.is_finished():
        return "over"
    epoch = trial.user_attrs.get(PAUSED)
    return "paused" if epoch is not None and epoch == trial.last_step else "running"
