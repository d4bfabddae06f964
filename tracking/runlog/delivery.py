"""The two background threads of a run log: one syncs the spool to disk, one delivers it to MLflow."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection

from binsweep.tracking.runlog.batching import plan_runs
from binsweep.tracking.runlog.sender import Request, Sender
from binsweep.tracking.runlog.spool import Record, Spool

_BATCH_RECORDS = 2000  # a few megabytes at most, however long MLflow was away
_GATHER_SECONDS = 0.5  # so that the epochs of many trials share requests
_SYNC_SECONDS = 0.2  # a power cut costs at most the records of this time and one fsync
_MIN_DELAY, _MAX_DELAY = 0.5, 10.0  # seconds between attempts
_log = logging.getLogger(__name__)


class Delivery:
    """Delivers the records of `spool` through `sender` until stopped; an outage of MLflow only delays it.

    Attempts go on without end, with delays that double from 0.5 s to 10 s. An artifact whose store does not accept it
    now is late: it is tried again between other records, which do not wait for it.
    """

    def __init__(self, spool: Spool, sender: Sender) -> None:
        self._spool = spool
        self._sender = sender
        self._batch: list[Record] = []
        self._is_synced = False  # whether the disk has the batch
        self._late: dict[int, Request] = {}  # artifacts, by the number of their record
        self._late_delay, self._late_due = _MIN_DELAY, 0.0
        self._unsynced = threading.Event()
        self._news = threading.Event()
        self._hurry = threading.Event()
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._sent = 0  # requests that MLflow has answered
        self._threads = [
            threading.Thread(target=self._run_sync, name="binsweep-sync", daemon=True),
            threading.Thread(target=self._run_delivery, name="binsweep-delivery", daemon=True),
        ]
        self._news.set()  # an earlier process may have left records
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Signal that the spool has grown."""
        self._unsynced.set()
        self._news.set()

    def wait(self, done: Callable[[], bool], timeout: float) -> None:
        """Send without gathering, until `done` or `timeout` seconds have passed."""
        self._hurry.set()
        self._news.set()
        with self._changed:
            self._changed.wait_for(done, timeout)

    def wait_while_sending(self, done: Callable[[], bool], patience: float) -> None:
        """Like `wait`, but give up only when MLflow has accepted nothing for `patience` seconds."""
        while not done():
            sent = self._sent
            self.wait(lambda sent=sent: done() or self._sent > sent, patience)  # type: ignore[misc]
            if self._sent == sent:
                return

    def stop(self, timeout: float) -> None:
        """Stop both threads. One that hangs in a request is abandoned after `timeout` seconds: it can do no harm,
        because every request may be repeated."""
        self._stop.set()
        for event in (self._news, self._hurry, self._unsynced):
            event.set()
        for thread in self._threads:
            thread.join(timeout)

    def _run_sync(self) -> None:
        while not self._stop.is_set():
            self._unsynced.wait()
            self._unsynced.clear()
            self._sync()
            self._stop.wait(_SYNC_SECONDS)

    def _sync(self) -> None:
        try:
            self._spool.sync()
        except OSError as error:
            _log.error("The run log could not be synced to disk: %s", error)

    def _run_delivery(self) -> None:
        while not self._stop.is_set():
            self._news.wait(max(0.0, self._late_due - time.monotonic()) if self._late else None)
            self._hurry.wait(_GATHER_SECONDS)
            self._news.clear()  # before reading: later records set it again
            try:
                self._deliver_next()
            except Exception:
                # No error may end the delivery: what was not sent is still in the spool.
                _log.exception("The run log could not be delivered to MLflow; trying again")
                self._stop.wait(_MAX_DELAY)
                self._news.set()

    def _deliver_next(self) -> None:
        if not self._batch:
            self._batch, self._is_synced = self._spool.take(_BATCH_RECORDS), False
        if self._batch and not self._is_synced:
            # Sent only once the disk has it: what a power cut took back would be recorded again, at another time, and
            # MLflow would have it twice. A disk that fails is tried again.
            self._spool.sync()
            self._is_synced = True
        if self._batch and self._deliver_batch():
            numbers, self._batch = [record["n"] for record in self._batch], []
            self._news.set()  # there may be more
            self._acknowledge(numbers, self._late.keys() & numbers)
        if self._late and (self._hurry.is_set() or time.monotonic() >= self._late_due):
            self._send_late()
        elif not self._batch and not self._news.is_set():
            self._hurry.clear()

    def _deliver_batch(self) -> bool:
        """Send until everything has arrived or is late; False if stopped before."""
        todo = deque(request for plan in plan_runs(self._batch) for request in self._sender.requests_of(plan))
        delay = _MIN_DELAY
        while todo and not self._stop.is_set():
            request = todo[0]
            if request.record is not None:
                if self._late or not self._send_artifact(request):
                    self._late[request.record] = request
                todo.popleft()
                continue
            try:
                request.send()
            except Exception as error:
                if delay == _MIN_DELAY:
                    _log.warning("MLflow does not answer; all is kept and will be sent later: %s", error)
                self._hurry.clear()
                self._hurry.wait(delay)  # `wait` in another thread may shorten this
                delay = min(2 * delay, _MAX_DELAY)
            else:
                todo.popleft()
                delay = _MIN_DELAY
                self._sent += 1
                self._notify()
        return not todo

    def _send_late(self) -> None:
        """Send late artifacts until one is still not accepted, or new records arrive."""
        while self._late and not self._stop.is_set() and not self._news.is_set():
            number = next(iter(self._late))
            request = self._late.pop(number)
            if not self._send_artifact(request):
                self._late[number] = request  # last in line: the others may succeed
                return
            self._acknowledge([number])

    def _send_artifact(self, request: Request) -> bool:
        """Send an artifact; if that fails, schedule the next attempt and return False."""
        try:
            request.send()
        except Exception as error:
            if self._late_delay == _MIN_DELAY:
                _log.warning("An artifact cannot be stored now; it is kept and will be sent later: %s", error)
            self._hurry.clear()
            self._late_due = time.monotonic() + self._late_delay
            self._late_delay = min(2 * self._late_delay, _MAX_DELAY)
            return False
        self._late_delay = _MIN_DELAY
        self._sent += 1
        self._notify()
        return True

    def _acknowledge(self, numbers: list[int], late: Collection[int] = ()) -> None:
        try:
            self._spool.acknowledge(numbers, late)
        except OSError as error:
            _log.warning("Sent records could not be marked as sent, so they may be sent again: %s", error)
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
