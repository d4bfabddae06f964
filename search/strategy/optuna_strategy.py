"""A strategy over one Optuna study, by a sampler, a stopping rule and perhaps a planner."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from binsweep.search.spec.objective import Objective
from binsweep.search.spec.space import SearchSpace
from binsweep.search.steering.state import Wish
from binsweep.search.strategy.asked import REQUEST_ATTR, Asked
from binsweep.search.strategy.attributes import (
    BEST_EPOCH_ATTR,
    BROKEN_ATTR,
    COST_ATTR,
    EARLIER_ATTR,
    ENDED_ATTR,
    HYPERPARAMETERS_ATTR,
    LAST_EPOCH_ATTR,
    PAUSED_ATTR,
    PRIOR_ATTR,
    SECONDS_ATTR,
    SKIPS_RUNGS_ATTR,
    START_ATTR,
    SUGGESTED_ATTR,
)
from binsweep.search.strategy.base import Decision, Outcome, Record, Suggestion, Verdict
from binsweep.search.strategy.earlier_sweeps import EarlierSweep, FirstGuesses
from binsweep.search.strategy.initial_points import INITIAL_ATTR, InitialPoints
from binsweep.search.strategy.lengths import section_of
from binsweep.search.strategy.next_step import NextStep
from binsweep.search.strategy.planner import Planner
from binsweep.search.strategy.samplers import Grid, Sampler
from binsweep.search.strategy.stopping_rule import Curve, StoppingRule
from binsweep.search.strategy.study_storage import INFEASIBLE_ATTR, StudyStorage
from binsweep.search.strategy.training_times import TrainingTimes
from binsweep.search.strategy.trial_pool import State as PooledState
from binsweep.search.strategy.trial_pool import TrialPool, behind

MIN_CHANGE = 0.1  # relative

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
    section: int = 0  # that its last timed epoch was of
    seconds: float = 0.0  # of the epochs of this section that were timed
    timed: int = 0


@dataclass(frozen=True)
class Policy:
    """How a strategy decides. Without a planner the sampler suggests every trial, and none is paused."""

    make_sampler: Callable[[SearchSpace], Sampler]  # of the space, or of what people have narrowed it to
    rule: StoppingRule
    times: TrainingTimes
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
        policy: Policy,
    ) -> None:
        self._storage, self._policy = storage, policy
        self._times, self._lengths = policy.times, policy.times.lengths
        self._space, self._distributions = space, space.distributions
        self._objective, self._sign = objective, objective.sign
        self._running: dict[int, _RunningTrial] = {}
        self._curves = {trial.number: self._curve(trial) for trial in storage.trials()}
        self._pool = TrialPool()
        self._next = NextStep(self._pool, self._times, policy.planner, self._save_hyperparameters)
        self._n_prior = sum(PRIOR_ATTR in trial.user_attrs for trial in storage.trials())
        self._may_begin = True  # whether a free worker may begin a trial
        self._all_tried = False  # none begins because there is none left, not because it may not
        self._initial = InitialPoints(storage)
        self._asked = Asked(space, policy.make_sampler)
        self._use_earlier()
        if policy.planner is not None and (hyperparameters := storage.study_attr(HYPERPARAMETERS_ATTR)):
            policy.planner.hyperparameters = hyperparameters
        for trial in storage.trials():
            curve, state = self._curves[trial.number], _state_of(trial)
            broken = BROKEN_ATTR in trial.user_attrs or INFEASIBLE_ATTR in trial.system_attrs
            skips_rungs = SKIPS_RUNGS_ATTR in trial.user_attrs
            ends = self._lengths.ends(trial.params)
            self._pool.add(dict(trial.params), curve, state, broken, skips_rungs, ends)
            pooled, attributes = self._pool.trials[trial.number], trial.user_attrs
            pooled.cost, pooled.start = attributes.get(COST_ATTR), attributes.get(START_ATTR)
            pooled.seconds = _seconds_by_section(attributes.get(SECONDS_ATTR))
            self._asked.begun.add(attributes.get(REQUEST_ATTR, ""))
            if state == "running":
                self._running[trial.number] = _RunningTrial()  # its process died: it may be resumed

    def sync_first(self, sync_records: Callable[[], None]) -> None:
        """Let the run log be on the disk whenever the study is: `sync_records` waits for that."""
        self._storage.sync_records = sync_records

    def _save_hyperparameters(self, hyperparameters: list[float]) -> None:
        self._storage.set_study_attr(HYPERPARAMETERS_ATTR, hyperparameters)

    def _use_earlier(self) -> None:
        """Hand the earlier sweeps that the study has to the planner, before its hyperparameters are set."""
        if self._policy.planner is not None and (stored := self._storage.study_attr(EARLIER_ATTR)):
            self._policy.planner.use_earlier([EarlierSweep.from_json(sweep) for sweep in stored])

    def warm_start(self, known: FirstGuesses) -> None:
        """Before the first trial: store what is known, and add what counts as results.

        Earlier trials do not belong to this sweep: `trials` and `best` exclude them, and this sweep's numbers follow
        theirs. A study that knows its first guesses is left as it is.
        """
        if len(self._storage) or self._initial.are_known:
            return
        self._initial.store(known.points)
        self._storage.set_study_attr(EARLIER_ATTR, [sweep.as_json() for sweep in known.earlier])
        self._use_earlier()
        for sweep, record in known.results:
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
        self._may_begin, self._all_tried = begin, False
        self._times.learn(self._pool)
        pinned = next((number for number in self._asked.pinned if self._is_paused(number)), None)
        if pinned is not None:
            return self._resume(pinned, self._asked.pinned[pinned])
        if begin and (wish := self._asked.next_wish()) is not None:
            self._asked.begun.add(wish.id)
            return self._begin(dict(wish.params), {SUGGESTED_ATTR: wish.reason, REQUEST_ATTR: wish.id})
        initial = self._initial.next_one(self._n_prior, self._asked.contains) if begin else None
        if initial is not None and self._times.reachable_by_new(initial[1]):
            index, params, reason = initial
            return self._begin(params, {SUGGESTED_ATTR: reason, INITIAL_ATTR: index})
        plan = self._next.plan(self._may_begin)
        if plan is not None and plan.number is None and plan.params is None:
            found = self._ask_sampler()
            if found is not None:
                return found
            self._may_begin, self._all_tried = False, self.is_used_up
            plan = self._next.plan(self._may_begin, self._all_tried)
        if plan is None:
            return None
        if plan.number is not None:
            return self._resume(plan.number, plan.reason)
        assert plan.params is not None
        attributes: dict[str, Any] = {SUGGESTED_ATTR: plan.reason}
        if plan.skips_rungs:
            attributes[SKIPS_RUNGS_ATTR] = True
        return self._begin(plan.params, attributes)

    def steer(self, wishes: Sequence[Wish], pinned: Mapping[int, str], space: SearchSpace) -> None:
        """Take over what people have asked for until now."""
        self._asked.change(wishes, pinned, space)
        if self._asked.is_narrowed:
            self._times.encoder.limit_to(space)
        self._next.forget()

    @property
    def is_used_up(self) -> bool:
        """Whether every configuration of the space was tried, which only a grid tells."""
        sampler = self._asked.sampler
        return isinstance(sampler, Grid) and not sampler.untried(self._storage.study)

    def _ask_sampler(self) -> Suggestion | None:
        """A new trial by the sampler; None if its space is used up or too little of a typical training fits."""
        if not self._times.fits_typical:
            return None
        if self._asked.is_narrowed:
            drawn = self._asked.ask_narrowed(self._storage.study, len(self._storage))
            return None if drawn is None else self._begin(drawn[0], {SUGGESTED_ATTR: drawn[1]})
        asked = self._asked.sampler(self._storage.study, len(self._storage))
        if asked is None:
            return None
        found = self._record_start(self._storage.add(asked[0], {SUGGESTED_ATTR: asked[1]}))
        # What was asked cannot be given back: if it takes longer than a typical training, it is cut further.
        length, reached = (
            self._lengths.of(found.params),
            self._times.reachable_by_new(found.params, min_share=0.0),
        )
        return self._with_last_epoch(found, max(1, reached)) if reached < length else found

    def _begin(self, params: dict[str, Any], attributes: dict[str, Any]) -> Suggestion:
        """Begin a trial, shortened to the time left: by its searched length where there is one."""
        length, reached = self._lengths.of(params), self._times.reachable_by_new(params)
        name = self._lengths.epochs_name
        if not 0 < reached < length:
            return self._record_start(self._add_point(params, attributes))
        if self._times.n_sections == 1 and name in params and self._space.contains(name, reached):
            return self._record_start(self._add_point({**params, name: reached}, attributes))
        return self._with_last_epoch(self._record_start(self._add_point(params, attributes)), reached)

    def _with_last_epoch(self, suggestion: Suggestion, last_epoch: int) -> Suggestion:
        self.end_at(suggestion.number, last_epoch)
        return replace(suggestion, last_epoch=last_epoch)

    def _add_point(self, params: dict[str, Any], attributes: dict[str, Any]) -> FrozenTrial:
        distributions = {name: self._distributions[name] for name in params}
        return self._storage.add_point(params, distributions, attributes)

    def _record_start(self, frozen: FrozenTrial) -> Suggestion:
        self._running[frozen.number] = _RunningTrial()
        self._curves[frozen.number] = self._curve(frozen)
        skips_rungs, ends = SKIPS_RUNGS_ATTR in frozen.user_attrs, self._lengths.ends(frozen.params)
        self._pool.add(dict(frozen.params), self._curves[frozen.number], skips_rungs=skips_rungs, ends=ends)
        self._next.forget()
        reason, request = frozen.user_attrs[SUGGESTED_ATTR], frozen.user_attrs.get(REQUEST_ATTR, "")
        return Suggestion(frozen.number, dict(frozen.params), reason, request=request)

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        """Record one epoch's value and judge the trial. NaN and infinity stop it, and it ends as FAIL."""
        live = self._running.get(number)
        if live is None:
            return self._verdict_if_not_running(number)
        if live.stop is not None:
            return live.stop
        curve = self._curves[number]
        if not self._is_expected(number, epoch):
            return Verdict(Decision.CONTINUE, f"ignored: epoch {epoch} was not expected")
        if not math.isfinite(value):
            live.broken = True
            live.stop = Verdict(Decision.STOP, f"value is {value}")
            return live.stop
        trial = self._pool.trials[number]
        at_rung = self._policy.pauses and trial.next_rung() <= epoch
        self._record_value(number, epoch, value)
        if epoch == curve.last_epoch:
            return Verdict(Decision.CONTINUE, "trained to its end")
        if number in self._asked.pinned:
            return Verdict(Decision.CONTINUE, self._asked.pinned[number])
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

    def recall(self, number: int, epoch: int, value: float) -> None:
        """Record an epoch, known or not, after which an earlier process went on with the trial: nothing is judged, and
        a trial that is paused at it is running."""
        if self._is_paused(number) and epoch >= self._pool.trials[number].epochs:
            self._go_on(number)
        if number in self._running and self._is_expected(number, epoch) and math.isfinite(value):
            self._record_value(number, epoch, value)

    def _is_expected(self, number: int, epoch: int) -> bool:
        curve = self._curves[number]
        return max(curve.values, default=0) < epoch <= curve.last_epoch

    def _record_value(self, number: int, epoch: int, value: float) -> None:
        self._storage.report(number, epoch, value)
        self._curves[number].values[epoch] = self._sign * value
        self._pool.add_epoch(number, epoch, self._sign * value)
        self._next.forget()

    def note_cost(self, number: int, cost: float) -> None:
        """Record the inference cost of a running trial, once."""
        if number in self._running and self._pool.trials[number].cost is None:
            self._storage.set_trial_attr(number, COST_ATTR, cost)
            self._pool.trials[number].cost = cost
            self._next.forget()

    def note_seconds(self, number: int, seconds: float, start: float | None = None) -> None:
        """Record how long an epoch of a running trial took, and the start before it."""
        live = self._running.get(number)
        if live is None or not 0 < seconds < math.inf:
            return
        if start is not None:
            self._pool.trials[number].start = start
            self._storage.set_trial_attr(number, START_ATTR, start)
        trial = self._pool.trials[number]
        section = int(section_of(np.array([trial.epochs]), np.array([trial.ends]))[0])
        if section != live.section:
            live.section, live.seconds, live.timed = section, 0.0, 0
        live.seconds, live.timed = live.seconds + seconds, live.timed + 1
        mean, known = live.seconds / live.timed, trial.seconds.get(section)
        if known is None or abs(mean / known - 1) > MIN_CHANGE:
            trial.seconds[section] = mean
            stored = [trial.seconds.get(index) for index in range(self._times.n_sections)]
            self._storage.set_trial_attr(number, SECONDS_ATTR, mean if len(stored) == 1 else stored)
            self._next.forget()

    def note_time_left(self, seconds: float, whole: float) -> None:
        """Suggest only what can end in so many seconds from now on, of the `whole` that the sweep has."""
        self._times.seconds_left, self._times.whole_budget = seconds, whole

    def assume_seconds(self, params: Mapping[str, Any], seconds: float) -> None:
        """Take an epoch of the last section of this configuration to last so long, until a trial's was measured."""
        self._times.assume(params, self._times.n_sections - 1, seconds)

    def training_seconds(self, number: int | None = None, done: int = 0) -> float | None:
        """How long a trial trains from epoch `done` to its end, or the longest training of a typical configuration;
        None if nothing was measured yet."""
        # Of a trial whose sections were all measured nothing is predicted: an epoch's report need not wait for that.
        if number is None or len(self._pool.trials[number].seconds) < self._times.n_sections:
            self._times.learn(self._pool)
        if number is None:
            return self._times.typical_training()
        return self._times.seconds_to_end(self._pool, number, done)

    def reachable(self, number: int, seconds: float) -> int:
        """The last epoch that a running trial gets to within so many seconds."""
        self._times.learn(self._pool)
        return self._times.reachable(self._pool, number, seconds)

    def end_at(self, number: int, last_epoch: int) -> None:
        """Let a running or paused trial end at another epoch than its configuration says."""
        self._storage.set_trial_attr(number, LAST_EPOCH_ATTR, last_epoch)
        self._storage.write_through()
        self._curves[number].last_epoch = last_epoch
        self._pool.trials[number].end_at(last_epoch, self._curves[number])
        self._next.forget()

    def finish(self, number: int, outcome: Outcome) -> None:
        """End a trial as COMPLETE with its best value, PRUNED or FAIL. An ended trial is left as it is."""
        live = self._running.pop(number, None)
        paused = self._is_paused(number)
        if live is None and not paused:
            return
        self._pool.trials[number].state = "over"
        self._next.forget()
        curve = self._curves[number]
        stop, broken = (None, False) if live is None else (live.stop, live.broken)
        # The runner knows what a value is called that is not finite.
        reason = stop.reason if stop and outcome.state != "failed" else outcome.reason
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

    def _decide_at_rung(self, number: int, epoch: int) -> Verdict:
        """At a rung: pause the trial, unless it is the one that a free worker would resume."""
        trial = self._pool.trials[number]
        trial.state = "paused"
        plan = self._next.plan(self._may_begin, self._all_tried)
        if plan is not None and plan.number == number:
            trial.state = "running"
            self._next.forget()
            return Verdict(Decision.CONTINUE, plan.reason)
        return self._pause(number, epoch, "others may come first")

    def _pause(self, number: int, epoch: int, reason: str) -> Verdict:
        self._pool.trials[number].state = "paused"
        self._storage.set_trial_attr(number, PAUSED_ATTR, epoch)
        self._running.pop(number)
        return Verdict(Decision.PAUSE, reason)

    def _resume(self, number: int, reason: str) -> Suggestion:
        self._go_on(number)
        trial = self._pool.trials[number]
        found = Suggestion(number, dict(trial.params), reason, trial.epochs)
        reached = self._times.last_epoch(self._pool, number)
        return self._with_last_epoch(found, reached) if 0 < reached < trial.rungs[-1] else found

    def _go_on(self, number: int) -> None:
        """A paused trial is running again."""
        self._storage.set_trial_attr(number, PAUSED_ATTR, None)
        self._pool.trials[number].state = "running"
        self._running[number] = _RunningTrial()
        self._next.forget()

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
        last_epoch = trial.user_attrs.get(LAST_EPOCH_ATTR) or self._lengths.of(trial.params)
        return Curve(last_epoch, values, self._lengths.ends(trial.params))

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
            last_epoch=trial.user_attrs.get(LAST_EPOCH_ATTR),
            request=trial.user_attrs.get(REQUEST_ATTR, ""),
        )


def _seconds_by_section(stored: float | list[float | None] | None) -> dict[int, float]:
    """The seconds of an epoch, as stored: one number where there is one section."""
    listed = stored if isinstance(stored, list) else [stored]
    return {section: seconds for section, seconds in enumerate(listed) if seconds is not None}


def _state_of(trial: FrozenTrial) -> PooledState:
    """The state of a stored trial; one that was resumed after its pause before its process died is still running."""
    if trial.state.is_finished():
        return "over"
    epoch = trial.user_attrs.get(PAUSED_ATTR)
    return "paused" if epoch is not None and epoch == trial.last_step else "running"
