"""The progress of a sweep: a live table on a terminal or in a notebook, plain lines on stderr elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from binsweep.models.health_rules import HealthFinding
from binsweep.models.labelling import labelling_of_scores
from binsweep.search.execution.budget import seconds_at_pace
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.trial_record import TrialRecord
from binsweep.search.spec.sweep_spec import PhotoSpec, SweepSpec
from binsweep.search.steering.request import AnsweredRequest
from binsweep.search.terminal.format import format_count, format_duration, format_metric, format_value
from binsweep.search.terminal.notebook import NotebookOutput, in_notebook

MAX_ROWS = 10
STATE_STYLES = {
    "running": "cyan",
    "waiting": "blue",
    "paused": "blue",
    "completed": "green",
    "stopped": "yellow",
    "failed": "red",
}


def leaderboard_table(
    trials: Sequence[TrialRecord], spec: SweepSpec, title: str, rows: int = MAX_ROWS
) -> Table:
    """A table of the first `rows` of the given trials."""
    table = Table(title=title, title_justify="left", expand=False)
    has_levels = len(spec.level_epochs) > 1
    metrics = [spec.metric]
    if isinstance(spec, PhotoSpec):  # of own code, no second metric is known
        metrics.append(labelling_of_scores(trials[0].metrics if trials else ()).beside(spec.metric))
    metrics = list(dict.fromkeys(metrics))
    numbers = ("#", "trial", *metrics, "trained")
    for name in (*numbers, *["level"] * has_levels, "state", *spec.space):
        right = name in numbers
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for place, trial in enumerate(trials[:rows], 1):
        table.add_row(
            str(place),
            str(trial.number),
            format_metric(spec.metric, trial.value),
            *(format_metric(name, trial.metrics.get(name)) for name in metrics[1:]),
            f"{trial.epochs_done}/{trial.last_epoch}",
            *([trial.level.name] if has_levels else []),
            Text(trial.state, STATE_STYLES[trial.state]),
            *(format_value(trial.params.get(name, "-")) for name in spec.space),
        )
    return table


class LiveTable:
    """A listener of the controller that shows the sweep while its context is open."""

    def __init__(self, spec: SweepSpec, controller: Controller, slots: int = 1) -> None:
        """`slots` is the number of trials that can run at once."""
        self._spec, self._controller, self._slots = spec, controller, slots
        self._console = Console(stderr=True)
        self._warned: Counter[str] = Counter()  # the number of trials, by rule
        self._is_measured = False  # how long an epoch takes, by one that this process has seen
        self._room = ""  # how much more fits into the time left; computed where the controller calls, not while drawing
        self._live: Live | None = None
        self._output = NotebookOutput() if in_notebook() else None
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._screen, refresh_per_second=2)

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        self._controller.listeners.append(self)
        self._update_room()
        if self._room:
            self._line(f"expected: {self._room}")
        self._show(at_once=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        self._controller.listeners.remove(self)
        paused = ""
        if waiting := sum(trial.state == "paused" for trial in self._trials()):
            stay = "trials stay" if waiting > 1 else "trial stays"
            paused = f"{waiting} {stay} paused: other trials were better"
        if self._output is not None:
            self._output.show(Group(self._screen(), paused), at_once=True)
        elif paused:
            print(paused, file=sys.stderr, flush=True)

    def trial_started(self, trial: TrialRecord) -> None:
        searched = ", ".join(f"{name} {format_value(value)}" for name, value in trial.params.items())
        how = f"goes on after epoch {trial.epochs_done}" if trial.epochs_done else "starts"
        if trial.last_epoch < trial.planned_epochs:
            how += f", to epoch {trial.last_epoch} within the time left"
        self._line(f"trial {trial.number} {how}: {searched}")

    def epoch_done(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None:
        """Epochs appear only in the table: a line for each would hide the rest."""
        self._update_room()
        if not self._is_measured and self._room:
            self._is_measured = True
            self._line(f"measured: {self._room}")
        self._show()

    def _update_room(self) -> None:
        """How many trainings of a typical configuration fit into the time left; empty before anything was measured, and
        where a number of trials or epochs may end the sweep earlier."""
        if self._controller.budget.counts_work:
            return
        left = self._controller.seconds_left()
        if left is None or (each := self._controller.training_seconds()) is None:
            return
        workers = sum(trial.state == "running" for trial in self._trials()) or self._slots
        fit = max(0.0, left) * workers / each
        many = f"{fit:.0f}" if fit >= 9.5 else f"{fit:.1f}"
        time_left = format_duration(max(0.0, left))
        self._room = f"about {many} trainings of {format_duration(each)} fit into the {time_left} left"

    def health_found(self, trial: TrialRecord, found: Sequence[HealthFinding]) -> None:
        for finding in found:
            self._warned[finding.rule] += 1
            self._line(f"trial {trial.number} {finding.rule} at epoch {finding.epoch}: {finding.text}")

    def trial_suspended(self, trial: TrialRecord, reason: str) -> None:
        self._line(f"trial {trial.number} {trial.state} after {_epochs(trial)} ({reason})")

    def trial_ended(self, trial: TrialRecord) -> None:
        metric = self._spec.metric
        best = format_metric(metric, trial.value)
        why = f" ({trial.reason})" if trial.state in ("stopped", "failed") else ""
        self._line(f"trial {trial.number} {trial.state} after {_epochs(trial)}: {metric} {best}{why}")
        self._line(self._summary())

    def request_answered(self, answered: AnsweredRequest) -> None:
        how = "" if answered.granted else "refused: "
        self._line(f"{answered.request.who} asks for {answered.request}: {how}{answered.answer}")

    def _show(self, at_once: bool = False) -> None:
        """Bring a notebook's table up to date; on a terminal, its own thread does."""
        if self._output is not None:
            self._output.show(self._screen(), at_once)

    def _line(self, text: str) -> None:
        self._show()
        if self._live is None and self._output is None:
            print(text, file=sys.stderr, flush=True)

    def _trials(self) -> list[TrialRecord]:
        """A copy of the trials: the table is drawn in its own thread while the sweep continues."""
        return list(self._controller.trials.values())

    def _summary(self) -> str:
        trials = self._trials()
        states = [trial.state for trial in trials]
        begun = format_count(len(trials), self._controller.budget.trials)
        parts = [f"{begun} trial{'s' if begun != '1' else ''}"]
        parts += [f"{states.count(s)} {s}" for s in STATE_STYLES if s in states]
        leaders = self._controller.leaderboard()
        if leaders:
            parts.append(f"best {self._spec.metric} {format_metric(self._spec.metric, leaders[0].value)}")
        elapsed = self._controller.spent.seconds
        left = self._left()
        ahead = "time left unknown" if left is None else f"about {format_duration(left)} left"
        parts.append(f"{format_duration(elapsed)} so far, {self._room or ahead}")
        parts.append(f"cost {format_duration(self._controller.spent.cpu_seconds)} of CPU")
        if self._warned:
            warned = Counter(dict(self._warned)).most_common(3)
            parts.append("warnings " + ", ".join(f"{rule} in {many}" for rule, many in warned))
        return " | ".join(parts)

    def _left(self) -> float | None:
        """The remaining seconds at the present pace, by the limit of the budget that is closest; None at the start."""
        done = sum(trial.state not in ("running", "waiting") for trial in self._trials())
        spec = replace(self._spec, budget=self._controller.budget)
        return seconds_at_pace(spec, self._controller.spent, done, self._controller.epochs)

    def _screen(self) -> RenderableType:
        running = [trial for trial in self._trials() if trial.state == "running"]
        now = Table(show_header=False, box=None)
        for trial in running:
            value = format_metric(self._spec.metric, trial.value)
            params = ", ".join(f"{k} {format_value(v)}" for k, v in trial.params.items())
            now.add_row(
                "running",
                f"trial {trial.number}",
                f"{trial.epochs_done}/{trial.last_epoch}",
                value,
                params,
            )
        leaders = [trial for trial in self._controller.leaderboard() if trial.state != "running"]
        best = [leaderboard_table(leaders, self._spec, "best so far")] if leaders else []
        return Group(Text(self._summary()), *best, now)


def _epochs(trial: TrialRecord) -> str:
    return f"{trial.epochs_done} epoch{'s' if trial.epochs_done != 1 else ''}"
