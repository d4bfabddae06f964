"""How a sweep stands, from any shell: a live screen in a terminal while it runs, plain lines elsewhere, or JSON."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from binsweep.search.history.sweep_history import (
    SweepHistory,
    as_json,
    read_course,
    rungs,
    throughput,
    warning_counts,
)
from binsweep.search.terminal.format import format_duration, format_metric, format_value

ROWS = 10
PAUSE_SECONDS = 2.0  # between two looks; longer where a look takes long


def show(folder: Path, json: bool) -> None:
    """Print the state of a folder's sweep; in a terminal keep it current until the sweep ends or Ctrl-C."""
    course = read_course(folder)
    console = Console()
    if json:
        print(as_json(course))
    elif not console.is_terminal:
        print("\n".join(lines(course)))
    elif course.status != "running":
        console.print(screen(course))
    else:
        with Live(screen(course), console=console, auto_refresh=False) as live:
            while course.status == "running":
                start = time.monotonic()
                course = read_course(folder)
                live.update(screen(course), refresh=True)
                time.sleep(max(PAUSE_SECONDS, 10 * (time.monotonic() - start)))


def lines(course: SweepHistory) -> list[str]:
    """The state in plain lines."""
    spec = course.spec
    states = Counter(trial.state for trial in course.trials)
    counts = ", ".join(f"{many} {state}" for state, many in states.most_common()) or "none begun"
    said = [
        f"{course.id}: {course.status}" + (f" ({course.ended_by})" if course.status == "finished" else ""),
        f"trials: {len(course.trials)}/{spec.budget.trials}: {counts}",
    ]
    if leaders := course.leaders:
        best = leaders[0]
        params = ", ".join(f"{name} {format_value(value)}" for name, value in best.params.items())
        value = f"{spec.metric} {format_metric(spec.metric, best.value)}"
        said.append(f"best: {value}, trial {best.number} at epoch {best.epoch} of {best.epochs}: {params}")
    if reached := rungs(course):
        said.append("rungs: " + ", ".join(f"{many} reached epoch {level}" for level, many in reached.items()))
    trained, rate = sum(trial.epochs_done for trial in course.trials), throughput(course)
    if rate is not None and course.seconds:
        pace = 60 * trained / course.seconds
        said.append(
            f"throughput: {trained} epochs, {pace:.1f} a minute; {rate:,.0f} images/s in training (median)"
        )
    if found := warning_counts(course):
        said.append("warnings: " + ", ".join(f"{name} in {many}" for name, many in found.items()))
    left = course.seconds_left if course.status == "running" else 0.0
    ahead = (
        ""
        if course.status != "running"
        else ", time left not known yet"
        if left is None
        else f", about {format_duration(left)} left"
    )
    said.append(f"time: {format_duration(course.seconds)} with {course.slots} at once{ahead}")
    said.append(f"cost: {cost_text(course, left or 0.0)}")
    return said


def cost_text(course: SweepHistory, left: float) -> str:
    """What was spent, and at this pace what `left` seconds will cost."""
    units = {"cpu_hours": "CPU hours", "gpu_hours": "GPU hours", "money": "by the spec's prices"}
    parts = [f"{value:.3g} {units[kind]}" for kind, value in course.cost.items() if value]
    text = ", ".join(parts) or "nothing yet"
    if left and course.seconds:
        ahead = [
            f"{value * left / course.seconds:.3g} {units[kind]}"
            for kind, value in course.cost.items()
            if value
        ]
        text += f"; about {', '.join(ahead)} more"
    return text


def screen(course: SweepHistory) -> RenderableType:
    """The same for a terminal, with the leading trials and those that run."""
    names = list(course.spec.space)
    table = Table(title="best so far, and what runs", title_justify="left", expand=False)
    for name in ("trial", course.spec.metric, "trained", "state", *names, "warnings"):
        table.add_column(
            name, justify="right" if name in ("trial", course.spec.metric, "trained") else "left"
        )
    leaders = course.leaders[:ROWS]
    running = [trial for trial in course.trials if trial.state == "running" and trial not in leaders]
    for trial in [*leaders, *running]:
        table.add_row(
            str(trial.number),
            format_metric(course.spec.metric, trial.value),
            f"{trial.epochs_done}/{trial.epochs}",
            trial.state,
            *(format_value(trial.params.get(name, "")) for name in names),
            ", ".join(name.partition(".")[2] for name in trial.warnings),
        )
    return Group(*map(Text, lines(course)), table)
