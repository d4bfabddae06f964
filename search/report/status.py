"""The state of a sweep: a live screen in a terminal while it runs, plain lines elsewhere, or JSON."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from binsweep.data.errors import UserError
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_history import (
    SweepHistory,
    as_json,
    epochs_reached,
    levels_reached,
    throughput,
    warning_counts,
)
from binsweep.search.history.sweep_state import folders_by_age, is_readable
from binsweep.search.steering.request import Request
from binsweep.search.terminal.format import format_count, format_duration, format_metric, format_value

MAX_ROWS = 10  # of the best trials
MAX_REQUESTS = 5  # the last ones
REFRESH_SECONDS = 2.0  # at least; longer if a refresh takes long


def show_newest(home: Path, json: bool) -> None:
    """Show the sweep that was started last. Raises UserError if there is none, or if its state is damaged: another
    sweep in its place could be taken for it, so the error names the newest one that can be shown."""
    newest, *older = folders_by_age(home)
    try:
        show(newest, json)
    except UserError as error:
        other = next((folder.name for folder in older if is_readable(folder)), None)
        hint = f"; `binsweep status {shlex.quote(other)}` shows the newest of the others" if other else ""
        raise UserError(error.message, f"{error.hint}{hint}") from error


def show(folder: Path, json: bool) -> None:
    """Print the state of a folder's sweep; in a terminal keep it current until the sweep ends or Ctrl-C."""
    history = read_history(folder)
    console = Console()
    if json:
        print(as_json(history))
    elif not console.is_terminal:
        print("\n".join(format_lines(history)))
    elif history.status != "running":
        console.print(screen(history))
    else:
        with Live(screen(history), console=console, auto_refresh=False) as live:
            while history.status == "running":
                start = time.monotonic()
                history = read_history(folder)
                live.update(screen(history), refresh=True)
                time.sleep(max(REFRESH_SECONDS, 10 * (time.monotonic() - start)))


def format_lines(history: SweepHistory) -> list[str]:
    """The state as plain lines."""
    spec = history.spec
    states = Counter(trial.state for trial in history.trials)
    counts = ", ".join(f"{many} {state}" for state, many in states.most_common()) or "none begun"
    lines = [
        f"{history.id}: {history.status}"
        + (f" ({history.ended_by})" if history.status == "finished" else "")
        + (f", paused by {history.paused_by}" if history.paused_by else ""),
        f"trials: {format_count(len(history.trials), spec.budget.trials)}: {counts}",
    ]
    if leaders := history.leaders:
        best = leaders[0]
        params = ", ".join(f"{name} {format_value(value)}" for name, value in best.params.items())
        value = f"{spec.metric} {format_metric(spec.metric, best.value)}"
        level = f" (reached {history.level_of(best)})" if history.level_of(best) else ""
        where = f"trial {best.number} at epoch {best.epoch} of {best.epochs}{level}"
        lines.append(f"best: {value}, {where}: {params}")
    if levels := levels_reached(history):
        lines.append("levels: " + ", ".join(f"{many} reached {name}" for name, many in levels.items()))
    elif reached := epochs_reached(history):
        lines.append(
            "rungs: " + ", ".join(f"{many} reached epoch {epoch}" for epoch, many in reached.items())
        )
    trained, rate = sum(trial.epochs_done for trial in history.trials), throughput(history)
    if rate is not None and history.seconds:
        pace = 60 * trained / history.seconds
        lines.append(
            f"throughput: {trained} epochs, {pace:.1f} a minute; {rate:,.0f} images/s in training (median)"
        )
    if found := warning_counts(history):
        lines.append("warnings: " + ", ".join(f"{name} in {many}" for name, many in found.items()))
    left = history.seconds_left if history.status == "running" else 0.0
    ahead = (
        ""
        if history.status != "running"
        else ", time left not known yet"
        if left is None
        else f", about {format_duration(left)} left"
    )
    lines.append(f"time: {format_duration(history.seconds)} with {history.slots} at once{ahead}")
    lines.append(f"cost: {cost_text(history, left or 0.0)}")
    for answered in history.answers[-MAX_REQUESTS:]:
        request, how = answered.request, "" if answered.granted else "refused: "
        lines.append(f"asked by {request.who} at {_clock_time(request)}: {request}: {how}{answered.answer}")
    for request in history.requests:
        lines.append(
            f"asked by {request.who} at {_clock_time(request)}: {request}: no process has taken it in yet"
        )
    return lines


def _clock_time(request: Request) -> str:
    return time.strftime("%H:%M:%S", time.localtime(request.when))


def cost_text(history: SweepHistory, left: float) -> str:
    """The cost so far, and that of the `left` seconds at this pace."""
    units = {"cpu_hours": "CPU hours", "gpu_hours": "GPU hours", "money": "by the spec's prices"}
    parts = [f"{value:.3g} {units[kind]}" for kind, value in history.cost.items() if value]
    text = ", ".join(parts) or "nothing yet"
    if left and history.seconds:
        ahead = [
            f"{value * left / history.seconds:.3g} {units[kind]}"
            for kind, value in history.cost.items()
            if value
        ]
        text += f"; about {', '.join(ahead)} more"
    return text


def screen(history: SweepHistory) -> RenderableType:
    """The state for a terminal, with the best trials and the running ones."""
    names = list(history.spec.space)
    level = ["level"] * (len(history.spec.level_epochs) > 1)
    table = Table(title="best and running trials", title_justify="left", expand=False)
    for name in ("trial", history.spec.metric, "trained", *level, "state", *names, "warnings"):
        table.add_column(
            name, justify="right" if name in ("trial", history.spec.metric, "trained") else "left"
        )
    leaders = history.leaders[:MAX_ROWS]
    running = [trial for trial in history.trials if trial.state == "running" and trial not in leaders]
    for trial in [*leaders, *running]:
        table.add_row(
            str(trial.number),
            format_metric(history.spec.metric, trial.value),
            f"{trial.epochs_done}/{trial.epochs}",
            *([history.level_of(trial)] if level else []),
            trial.state,
            *(format_value(trial.params.get(name, "")) for name in names),
            ", ".join(name.partition(".")[2] for name in trial.warnings),
        )
    return Group(*map(Text, format_lines(history)), table)
