"""Promotions that the page has started: the command `promote` in a process of its own, one at a time for each sweep.

They take minutes, go on when the page is closed, and are interrupted in order, like by Ctrl-C, when the server ends;
what they have trained by then is kept, and the next one goes on with it.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from binsweep.data.errors import UserError
from binsweep.data.python_process import python_module, subprocess_environment
from binsweep.search.history.sweep_state import STATE

MAX_LINES = 500  # of the output
END_SECONDS = 30.0  # for an interrupted one to end in order


class Promotion:
    """One run of the command; its output is kept, the last lines of it."""

    def __init__(self, folder: Path, home: Path, dry_run: bool, approved: bool) -> None:
        self.dry_run, self.stamp = dry_run, _stamp(folder)
        self.began, self.ended, self._since = time.time(), 0.0, time.monotonic()
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._interrupted = False
        options = [*["--dry-run"] * dry_run, *["--approve"] * approved]
        # A session of its own: Ctrl-C at the terminal reaches it once, from the server.
        self._process = subprocess.Popen(
            python_module("binsweep", "promote", folder.name, *options),
            env={**subprocess_environment(), "BINSWEEP_HOME": str(home), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._follow, name="promotion", daemon=True)
        self._thread.start()

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return None if self._thread.is_alive() else self._process.returncode

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip("\n"))
        self._process.wait()
        self.ended = self.began + time.monotonic() - self._since  # however the clock was set meanwhile

    def as_json(self) -> dict[str, Any]:
        return {
            "dry_run": self.dry_run,
            "began": self.began,
            "ended": self.ended,
            "code": self.code,
            "interrupted": self._interrupted,
            "lines": list(self._lines),
        }

    def interrupt(self) -> None:
        """Let it end as Ctrl-C does, once."""
        if self.code is None and not self._interrupted:
            self._interrupted = True
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Interrupt it and wait for its end; kill it if it does not come."""
        self.interrupt()
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join(1.0)


class Promotions:
    """The last promotion of each sweep, dry or not. Thread-safe."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._last: dict[str, Promotion] = {}

    def start(self, folder: Path, dry_run: bool, approved: bool = False) -> None:
        """Start one. Raises UserError while another one of this sweep runs, and for one without the dry run before it
        that showed what would be decided of the sweep as it is."""
        with self._lock:
            last = self._last.get(folder.name)
            if last is not None and last.code is None:
                raise UserError(f"a promotion of {folder.name} runs already", "wait for it, or interrupt it")
            if not dry_run and not _shows(last, folder):
                raise UserError(
                    f"no dry run has shown what would be decided of {folder.name}", "make a dry run first"
                )
            self._last[folder.name] = Promotion(folder, self._home, dry_run, approved)

    def interrupt(self, sweep: str) -> None:
        """Interrupt the promotion of a sweep. Raises UserError if none runs."""
        last = self._last.get(sweep)
        if last is None or last.code is not None:
            raise UserError(f"no promotion of {sweep} runs", "there is nothing to interrupt")
        last.interrupt()

    def of(self, folder: Path) -> dict[str, Any] | None:
        """The last promotion of a sweep, and whether the real one `may_follow`."""
        last = self._last.get(folder.name)
        return None if last is None else {**last.as_json(), "may_follow": _shows(last, folder)}

    def end(self) -> list[str]:
        """End all that run; returns their sweeps."""
        running = {name: one for name, one in self._last.items() if one.code is None}
        for one in running.values():
            one.interrupt()
        for one in running.values():
            one.end()
        return sorted(running)


def _shows(last: Promotion | None, folder: Path) -> bool:
    return last is not None and last.dry_run and last.code == 0 and last.stamp == _stamp(folder)


def _stamp(folder: Path) -> int:
    return (folder / STATE).stat().st_mtime_ns
