"""The two background threads of a run log: one syncs the spool to disk, one feeds MLflow from it."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection

from binsweep.tracking.runlog.batching import plan_runs
from binsweep.tracking.runlog.sender import Sender, Step
from binsweep.tracking.runlog.spool import Record, Spool

_BATCH = 2000  # records to a cycle: some megabytes at most, however long MLflow was away
_GATHER_SECONDS = 0.5  # so that the epochs of many trials share their requests
_SYNC_SECONDS = 0.2  # at most this, and one fsync, is lost to a power cut
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 10.0
_log = logging.getLogger(__name__)


class Delivery:
    """Feeds `sender` from `spool` until stopped; MLflow away or failing only delays it.

    Delays between attempts double from 0.5 s to 10 s at most, without an end. An artifact that its store does not
    take just now is late: it is tried again between the other records, which do not wait for it.
    """

    def __init__(self, spool: Spool, sender: Sender) -> None:
        self._spool = spool
        self._sender = sender
        self._batch: list[Record] = []
        self._late: dict[int, Step] = {}  # artifacts, by the number of their record
        self._late_delay, self._late_due = _FIRST_DELAY, 0.0
        self._unsynced = threading.Event()
        self._news = threading.Event()
        self._hurry = threading.Event()
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._sent = 0  # requests that MLflow has answered
        self._threads = [
            threading.Thread(target=self._sync_all, name="binsweep-sync", daemon=True),
            threading.Thread(target=self._feed_all, name="binsweep-feed", daemon=True),
        ]
        self._news.set()  # an earlier process may have left something
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Say that the spool has grown."""
        self._unsynced.set()
        self._news.set()

    def wait(self, done: Callable[[], bool], timeout: float) -> None:
        """Send without waiting for company, until `done` or `timeout` seconds have passed."""
        self._hurry.set()
        self._news.set()
        with self._changed:
            self._changed.wait_for(done, timeout)

    def wait_while_sending(self, done: Callable[[], bool], patience: float) -> None:
        """The same, but give up only when MLflow has taken nothing for `patience` seconds."""
        while not done():
            sent = self._sent
            self.wait(lambda sent=sent: done() or self._sent > sent, patience)  # type: ignore[misc]
            if self._sent == sent:
                return

    def stop(self, timeout: float) -> None:
        """Stop both threads. One that hangs in a request is left behind after `timeout` seconds: it can do no
        harm, because what it is sending may come twice."""
        self._stop.set()
        for event in (self._news, self._hurry, self._unsynced):
            event.set()
        for thread in self._threads:
            thread.join(timeout)

    def _sync_all(self) -> None:
        while not self._stop.is_set():
            self._unsynced.wait()
            self._unsynced.clear()
            try:
                self._spool.sync()
            except OSError as error:
                _log.error("The run log could not be synced to disk: %s", error)
            self._stop.wait(_SYNC_SECONDS)

    def _feed_all(self) -> None:
        while not self._stop.is_set():
            self._news.wait(max(0.0, self._late_due - time.monotonic()) if self._late else None)
            self._hurry.wait(_GATHER_SECONDS)
            self._news.clear()  # before reading: what comes later sets it again
            try:
                self._feed()
            except Exception:
                # Whatever the surprise, it must not end the feeding: what was not sent is still in the spool.
                _log.exception("The run log could not be fed to MLflow; trying again")
                self._stop.wait(_LONGEST_DELAY)
                self._news.set()

    def _feed(self) -> None:
        self._batch = self._batch or self._spool.take(_BATCH)
        if self._batch and self._deliver():
            numbers, self._batch = [record["n"] for record in self._batch], []
            self._news.set()  # there may be more
            self._acknowledge(numbers, self._late.keys() & numbers)
        if self._late and (self._hurry.is_set() or time.monotonic() >= self._late_due):
            self._send_late()
        elif not self._batch and not self._news.is_set():
            self._hurry.clear()

    def _deliver(self) -> bool:
        """Send until everything has arrived or is late; False if told to stop before."""
        todo = deque(step for plan in plan_runs(self._batch) for step in self._sender.steps(plan))
        delay = _FIRST_DELAY
        while todo and not self._stop.is_set():
            step = todo[0]
            if step.record is not None:
                if self._late or not self._store(step):
                    self._late[step.record] = step
                todo.popleft()
                continue
            try:
                step.send()
            except Exception as error:
                if delay == _FIRST_DELAY:
                    _log.warning("MLflow does not answer; all is kept and will be sent later: %s", error)
                self._hurry.clear()
                self._hurry.wait(delay)  # somebody who waits for us may shorten this
                delay = min(2 * delay, _LONGEST_DELAY)
            else:
                todo.popleft()
                delay = _FIRST_DELAY
                self._sent += 1
                self._tell()
        return not todo

    def _send_late(self) -> None:
        """Send late artifacts until one is still not taken, or there is other news."""
        while self._late and not self._stop.is_set() and not self._news.is_set():
            number = next(iter(self._late))
            step = self._late.pop(number)
            if not self._store(step):
                self._late[number] = step  # behind the others, which may be luckier
                return
            self._acknowledge([number])

    def _store(self, step: Step) -> bool:
        """Send an artifact; False, and when to try the next, if that cannot be done now."""
        try:
            step.send()
        except Exception as error:
            if self._late_delay == _FIRST_DELAY:
                _log.warning("An artifact cannot be stored now; it is kept and will be sent later: %s", error)
            self._hurry.clear()
            self._late_due = time.monotonic() + self._late_delay
            self._late_delay = min(2 * self._late_delay, _LONGEST_DELAY)
            return False
        self._late_delay = _FIRST_DELAY
        self._sent += 1
        self._tell()
        return True

    def _acknowledge(self, numbers: list[int], late: Collection[int] = ()) -> None:
        try:
            self._spool.acknowledge(numbers, late)
        except OSError as error:
            _log.warning("What was sent could not be noted, so it may be sent again: %s", error)
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
