"""Ctrl-C and SIGTERM wait until the operation in progress is complete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_busy, _asked = 0, False


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Complete the block before an interrupt that arrives meanwhile is raised. Main thread only.

    An earlier interrupt that was not acknowledged is raised again before the block: it arrived inside a library's
    callback that swallows exceptions.
    """
    global _busy
    if _asked and not _busy:
        raise KeyboardInterrupt
    _busy += 1
    try:
        yield
    finally:
        _busy -= 1
        if _asked and not _busy:
            raise KeyboardInterrupt


def interrupt() -> None:
    """Raise KeyboardInterrupt, now or after the uninterrupted block in progress; for signal handlers."""
    global _asked
    _asked = True
    if not _busy:
        raise KeyboardInterrupt


def acknowledge_interrupt() -> None:
    """The interrupt is being handled: do not raise it again."""
    global _asked
    _asked = False
