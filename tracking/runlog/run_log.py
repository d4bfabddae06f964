"""The run log: the events of a sweep go to the local spool first, and from there to MLflow.

A call costs one write to a file. An MLflow that is slow, down or failing only receives the records later: a
background thread tries again for ever, and what was not sent before the process ended is sent by the next RunLog (or
`replay`) on the same directory.
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
    MAX_NAME_LENGTH,
    require_key,
    sanitize_name,
    sanitize_params,
    sanitize_tags,
    sanitize_text,
)
from binsweep.tracking.runlog.sender import Sender
from binsweep.tracking.runlog.spool import Record, Spool, find_spool, spool_identity

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_STATUSES = ("FINISHED", "FAILED", "KILLED")


class RunLog:
    """The log of one sweep. `key` names a run locally and permanently ("sweep", "trial-7"). Thread-safe.

    A call returns once the record is in the spool file, where it outlives this process; a background thread syncs the
    file to disk. Calls raise OSError only if the spool's disk fails, and ValueError for an invalid key or status.
    """

    def __init__(self, directory: Path, tracking_uri: str, experiment: str) -> None:
        """Open or create the spool in `directory` and start sending; UserError if another process owns it."""
        self._started: set[str] = set()
        self._recorded: dict[str, dict[int, frozenset[str]]] = {}
        self._ended: dict[str, tuple[int, str]] = {}  # the number of the run's end record, and its status
        self._name_sets: dict[frozenset[str], frozenset[str]] = {}
        self._spool = Spool(directory, self._remember)
        self._sender = Sender(tracking_uri, experiment, self._spool.identity, self._spool.fresh)
        self._recording = threading.Lock()
        self._delivery = Delivery(self._spool, self._sender)

    @property
    def damaged(self) -> int:
        """Damaged stretches that were skipped when the spool was opened."""
        return self._spool.damaged

    @property
    def refused(self) -> list[str]:
        """What MLflow refused permanently, one readable line each."""
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
        """Start a run, or continue it if `key` was started before (in this process or an earlier one)."""
        note = {"mlflow.note.content": description} if description else {}
        record = {
            "name": sanitize_text(name, MAX_NAME_LENGTH),
            "tags": sanitize_tags({**tags, **note}),
            "params": sanitize_params(params),
            "parent": None if parent is None else require_key(parent),
        }
        self._record("start", key, record)

    def metrics(self, key: str, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one epoch; NaN and infinities are allowed.

        The first value of a metric at a step counts: an epoch that is repeated after a crash adds no second point.
        """
        step = int(step)
        with self._recording:
            known = self._recorded.get(require_key(key), {}).get(step, frozenset())
            new = {sanitize_name(k): float(v) for k, v in values.items() if sanitize_name(k) not in known}
            if new:
                # Remembered only once recorded: a value that the disk did not take may be logged again.
                record = {"key": key, "step": step, "values": new}
                self._append("metrics", record)
                self._remember({"kind": "metrics", **record})

    def params(self, key: str, values: Mapping[str, Any]) -> None:
        """Log parameters; each may be written once, or repeated with an equal value."""
        self._record("params", key, {"values": sanitize_params(values)})

    def tags(self, key: str, values: Mapping[str, str]) -> None:
        """Set tags; the last value counts."""
        self._record("tags", key, {"values": sanitize_tags(values)})

    def artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Log a file, or the content of a directory, under `folder` of the run; it must exist until sent."""
        target = PurePosixPath(folder)
        if target.is_absolute() or ".." in target.parts:
            raise ValueError(f"folder: must be relative and without '..', got {folder!r}")
        record = {"path": str(path.absolute()), "folder": "" if folder == "" else str(target)}
        self._record("artifact", key, record)

    def dataset(
        self, key: str, name: str, digest: str, source: str, context: str, profile: dict[str, Any]
    ) -> None:
        """Log a data set as the run's input.

        `digest` has at most 36 characters; `context` is its use ("training"); `profile` is a JSON object such as
        {"images": 3972}.
        """
        record = {
            "name": sanitize_text(name, 500),
            "digest": sanitize_text(digest, 36),
            "source": sanitize_text(source, 8000),
        }
        self._record("dataset", key, {**record, "context": sanitize_text(context, 500), "profile": profile})

    def end_run(self, key: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        if status not in _STATUSES:
            raise ValueError(f"status: must be one of {', '.join(_STATUSES)}, got {status!r}")
        self._record("end", key, {"status": status})

    def has_started(self, key: str) -> bool:
        """Whether the run was started, by this process or an earlier one."""
        return require_key(key) in self._started

    def ended_as(self, key: str) -> str:
        """How the run was ended, by this process or an earlier one; empty if it was not, or was started again."""
        return self._ended.get(require_key(key), (0, ""))[1]

    def delivered(self, key: str) -> bool:
        """Whether the run was ended, and MLflow has all of it and refused nothing of it."""
        if require_key(key) not in self._ended:
            return False
        return self._ended[key][0] <= self._spool.sent and key not in self._sender.refused

    def run_id(self, key: str, timeout: float) -> str | None:
        """MLflow's id of a run that was started here; None if the server gives none within `timeout` seconds."""
        self._delivery.wait(lambda: key in self._sender.runs, timeout)
        return self._sender.runs.get(key)

    def page(self, key: str) -> str | None:
        """The run's page in the MLflow UI, as a link within that UI; None before the run was sent."""
        return self._sender.page(key)

    def sent_run_id(self, key: str) -> str | None:
        """MLflow's id of a run that an earlier process may have started and sent; queries the server."""
        return self._sender.runs.get(key) or self._sender.lookup(key)

    def sent_page(self, key: str) -> str | None:
        """`page` of a run that an earlier process may have started and sent; queries the server."""
        return self._sender.sent_page(key)

    def sync(self) -> None:
        """Wait until the disk has all records, which a power cut then leaves. Raises OSError if the disk fails."""
        self._spool.sync()

    def recorded(self, key: str) -> set[int]:
        """The steps of a run at which metrics were logged, by this process or an earlier one."""
        return set(self._recorded.get(require_key(key), ()))

    def flush(self, timeout: float) -> int:
        """Sync the spool and wait up to `timeout` seconds for MLflow; returns the records still unsent."""
        self._spool.sync()
        self._delivery.wait(lambda: self._spool.unsent == 0, timeout)
        return self._spool.unsent

    def drain(self, patience: float) -> int:
        """Sync the spool and wait for MLflow while it accepts records; returns the number still unsent.

        After an outage sending may take minutes; only `patience` seconds without progress end the wait.
        """
        self._spool.sync()
        self._delivery.wait_while_sending(lambda: self._spool.unsent == 0, patience)
        return self._spool.unsent

    def close(self, timeout: float) -> int:
        """Flush and stop; returns the records still unsent, which the spool keeps for the next RunLog."""
        unsent = self.flush(timeout)
        self._delivery.stop(timeout=1.0)
        self._spool.close()
        return unsent

    def _record(self, kind: str, key: str, record: Record) -> None:
        self._append(kind, {"key": require_key(key), **record})

    def _append(self, kind: str, record: Record) -> None:
        # Recorded now and not taken when sending, so that a replay sends the same point. `up` does not count the time
        # that the machine sleeps.
        at, up = (ns // 1_000_000 for ns in (time.time_ns(), time.monotonic_ns() - self._spool.opened))
        number = self._spool.append({"kind": kind, "at": at, "up": up, **record})
        if kind in ("start", "end"):
            self._remember({"n": number, "kind": kind, **record})
        self._delivery.wake()

    def _remember(self, record: Record) -> None:
        """Remember the metrics of each step, and which runs have started and ended."""
        if record["kind"] == "metrics":
            steps = self._recorded.setdefault(record["key"], {})
            names = steps.get(record["step"], frozenset()).union(record["values"])
            # Most epochs have the same names and share one set in memory.
            steps[record["step"]] = self._name_sets.setdefault(names, names)
        elif record["kind"] == "end":
            self._ended[record["key"]] = record["n"], record["status"]
        elif record["kind"] == "start":
            self._started.add(record["key"])
            self._ended.pop(record["key"], None)


def replay(directory: Path, tracking_uri: str, experiment: str, timeout: float) -> int:
    """Send what an earlier process left in `directory`; returns the number of records unsent after `timeout` s.

    Raises UserError if there is no spool or another process has it open.
    """
    if find_spool(directory) is None:
        raise UserError(f"there is no run log in {directory}", "name the directory of a sweep that has run")
    return RunLog(directory, tracking_uri, experiment).close(timeout)


def run_page(directory: Path, tracking_uri: str, experiment: str, key: str) -> str | None:
    """The page of a run in the MLflow UI, as a link within that UI, from any process; None if MLflow has no such run.
    Changes nothing."""
    path = find_spool(directory)
    if path is None:
        return None
    return Sender(tracking_uri, experiment, spool_identity(path), fresh=False).sent_page(key)
