"""One sweep as the page shows it: read again only where its files have changed, and told only what is new."""

from __future__ import annotations

import json
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from binsweep.search.history.decisions import DECISIONS
from binsweep.search.history.run_log_reader import RunLogReader
from binsweep.search.history.sweep_history import (
    SweepHistory,
    TrialHistory,
    throughput,
    warning_counts,
)
from binsweep.search.history.sweep_state import STATE
from binsweep.search.report.status import cost_text
from binsweep.search.spec.space import Choice, Dimension, Range, describe
from binsweep.search.spec.sweep_spec import CodeSpec
from binsweep.search.steering.inbox import REQUESTS, STEERING
from binsweep.search.steering.request import Request
from binsweep.search.steering.state import narrow, state_after
from binsweep.tracking.runlog.ownership import owner_of
from binsweep.tracking.runlog.spool import find_spool

MAX_READ_SECONDS = 0.25  # of one answer while a long run log is read for the first time
READ_STEP_SECONDS = 0.1
MAX_REASON = 200  # characters of a reason in the list of trials; the trial's own page has all of it


class _Told(NamedTuple):
    """What is told of a trial, and since which version."""

    version: int
    text: str


class LiveSweep:
    """A sweep, kept current for as many pages as look at it. Thread-safe.

    Every change of what is told of a trial has a number, and an answer its `version`: a page that says which version it
    has is told the trials that have changed since.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._reader = RunLogReader(folder)
        self._boot = secrets.token_hex(4)  # versions of an earlier process are not ours
        self._signature: object = None
        self._history: SweepHistory | None = None
        self._is_partial = False  # the run log was not read to its end for `_history`
        self._reading: threading.Thread | None = None
        self._facts = ""
        self._reads = 0
        self._told: dict[int, _Told] = {}
        self._running: set[int] = set()

    def history(self, seconds: float = math.inf) -> SweepHistory:
        """All that is known now, or what can be read in so many seconds. Raises UserError if the sweep's files are
        damaged."""
        with self._lock:
            return self._refresh(seconds)

    def epochs_of(self, number: int) -> dict[int, dict[str, float]]:
        """All metrics of a trial by epoch."""
        with self._lock:
            metric = self._refresh(math.inf).spec.metric
            return self._reader.epochs_of(number, metric)

    def state(self, since: str = "") -> str:
        """The sweep and its trials as JSON, without the trials that are as they were in version `since`.

        While a long run log is read, the answer has the trials that were read, and the `share` of the log.
        """
        with self._lock:
            self._refresh(MAX_READ_SECONDS)
            version = f"{self._boot}-{self._reads}"
            share = min(self._reader.share, 0.99) if self._is_partial else 1.0
            boot, _, number = since.rpartition("-")
            known = int(number) if boot == self._boot and number.isdecimal() else -1
            if since == version:
                return json.dumps({"version": version, "share": share, "same": True})
            trials = ",".join(told.text for told in self._told.values() if told.version > known)
            head = json.dumps({"version": version, "share": share, "all": known < 0})
            return f'{head[:-1]},"sweep":{self._facts},"trials":[{trials}]}}'

    def _refresh(self, seconds: float) -> SweepHistory:
        """Read what is new, for so many seconds at most."""
        signature = self._stamp()
        if self._history is None or signature != self._signature or self._is_partial:
            history = self._reader.read(seconds=seconds)
            self._is_partial = self._reader.share < 1
            if self._is_partial and (self._reading is None or not self._reading.is_alive()):
                self._reading = threading.Thread(target=self._read_on, name="reading", daemon=True)
                self._reading.start()
            self._reads += 1
            self._tell(history)
            self._facts = json.dumps(_facts(history))
            self._history, self._signature = history, signature
        return self._history

    def _read_on(self) -> None:
        """Read the rest of a long run log, between the answers."""
        while self._reader.share < 1:
            with self._lock:
                self._reader.read_on(READ_STEP_SECONDS)
            time.sleep(READ_STEP_SECONDS / 10)  # so that an answer gets the lock

    def _tell(self, history: SweepHistory) -> None:
        """Tell what is new: of trials with new records, and of those that have ceased to run without one."""
        running = {trial.number for trial in history.trials if trial.state == "running"}
        fresh = self._reader.changed | (running ^ self._running)
        for trial in history.trials if fresh else ():
            if trial.number in fresh:
                self._told[trial.number] = _Told(self._reads, json.dumps(_trial(trial)))
        self._running = running

    def _stamp(self) -> object:
        """What differs when the sweep has changed."""
        names = [self.folder / name for name in (STATE, STEERING, REQUESTS, DECISIONS)]
        spool = find_spool(self.folder / "spool")
        return owner_of(self.folder / "spool"), [_stamp_of(file) for file in (*names, spool) if file]


def _stamp_of(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def plain(value: float | None) -> float | None:
    """A number as JSON has it, with six digits: none where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _trial(trial: TrialHistory) -> dict[str, Any]:
    """A trial's line: `curve` are pairs of epoch and value, `spans` a worker's number with the seconds since 1970 in
    which it had the trial, the last of them open while the trial runs."""
    running = trial.state == "running"
    spans: list[list[float | None]] = [
        [span.lane, round(span.start, 2), round(span.end, 2)] for span in trial.intervals
    ]
    if running and spans:
        spans[-1][2] = None
    return {
        "number": trial.number,
        "state": trial.state,
        "value": plain(trial.value),
        "epoch": trial.epoch,
        "done": trial.epochs_done,
        "epochs": trial.epochs,
        "params": trial.params,
        "reason": trial.reason[:MAX_REASON],
        "warnings": [name.partition(".")[2] for name in trial.warnings],
        "ranks": trial.value is not None and trial.state != "failed" and trial.feasible,
        "curve": [[epoch, plain(value)] for epoch, value in sorted(trial.curve.items())],
        "spans": spans,
    }


def _facts(history: SweepHistory) -> dict[str, Any]:
    """What is told of the sweep itself."""
    spec, usage = history.spec, history.usage
    running = history.status == "running"
    left = history.seconds_left if running else None
    state = state_after(history.answers)
    epochs = sum(trial.epochs_done for trial in history.trials)
    return {
        "id": history.id,
        "name": spec.name,
        "status": history.status,
        "ended_by": history.ended_by,
        "paused_by": state.paused,
        "own_code": isinstance(spec, CodeSpec),
        "source": spec.source,
        "metric": spec.metric,
        "goal": spec.goal,
        "guess": plain(history.guess) if spec.metric == "val_accuracy" else None,
        "approval": spec.gate.approval,
        "space": [_dimension(name, spec.space[name], state.narrowed.get(name)) for name in spec.space],
        "budget": {name: limit for name, limit in spec.budget.model_dump().items() if limit is not None},
        "counts": Counter(trial.state for trial in history.trials),
        "epochs": epochs,
        "epochs_per_minute": plain(60 * epochs / usage.seconds) if usage.seconds else None,
        "images_per_second": plain(throughput(history)),
        "workers": history.slots,
        "started": history.started,
        "now": history.until,
        "seconds": usage.seconds,
        "seconds_left": left,
        "cost": cost_text(history, left or 0.0),
        "warnings": warning_counts(history),
        "pinned": sorted(state.pins),
        "stopping": sorted(state.stops),
        "requests": [*_answered(history), *_waiting(history.requests)],
    }


def _dimension(name: str, dimension: Dimension, narrowed: Any) -> dict[str, Any]:
    """A searched value: all that it could be, for axes, and what requests have left of it."""
    now = narrow(dimension, narrowed)
    facts: dict[str, Any] = {"name": name, "text": describe(now), "when": dimension.when}
    if isinstance(dimension, Choice):
        assert isinstance(now, Choice)
        return {**facts, "choices": dimension.values, "kept": now.values}
    assert isinstance(now, Range)
    ends = {"low": dimension.low, "high": dimension.high, "log": dimension.log}
    return {**facts, **ends, "now_low": now.low, "now_high": now.high}


def _answered(history: SweepHistory) -> Iterable[Mapping[str, Any]]:
    for one in history.answers:
        status = "waits" if one.is_waiting else "granted" if one.granted else "refused"
        yield {**_request(one.request), "status": status, "answer": one.answer}


def _waiting(requests: Iterable[Request]) -> Iterable[Mapping[str, Any]]:
    for request in requests:
        yield {**_request(request), "status": "kept", "answer": "no process has taken it in yet"}


def _request(request: Request) -> dict[str, Any]:
    return {"id": request.id, "who": request.who, "when": request.when, "asked": str(request)}
