"""Mistakes of the kinds that the simulation is there to find, put into the product while a schedule runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import binsweep.data.atomic_write as atomic_write
import binsweep.search.execution.code_trial as code_trial
import binsweep.tracking.runlog.batching as batching
import binsweep.tracking.runlog.delivery as delivery
import binsweep.tracking.runlog.spool as spool


class _WithoutSync:
    """The module `os` without fsync."""

    def __getattr__(self, name: str) -> Any:
        return (lambda fd: None) if name == "fsync" else getattr(self._os, name)

    _os = atomic_write.os


@contextlib.contextmanager
def no_fsync() -> Iterator[None]:
    """Files are replaced without waiting for the disk."""
    with patch.object(atomic_write, "os", _WithoutSync()):
        yield


@contextlib.contextmanager
def report_first() -> Iterator[None]:
    """An epoch is reported before its checkpoint and its line are on the disk."""
    keep_and_send = code_trial._CodeRun._report

    def send_and_keep(
        run: Any, epoch: int, metrics: dict[str, float], saved: bool, foreign: list[str]
    ) -> bool:
        send = run.send
        go_on = send(epoch, {**metrics, "seconds": 0.0})
        run.send = lambda *_: go_on
        try:
            return keep_and_send(run, epoch, metrics, saved, foreign)
        finally:
            run.send = send

    with patch.object(code_trial._CodeRun, "_report", send_and_keep):
        yield


@contextlib.contextmanager
def no_lock() -> Iterator[None]:
    """The spool's lock is not taken."""
    with patch.object(spool, "try_lock", lambda fd, shared=False: True):
        yield


@contextlib.contextmanager
def no_key() -> Iterator[None]:
    """What is sent again has a new time, which is what MLflow knows a point by."""

    def plan_runs(records: Any) -> Any:
        now = int(delivery.time.time() * 1000)  # type: ignore[attr-defined]
        return batching.plan_runs({**record, "at": now} for record in records)

    with patch.object(delivery, "plan_runs", plan_runs):
        yield


PLANTED: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "an fsync left out": no_fsync,
    "a report before its file": report_first,
    "a lock not taken": no_lock,
    "a retry without its key": no_key,
}
