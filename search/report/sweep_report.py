"""The sweep report: one self-contained page about a sweep, for people."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment

from binsweep.data.atomic_write import write_bytes
from binsweep.data.errors import UserError
from binsweep.models.profiler import PHASES
from binsweep.search.history.sweep_history import SweepHistory, TrialHistory, read_course, throughput
from binsweep.search.report.advice import balance, importances, improvements, next_steps, verdict
from binsweep.search.report.svg_charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Axis,
    Chart,
    axis_of,
    on_axis,
    parallel,
    shade,
    span,
)
from binsweep.search.terminal.format import format_duration, format_metric, format_value

PAGE = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
COLOURS = {"completed": BLUE, "stopped": ORANGE, "failed": RED, "running": GREEN}


def write_report(folder: Path, ended_by: str = "", out: Path | None = None) -> Path:
    """Write report.html into a sweep's folder, or to `out`, beside and renamed; returns its path.

    `ended_by` says that the sweep is over although its state does not say so yet. Raises UserError where nobody
    may write.
    """
    page = out or folder / PAGE
    layout = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = layout.render(**contents(read_course(folder, ended_by)))
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(page, text.encode())
    except OSError as error:
        raise UserError(f"{page}: {error.strerror}", "name a place where you may write") from error
    return page


def describe(folder: Path, ended_by: str = "") -> str:
    """The sweep in a few sentences of Markdown, with what to try next: MLflow shows it above the parent run."""
    course = read_course(folder, ended_by)
    spec = course.spec
    steps = [f"- {step}" for step in next_steps(course, importances(course))]
    head = f"{spec.goal} {spec.metric} over {', '.join(spec.space)}"
    return "\n\n".join([head, " ".join(verdict(course)), "What to try next:\n\n" + "\n".join(steps)])


def contents(course: SweepHistory) -> dict[str, Any]:
    """All that the page shows, ready to be laid out."""
    metric = course.spec.metric
    weights = importances(course)
    leaders = course.leaders
    names = list(course.spec.space)
    return {
        "course": course,
        "facts": _facts(course),
        "verdict": verdict(course),
        "steps": next_steps(course, weights),
        "metric": metric,
        "names": names,
        "rows": [_row(trial, metric, names) for trial in leaders],
        "best_so_far": _best_so_far(course),
        "curves": _curves(course),
        "parallel": _parallel(course),
        "weights": weights,
        "slices": [_slice(course, name) for name in weights or names],
        "pair": _pair(course, list(weights or names)),
        "timeline": _timeline(course),
        "balance": balance(course),
        "phases": _phases(course),
        "warnings": _warnings(course),
        "failures": Counter(
            t.reason.partition(":")[0] or "unknown" for t in course.trials if t.state == "failed"
        ),
        "failed": [trial for trial in course.trials if trial.state == "failed"],
        "trials": json.dumps({trial.number: _said(trial, metric) for trial in course.trials}).replace(
            "<", "\\u003c"
        ),
    }


def _facts(course: SweepHistory) -> list[tuple[str, str]]:
    states = Counter(trial.state for trial in course.trials)
    cost = course.cost
    spent = f"{cost['cpu_hours']:.3g} CPU hours"
    spent += f", {cost['gpu_hours']:.3g} GPU hours" if cost["gpu_hours"] else ""
    spent += f"; {cost['money']:.3g} by the spec's prices" if "money" in cost else ""
    ended = {"running": "it is running", "unfinished": "cut short: the same command goes on"}.get(
        course.status, f"finished ({course.ended_by})"
    )
    rate = throughput(course)
    return [
        ("state", ended),
        (
            "trials",
            f"{len(course.trials)}: "
            + ", ".join(f"{number} {state}" for state, number in states.most_common()),
        ),
        ("epochs trained", f"{sum(trial.epochs_done for trial in course.trials):,}"),
        (
            "time",
            f"{format_duration(course.seconds)} with {course.slots} worker{'s' if course.slots != 1 else ''}",
        ),
        ("cost", spent),
        ("speed", f"{rate:,.0f} images/s in training (median trial)" if rate else "-"),
        ("data", str(course.spec.data.source)),
    ]


def _row(trial: TrialHistory, metric: str, names: list[str]) -> dict[str, Any]:
    return {
        "trial": trial,
        "value": format_metric(metric, trial.value),
        "sort": trial.value,
        "rmse": trial.best.get("val_rmse", math.nan),
        "params": [(format_value(value), value) for value in (trial.params.get(name, "") for name in names)],
        "warnings": [name.partition(".")[2].replace("_", " ") for name in trial.warnings],
    }


def _said(trial: TrialHistory, metric: str) -> str:
    """What the page says of a trial under the mouse."""
    params = "\n".join(f"{name}: {format_value(value)}" for name, value in trial.params.items())
    value = (
        f"{metric} {format_metric(metric, trial.value)} at epoch {trial.epoch}"
        if trial.epoch
        else "no result"
    )
    reason = f" ({trial.reason})" if trial.reason else ""
    state = f"{trial.state} after {trial.epochs_done} of {trial.epochs} epochs{reason}"
    return f"trial {trial.number}: {value}\n{state}\n{params}"


def _values(course: SweepHistory) -> Axis:
    """The axis of the metric over whole trials, its range that of their best values."""
    values = [trial.value for trial in course.leaders if trial.value is not None]
    return span(values, percent="accuracy" in course.spec.metric)


def _best_so_far(course: SweepHistory) -> list[str]:
    """Best value over trials, over time and over cost, every trial as a point behind."""
    leaders, metric = course.leaders, course.spec.metric
    if not leaders:
        return []
    y, sign = _values(course), 1 if course.spec.goal == "maximize" else -1
    begun = sorted(course.trials, key=lambda trial: trial.stretches[0].start if trial.stretches else math.inf)
    order = {trial.number: float(place) for place, trial in enumerate(begun, 1)}
    reached = {trial.number: course.since_start(trial.times[trial.epoch]) for trial in leaders}
    by_trial: list[tuple[float, float, int]] = []
    for trial in sorted(leaders, key=lambda trial: order[trial.number]):
        if trial.value is not None and (not by_trial or sign * trial.value > sign * by_trial[-1][1]):
            by_trial.append((order[trial.number], trial.value, trial.number))
    by_time = [(at, value, number) for at, _, value, number in improvements(course)]
    unit, name = (60.0, "minutes") if course.seconds > 180 else (1.0, "seconds")
    cost = course.cost
    kind = "money" if "money" in cost else "gpu_hours" if cost["gpu_hours"] else "cpu_hours"
    price = cost[kind] / course.seconds if course.seconds else 0.0
    charts = []
    for title, end, line, scale in (
        ("trials begun", float(len(order)), by_trial, None),
        (name, course.seconds / unit, by_time, 1 / unit),
        (kind.replace("_", " "), cost[kind], by_time, price),
    ):
        chart = Chart(Axis(0, end or 1), y, (title, metric), width=380, height=260)
        for trial in leaders:
            x = order[trial.number] if scale is None else reached[trial.number] * scale
            chart.dot(x, trial.value or 0.0, GREY, trial.number, 2.5)
        steps = [(x * (scale or 1), value, number) for x, value, number in line]
        chart.line([*((x, value) for x, value, _ in steps), (end, steps[-1][1])], BLUE, width=2, steps=True)
        for x, value, number in steps:
            chart.dot(x, value, BLUE, number)
        charts.append(chart.svg())
    return charts


def _curves(course: SweepHistory) -> str:
    """Learning curves; a cross where a trial was stopped before its end, the best trial on top."""
    leaders, metric = course.leaders, course.spec.metric
    if not leaders:
        return ""
    every = [value for trial in course.trials for value in trial.curve.values() if math.isfinite(value)]
    last = max(trial.epochs_done for trial in course.trials)
    chart = Chart(
        Axis(0.5, last + 0.5), span(every, "accuracy" in metric), ("epoch", metric), width=1160, height=380
    )
    for trial in [*reversed(leaders), leaders[0]]:
        top = trial is leaders[0]
        points = sorted(trial.curve.items())
        full = trial.epochs_done >= trial.epochs
        colour = BLUE if top else "#8fb0d3" if full else GREY
        chart.line(
            [(float(epoch), value) for epoch, value in points], colour, trial.number, 2.5 if top else 1.2
        )
        end = (float(points[-1][0]), points[-1][1])
        chart.dot(*end, colour if full else ORANGE, trial.number, 3, cross=not full)
    return chart.svg()


def _parallel(course: SweepHistory) -> str:
    leaders = course.leaders
    if len(leaders) < 2:
        return ""
    whole = [trial for trial in leaders if trial.params.keys() == course.spec.space.keys()]
    rows = [(trial.number, trial.params, trial.value or 0.0) for trial in whole]
    return parallel(
        course.spec.space, rows, _values(course), course.spec.metric, course.spec.goal == "maximize"
    )


def _slice(course: SweepHistory, name: str) -> str:
    """One parameter against the value; the later a trial began, the darker."""
    dimension = course.spec.space[name]
    chart = Chart(axis_of(dimension), _values(course), (name, course.spec.metric), width=380, height=250)
    last = max((trial.number for trial in course.trials), default=0) or 1
    choices = len(chart.x.words)
    for trial in course.leaders:
        if name not in trial.params:  # it depends on another one's value
            continue
        x = on_axis(dimension, trial.params[name])
        if choices:  # spread by number, so that equal ones do not hide one another
            x += 0.5 * ((trial.number * 0.618) % 1 - 0.5)
        chart.dot(x, trial.value or 0.0, shade(0.15 + 0.85 * trial.number / last), trial.number)
    return chart.svg()


def _pair(course: SweepHistory, names: list[str]) -> tuple[str, str, str] | None:
    """The two parameters that matter most against one another: trials, coloured by value, over contours of it."""
    if len(names) < 2 or not course.leaders:
        return None
    across, up = names[:2]
    space, y = course.spec.space, _values(course)
    high = course.spec.goal == "maximize"
    chart = Chart(axis_of(space[across]), axis_of(space[up]), (across, up), width=760, height=340, left=120)
    shown = [trial for trial in reversed(course.leaders) if {across, up} <= trial.params.keys()]
    places = [
        (on_axis(space[across], trial.params[across]), on_axis(space[up], trial.params[up]))
        for trial in shown
    ]
    values = [y.place(trial.value or 0.0) for trial in shown]
    goodness = values if high else [1 - value for value in values]
    if shown:
        chart.contours(places, goodness)
    for trial, (x, z), good in zip(shown, places, goodness, strict=True):
        spread = 0.5 * ((trial.number * 0.618) % 1 - 0.5)  # so that equal ones do not hide one another
        x += spread if chart.x.words else 0
        z += spread if chart.y.words else 0
        chart.dot(x, z, shade(good), trial.number, 5)
    return across, up, chart.svg()


def _timeline(course: SweepHistory) -> str:
    """Which worker had which trial when; breaks of the sweep are cut out."""
    stretches = [(stretch, trial) for trial in course.trials for stretch in trial.stretches]
    if not stretches:
        return ""
    lanes = max(stretch.lane for stretch, _ in stretches) + 1
    words = tuple(f"worker {lane + 1}" for lane in range(lanes))
    unit, name = (60.0, "minutes") if course.seconds > 180 else (1.0, "seconds")
    x = Axis(0, course.seconds / unit or 1)
    chart = Chart(x, Axis(-0.5, lanes - 0.5, words=words), (name, ""), 1160, 60 + 26 * lanes, left=84)
    for stretch, trial in stretches:
        start, end = (course.since_start(at) / unit for at in (stretch.start, stretch.end))
        chart.bar(start, end, stretch.lane, 0.7, COLOURS.get(trial.state, GREY), trial.number)
    return chart.svg()


def _phases(course: SweepHistory) -> list[tuple[str, float, float]]:
    """Where a training step's time goes: (phase, milliseconds, share), medians over the trials' last epochs."""
    last = [trial.last for trial in course.trials if trial.last]
    spent = {
        phase: statistics.median(found)
        for phase in PHASES
        if (found := [metrics[name] for metrics in last if (name := f"profile/{phase}_ms") in metrics])
    }
    total = sum(spent.values()) or 1.0
    return [(phase, value, value / total) for phase, value in spent.items()]


def _warnings(course: SweepHistory) -> list[dict[str, Any]]:
    """Each rule that had something to say: in which trials, and what of the best of them."""
    found = []
    names = Counter(name for trial in course.trials for name in trial.warnings)
    best_first = [
        *course.leaders,
        *(trial for trial in course.trials if trial.value is None or trial.state == "failed"),
    ]
    for name, many in names.most_common():
        trials = [trial for trial in best_first if name in trial.warnings]
        kind, _, rule = name.partition(".")
        numbers = [trial.number for trial in trials]
        found.append(
            {
                "kind": kind,
                "rule": rule,
                "many": many,
                "numbers": numbers[:12],
                "text": trials[0].warnings[name],
            }
        )
    return found
