"""Advisory file locks, which the system releases when their process ends, however it ends.

`locked` excludes other processes from a block. A lock on an open descriptor marks something as in use for as long
as its process lives.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from binsweep.data.errors import UserError


class LockTimeout(TimeoutError):
    """A lock is still held by another process after the timeout."""


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file `path` exclusively for the block; LockTimeout after `timeout` seconds (-1: never)."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout)
    except Timeout as error:
        raise LockTimeout(f"{path} was held by another process for {timeout:g} s") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked_or_refused(path: Path, timeout: float, busy: str, hint: str) -> Iterator[None]:
    """Hold the lock file `path` like `locked`, but a timeout is the UserError that `busy` and `hint` describe."""
    with ExitStack() as stack:
        try:  # of the lock alone: a timeout within the block is none of it
            stack.enter_context(locked(path, timeout))
        except LockTimeout as error:
            raise UserError(f"{busy}: {error}", hint) from error
        yield


def open_lock(path: Path) -> int:
    """Open (and create) a lock file; closing the descriptor releases its lock."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def try_lock(fd: int, shared: bool = False) -> bool:
    """Take the lock of an open file, or change its kind, without waiting; False if another process holds it. Raises
    UserError if the disk has no locks."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        place = Path(f"/proc/self/fd/{fd}")
        raise UserError(
            f"{place.resolve() if place.exists() else 'BINSWEEP_HOME'} cannot be locked: {error.strerror}",
            "use a BINSWEEP_HOME on a disk whose files can be locked: a local one, or NFS with its lock service",
        ) from error
    return True


def lock_shared(fd: int) -> None:
    """Take the shared lock of an open file, waiting while another process holds it exclusively."""
    fcntl.flock(fd, fcntl.LOCK_SH)
