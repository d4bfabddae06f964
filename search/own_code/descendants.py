"""The processes that a process has started, directly or not."""

from __future__ import annotations

import contextlib
import os

import psutil


def descendants(pid: int) -> list[psutil.Process]:
    """The running children of a process and theirs, and the processes of its session: also those whose parent has
    ended."""
    found: set[psutil.Process] = set()
    with contextlib.suppress(psutil.Error):
        found |= {*psutil.Process(pid).children(recursive=True)}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != pid and os.getsid(process.pid) == pid:
                found.add(process)
    return list(found)


def end_descendants(pid: int) -> None:
    """Kill all of them."""
    for process in descendants(pid):
        with contextlib.suppress(psutil.Error):
            process.kill()
