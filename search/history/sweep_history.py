"""The history of a sweep, read from its run log for the report and for `status`, from any process at any time.

They have no other source: they show what MLflow receives, which outlives every process.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from binsweep.models.settings import TYPES
from binsweep.search.execution.controller import ResourceUsage
from binsweep.search.history.run_keys import SWEEP, trial_number
from binsweep.search.history.sweep_state import STATE, load_state
from binsweep.search.spec.parser import SweepSpec, parse_spec
from binsweep.tracking.runlog.spool import Record, owner_of, read_spool

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
    guess: float | None  # validation accuracy of always guessing the most common training count
    started: float
    until: float  # now if it is running, else the time of its last record
    guess_errors: Mapping[str, float] = field(default_factory=dict)  # val_rmse and val_mae of the same guess

    @property
    def leaders(self) -> list[TrialHistory]:
        """Trials with a value that neither failed nor exceeded a limit, best first; on ties the earlier one first."""
        sound = [t for t in self.trials if t.value is not None and t.state != "failed" and t.feasible]
        return sorted(sound, key=lambda trial: self.spec.objective.sort_key(trial.value, trial.number))

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
        return self.active_seconds_until(math.inf)

    def active_seconds_until(self, at: float) -> float:
        """Active seconds up to a time in seconds since 1970; breaks of the sweep do not count."""
        return sum(max(0.0, min(end, at) - start) for start, end in self.active_intervals)

    @property
    def cost(self) -> dict[str, float]:
        """CPU and GPU hours, and money if the spec has prices."""
        resources = self.spec.resources
        intervals = [interval for trial in self.trials for interval in trial.intervals]
        cost = {
            "cpu_hours": sum((one.end - one.start) * one.cpus for one in intervals) / 3600,
            "gpu_hours": sum((one.end - one.start) * one.gpus for one in intervals) / 3600,
        }
        if resources.cpu_hour_price is not None or resources.gpu_hour_price is not None:
            cost["money"] = cost["cpu_hours"] * (resources.cpu_hour_price or 0.0)
            cost["money"] += cost["gpu_hours"] * (resources.gpu_hour_price or 0.0)
        return cost

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the pace so far, by the budget that is used up most; None before the first progress."""
        budget = self.spec.budget
        spent = [sum(trial.state not in ("running", "waiting") for trial in self.trials) / budget.trials]
        if budget.minutes:
            spent.append(self.seconds / (60 * budget.minutes))
        if budget.epochs:
            spent.append(sum(trial.epochs_done for trial in self.trials) / budget.epochs)
        furthest = min(max(spent), 1.0)
        return self.seconds * (1 - furthest) / furthest if furthest > 0 else None


def read_history(folder: Path, ended_by: str = "") -> SweepHistory:
    """Read the sweep in a folder of `sweeps/`, running or not; with `ended_by` it counts as finished."""
    state = load_state(folder)
    if ended_by:
        state |= {"status": "finished", "ended_by": ended_by}
    spec = parse_spec(state["spec"])
    # The run log may also be open in a process that promotes the sweep or sends waiting records.
    owner = owner_of(folder / "spool")
    alive = owner is not None and owner == str(state.get("process", owner))
    status = "unfinished" if state["status"] == "running" and not alive else state["status"]
    trials: dict[int, TrialHistory] = {}
    guess_errors: dict[str, float] = {}
    parent: dict[str, str] = {}
    guess, last, first = None, 0.0, math.inf
    clock = _Clock()
    for record in read_spool(folder / "spool"):
        at = clock.read(record)
        number = trial_number(record["key"])
        if record["key"] != SWEEP and number is None:
            continue  # a finalist's run, no part of the search
        first, last = min(first, at), max(last, at)
        if number is None:
            if record["kind"] == "dataset":
                guess = _guess(record["profile"])
                guess_errors = _guess_errors(record["profile"])
            parent |= record.get("tags", {}) if record["kind"] == "start" else {}
        else:
            _apply(trials, number, record, at, spec)
    until = clock.now() if status == "running" else last
    for trial in trials.values():
        if trial.state == "running" and trial.intervals:
            running = status == "running"
            trial.intervals[-1].end = until if running else trial.times.get(trial.epochs_done, last)
            trial.state = "running" if running else "interrupted"
    ordered = [trials[number] for number in sorted(trials)]
    lanes = _assign_lanes(ordered)
    return SweepHistory(
        state["id"],
        spec,
        status,
        state["ended_by"],
        ordered,
        int(parent.get("slots", lanes)),
        guess,
        first if trials else last,
        until,
        guess_errors,
    )


def resources_spent(folder: Path) -> ResourceUsage:
    """The resources that earlier processes spent on the sweep in a folder; call it while no process runs the sweep.

    A killed process could not store them at its end; the run log then shows for how long its trials had workers.
    """
    if not (folder / STATE).exists():
        return ResourceUsage()
    state, history = load_state(folder), read_history(folder)
    hours = history.cost
    return ResourceUsage(
        max(state.get("seconds", 0.0), history.seconds),
        max(state.get("cpu_seconds", 0.0), 3600 * hours["cpu_hours"]),
        max(state.get("gpu_seconds", 0.0), 3600 * hours["gpu_hours"]),
    )


class _Clock:
    """The time of a sweep's records, in seconds since 1970 less the seconds in which the machine was suspended.

    Within one process the records have the time it was awake (`up`), which does not depend on the wall clock. Between
    processes there is only the wall clock.
    """

    def __init__(self) -> None:
        self._at, self._up = 0, math.inf  # times of the last record, in ms
        self._slept = 0  # ms

    def read(self, record: Record) -> float:
        """The time of the next record."""
        at, up = record["at"], record.get("up", -math.inf)  # logs of earlier versions have no `up`
        if up >= self._up:
            self._slept += at - self._at - (up - self._up)
        self._at, self._up = at, up if up >= 0 else math.inf
        return float(at - self._slept) / 1000

    def now(self) -> float:
        """The present, by the same clock."""
        return time.time() - self._slept / 1000


def _guess(profile: Mapping[str, Any]) -> float | None:
    splits = profile["splits"]
    commonest = max(splits["train"], key=lambda count: splits["train"][count])
    total = sum(splits["validation"].values())
    return splits["validation"].get(commonest, 0) / total if total else None


def _guess_errors(profile: Mapping[str, Any]) -> dict[str, float]:
    """RMSE and MAE on validation of always guessing the most common training count."""
    train, validation = (profile["splits"][name] for name in ("train", "validation"))
    commonest, total = int(max(train, key=lambda count: train[count])), sum(validation.values())
    if not total:
        return {}
    off = [(abs(int(count) - commonest), photos) for count, photos in validation.items()]
    return {
        "val_rmse": math.sqrt(sum(photos * error**2 for error, photos in off) / total),
        "val_mae": sum(photos * error for error, photos in off) / total,
    }


def _apply(trials: dict[int, TrialHistory], number: int, record: Record, at: float, spec: SweepSpec) -> None:
    """Apply one record of a trial's run."""
    kind = record["kind"]
    if kind == "start":
        _apply_start(trials, number, record, at, spec)
    elif (trial := trials.get(number)) is None:
        return  # the record of its start was damaged
    elif kind == "metrics":
        # A trial's end logs its best values under names of their own.
        epoch = {name: value for name, value in record["values"].items() if not name.startswith("best_")}
        if "val_loss" in epoch:
            _apply_epoch(trial, record["step"], epoch, at, spec)
    elif kind == "tags":
        _apply_tags(trial, record["values"], at)


def _apply_start(
    trials: dict[int, TrialHistory], number: int, record: Record, at: float, spec: SweepSpec
) -> None:
    text, tags = record["params"], record["tags"]
    if number not in trials:
        params = spec.space.active({name: TYPES[name](text[name]) for name in spec.space})
        trials[number] = TrialHistory(number, params, int(text["epochs"]))
    trial = trials[number]
    if (
        trial.state == "running" and trial.intervals
    ):  # its process was killed before it could end the interval
        trial.intervals[-1].end = trial.times.get(trial.epochs_done, trial.intervals[-1].start)
    trial.suggested, trial.state = tags.get("suggested_because", ""), "running"
    # Logs of earlier versions lack these tags: all trials had the same resources.
    cpus = spec.resources.cpus_per_trial * spec.resources.workers_per_trial
    trial.intervals.append(RunInterval(at, at, float(tags.get("cpus", cpus)), float(tags.get("gpus", 0))))


def _apply_tags(trial: TrialHistory, tags: dict[str, str], at: float) -> None:
    trial.warnings |= {k: v for k, v in tags.items() if k.startswith(("health.", "profile."))}
    if "state" in tags:
        if trial.state == "running" and trial.intervals:
            trial.intervals[-1].end = at
        trial.state = tags["state"]
        trial.feasible = tags.get("within_limits") != "false"
        trial.reason = tags.get("ended_because") or tags.get("halted_because", "")


def _apply_epoch(
    trial: TrialHistory, epoch: int, metrics: dict[str, float], at: float, spec: SweepSpec
) -> None:
    trial.last, trial.times[epoch] = metrics, at
    trial.curve[epoch] = spec.objective.value_of(metrics)
    if spec.objective.is_better(trial.curve[epoch], trial.value):
        trial.value, trial.epoch, trial.best = trial.curve[epoch], epoch, metrics


def _assign_lanes(trials: list[TrialHistory]) -> int:
    """Give every interval the first free lane; returns the number of lanes."""
    free: list[float] = []
    for interval in sorted((s for trial in trials for s in trial.intervals), key=lambda s: s.start):
        lane = next((number for number, end in enumerate(free) if end <= interval.start), len(free))
        free[lane : lane + 1] = [interval.end]
        interval.lane = lane
    return max(1, len(free))


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
            "epochs_per_minute": 60 * trained / history.seconds if history.seconds else None,
            "images_per_second": throughput(history),
            "seconds": history.seconds,
            "seconds_left": history.seconds_left if history.status == "running" else None,
            "cost": history.cost,
            "warnings": warning_counts(history),
            "leaderboard": [
                {"trial": t.number, "value": t.value, "epoch": t.epoch, "state": t.state, "params": t.params}
                for t in leaders
            ],
        }
    )


def epochs_reached(history: SweepHistory) -> dict[int, int]:
    """How many trials have reached epoch 1, 2, 4, 8, ... up to the longest."""
    done = [trial.epochs_done for trial in history.trials]
    marks = [2**power for power in range(max(done, default=0).bit_length())]
    return {mark: sum(epochs >= mark for epochs in done) for mark in marks}


def throughput(history: SweepHistory) -> float | None:
    """Training images per second of one worker: the median over the trials' last epochs."""
    rates = sorted(trial.last["images_per_second"] for trial in history.trials if trial.last)
    return rates[len(rates) // 2] if rates else None


def warning_counts(history: SweepHistory) -> dict[str, int]:
    """The number of trials with a warning of each rule, the largest first."""
    names = [name for trial in history.trials for name in trial.warnings]
    return {
        name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))
    }
