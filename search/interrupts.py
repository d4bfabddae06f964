"""Ctrl-C and SIGTERM wait until what has been begun is whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_busy, _waiting = 0, False


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """What runs in here is done to its end; an interrupt that came meanwhile is raised behind it. Main thread only."""
    global _busy, _waiting
    _busy += 1
    try:
        yield
    finally:
        _busy -= 1
        if _waiting and not _busy:
            _waiting = False
            raise KeyboardInterrupt


def interrupt() -> None:
    """Raise KeyboardInterrupt, now or as soon as nothing is half-done: for signal handlers."""
    global _waiting
    if not _busy:
        raise KeyboardInterrupt
    _waiting = True
