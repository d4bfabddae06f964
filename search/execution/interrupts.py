"""Ctrl-C and SIGTERM wait until what has been begun is whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_busy, _asked = 0, False


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """What runs in here is done to its end; an interrupt that came meanwhile is raised behind it. Main thread only.

    An interrupt that was raised before and that nobody has taken note of is raised again, in place of what would run:
    it came while a library was in a callback that lets no exception out, and was lost there.
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
    """Raise KeyboardInterrupt, now or as soon as nothing is half-done: for signal handlers."""
    global _asked
    _asked = True
    if not _busy:
        raise KeyboardInterrupt


def acknowledge_interrupt() -> None:
    """Whoever was interrupted ends now: the rest of the way out is not interrupted again."""
    global _asked
    _asked = False
