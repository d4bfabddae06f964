"""Reading the history of a sweep from its run log, from any process at any time.

There is no other source: the report and `status` show what MLflow receives, which outlives every process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from binsweep.models.labelling import COUNTING, Labelling, labelling_of
from binsweep.models.levels import total_epochs
from binsweep.search.execution.budget import ResourceUsage
from binsweep.search.history.run_keys import SWEEP, trial_number
from binsweep.search.history.sweep_history import ENDED, RunInterval, SweepHistory, TrialHistory
from binsweep.search.history.sweep_state import STATE, load_state, run_status
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.steering.inbox import read_answers, waiting_requests
from binsweep.search.steering.state import state_after
from binsweep.tracking.runlog.ownership import Owner, owner_of
from binsweep.tracking.runlog.spool import Record, SpoolReader, read_spool


def read_history(folder: Path, ended_by: str = "") -> SweepHistory:
    """Read the sweep in a folder of `sweeps/`, running or not; with `ended_by` it counts as finished."""
    return RunLogReader(folder).read(ended_by)


class RunLogReader:
    """Keeps the history of one sweep: each `read` takes in only what its run log has gained. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.changed: set[int] = set()  # the trials with something new at the last `read`
        self._fresh: set[int] = set()  # and those with something new since
        self._folder = folder
        self._spec: SweepSpec | None = None
        self._spool = SpoolReader(folder / "spool")
        self._trials: dict[int, TrialHistory] = {}
        self._places: dict[int, list[int]] = {}  # of the metrics of a trial, in the spool
        self._guess_errors: dict[str, float] = {}
        self._parent: dict[str, str] = {}
        self._guess: float | None = None
        self._first, self._last = math.inf, 0.0
        self._labelling: Labelling = COUNTING
        self._clock = _Clock()

    @property
    def share(self) -> float:
        """The share of the run log that was read."""
        return self._spool.share

    def read(self, ended_by: str = "", seconds: float = math.inf) -> SweepHistory:
        """The history now; what takes longer than so many `seconds` to read is left for the next call.

        Raises UserError if the sweep's files are damaged.
        """
        folder = self._folder
        state = load_state(folder)
        if ended_by:
            state |= {"status": "finished", "ended_by": ended_by}
        self._spec = spec = parse_spec(state["spec"], str(folder / STATE))
        status = run_status(folder, state)
        answers = read_answers(folder)
        spec = state_after(answers).spec_of(spec)
        self.read_on(seconds)
        self.changed, self._fresh = self._fresh, set()
        until = self._clock.now(owner_of(folder / "spool")) if status == "running" else self._last
        ordered = [self._as_of(trial, status, until) for _, trial in sorted(self._trials.items())]
        lanes = _assign_lanes(ordered)
        return SweepHistory(
            state["id"],
            spec,
            status,
            state.get("ended_by", ""),
            ordered,
            int(self._parent.get("slots", lanes)),
            self._guess,
            self._first if ordered else self._last,
            until,
            self._guess_errors,
            self._labelling,
            answers,
            waiting_requests(folder),
        )

    def read_on(self, seconds: float) -> None:
        """Read more of the run log for so many seconds, for the next `read` to tell of; only after the first one."""
        assert self._spec is not None
        deadline = time.monotonic() + seconds
        for record, place in self._spool.new_records():
            self._take(record, place, self._spec)
            if time.monotonic() > deadline:
                break

    def epochs_of(self, number: int, metric: str) -> dict[int, dict[str, float]]:
        """All metrics of a trial by epoch, as far as they were read; `metric` is the sweep's."""
        records = self._spool.records_at(self._places.get(number, ()))
        found = ((record["step"], _epoch_metrics(record, metric)) for record in records)
        return {epoch: metrics for epoch, metrics in found if metric in metrics}

    def _take(self, record: Record, place: int, spec: SweepSpec) -> None:
        """Take in the next record."""
        at = self._clock.read(record)
        number = trial_number(record["key"])
        if record["key"] != SWEEP and number is None:
            return  # a finalist's run, no part of the search
        self._first, self._last = min(self._first, at), max(self._last, at)
        if number is None:
            self._take_parent(record)
            return
        self._fresh.add(number)
        if record["kind"] == "metrics":
            self._places.setdefault(number, []).append(place)
        _apply(self._trials, number, record, at, spec)

    def _take_parent(self, record: Record) -> None:
        if record["kind"] == "dataset":
            self._labelling = labelling_of(record["profile"].get("classes", ()))
            self._guess = _guess(record["profile"])
            counting = self._labelling is COUNTING
            self._guess_errors = _guess_errors(record["profile"]) if counting else {}
        if record["kind"] == "start":
            self._parent |= record.get("tags", {})
            # Another process begins: running trials have lost theirs, and the break until now is not their time.
            for trial in self._trials.values():
                if trial.state == "running" and trial.intervals:
                    _lose(trial)
                    trial.state = "interrupted"
                    self._fresh.add(trial.number)

    def _as_of(self, trial: TrialHistory, status: str, until: float) -> TrialHistory:
        """The trial as it is shown now: its last interval goes on, or has ended with the sweep's process."""
        if trial.state != "running" or not trial.intervals:
            return trial
        running = status == "running"
        end = until if running else trial.times.get(trial.epochs_done, self._last)
        intervals = [*trial.intervals[:-1], replace(trial.intervals[-1], end=end)]
        return replace(trial, state="running" if running else "interrupted", intervals=intervals)


def read_progress(folder: Path) -> Iterator[tuple[int, int, dict[str, float]]]:
    """The trial, the epoch and all metrics of each epoch that was reported, and each end of a trial, as epoch 0 without
    metrics, in the order in which they were recorded."""
    metric = parse_spec(load_state(folder)["spec"], str(folder / STATE)).metric
    for record in read_spool(folder / "spool"):
        if (number := trial_number(record["key"])) is None:
            continue
        if record["kind"] == "metrics":
            if metric in (found := _epoch_metrics(record, metric)):
                yield number, record["step"], found
        elif record["kind"] == "tags" and record["values"].get("state") in ENDED:
            yield number, 0, {}


def read_epochs(folder: Path) -> Iterator[tuple[int, int, dict[str, float]]]:
    """The trial, the epoch and all metrics of each epoch that was reported, in the order of the reports."""
    return ((number, epoch, metrics) for number, epoch, metrics in read_progress(folder) if metrics)


def epochs_of_trial(folder: Path, number: int) -> dict[int, dict[str, float]]:
    """All metrics of a trial, by epoch."""
    return {epoch: metrics for trial, epoch, metrics in read_epochs(folder) if trial == number}


def resources_spent(folder: Path) -> ResourceUsage:
    """The resources that earlier processes spent on the sweep in a folder; call it while no process runs the sweep.

    A killed process could not store them at its end; the run log then shows for how long its trials had workers.
    """
    if not (folder / STATE).exists():
        return ResourceUsage()
    state, logged = load_state(folder), read_history(folder).usage
    return ResourceUsage(
        max(state.get("seconds", 0.0), logged.seconds),
        max(state.get("cpu_seconds", 0.0), logged.cpu_seconds),
        max(state.get("gpu_seconds", 0.0), logged.gpu_seconds),
    )


_RACE = 1000  # ms, by which records of two threads of a process may be out of order


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
        elif at < self._at and 0 <= up < self._up - _RACE:
            # Set back from one process to the next: their times must not overlap.
            self._slept += at - self._at
        self._at, self._up = at, up if up >= 0 else math.inf
        return float(at - self._slept) / 1000

    def now(self, owner: Owner | None) -> float:
        """The present, by the same clock: later than the last record by the time that the machine of its `owner` has
        been awake since. On another machine there is only the wall clock."""
        if owner is None or not owner.is_here or math.isinf(self._up):
            return max(float(self._at), time.time() * 1000) / 1000 - self._slept / 1000
        awake = (
            time.monotonic_ns() - owner.opened
        ) / 1e6 - self._up  # below 0 before the owner's first record
        return (self._at - self._slept + max(0.0, awake)) / 1000


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
        epoch = _epoch_metrics(record, spec.metric)
        if spec.metric in epoch:
            _apply_epoch(trial, record["step"], epoch, at, spec)
    elif kind == "tags":
        _apply_tags(trial, record["values"], at)


def _epoch_metrics(record: Record, metric: str) -> dict[str, float]:
    """The metrics of an epoch; a trial's end logs its best values under names of their own."""
    return {
        name: value
        for name, value in record["values"].items()
        if name == metric or not name.startswith("best_")
    }


def _apply_start(
    trials: dict[int, TrialHistory], number: int, record: Record, at: float, spec: SweepSpec
) -> None:
    text, tags = record["params"], record["tags"]
    if number not in trials:
        # Own code is given no value of a dimension whose condition does not hold.
        values = {name: spec.space.parse(name, text[name]) for name in spec.space if name in text}
        params = spec.space.active(values)
        trials[number] = TrialHistory(number, params, total_epochs(spec.sections(params, seed=0)))
    trial = trials[number]
    if trial.state == "running" and trial.intervals:
        _lose(trial)
    trial.epochs = int(tags.get("last_epoch", trial.epochs))
    trial.suggested, trial.state = tags.get("suggested_because", ""), "running"
    # Logs of earlier versions lack these tags: all trials had the same resources.
    cpus = spec.resources.cpus_per_trial * spec.resources.workers_per_trial
    trial.intervals.append(RunInterval(at, at, float(tags.get("cpus", cpus)), float(tags.get("gpus", 0))))


def _lose(trial: TrialHistory) -> None:
    """End its interval, which its process was killed before it could end."""
    last = trial.intervals[-1]
    last.end = max(last.start, trial.times.get(trial.epochs_done, last.start))


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
    if "seconds" in metrics:
        trial.epoch_seconds[epoch] = metrics["seconds"]
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
