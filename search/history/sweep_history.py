"""The course of a sweep as its run log tells it: for the report and for `status`, from any process, at any time.

Nothing else is kept for them: what MLflow is told is what they show, and it outlives every process.
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
from binsweep.search.execution.budget import ResourceUsage
from binsweep.search.execution.trial import better
from binsweep.search.history.run_keys import SWEEP, trial_number
from binsweep.search.history.sweep_state import STATE, load_state
from binsweep.search.spec.parser import SweepSpec, parse_spec
from binsweep.search.spec.space import active
from binsweep.tracking.runlog.spool import Record, owner_of, read_spool

ENDED = ("completed", "stopped", "failed")


@dataclass
class RunInterval:
    """From when to when a trial had a worker, in seconds since 1970; `lane` is that worker's number."""

    start: float
    end: float
    cpus: float = 0.0  # that all workers of the trial had
    gpus: float = 0.0
    lane: int = 0


@dataclass
class TrialHistory:
    """One trial's course: what it searched, the sweep's metric and the time by epoch, all metrics of two epochs."""

    number: int
    params: dict[str, Any]
    epochs: int
    suggested: str = ""
    state: str = "running"
    reason: str = ""
    last: dict[str, float] = field(default_factory=dict)  # metrics of its last epoch
    best: dict[str, float] = field(default_factory=dict)  # and of its best one
    times: dict[int, float] = field(default_factory=dict)
    curve: dict[int, float] = field(
        default_factory=dict
    )  # the sweep's metric by epoch; NaN where it diverged
    stretches: list[RunInterval] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)  # health.RULE or profile.RULE: what was seen
    value: float | None = None
    epoch: int = 0
    feasible: bool = True  # it broke no limit of the sweep

    @property
    def epochs_done(self) -> int:
        """The last epoch that was reported."""
        return max(self.times, default=0)

    @property
    def seconds(self) -> float:
        """The time it had a worker."""
        return sum(stretch.end - stretch.start for stretch in self.stretches)


@dataclass
class SweepHistory:
    """A sweep's course until now. `status`: running, finished, or unfinished (it may go on, nobody is at it)."""

    id: str
    spec: SweepSpec
    status: str
    ended_by: str
    trials: list[TrialHistory]
    slots: int
    guess: float | None  # the validation accuracy of always guessing the commonest training count
    started: float
    until: float  # now while it runs, else its last sign of life
    guess_errors: Mapping[str, float] = field(default_factory=dict)  # val_rmse and val_mae of the same guess

    @property
    def leaders(self) -> list[TrialHistory]:
        """Trials with a value that neither failed nor broke a limit, best first; ties go to the earlier one."""
        sign = -1 if self.spec.goal == "maximize" else 1
        sound = [t for t in self.trials if t.value is not None and t.state != "failed" and t.feasible]
        return sorted(sound, key=lambda trial: (sign * (trial.value or 0.0), trial.number))

    @functools.cached_property
    def shifts(self) -> list[tuple[float, float]]:
        """When at least one trial had a worker, as (start, end), ascending and apart."""
        found: list[tuple[float, float]] = []
        stretches = (stretch for trial in self.trials for stretch in trial.stretches)
        for stretch in sorted(stretches, key=lambda stretch: stretch.start):
            if found and stretch.start <= found[-1][1]:
                found[-1] = (found[-1][0], max(found[-1][1], stretch.end))
            else:
                found.append((stretch.start, stretch.end))
        return found

    @property
    def seconds(self) -> float:
        """Seconds during which at least one trial had a worker: breaks of the sweep are left out."""
        return self.since_start(math.inf)

    def since_start(self, at: float) -> float:
        """The sweep's own clock at a time in seconds since 1970: it stands still in breaks."""
        return sum(max(0.0, min(end, at) - start) for start, end in self.shifts)

    @property
    def cost(self) -> dict[str, float]:
        """CPU and GPU hours, and money where the spec names a price."""
        resources = self.spec.resources
        stretches = [stretch for trial in self.trials for stretch in trial.stretches]
        cost = {
            "cpu_hours": sum((one.end - one.start) * one.cpus for one in stretches) / 3600,
            "gpu_hours": sum((one.end - one.start) * one.gpus for one in stretches) / 3600,
        }
        if resources.cpu_hour_price is not None or resources.gpu_hour_price is not None:
            cost["money"] = cost["cpu_hours"] * (resources.cpu_hour_price or 0.0)
            cost["money"] += cost["gpu_hours"] * (resources.gpu_hour_price or 0.0)
        return cost

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the pace so far: the budget spent furthest decides; None before there is a pace."""
        budget = self.spec.budget
        spent = [sum(trial.state not in ("running", "waiting") for trial in self.trials) / budget.trials]
        if budget.minutes:
            spent.append(self.seconds / (60 * budget.minutes))
        if budget.epochs:
            spent.append(sum(trial.epochs_done for trial in self.trials) / budget.epochs)
        furthest = min(max(spent), 1.0)
        return self.seconds * (1 - furthest) / furthest if furthest > 0 else None


def read_course(folder: Path, ended_by: str = "") -> SweepHistory:
    """Read the sweep of a folder under `sweeps/`, running or not; `ended_by` says that it is over by now."""
    state = load_state(folder)
    if ended_by:
        state |= {"status": "finished", "ended_by": ended_by}
    spec = parse_spec(state["spec"])
    # Another process may have the run log as well: one that promotes the sweep, or sends what waits.
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
            continue  # a finalist's: it is no part of the search
        first, last = min(first, at), max(last, at)
        if number is None:
            if record["kind"] == "dataset":
                guess = _guess(record["profile"])
                guess_errors = _guess_errors(record["profile"])
            parent |= record.get("tags", {}) if record["kind"] == "start" else {}
        else:
            _take(trials, number, record, at, spec)
    until = clock.now() if status == "running" else last
    for trial in trials.values():
        if trial.state == "running" and trial.stretches:
            trial.stretches[-1].end = (
                until if status == "running" else trial.times.get(trial.epochs_done, last)
            )
            trial.state = "running" if status == "running" else "interrupted"
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


def spent_on(folder: Path) -> ResourceUsage:
    """What earlier processes gave to the sweep of a folder; to be asked while no process is at it.

    One that was killed could not write it down at its end: then the run log tells for how long its trials had workers.
    """
    if not (folder / STATE).exists():
        return ResourceUsage()
    state, course = load_state(folder), read_course(folder)
    hours = course.cost
    return ResourceUsage(
        max(state.get("seconds", 0.0), course.seconds),
        max(state.get("cpu_seconds", 0.0), 3600 * hours["cpu_hours"]),
        max(state.get("gpu_seconds", 0.0), 3600 * hours["gpu_hours"]),
    )


class _Clock:
    """The time of a sweep's records, in seconds since 1970 less those that the machine slept through.

    Within one process the records say how long it was awake, whatever is done to the clock on the wall; from one
    process to the next, that clock alone knows the time.
    """

    def __init__(self) -> None:
        self._at, self._up, self._slept = (
            0,
            math.inf,
            0,
        )  # the last record's times, and what to take off, in ms

    def read(self, record: Record) -> float:
        """The time of the next record."""
        at, up = (
            record["at"],
            record.get("up", -math.inf),
        )  # logs from before there was `up` have the one only
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
    """RMSE and MAE on validation of always guessing the commonest training count."""
    train, validation = (profile["splits"][name] for name in ("train", "validation"))
    commonest, total = int(max(train, key=lambda count: train[count])), sum(validation.values())
    if not total:
        return {}
    off = [(abs(int(count) - commonest), photos) for count, photos in validation.items()]
    return {
        "val_rmse": math.sqrt(sum(photos * error**2 for error, photos in off) / total),
        "val_mae": sum(photos * error for error, photos in off) / total,
    }


def _take(trials: dict[int, TrialHistory], number: int, record: Record, at: float, spec: SweepSpec) -> None:
    """Take in one record of a trial's run."""
    kind = record["kind"]
    if kind == "start":
        text = record["params"]
        trial = trials.setdefault(
            number,
            TrialHistory(
                number,
                active(spec.space, {name: TYPES[name](text[name]) for name in spec.space}),
                int(text["epochs"]),
            ),
        )
        if trial.state == "running" and trial.stretches:  # its process was killed before it could say so
            trial.stretches[-1].end = trial.times.get(trial.epochs_done, trial.stretches[-1].start)
        tags = record["tags"]
        trial.suggested, trial.state = tags.get("suggested_because", ""), "running"
        # Logs from before trials had these tags: all got the same.
        same = spec.resources.cpus_per_trial * spec.resources.workers_per_trial
        trial.stretches.append(RunInterval(at, at, float(tags.get("cpus", same)), float(tags.get("gpus", 0))))
        return
    if (known := trials.get(number)) is None:
        return  # the record of its start was damaged
    trial = known
    if kind == "metrics":
        # What is told at a trial's end (its best values) is told under names of its own.
        epoch = {name: value for name, value in record["values"].items() if not name.startswith("best_")}
        if "val_loss" in epoch:
            _take_epoch(trial, record["step"], epoch, at, spec)
    elif kind == "tags":
        tags = record["values"]
        trial.warnings |= {k: v for k, v in tags.items() if k.startswith(("health.", "profile."))}
        if "state" in tags:
            if trial.state == "running" and trial.stretches:
                trial.stretches[-1].end = at
            trial.state = tags["state"]
            trial.feasible = tags.get("within_limits") != "false"
            trial.reason = tags.get("ended_because") or tags.get("halted_because", "")


def _take_epoch(
    trial: TrialHistory, epoch: int, metrics: dict[str, float], at: float, spec: SweepSpec
) -> None:
    trial.last, trial.times[epoch] = metrics, at
    diverged = not all(math.isfinite(metrics[loss]) for loss in ("train_loss", "val_loss"))
    trial.curve[epoch] = math.nan if diverged else metrics[spec.metric]
    if better(trial.curve[epoch], trial.value, spec.goal):
        trial.value, trial.epoch, trial.best = trial.curve[epoch], epoch, metrics


def _assign_lanes(trials: list[TrialHistory]) -> int:
    """Give every stretch the first lane that is free then; returns how many there are."""
    free: list[float] = []
    for stretch in sorted((s for trial in trials for s in trial.stretches), key=lambda s: s.start):
        lane = next((number for number, end in enumerate(free) if end <= stretch.start), len(free))
        free[lane : lane + 1] = [stretch.end]
        stretch.lane = lane
    return max(1, len(free))


def as_json(course: SweepHistory) -> str:
    """What `status --json` answers."""
    leaders = course.leaders
    states = [trial.state for trial in course.trials]
    trained = sum(trial.epochs_done for trial in course.trials)
    best = leaders[0] if leaders else None
    return json.dumps(
        {
            "sweep": course.id,
            "status": course.status,
            "ended_by": course.ended_by,
            "trials": {state: states.count(state) for state in sorted(set(states))},
            "budget_trials": course.spec.budget.trials,
            "best": best
            and {"trial": best.number, "value": best.value, "epoch": best.epoch, "params": best.params},
            "metric": course.spec.metric,
            "epochs": trained,
            "rungs": rungs(course),
            "epochs_per_minute": 60 * trained / course.seconds if course.seconds else None,
            "images_per_second": throughput(course),
            "seconds": course.seconds,
            "seconds_left": course.seconds_left if course.status == "running" else None,
            "cost": course.cost,
            "warnings": warning_counts(course),
            "leaderboard": [
                {"trial": t.number, "value": t.value, "epoch": t.epoch, "state": t.state, "params": t.params}
                for t in leaders
            ],
        }
    )


def rungs(course: SweepHistory) -> dict[int, int]:
    """How many trials have reached epoch 1, 2, 4, 8, ... up to the longest."""
    done = [trial.epochs_done for trial in course.trials]
    levels = [2**power for power in range(max(done, default=0).bit_length())]
    return {level: sum(epochs >= level for epochs in done) for level in levels}


def throughput(course: SweepHistory) -> float | None:
    """Training images per second of one worker: the median over the trials' last epochs."""
    rates = sorted(trial.last["images_per_second"] for trial in course.trials if trial.last)
    return rates[len(rates) // 2] if rates else None


def warning_counts(course: SweepHistory) -> dict[str, int]:
    """How many trials each rule has something to say about, most first."""
    names = [name for trial in course.trials for name in trial.warnings]
    return {
        name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))
    }
