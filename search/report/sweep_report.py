"""The sweep report: one self-contained page about a sweep, for people."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from binsweep.models.profiler import PHASES
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_history import SweepHistory, TrialHistory, throughput
from binsweep.search.report import fidelity
from binsweep.search.report.advice import balance, importances, improvements, next_steps, verdict
from binsweep.search.report.axis import Axis, axis_around, axis_of, axis_value
from binsweep.search.report.page import write_page_file
from binsweep.search.report.svg_charts import BLUE, GREEN, GREY, ORANGE, RED, Chart, parallel, shade
from binsweep.search.spec.sweep_spec import PhotoSpec
from binsweep.search.terminal.format import format_duration, format_metric, format_value

PAGE_NAME = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
STATE_COLOURS = {"completed": BLUE, "stopped": ORANGE, "failed": RED, "running": GREEN}


def write_report(folder: Path, ended_by: str = "", out: Path | None = None) -> Path:
    """Write report.html atomically into a sweep's folder, or to `out`, and return its path.

    With `ended_by` the sweep counts as finished, although its state file does not say so yet. Raises UserError if the
    file cannot be written.
    """
    page = out or folder / PAGE_NAME
    write_page_file(page, TEMPLATE, contents(read_history(folder, ended_by)))
    return page


def describe(folder: Path, ended_by: str = "") -> str:
    """A Markdown summary of the sweep with what to try next, shown by MLflow above the parent run."""
    history = read_history(folder, ended_by)
    spec = history.spec
    steps = [f"- {step}" for step in next_steps(history, importances(history))]
    head = f"{spec.goal} {spec.metric} over {', '.join(spec.space)}"
    return "\n\n".join([head, " ".join(verdict(history)), "What to try next:\n\n" + "\n".join(steps)])


def contents(history: SweepHistory) -> dict[str, Any]:
    """The variables of the page's template."""
    metric = history.spec.metric
    weights = importances(history)
    leaders = history.leaders
    names = list(history.spec.space)
    shown = history.labelling.beside(metric) if isinstance(history.spec, PhotoSpec) else ""
    shown = "" if shown == metric else shown
    return {
        "history": history,
        "facts": _facts(history),
        "verdict": verdict(history),
        "steps": next_steps(history, weights),
        "metric": metric,
        "names": names,
        "shown": shown,
        "rows": [_row(trial, metric, shown, names) for trial in leaders],
        "best_so_far": _best_so_far(history),
        "curves": _curves(history),
        "levels": fidelity.summaries(history),
        "level_chart": fidelity.chart(history),
        "parallel": _parallel(history),
        "weights": weights,
        "slices": [_slice(history, name) for name in weights or names],
        "pair": _pair(history, list(weights or names)),
        "timeline": _timeline(history),
        "balance": balance(history),
        "phases": _phases(history),
        "warnings": _warnings(history),
        "failures": Counter(
            t.reason.partition(":")[0] or "unknown" for t in history.trials if t.state == "failed"
        ),
        "failed": [trial for trial in history.trials if trial.state == "failed"],
        "requests": [
            {
                "when": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.request.when)),
                "who": one.request.who,
                "asked": str(one.request),
                "granted": one.granted,
                "answer": one.answer,
            }
            for one in history.answers
        ],
        "trials": json.dumps({trial.number: _tooltip(trial, metric) for trial in history.trials}).replace(
            "<", "\\u003c"
        ),
    }


def _facts(history: SweepHistory) -> list[tuple[str, str]]:
    states = Counter(trial.state for trial in history.trials)
    cost = history.cost
    spent = f"{cost['cpu_hours']:.3g} CPU hours"
    spent += f", {cost['gpu_hours']:.3g} GPU hours" if cost["gpu_hours"] else ""
    spent += f"; {cost['money']:.3g} by the spec's prices" if "money" in cost else ""
    ended = {"running": "it is running", "unfinished": "cut short: the same command goes on"}.get(
        history.status, f"finished ({history.ended_by})"
    )
    rate = throughput(history)
    return [
        ("state", ended),
        (
            "trials",
            f"{len(history.trials)}: "
            + ", ".join(f"{number} {state}" for state, number in states.most_common()),
        ),
        ("epochs trained", f"{sum(trial.epochs_done for trial in history.trials):,}"),
        (
            "time",
            f"{format_duration(history.seconds)} with {history.slots} worker{'s' if history.slots != 1 else ''}",
        ),
        ("cost", spent),
        ("speed", f"{rate:,.0f} images/s in training (median trial)" if rate else "-"),
        ("data", history.spec.source),
    ]


def _row(trial: TrialHistory, metric: str, shown: str, names: list[str]) -> dict[str, Any]:
    return {
        "trial": trial,
        "value": format_metric(metric, trial.value),
        "sort": trial.value,
        "shown": trial.best.get(shown, math.nan),
        "params": [(format_value(value), value) for value in (trial.params.get(name, "") for name in names)],
        "warnings": [name.partition(".")[2].replace("_", " ") for name in trial.warnings],
    }


def _tooltip(trial: TrialHistory, metric: str) -> str:
    """The tooltip of a trial."""
    params = "\n".join(f"{name}: {format_value(value)}" for name, value in trial.params.items())
    value = (
        f"{metric} {format_metric(metric, trial.value)} at epoch {trial.epoch}"
        if trial.epoch
        else "no result"
    )
    reason = f" ({trial.reason})" if trial.reason else ""
    state = f"{trial.state} after {trial.epochs_done} of {trial.epochs} epochs{reason}"
    return f"trial {trial.number}: {value}\n{state}\n{params}"


def _values(history: SweepHistory) -> Axis:
    """The metric's axis, over the best values of all trials."""
    values = [trial.value for trial in history.leaders if trial.value is not None]
    return axis_around(values, percent="accuracy" in history.spec.metric)


def _best_so_far(history: SweepHistory) -> list[str]:
    """The best value so far over trials, time and cost, with every trial as a point."""
    leaders, metric = history.leaders, history.spec.metric
    if not leaders:
        return []
    y, objective = _values(history), history.spec.objective
    begun = sorted(
        history.trials, key=lambda trial: trial.intervals[0].start if trial.intervals else math.inf
    )
    order = {trial.number: float(place) for place, trial in enumerate(begun, 1)}
    reached = {trial.number: history.active_seconds_until(trial.times[trial.epoch]) for trial in leaders}
    by_trial: list[tuple[float, float, int]] = []
    for trial in sorted(leaders, key=lambda trial: order[trial.number]):
        best = by_trial[-1][1] if by_trial else None
        if trial.value is not None and objective.is_better(trial.value, best):
            by_trial.append((order[trial.number], trial.value, trial.number))
    by_time = [(at, value, number) for at, _, value, number in improvements(history)]
    unit, name = (60.0, "minutes") if history.seconds > 180 else (1.0, "seconds")
    cost = history.cost
    kind = "money" if "money" in cost else "gpu_hours" if cost["gpu_hours"] else "cpu_hours"
    price = cost[kind] / history.seconds if history.seconds else 0.0
    charts = []
    for title, end, line, scale in (
        ("trials begun", float(len(order)), by_trial, None),
        (name, history.seconds / unit, by_time, 1 / unit),
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


def _curves(history: SweepHistory) -> str:
    """Learning curves; a cross where a trial was stopped before its end, the best trial on top."""
    leaders, metric = history.leaders, history.spec.metric
    if not leaders:
        return ""
    every = [value for trial in history.trials for value in trial.curve.values() if math.isfinite(value)]
    last = max(trial.epochs_done for trial in history.trials)
    chart = Chart(
        Axis(0.5, last + 0.5),
        axis_around(every, "accuracy" in metric),
        ("epoch", metric),
        width=1160,
        height=380,
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


def _parallel(history: SweepHistory) -> str:
    leaders = history.leaders
    if len(leaders) < 2:
        return ""
    whole = [trial for trial in leaders if trial.params.keys() == history.spec.space.keys()]
    rows = [(trial.number, trial.params, trial.value or 0.0) for trial in whole]
    return parallel(
        history.spec.space, rows, _values(history), history.spec.metric, history.spec.objective.sign > 0
    )


def _slice(history: SweepHistory, name: str) -> str:
    """One parameter against the value; later trials are darker."""
    dimension = history.spec.space[name]
    chart = Chart(axis_of(dimension), _values(history), (name, history.spec.metric), width=380, height=250)
    last = max((trial.number for trial in history.trials), default=0) or 1
    choices = len(chart.x.words)
    for trial in history.leaders:
        if name not in trial.params:  # an inactive conditional parameter
            continue
        x = axis_value(dimension, trial.params[name])
        if choices:  # spread by number, so that equal points do not hide each other
            x += 0.5 * ((trial.number * 0.618) % 1 - 0.5)
        chart.dot(x, trial.value or 0.0, shade(0.15 + 0.85 * trial.number / last), trial.number)
    return chart.svg()


def _pair(history: SweepHistory, names: list[str]) -> tuple[str, str, str] | None:
    """The two most important parameters: trials coloured by value, over contours of the value."""
    if len(names) < 2 or not history.leaders:
        return None
    across, up = names[:2]
    space, y = history.spec.space, _values(history)
    high = history.spec.objective.sign > 0
    chart = Chart(axis_of(space[across]), axis_of(space[up]), (across, up), width=760, height=340, left=120)
    shown = [trial for trial in reversed(history.leaders) if {across, up} <= trial.params.keys()]
    places = [
        (axis_value(space[across], trial.params[across]), axis_value(space[up], trial.params[up]))
        for trial in shown
    ]
    values = [y.place(trial.value or 0.0) for trial in shown]
    goodness = values if high else [1 - value for value in values]
    if shown:
        chart.contours(places, goodness)
    for trial, (x, z), good in zip(shown, places, goodness, strict=True):
        spread = 0.5 * ((trial.number * 0.618) % 1 - 0.5)  # so that equal points do not hide each other
        x += spread if chart.x.words else 0
        z += spread if chart.y.words else 0
        chart.dot(x, z, shade(good), trial.number, 5)
    return across, up, chart.svg()


def _timeline(history: SweepHistory) -> str:
    """Which worker had which trial when, without breaks of the sweep."""
    intervals = [(interval, trial) for trial in history.trials for interval in trial.intervals]
    if not intervals:
        return ""
    lanes = max(interval.lane for interval, _ in intervals) + 1
    words = tuple(f"worker {lane + 1}" for lane in range(lanes))
    unit, name = (60.0, "minutes") if history.seconds > 180 else (1.0, "seconds")
    x = Axis(0, history.seconds / unit or 1)
    chart = Chart(x, Axis(-0.5, lanes - 0.5, words=words), (name, ""), 1160, 60 + 26 * lanes, left=84)
    for interval, trial in intervals:
        start, end = (history.active_seconds_until(at) / unit for at in (interval.start, interval.end))
        chart.bar(start, end, interval.lane, 0.7, STATE_COLOURS.get(trial.state, GREY), trial.number)
    return chart.svg()


def _phases(history: SweepHistory) -> list[tuple[str, float, float]]:
    """The phases of a training step: (phase, milliseconds, share), medians over the trials' last epochs."""
    last = [trial.last for trial in history.trials if trial.last]
    spent = {
        phase: statistics.median(found)
        for phase in PHASES
        if (found := [metrics[name] for metrics in last if (name := f"profile/{phase}_ms") in metrics])
    }
    total = sum(spent.values()) or 1.0
    return [(phase, value, value / total) for phase, value in spent.items()]


def _warnings(history: SweepHistory) -> list[dict[str, Any]]:
    """Each rule with warnings: its trials, and the text of the best one."""
    found = []
    names = Counter(name for trial in history.trials for name in trial.warnings)
    best_first = [
        *history.leaders,
        *(trial for trial in history.trials if trial.value is None or trial.state == "failed"),
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
