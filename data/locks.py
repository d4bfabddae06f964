"""Advisory file locks that vanish with the process that holds them, however it ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def try_lock(fd: int, shared: bool = False) -> bool:
    """Take the lock of the open file `fd` (or change its kind) without waiting; False if another holds it."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_lock(path: Path) -> int:
    """Open (and create) a lock file; close the descriptor to let the lock go."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


@contextmanager
def locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock `path` for the block; TimeoutError if it could not be had within `timeout` seconds."""
    fd = open_lock(path)
    try:
        deadline = time.monotonic() + timeout
        while not try_lock(fd):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} was held by another process for {timeout:g} s")
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)
