"""A worker's side of the process that own training code runs in: it starts, watches and ends it."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import secrets
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from binsweep.data.python_process import python_module, subprocess_environment
from binsweep.search.own_code.descendants import descendants, end_descendants
from binsweep.search.own_code.trial import TrialStart

OUTPUT = "output.txt"
KEPT_BYTES = 128 * 1024  # of the beginning of a trial's output, and of its end
MAX_UNWIND_SECONDS = 5.0  # for own code to return after its trial has ended
MAX_LOAD_SECONDS = 300.0  # for its imports
MAX_CALL_SECONDS = 3600.0  # for the predictions of a split, and for making the model
MAX_DRAIN_SECONDS = 2.0
MAX_POLL_SECONDS = 0.5  # in which a report is noticed at once, a deadline or the end of the process after it
# Helpers of Python's multiprocessing and of joblib, which stay by design.
HELPERS = ("resource_tracker", "forkserver")

# epoch, metrics, whether it was saved, foreign writes -> whether the trial goes on
Report = Callable[[int, dict[str, float], bool, list[str]], bool]


class CodeError(Exception):
    """Own code failed. `reason` is one line, `details` its traceback."""

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.reason, self.details = reason, details


class HostKilledError(Exception):
    """The process was killed from outside, or broke down. Its trial is not to blame for sure, and can be resumed."""


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended that did not fail: the processes that its code left running, and were ended."""

    left_processes: list[str]


class CodeHost:
    """The process that runs a function, one trial after the other. It ends with this process."""

    def __init__(self, place: str, function: str, threads: int) -> None:
        self.place, self.function, self.threads = place, function, threads
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._lifeline = -1  # closed when this process ends, however it ends
        self._output = _Output()

    def load(self, *optional: str) -> list[str]:
        """Import the module; returns the training function, and which of the `optional` ones it has.

        Raises CodeError if that fails.
        """
        names = self._call(MAX_LOAD_SECONDS, "its imports have not ended", "load", [self.function, *optional])
        return list(names)

    def predict(self, checkpoint: Path, split: str, params: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The table of its `predict(checkpoint, split)`, by column. Raises CodeError if that fails."""
        late = "its predict has not ended"
        table: dict[str, list[Any]] = self._call(
            MAX_CALL_SECONDS, late, "predict", checkpoint, split, dict(params)
        )
        return table

    def save_model(
        self, checkpoint: Path, params: Mapping[str, Any], folder: Path, code: Sequence[Path]
    ) -> None:
        """Save what its `model(checkpoint)` returns into `folder`. Raises CodeError if that fails."""
        late = "its model has not ended"
        self._call(MAX_CALL_SECONDS, late, "model", checkpoint, dict(params), folder, list(code))

    def _call(self, seconds: float, late: str, what: str, *arguments: Any) -> Any:
        self._ask((what, self.place, *arguments))
        try:
            kind, *content = self._receive(time.monotonic() + seconds, late)
        except TimeoutError as error:
            self.close()
            raise CodeError(f"{late} after {seconds:g} s") from error
        self._raise_failure(kind, content)
        return content[0]

    def train(
        self, start: TrialStart, report: Report, deadline: float | None = None, late: str = ""
    ) -> TrialEnd:
        """Run one trial; `report` is called for each epoch.

        Raises CodeError if the code fails, TimeoutError(late) if it is still at an epoch at the `deadline`
        (time.monotonic), HostKilledError if its process was killed, and OSError if a disk is full. Whatever ends the
        trial, its processes are ended with it.
        """
        marker = f"\0{secrets.token_hex(16)}\n".encode()
        self._output.begin(start.folder / OUTPUT, marker)
        done = False
        try:
            self._ask(("train", self.place, self.function, start, marker))
            while True:
                kind, *content = self._receive(deadline, late)
                if kind == "report":
                    go_on = False
                    try:
                        go_on = report(*content)
                    finally:
                        self._reply(go_on)
                else:
                    done = True
                    self._raise_failure(kind, content)
                    break
        finally:
            if not done and self._is_alive():
                done = self._unwind()
            if not done:
                self.close()
            self._output.end(MAX_DRAIN_SECONDS)
            if left := self._left_processes():
                self.close()
        return TrialEnd(left)

    def close(self) -> None:
        """End the process and all that it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        end_descendants(process.pid)  # first: as long as it lives, it tells which they are
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        os.close(self._lifeline)
        _hosts.discard(self)

    def _start(self) -> None:
        ours, theirs = Pipe()
        environment = subprocess_environment() | {
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(self.threads),
        }
        end, self._lifeline = os.pipe()
        inherited = [theirs.fileno(), end]
        command = python_module("binsweep.search.own_code.host", *map(str, inherited))
        self._process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        theirs.close()
        os.close(end)
        self._connection = ours
        assert self._process.stdout is not None
        self._output.follow(self._process.stdout.fileno())
        _hosts.add(self)

    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _ask(self, message: tuple[Any, ...]) -> None:
        if not self._is_alive():
            self.close()
            self._start()
        assert self._connection is not None
        try:
            self._connection.send(message)
        except OSError:  # it has just ended
            self.close()
            self._start()
            self._connection.send(message)

    def _reply(self, go_on: bool) -> None:
        with contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.send(go_on)

    def _receive(self, deadline: float | None, late: str) -> tuple[Any, ...]:
        assert self._connection is not None and self._process is not None
        try:
            while not self._connection.poll(MAX_POLL_SECONDS):
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(late)
                # A process that it has forked may hold the other end.
                if not self._is_alive() and not self._connection.poll(0):
                    raise EOFError
            message: tuple[Any, ...] = self._connection.recv()
            return message
        except (EOFError, ConnectionError) as error:
            code = self._process.wait()
            if code >= 0:
                raise CodeError(f"its process ended with exit code {code}") from error
            name = signal.Signals(-code).name
            raise HostKilledError(f"its process was ended by {name}") from error

    def _raise_failure(self, kind: str, content: list[Any]) -> None:
        if kind == "failed":
            reason, details, disk_is_full = content
            if disk_is_full:
                raise OSError(errno.ENOSPC, reason)
            raise CodeError(reason, details)

    def _unwind(self) -> bool:
        """Wait shortly until the code of a trial that is over has returned; whether it has."""
        deadline = time.monotonic() + MAX_UNWIND_SECONDS
        try:
            while True:
                kind, *_ = self._receive(deadline, "")
                if kind != "report":
                    return True
                self._reply(False)
        except (TimeoutError, CodeError, HostKilledError):
            return False

    def _left_processes(self) -> list[str]:
        if self._process is None:
            return []
        found = []
        for process in descendants(self._process.pid):
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and not any(name in command for name in HELPERS):
                    found.append(command[:80] or process.name())
        return sorted(found)


class _Output:
    """Keeps the beginning and the end of what a trial prints; the rest is only counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._file: Path | None = None
        self._marker = b""
        self._written, self._left_out = 0, 0
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._pending = b""

    def begin(self, file: Path, marker: bytes) -> None:
        """What is printed from now on goes to `file`, until `marker` is read."""
        with self._lock:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._marker, self._pending = file, marker, b""
            self._written, self._left_out, self._tail_bytes = 0, 0, 0
            self._tail.clear()
            self._ended.clear()

    def follow(self, fd: int) -> None:
        """Read a pipe in the background until it is closed."""
        threading.Thread(target=self._read, args=(os.dup(fd),), name="trial-output", daemon=True).start()

    def _read(self, fd: int) -> None:
        try:
            while chunk := os.read(fd, 65536):
                self._take(chunk)
        finally:
            os.close(fd)
            self._ended.set()

    def _take(self, chunk: bytes) -> None:
        with self._lock:
            data = self._pending + chunk
            before, found, _ = data.partition(self._marker) if self._marker else (data, b"", b"")
            # The marker may come in two pieces.
            keep = 0 if found else max(0, len(self._marker) - 1)
            self._pending = b"" if found else before[len(before) - keep :] if keep else b""
            self._store(before[: len(before) - keep] if keep else before)
            if found:
                self._ended.set()

    def _store(self, data: bytes) -> None:
        if self._file is None or not data:
            return
        head = data[: max(0, KEPT_BYTES - self._written)]
        if head:
            # A full disk is noticed elsewhere.
            with contextlib.suppress(OSError), self._file.open("ab") as stream:
                stream.write(head)
            self._written += len(head)
        if rest := data[len(head) :]:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
            while self._tail and self._tail_bytes - len(self._tail[0]) >= KEPT_BYTES:
                dropped = self._tail.popleft()
                self._tail_bytes -= len(dropped)
                self._left_out += len(dropped)

    def end(self, timeout: float) -> None:
        """Wait until all is read, and write the end of the output."""
        self._ended.wait(timeout)
        with self._lock:
            self._store(self._pending)
            self._pending, self._marker = b"", b""
            if self._file is not None and self._tail:
                with contextlib.suppress(OSError), self._file.open("ab") as stream:
                    if self._left_out:
                        stream.write(f"\n... {self._left_out / 1e6:,.1f} MB are left out ...\n".encode())
                    stream.write(b"".join(self._tail))
            self._file = None
            self._tail.clear()


_hosts: set[CodeHost] = set()


def host_for(place: str, function: str, threads: int) -> CodeHost:
    """The process of this worker for a function; one of another function, or with other threads, is ended."""
    for host in list(_hosts):
        if (host.place, host.function, host.threads) == (place, function, threads):
            return host
        host.close()
    host = CodeHost(place, function, threads)
    _hosts.add(host)
    return host


def close_hosts() -> None:
    """End the processes of own code that this process has started."""
    for host in list(_hosts):
        host.close()
    _hosts.clear()


atexit.register(close_hosts)
