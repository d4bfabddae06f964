"""The strategy: an Optuna sampler and a stopping rule over one study."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.strategy.ledger import Ledger
from search.strategy.samplers import Sampler
from search.strategy.seam import Decision, Goal, Outcome, Record, Suggestion, Verdict
from search.strategy.stopping import Curve, StoppingRule

SUGGESTED = "suggested_because"  # user attributes of a trial in the study
ENDED = "ended_because"
BEST_EPOCH = "best_epoch"

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


class OptunaStrategy:
    """Implements `Strategy`. What it knows is the study's; a second one over the same study knows the same.

    Invariants, whatever the order of calls: an epoch counts once, and only if it comes after the trial's last
    one; a trial ends once; after a stop nothing more of it is recorded; every ended trial has its reason.
    """

    def __init__(
        self,
        ledger: Ledger,
        sampler: Sampler,
        rule: StoppingRule,
        goal: Goal,
        last_epoch: Callable[[Mapping[str, Any]], int],
    ) -> None:
        self._ledger, self._sampler, self._rule, self._last_epoch = ledger, sampler, rule, last_epoch
        self._sign = 1.0 if goal == "maximize" else -1.0
        self._live: dict[int, _Live] = {}
        self._curves = {trial.number: self._curve(trial) for trial in ledger.trials()}
        for trial in ledger.trials():
            if not trial.state.is_finished():
                self._live[trial.number] = _Live()  # its process ended before it did: it may go on

    def suggest(self) -> Suggestion | None:
        """The next trial; None when the grid is used up. The same again for the same seed and results."""
        asked = self._sampler(self._ledger.study, len(self._ledger))
        if asked is None:
            return None
        trial, reason = asked
        frozen = self._ledger.add(trial, {SUGGESTED: reason})
        self._live[frozen.number] = _Live()
        self._curves[frozen.number] = self._curve(frozen)
        return Suggestion(frozen.number, dict(frozen.params), reason)

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        """Record one epoch's value and judge the trial; NaN and infinity stop it, to be told FAIL."""
        live = self._live.get(number)
        if live is None:
            return Verdict(Decision.STOP, "no such trial runs")
        if live.stop is not None:
            return live.stop
        curve = self._curves[number]
        if not max(curve.values, default=0) < epoch <= curve.last_epoch:
            return Verdict(Decision.CONTINUE, f"ignored: epoch {epoch} is not one that was awaited")
        if not math.isfinite(value):
            live.broken = True
            live.stop = Verdict(Decision.STOP, f"value is {value}")
            return live.stop
        self._ledger.report(number, epoch, value)
        curve.values[epoch] = self._sign * value
        reason = self._rule(self._curves, number, epoch) if epoch < curve.last_epoch else None
        if reason is None:
            return Verdict(Decision.CONTINUE, "among those that go on")
        live.stop = Verdict(Decision.STOP, reason)
        return live.stop

    def finish(self, number: int, outcome: Outcome) -> None:
        """End a trial as COMPLETE with its best value, PRUNED or FAIL; one that does not run stays as is."""
        live = self._live.pop(number, None)
        if live is None:
            return
        curve = self._curves[number]
        reason = live.stop.reason if live.stop else outcome.reason
        if live.broken or outcome.state == "failed" or not curve.values:
            self._ledger.close(
                number, TrialState.FAIL, None, {ENDED: reason or f"{outcome.state} without a value"}
            )
            return
        epoch = max(curve.values, key=lambda at: (curve.values[at], -at))
        if live.stop or outcome.state == "stopped":
            attributes = {ENDED: reason or "stopped by its runner", BEST_EPOCH: epoch}
            self._ledger.close(number, TrialState.PRUNED, None, attributes)
        else:
            attributes = {ENDED: reason or "trained to its end", BEST_EPOCH: epoch}
            self._ledger.close(number, TrialState.COMPLETE, self._sign * curve.values[epoch], attributes)

    def best(self) -> tuple[int, float, dict[str, Any]] | None:
        """(number, value, params) of the best trial that did not fail; ties go to the earlier."""
        records = [record for record in self.trials() if record.state != "failed"]
        values = [(self._sign * r.value, -r.number, r) for r in records if r.value is not None]
        if not values:
            return None
        value, _, record = max(values, key=lambda item: item[:2])
        return record.number, self._sign * value, record.params

    def trials(self) -> list[Record]:
        """Every trial of the study, by number."""
        return [self._record(trial) for trial in self._ledger.trials()]

    def _curve(self, trial: FrozenTrial) -> Curve:
        values = {epoch: self._sign * value for epoch, value in trial.intermediate_values.items()}
        return Curve(self._last_epoch(trial.params), values)

    def _record(self, trial: FrozenTrial) -> Record:
        curve = self._curves[trial.number].values
        epoch = max(curve, key=lambda at: (curve[at], -at)) if curve else None
        return Record(
            number=trial.number,
            state=_STATES[trial.state],  # type: ignore[arg-type]
            params=dict(trial.params),
            value=None if epoch is None else self._sign * curve[epoch],
            epoch=epoch,
            values={at: self._sign * value for at, value in sorted(curve.items())},
            suggested_because=trial.user_attrs.get(SUGGESTED, ""),
            ended_because=trial.user_attrs.get(ENDED, ""),
        )
