"""Who has the spool of a folder open: a lock, and in the locked file who that is.

Machines that share a disk may not see each other's locks (NFS mounted with `nolock`, many file systems in user space).
There the owner also writes a sign of life every few seconds, and whoever finds another machine's name in a file that
is not locked looks for such a sign before it takes over.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.data.locks import open_lock, try_lock
from binsweep.data.machine import MAX_SILENT_SECONDS, SIGN_SECONDS, boot_id, gives_signs, is_shared

LOCK_FILE = "runlog.lock"
OWNER_CHECK_SECONDS = 1.0  # far more than `owner_of` holds the lock
FRESH_SECONDS = 60.0  # the age of a sign of life until which it is believed, by clocks that may differ
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that has a spool open, its machine, and when it opened it (`time.monotonic_ns()` there)."""

    process: int
    host: str
    boot: str
    opened: int

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.boot == boot_id()

    def __str__(self) -> str:
        return f"process {self.process or 'unknown'}" + ("" if self.is_here else f" on {self.host}")


class Ownership:
    """This process's hold on the spool of a folder, until it is released."""

    def __init__(self, directory: Path) -> None:
        """Take it. Raises UserError if another process has it, also on another machine that shares the disk."""
        self.opened = time.monotonic_ns()
        path = directory / LOCK_FILE
        self._fd = open_lock(path)
        deadline = time.monotonic() + OWNER_CHECK_SECONDS
        while not (owned := try_lock(self._fd)) and time.monotonic() < deadline:
            time.sleep(0.01)  # `owner_of` in another process may hold the lock for a moment
        self._shared = is_shared(directory)
        before = _read(self._fd)
        if not owned or (self._shared and _lives(path, before)):
            os.close(self._fd)
            raise UserError(
                f"the run log in {directory} is in use by {before or 'another process'}",
                "wait until that process has ended, or end it",
            )
        self._me = Owner(os.getpid(), socket.gethostname(), boot_id(), self.opened)
        self._released, self._writing = threading.Event(), threading.Lock()
        os.ftruncate(self._fd, 0)
        self._write(0)
        if self._shared:
            threading.Thread(target=self._give_signs, name="binsweep-owner", daemon=True).start()

    def release(self) -> None:
        """Give it up: the next owner need not look for signs of life."""
        self._released.set()
        with self._writing:
            if self._shared:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, 0)
            os.close(self._fd)

    def _give_signs(self) -> None:
        beat = 0
        while not self._released.wait(SIGN_SECONDS):
            beat += 1
            with self._writing, contextlib.suppress(OSError):  # of a disk that is away for a while
                if not self._released.is_set():  # otherwise the descriptor may be another file's by now
                    self._write(beat)
                    os.fsync(self._fd)

    def _write(self, beat: int) -> None:
        # Always as many bytes, so that a reader never sees the end of an earlier text.
        os.pwrite(self._fd, json.dumps({**asdict(self._me), "beat": f"{beat:012d}"}).encode() + b"\n", 0)


def owner_of(directory: Path, sure: bool = False) -> Owner | None:
    """The process that has the spool of `directory` open; None if there is none.

    One on a machine whose locks are not seen here is told by the age of its last sign of life, or, to be `sure`, by
    waiting for the next one.
    """
    path = directory / LOCK_FILE
    try:
        fd = os.open(path, os.O_RDONLY)  # for users without write access, too
    except FileNotFoundError:
        return None
    try:
        free = try_lock(
            fd, shared=True
        )  # shared, so that two such checks do not take each other for an owner
        owner = _read(fd)
        if not free:
            return owner or Owner(0, "", boot_id(), 0)
        if owner is None or owner.is_here or not is_shared(directory):
            return None
        fresh = abs(time.time() - os.fstat(fd).st_mtime) < FRESH_SECONDS
    finally:
        os.close(fd)
    return owner if (_lives(path, owner) if sure else fresh) else None


def _read(fd: int) -> Owner | None:
    """The owner that a lock file names; None if it was released, or is cut off, or of an earlier version."""
    try:
        found = json.loads(os.pread(fd, 4096, 0))
        return Owner(**{name: value for name, value in found.items() if name != "beat"})
    except (ValueError, TypeError, AttributeError):
        return None


def _lives(path: Path, owner: Owner | None) -> bool:
    """Whether an owner on another machine lives."""
    if owner is None or owner.is_here:
        return False
    _log.warning("%s had %s open; looking for %g s whether it lives", owner, path.parent, MAX_SILENT_SECONDS)
    return gives_signs(path)
