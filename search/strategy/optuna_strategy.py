"""A strategy over one Optuna study, by a sampler, a stopping rule and perhaps a planner."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from binsweep.search.spec.objective import Objective
from binsweep.search.spec.space import SearchSpace
from binsweep.search.strategy.base import Decision, Outcome, Record, Suggestion, Verdict
from binsweep.search.strategy.planner import Plan, Planner
from binsweep.search.strategy.samplers import Sampler
from binsweep.search.strategy.stopping_rule import Curve, StoppingRule
from binsweep.search.strategy.study_storage import INFEASIBLE_ATTR, StudyStorage
from binsweep.search.strategy.trial_pool import State as PooledState
from binsweep.search.strategy.trial_pool import TrialPool, behind, next_promotion

# User attributes of a trial, as stored in the study
SUGGESTED_ATTR = "suggested_because"
ENDED_ATTR = "ended_because"
BEST_EPOCH_ATTR = "best_epoch"
PAUSED_ATTR = "paused_at"  # the epoch after which a paused trial resumes; None once it has resumed
BROKEN_ATTR = "broken"  # a value was not finite
SKIPS_RUNGS_ATTR = "straight"  # it trains to its end, unless it falls below the median
COST_ATTR = "cost"  # inference cost
PRIOR_ATTR = "prior"  # the earlier sweep that it belongs to
# User attributes of the study
INITIAL_POINTS_ATTR = "first"  # configurations to try before any other
HYPERPARAMETERS_ATTR = "learned"  # of the planner's models

_STATES = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


@dataclass
class _RunningTrial:
    """The verdict that stopped a running trial, if any, and whether a value was not finite."""

    stop: Verdict | None = None
    broken: bool = False


@dataclass(frozen=True)
class Policy:
    """How a strategy decides. Without a planner the sampler suggests every trial, and none is paused."""

    sampler: Sampler
    rule: StoppingRule
    planner: Planner | None = None
    pauses: bool = False


class OptunaStrategy:
    """Implements `Strategy`. All of its state is in the study: a second strategy over the same study has the same.

    Invariants, whatever the order of calls: an epoch counts once, and only if it comes after the trial's last one; a
    trial ends once; a paused one is resumed once or ends; nothing is recorded after a stop; every ended trial has its
    reason.
    """

    def __init__(
        self,
        storage: StudyStorage,
        space: SearchSpace,
        objective: Objective,
        last_epoch: Callable[[Mapping[str, Any]], int],
        policy: Policy,
    ) -> None:
        self._storage, self._policy, self._last_epoch = storage, policy, last_epoch
        self._distributions = space.distributions
        self._objective, self._sign = objective, objective.sign
        self._running: dict[int, _RunningTrial] = {}
        self._curves = {trial.number: self._curve(trial) for trial in storage.trials()}
        self._pool = TrialPool()
        self._next_plan: Plan | None = None  # valid until something changes
        self._n_prior = sum(PRIOR_ATTR in trial.user_attrs for trial in storage.trials())
        self._may_begin = True  # whether a free worker may begin a trial
        if policy.planner is not None and (hyperparameters := storage.study_attr(HYPERPARAMETERS_ATTR)):
            policy.planner.hyperparameters = hyperparameters
        for trial in storage.trials():
            curve, state = self._curves[trial.number], _state_of(trial)
            broken = BROKEN_ATTR in trial.user_attrs or INFEASIBLE_ATTR in trial.system_attrs
            skips_rungs = SKIPS_RUNGS_ATTR in trial.user_attrs
            self._pool.add(dict(trial.params), curve, state, broken, skips_rungs)
            self._pool.trials[trial.number].cost = trial.user_attrs.get(COST_ATTR)
            if state == "running":
                self._running[trial.number] = _RunningTrial()  # its process died: it may be resumed

    def warm_start(self, sweep: str, records: Sequence[Record], points: Sequence[Mapping[str, Any]]) -> None:
        """Before the first trial: add `records` of an earlier sweep as results, and plan to try `points` first.

        Earlier trials do not belong to this sweep: `trials` and `best` exclude them, and this sweep's numbers follow
        theirs. A study that has trials is left as it is.
        """
        if len(self._storage):
            return
        self._storage.set_study_attr(INITIAL_POINTS_ATTR, [dict(point) for point in points])
        for record in records:
            note = {SUGGESTED_ATTR: record.suggested_because, PRIOR_ATTR: sweep}
            self._n_prior += 1
            number = self._record_start(self._add_point(record.params, note)).number
            for epoch, value in record.values.items():
                self._storage.report(number, epoch, value)
                self._curves[number].values[epoch] = self._sign * value
                self._pool.add_epoch(number, epoch, self._sign * value)
            state: Literal["completed", "stopped", "failed"]
            state = record.state if record.state in ("completed", "failed") else "stopped"
            self.finish(number, Outcome(state, record.ended_because or f"not ended in {sweep}"))

    def suggest(self, begin: bool = True) -> Suggestion | None:
        """The next trial, or a paused one to resume; None if there is neither.

        The same seed and results give the same suggestion. With `begin=False` successive halving decides which paused
        trials are resumed, and the best one is trained to its end.
        """
        self._may_begin = begin
        first, own = self._storage.study_attr(INITIAL_POINTS_ATTR) or [], len(self._storage) - self._n_prior
        if begin and own < len(first):
            note = {SUGGESTED_ATTR: f"initial point {own + 1} of {len(first)}"}
            return self._record_start(self._add_point(first[own], note))
        plan = self._plan()
        if plan is not None and plan.number is None and plan.params is None:
            asked = self._policy.sampler(self._storage.study, len(self._storage))
            if asked is not None:
                return self._record_start(self._storage.add(asked[0], {SUGGESTED_ATTR: asked[1]}))
            self._may_begin = False
            plan = self._plan()
        if plan is None:
            return None
        if plan.number is not None:
            return self._resume(plan.number, plan.reason)
        assert plan.params is not None
        attributes: dict[str, Any] = {SUGGESTED_ATTR: plan.reason}
        if plan.skips_rungs:
            attributes[SKIPS_RUNGS_ATTR] = True
        return self._record_start(self._add_point(plan.params, attributes))

    def _add_point(self, params: dict[str, Any], attributes: dict[str, Any]) -> FrozenTrial:
        distributions = {name: self._distributions[name] for name in params}
        return self._storage.add_point(params, distributions, attributes)

    def _record_start(self, frozen: FrozenTrial) -> Suggestion:
        self._running[frozen.number] = _RunningTrial()
        self._curves[frozen.number] = self._curve(frozen)
        skips_rungs = SKIPS_RUNGS_ATTR in frozen.user_attrs
        self._pool.add(dict(frozen.params), self._curves[frozen.number], skips_rungs=skips_rungs)
        self._next_plan = None
        return Suggestion(frozen.number, dict(frozen.params), frozen.user_attrs[SUGGESTED_ATTR])

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        """Record one epoch's value and judge the trial. NaN and infinity stop it, and it ends as FAIL."""
        live = self._running.get(number)
        if live is None:
            return self._verdict_if_not_running(number)
        if live.stop is not None:
            return live.stop
        curve = self._curves[number]
        if not max(curve.values, default=0) < epoch <= curve.last_epoch:
            return Verdict(Decision.CONTINUE, f"ignored: epoch {epoch} was not expected")
        if not math.isfinite(value):
            live.broken = True
            live.stop = Verdict(Decision.STOP, f"value is {value}")
            return live.stop
        trial = self._pool.trials[number]
        at_rung = self._policy.pauses and trial.next_rung() <= epoch
        self._storage.report(number, epoch, value)
        curve.values[epoch] = self._sign * value
        self._pool.add_epoch(number, epoch, curve.values[epoch])
        self._next_plan = None
        if epoch == curve.last_epoch:
            return Verdict(Decision.CONTINUE, "trained to its end")
        reason = self._policy.rule(self._curves, number, epoch)
        if reason is not None:
            live.stop = Verdict(Decision.STOP, reason)
            return live.stop
        if not at_rung:
            return Verdict(Decision.CONTINUE, "no reason to stop or pause")
        if not trial.skips_rungs:
            return self._decide_at_rung(number, epoch)
        reason = behind(self._pool, number)
        if reason is not None:
            return self._pause(number, epoch, reason)
        return Verdict(Decision.CONTINUE, "it trains to its end without waiting at rungs")

    def note_cost(self, number: int, cost: float) -> None:
        """Record the inference cost of a running trial, once."""
        if number in self._running and self._pool.trials[number].cost is None:
            self._storage.set_trial_attr(number, COST_ATTR, cost)
            self._pool.trials[number].cost = cost
            self._next_plan = None

    def finish(self, number: int, outcome: Outcome) -> None:
        """End a trial as COMPLETE with its best value, PRUNED or FAIL. An ended trial is left as it is."""
        live = self._running.pop(number, None)
        paused = self._is_paused(number)
        if live is None and not paused:
            return
        self._pool.trials[number].state = "over"
        self._next_plan = None
        curve = self._curves[number]
        stop, broken = (None, False) if live is None else (live.stop, live.broken)
        reason = stop.reason if stop else outcome.reason
        if outcome.violation > 0:
            self._storage.mark_infeasible(number, outcome.violation)
        self._pool.trials[number].broken = broken or outcome.violation > 0
        if broken or outcome.state == "failed" or not curve.values:
            attributes: dict[str, Any] = {ENDED_ATTR: reason or f"{outcome.state} without a value"}
            attributes |= {BROKEN_ATTR: True} if broken else {}
            self._storage.close(number, TrialState.FAIL, None, attributes)
            return
        epoch = max(curve.values, key=lambda at: (curve.values[at], -at))
        if stop or paused or outcome.state == "stopped":
            attributes = {ENDED_ATTR: reason or "stopped by its runner", BEST_EPOCH_ATTR: epoch}
            self._storage.close(number, TrialState.PRUNED, None, attributes)
        else:
            attributes = {ENDED_ATTR: reason or "trained to its end", BEST_EPOCH_ATTR: epoch}
            self._storage.close(number, TrialState.COMPLETE, self._sign * curve.values[epoch], attributes)

    def _plan(self) -> Plan | None:
        """What a free worker should do, None for nothing. The planner is asked once for the same trials."""
        if not self._may_begin:
            return self._plan_without_beginning()
        planner = self._policy.planner
        if planner is None:
            return Plan()
        if self._next_plan is None:
            before = planner.hyperparameters
            self._next_plan = planner.plan(self._pool)
            if planner.hyperparameters != before:
                self._storage.set_study_attr(HYPERPARAMETERS_ATTR, planner.hyperparameters)
        return self._next_plan

    def _decide_at_rung(self, number: int, epoch: int) -> Verdict:
        """At a rung: pause the trial, unless it is the one that a free worker would resume."""
        trial = self._pool.trials[number]
        trial.state = "paused"
        plan = self._plan()
        if plan is not None and plan.number == number:
            trial.state = "running"
            self._next_plan = None
            return Verdict(Decision.CONTINUE, plan.reason)
        return self._pause(number, epoch, "others may come first")

    def _pause(self, number: int, epoch: int, reason: str) -> Verdict:
        self._pool.trials[number].state = "paused"
        self._storage.set_trial_attr(number, PAUSED_ATTR, epoch)
        self._running.pop(number)
        return Verdict(Decision.PAUSE, reason)

    def _resume(self, number: int, reason: str) -> Suggestion:
        trial = self._pool.trials[number]
        self._storage.set_trial_attr(number, PAUSED_ATTR, None)
        trial.state = "running"
        self._running[number] = _RunningTrial()
        self._next_plan = None
        return Suggestion(number, dict(trial.params), reason, trial.epochs)

    def _plan_without_beginning(self) -> Plan | None:
        """What is left to do if no new trial may begin."""
        if (found := next_promotion(self._pool)) is not None:
            return Plan(found[1], number=found[0])
        trials = self._pool.trials
        for number in self._pool.pareto_front():
            if trials[number].state == "paused":
                reason = "no further trial begins: trials on the Pareto front are trained to their end"
                return Plan(reason, number=number)
        sound = [number for number, trial in enumerate(trials) if trial.epochs and not trial.broken]
        best = max(sound, key=lambda number: (trials[number].best, -number), default=None)
        if best is None or trials[best].state != "paused":
            return None
        return Plan("no further trial begins: the best one is trained to its end", number=best)

    def _is_paused(self, number: int) -> bool:
        known = 0 <= number < len(self._pool.trials)
        return known and self._pool.trials[number].state == "paused"

    def _verdict_if_not_running(self, number: int) -> Verdict:
        if self._is_paused(number):
            return Verdict(Decision.PAUSE, "it is paused")
        return Verdict(Decision.STOP, "no such trial is running")

    def best(self) -> tuple[int, float, dict[str, Any]] | None:
        """(number, value, params) of the best trial that neither failed nor exceeded a limit; of ties the earliest."""
        sound = [record for record in self.trials() if record.state != "failed" and record.feasible]
        ranked = [
            (self._objective.sort_key(one.value, one.number), one) for one in sound if one.value is not None
        ]
        if not ranked:
            return None
        _, best = min(ranked, key=lambda item: item[0])
        assert best.value is not None
        return best.number, best.value, best.params

    def trials(self) -> list[Record]:
        """Every trial of the sweep, by number."""
        return [self._record(trial) for trial in self._storage.trials() if PRIOR_ATTR not in trial.user_attrs]

    def _curve(self, trial: FrozenTrial) -> Curve:
        values = {epoch: self._sign * value for epoch, value in trial.intermediate_values.items()}
        return Curve(self._last_epoch(trial.params), values)

    def _record(self, trial: FrozenTrial) -> Record:
        curve = self._curves[trial.number].values
        epoch = max(curve, key=lambda at: (curve[at], -at)) if curve else None
        return Record(
            number=trial.number,
            state="paused" if self._is_paused(trial.number) else _STATES[trial.state],  # type: ignore[arg-type]
            params=dict(trial.params),
            value=None if epoch is None else self._sign * curve[epoch],
            epoch=epoch,
            values={at: self._sign * value for at, value in sorted(curve.items())},
            suggested_because=trial.user_attrs.get(SUGGESTED_ATTR, ""),
            ended_because=trial.user_attrs.get(ENDED_ATTR, ""),
            feasible=INFEASIBLE_ATTR not in trial.system_attrs,
        )


def _state_of(trial: FrozenTrial) -> PooledState:
    """The state of a stored trial; one that was resumed after its pause before its process died is still running."""
    if trial.state.is_finished():
        return "over"
    epoch = trial.user_attrs.get(PAUSED_ATTR)
    return "paused" if epoch is not None and epoch == trial.last_step else "running"
