"""Progress bars on a terminal, and one line a phase elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from binsweep.search.terminal.format import format_duration


class ProgressMeter:
    """Progress of named phases: a bar with rate and time left on a terminal, one line for each phase elsewhere."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}/s"),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._phase, self._task, self._done, self._start = "", TaskID(0), 0, time.time()

    def __enter__(self) -> ProgressMeter:
        self._bars.start()
        return self

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self._end()
            self._phase, self._start = phase, time.time()
            self._task = self._bars.add_task(phase, total=None, rate="-")
        self._done = done
        if done % 20 == 0 or done == total:
            rate = f"{done / max(time.time() - self._start, 1e-3):,.0f}"
            self._bars.update(self._task, completed=done, total=total or None, rate=rate)

    def _end(self) -> None:
        if self._phase:
            seconds = time.time() - self._start
            many = f"{self._done:,} in " if self._done else ""
            print(f"{self._phase}: {many}{format_duration(seconds)}", file=sys.stderr, flush=True)
            self._bars.remove_task(self._task)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._end()
        self._bars.stop()
