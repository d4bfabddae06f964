"""The run log: what happens in a sweep goes to the local spool first, and from there to MLflow.

The caller pays for one write to a file. MLflow slow, down or failing only delays what it will see: a
background thread tries again for ever, and what could not be sent before the process ended is sent by the next
RunLog (or `replay`) on the same directory.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from binsweep.data.errors import UserError
from binsweep.tracking.runlog.delivery import Delivery
from binsweep.tracking.runlog.sanitize import (
    LONGEST_NAME,
    legal_key,
    legal_name,
    legal_params,
    legal_tags,
    legal_text,
)
from binsweep.tracking.runlog.sender import Sender
from binsweep.tracking.runlog.spool import Record, Spool, find_spool

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_STATUSES = ("FINISHED", "FAILED", "KILLED")


class RunLog:
    """The log of one sweep. `key` names a run locally and for ever ("sweep", "trial-7"); any thread may call.

    A call returns once the record is in the spool file, so it outlives this process; the disk is told to sync
    after each. Calls raise OSError only if the spool's disk fails, ValueError for a wrong key or status.
    """

    def __init__(self, directory: Path, tracking_uri: str, experiment: str) -> None:
        """Open or make the spool in `directory` and start sending; UserError if another process owns it."""
        self._opened = time.monotonic_ns()
        self._recorded: dict[str, dict[int, frozenset[str]]] = {}
        self._ended: dict[str, int] = {}  # the number of the record that says so
        self._name_sets: dict[frozenset[str], frozenset[str]] = {}
        self._spool = Spool(directory, self._note)
        self._sender = Sender(tracking_uri, experiment, self._spool.identity, self._spool.fresh)
        self._recording = threading.Lock()
        self._feeder = Delivery(self._spool, self._sender)

    @property
    def damaged(self) -> int:
        """Damaged stretches that were skipped when the spool was opened."""
        return self._spool.damaged

    @property
    def refused(self) -> list[str]:
        """What MLflow refused for good, one readable line each."""
        return [line for lines in list(self._sender.refused.values()) for line in lines]

    def start_run(
        self,
        key: str,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str] = _NOTHING,
        params: Mapping[str, Any] = _NOTHING,
        description: str = "",
    ) -> None:
        """Begin a run, or go on with it if `key` was begun before (in this process or an earlier one)."""
        noted = legal_tags({**tags, **({"mlflow.note.content": description} if description else {})})
        record = {"name": legal_text(name, LONGEST_NAME), "tags": noted, "params": legal_params(params)}
        self._record("start", key, {**record, "parent": None if parent is None else legal_key(parent)})

    def metrics(self, key: str, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one epoch; NaN and infinities are allowed.

        The first value of a metric at a step is the one that counts: an epoch done over after a crash leaves
        no second point.
        """
        step = int(step)
        with self._recording:
            known = self._recorded.get(legal_key(key), {}).get(step, frozenset())
            new = {legal_name(k): float(v) for k, v in values.items() if legal_name(k) not in known}
            if new:
                # Recorded before noted: a value that the disk did not take may be logged again.
                record = {"key": key, "step": step, "values": new}
                self._append("metrics", record)
                self._note({"kind": "metrics", **record})

    def params(self, key: str, values: Mapping[str, Any]) -> None:
        """Log parameters; each may be written once, or again with an equal value."""
        self._record("params", key, {"values": legal_params(values)})

    def tags(self, key: str, values: Mapping[str, str]) -> None:
        """Set tags; the last value counts."""
        self._record("tags", key, {"values": legal_tags(values)})

    def artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Log a file, or what a directory holds, under `folder` of the run; it must exist until sent."""
        where = PurePosixPath(folder)
        if where.is_absolute() or ".." in where.parts:
            raise ValueError(f"folder: must be relative and without '..', got {folder!r}")
        where_text = "" if folder == "" else str(where)
        self._record("artifact", key, {"path": str(path.absolute()), "folder": where_text})

    def dataset(
        self, key: str, name: str, digest: str, source: str, context: str, profile: dict[str, Any]
    ) -> None:
        """Log a data set as the run's input.

        `digest` has at most 36 characters; `context` says what it was used for ("training"); `profile` is a
        JSON object such as {"images": 3972}.
        """
        record = {
            "name": legal_text(name, 500),
            "digest": legal_text(digest, 36),
            "source": legal_text(source, 8000),
        }
        self._record("dataset", key, {**record, "context": legal_text(context, 500), "profile": profile})

    def end_run(self, key: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        if status not in _STATUSES:
            raise ValueError(f"status: must be one of {', '.join(_STATUSES)}, got {status!r}")
        self._record("end", key, {"status": status})

    def ended(self, key: str) -> bool:
        """Whether the run was ended, by this process or an earlier one, and not begun again."""
        return legal_key(key) in self._ended

    def delivered(self, key: str) -> bool:
        """Whether the run was ended, and MLflow has all of it and refused nothing of it."""
        number = self._ended.get(legal_key(key))
        return (
            number is not None and number <= self._spool.sent and legal_key(key) not in self._sender.refused
        )

    def run_id(self, key: str, timeout: float) -> str | None:
        """MLflow's id of a run that was started here; None if the server gave none in `timeout` seconds."""
        self._feeder.wait(lambda: key in self._sender.runs, timeout)
        return self._sender.runs.get(key)

    def page(self, key: str) -> str | None:
        """Where the MLflow UI shows a run, as a link within that UI; None before the run was sent."""
        return self._sender.page(key)

    def sent_run_id(self, key: str) -> str | None:
        """MLflow's id of a run that an earlier process may have started and sent; asks the server."""
        return self._sender.runs.get(key) or self._sender.lookup(key)

    def sent_page(self, key: str) -> str | None:
        """`page` of a run that an earlier process may have started and sent; asks the server."""
        return self._sender.sent_page(key)

    def flush(self, timeout: float) -> int:
        """Sync the spool and wait up to `timeout` seconds for MLflow; returns the records still unsent."""
        self._spool.sync()
        self._feeder.wait(lambda: self._spool.unsent == 0, timeout)
        return self._spool.unsent

    def drain(self, patience: float) -> int:
        """Sync the spool and wait for MLflow as long as it goes on taking records; returns those still unsent.

        After an outage there may be minutes of sending; only `patience` seconds without progress end the wait.
        """
        self._spool.sync()
        self._feeder.wait_while_sending(lambda: self._spool.unsent == 0, patience)
        return self._spool.unsent

    def close(self, timeout: float) -> int:
        """Flush and stop; returns the records still unsent, which the spool keeps for the next RunLog."""
        unsent = self.flush(timeout)
        self._feeder.stop(timeout=1.0)
        self._spool.close()
        return unsent

    def _record(self, kind: str, key: str, record: Record) -> None:
        self._append(kind, {"key": legal_key(key), **record})

    def _append(self, kind: str, record: Record) -> None:
        # The time is recorded, not taken when sending: a replay sends the same point, not another one. `up` stands
        # still while the machine sleeps.
        at, up = (ns // 1_000_000 for ns in (time.time_ns(), time.monotonic_ns() - self._opened))
        number = self._spool.append({"kind": kind, "at": at, "up": up, **record})
        if kind in ("start", "end"):
            self._note({"n": number, "kind": kind, **record})
        self._feeder.wake()

    def _note(self, record: Record) -> None:
        """Remember which metrics a step has, and which runs have ended."""
        if record["kind"] == "metrics":
            steps = self._recorded.setdefault(record["key"], {})
            names = steps.get(record["step"], frozenset()).union(record["values"])
            # Most epochs have the same names: one set in memory serves them all.
            steps[record["step"]] = self._name_sets.setdefault(names, names)
        elif record["kind"] == "end":
            self._ended[record["key"]] = record["n"]
        elif record["kind"] == "start":
            self._ended.pop(record["key"], None)


def replay(directory: Path, tracking_uri: str, experiment: str, timeout: float) -> int:
    """Send what an earlier process left in `directory`; returns the records still unsent after `timeout` s.

    Raises UserError if there is no spool or another process has it open.
    """
    if find_spool(directory) is None:
        raise UserError(f"there is no run log in {directory}", "name the directory of a sweep that has run")
    return RunLog(directory, tracking_uri, experiment).close(timeout)
