"""The history of a sweep: its trials, intervals and costs, for the report and for `status`."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from binsweep.models.labelling import COUNTING, Labelling
from binsweep.models.levels import Section, level_at, level_ends
from binsweep.search.execution.budget import ResourceUsage, seconds_at_pace
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.steering.request import AnsweredRequest, Request
from binsweep.search.steering.state import state_after

ENDED = ("completed", "stopped", "failed")


@dataclass
class RunInterval:
    """An interval in which a trial had a worker, in seconds since 1970; `lane` is that worker's number."""

    start: float
    end: float
    cpus: float = 0.0  # of all workers of the trial
    gpus: float = 0.0
    lane: int = 0


@dataclass
class TrialHistory:
    """One trial: its parameters, the sweep's metric and the time by epoch, all metrics of its last and best epoch."""

    number: int
    params: dict[str, Any]
    epochs: int
    suggested: str = ""
    state: str = "running"
    reason: str = ""
    last: dict[str, float] = field(default_factory=dict)  # metrics of its last epoch
    best: dict[str, float] = field(default_factory=dict)  # metrics of its best epoch
    times: dict[int, float] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)  # the sweep's metric by epoch; NaN if diverged
    epoch_seconds: dict[int, float] = field(default_factory=dict)  # of its worker, by epoch
    intervals: list[RunInterval] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)  # texts by health.RULE or profile.RULE
    value: float | None = None
    epoch: int = 0
    feasible: bool = True  # it exceeded no limit of the sweep

    @property
    def epochs_done(self) -> int:
        """The last reported epoch."""
        return max(self.times, default=0)

    @property
    def seconds(self) -> float:
        """How long it had a worker."""
        return sum(interval.end - interval.start for interval in self.intervals)


@dataclass
class SweepHistory:
    """A sweep until now. `status` is running, finished, or unfinished (it can be resumed; no process runs it)."""

    id: str
    spec: SweepSpec
    status: str
    ended_by: str
    trials: list[TrialHistory]
    slots: int
    guess: float | None  # validation accuracy of always guessing the most common training label
    started: float
    until: float  # now if it is running, else the time of its last record
    guess_errors: Mapping[str, float] = field(default_factory=dict)  # val_rmse and val_mae of the same guess
    labelling: Labelling = COUNTING
    answers: Sequence[AnsweredRequest] = ()  # what people have asked for,
    requests: Sequence[Request] = ()  # and what no process has taken in yet

    @property
    def paused_by(self) -> str:
        """Who has paused the sweep; empty while it is not paused."""
        return state_after(self.answers).paused

    @property
    def leaders(self) -> list[TrialHistory]:
        """Trials with a value that neither failed nor exceeded a limit, best first; on ties the earlier one first."""
        sound = [t for t in self.trials if t.value is not None and t.state != "failed" and t.feasible]
        return sorted(sound, key=lambda trial: self.spec.objective.sort_key(trial.value, trial.number))

    def levels_of(self, trial: TrialHistory) -> tuple[Section, ...]:
        """The sections of a trial's training, as its configuration says."""
        return self.spec.sections(trial.params, seed=0)

    def level_of(self, trial: TrialHistory) -> str:
        """The fidelity level that a trial has reached, such as `head at 112 px`; empty without levels."""
        if len(self.spec.level_epochs) == 1:
            return ""
        return level_at(self.levels_of(trial), trial.epochs_done).name

    @functools.cached_property
    def active_intervals(self) -> list[tuple[float, float]]:
        """When at least one trial had a worker, as ascending, disjoint (start, end)."""
        found: list[tuple[float, float]] = []
        intervals = (interval for trial in self.trials for interval in trial.intervals)
        for interval in sorted(intervals, key=lambda interval: interval.start):
            if found and interval.start <= found[-1][1]:
                found[-1] = (found[-1][0], max(found[-1][1], interval.end))
            else:
                found.append((interval.start, interval.end))
        return found

    @property
    def seconds(self) -> float:
        """Seconds in which at least one trial had a worker, so that breaks of the sweep do not count."""
        return self.usage.seconds

    def active_seconds_until(self, at: float) -> float:
        """Active seconds up to a time in seconds since 1970; breaks of the sweep do not count."""
        return sum(max(0.0, min(end, at) - start) for start, end in self.active_intervals)

    @functools.cached_property
    def usage(self) -> ResourceUsage:
        """The seconds in which trials had workers, and their CPU and GPU seconds."""
        return self._usage_until(math.inf)

    def _usage_until(self, at: float) -> ResourceUsage:
        spans = [
            (max(0.0, min(interval.end, at) - interval.start), interval)
            for trial in self.trials
            for interval in trial.intervals
        ]
        return ResourceUsage(
            self.active_seconds_until(at),
            sum(seconds * interval.cpus for seconds, interval in spans),
            sum(seconds * interval.gpus for seconds, interval in spans),
        )

    @property
    def cost(self) -> dict[str, float]:
        """CPU and GPU hours, and money if the spec has prices."""
        return self.cost_until(math.inf)

    def cost_until(self, at: float) -> dict[str, float]:
        """The cost up to a time in seconds since 1970."""
        usage = self.usage if at == math.inf else self._usage_until(at)
        cost = {"cpu_hours": usage.cpu_seconds / 3600, "gpu_hours": usage.gpu_seconds / 3600}
        money = self.spec.resources.price_of(usage.cpu_seconds, usage.gpu_seconds)
        return cost if money is None else {**cost, "money": money}

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the pace so far, by the budget that is used up most; None before the first progress."""
        done = sum(trial.state not in ("running", "waiting") for trial in self.trials)
        epochs = sum(trial.epochs_done for trial in self.trials)
        return seconds_at_pace(self.spec, self.usage, done, epochs)


def as_json(history: SweepHistory) -> str:
    """The answer of `status --json`."""
    leaders = history.leaders
    states = [trial.state for trial in history.trials]
    trained = sum(trial.epochs_done for trial in history.trials)
    best = leaders[0] if leaders else None
    return json.dumps(
        {
            "sweep": history.id,
            "status": history.status,
            "ended_by": history.ended_by,
            "trials": {state: states.count(state) for state in sorted(set(states))},
            "budget_trials": history.spec.budget.trials,
            "best": best
            and {"trial": best.number, "value": best.value, "epoch": best.epoch, "params": best.params},
            "metric": history.spec.metric,
            "epochs": trained,
            "rungs": epochs_reached(history),
            "levels": levels_reached(history),
            "epochs_per_minute": 60 * trained / history.seconds if history.seconds else None,
            "images_per_second": throughput(history),
            "seconds": history.seconds,
            "seconds_left": history.seconds_left if history.status == "running" else None,
            "cost": history.cost,
            "paused_by": history.paused_by,
            "requests": [
                {"who": one.request.who, "when": one.request.when, "asked": str(one.request)}
                | {"granted": one.granted, "answer": one.answer}
                for one in history.answers
            ],
            "waiting_requests": [
                {"who": one.who, "when": one.when, "asked": str(one)} for one in history.requests
            ],
            "warnings": warning_counts(history),
            "leaderboard": [
                {
                    "trial": t.number,
                    "value": t.value,
                    "epoch": t.epoch,
                    "state": t.state,
                    "level": history.level_of(t),
                    "params": t.params,
                }
                for t in leaders
            ],
        }
    )


def epochs_reached(history: SweepHistory) -> dict[int, int]:
    """How many trials have reached epoch 1, 2, 4, 8, ... up to the longest."""
    done = [trial.epochs_done for trial in history.trials]
    marks = [2**power for power in range(max(done, default=0).bit_length())]
    return {mark: sum(epochs >= mark for epochs in done) for mark in marks}


def levels_reached(history: SweepHistory) -> dict[str, int]:
    """How many trials have trained in each fidelity level, by its name; empty without levels."""
    if len(history.spec.level_epochs) == 1:
        return {}
    return {
        level.name: sum(trial.epochs_done > start for trial, start in _starts(history, place))
        for place, level in enumerate(history.spec.sections({}, 0))
    }


def _starts(history: SweepHistory, place: int) -> list[tuple[TrialHistory, int]]:
    """Each trial with the epoch after which the level at that place begins."""
    return [(trial, [0, *level_ends(history.levels_of(trial))][place]) for trial in history.trials]


def throughput(history: SweepHistory) -> float | None:
    """Training images per second of one worker: the median over the trials' last epochs; None where none were told."""
    rates = sorted(
        trial.last["images_per_second"] for trial in history.trials if "images_per_second" in trial.last
    )
    return rates[len(rates) // 2] if rates else None


def warning_counts(history: SweepHistory) -> dict[str, int]:
    """The number of trials with a warning of each rule, the largest first."""
    names = [name for trial in history.trials for name in trial.warnings]
    return {
        name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))
    }
