"""Progress of long steps, on stderr: bars on a terminal, one line for each step elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from binsweep.search.terminal.format import format_duration
from binsweep.search.terminal.notebook import NotebookOutput, in_notebook

LINE_SECONDS = 60.0  # between lines where there is no terminal


def _bars(*columns: ProgressColumn) -> Progress:
    """A description, a bar, counts, `columns` and the remaining time; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    shown = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        TimeRemainingColumn(),
    )
    return Progress(*shown, console=console, transient=True, disable=not console.is_terminal)


class ProgressBar:
    """The progress of one step, called with (done, total) images: a bar with rate and remaining time on a terminal, a
    line a minute elsewhere. It prints one line at its end, which in a notebook takes the place of the bar."""

    def __init__(self, name: str) -> None:
        self._name, self._total, self._start = name, 0, time.monotonic()
        self._bars = _bars(TextColumn("{task.fields[rate]}"))
        self._task = self._bars.add_task(name, total=None, rate="")
        self._output = NotebookOutput() if in_notebook() else None
        self._first: tuple[int, float] | None = None  # what was done at the first call, and when
        self._next_line = self._start + LINE_SECONDS

    def __enter__(self) -> ProgressBar:
        self._bars.start()
        return self

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._first = self._first or (done, now)
        self._total = max(self._total, total)
        rate = (done - self._first[0]) / max(now - self._first[1], 1e-3)
        self._bars.update(self._task, completed=done, total=total, rate=f"{rate:,.0f}/s" if rate else "")
        if self._output is not None:
            self._output.show(self._bars.get_renderable())
        elif self._bars.disable and now >= self._next_line and rate and done < total:
            self._next_line = now + LINE_SECONDS
            left = format_duration((total - done) / rate)
            line = f"{self._name}: {done:,} of {total:,} images, {rate:,.1f}/s, {left} left"
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bars.stop()
        if kind is None:
            images = f"{self._total:,} images, " if self._total else ""
            duration = format_duration(time.monotonic() - self._start)
            line = f"{self._name}: {images}{duration}"
            if self._output is not None:
                self._output.show(Text(line), at_once=True)
            else:
                print(line, file=sys.stderr, flush=True)


class ProgressMeter:
    """The progress of named phases, called with (phase, done, total): a bar with rate and remaining time on a
    terminal, and one line for each phase."""

    def __init__(self) -> None:
        self._bars = _bars(TextColumn("{task.fields[rate]}/s"))
        self._phase, self._task, self._done, self._start = "", TaskID(0), 0, time.monotonic()

    def __enter__(self) -> ProgressMeter:
        self._bars.start()
        return self

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self._end_phase()
            self._phase, self._start = phase, time.monotonic()
            self._task = self._bars.add_task(phase, total=None, rate="-")
        self._done = done
        if done % 20 == 0 or done == total:
            rate = f"{done / max(time.monotonic() - self._start, 1e-3):,.0f}"
            self._bars.update(self._task, completed=done, total=total or None, rate=rate)

    def _end_phase(self) -> None:
        if self._phase:
            count = f"{self._done:,} in " if self._done else ""
            duration = format_duration(time.monotonic() - self._start)
            print(f"{self._phase}: {count}{duration}", file=sys.stderr, flush=True)
            self._bars.remove_task(self._task)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._end_phase()
        self._bars.stop()
