"""Sweeps side by side, as text, JSON, and one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from binsweep.search.history.comparison import Comparison, Group, Mean, Point, mean_of
from binsweep.search.report.axis import Axis, axis_around
from binsweep.search.report.page import write_page_file
from binsweep.search.report.svg_charts import BLUE, GREEN, GREY, ORANGE, RED, Chart
from binsweep.search.terminal.format import format_duration, format_metric, format_value

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)
MAX_GROUPS = len(COLOURS)


def write_comparison(found: Comparison, page: Path) -> None:
    """Write the page atomically. Raises UserError if it cannot be written."""
    charts = [_chart(found, axis) for axis in found.axes]
    write_page_file(page, TEMPLATE, {**comparison_contents(found), "charts": charts})


def comparison_text(found: Comparison) -> str:
    """The comparison for a terminal."""
    lines = [f"best {found.metric} ({_goal(found)}):"]
    for letter, group in zip(ascii_uppercase, found.groups, strict=False):
        lines.append(f"  {letter}  {group.name}: {_best(found, group)}")
    lines.append("at equal amounts:")
    for point in found.points:
        means = ", ".join(
            f"{letter} {format_mean(found.metric, mean)}"
            for letter, mean in zip(ascii_uppercase, point.means, strict=False)
        )
        lines.append(f"  after {format_amount(point.axis, point.amount)}: {means}")
        for letter, gain in zip(ascii_uppercase[1:], point.gains[1:], strict=False):
            if gain is not None and gain.interval is not None:
                lines.append(f"    {letter} is better than A by {format_gain(found.metric, gain)}")
    moved = [parameter for parameter in found.parameters if parameter.has_moved]
    if moved:
        lines.append("the best trials differ in:")
        for parameter in moved:
            values = "; ".join(
                f"{letter} {', '.join(map(format_value, best))}"
                for letter, best in zip(ascii_uppercase, parameter.best, strict=False)
            )
            lines.append(f"  {parameter.name}: {values}")
    for key, said in found.differences:
        told = "; ".join(f"{letter} {value}" for letter, value in zip(ascii_uppercase, said, strict=False))
        lines.append(f"the specs differ in {key}: {told}")
    return "\n".join([*lines, *(f"note: {warning}" for warning in found.warnings)])


def comparison_json(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values."""
    return {
        "metric": found.metric,
        "goal": _goal(found),
        "groups": [
            {
                "sweeps": [sweep.id for sweep in group.sweeps],
                "best": [sweep.leaders[0].value for sweep in group.sweeps],
                "totals": [{axis: course.total(axis) for axis in found.axes} for course in group.courses],
            }
            for group in found.groups
        ],
        "points": [asdict(point) for point in found.points],
        "parameters": [{**asdict(one), "has_moved": one.has_moved} for one in found.parameters],
        "differences": dict(found.differences),
        "warnings": found.warnings,
    }


def format_mean(metric: str, mean: Mean | None) -> str:
    """A mean with its interval, if it has one; that of an accuracy ends at 0 and 100 %."""
    if mean is None:
        return "nothing yet"
    text = format_metric(metric, mean.value)
    if mean.interval is None:
        return text
    ends = [min(max(end, 0.0), 1.0) if "accuracy" in metric else end for end in mean.interval]
    low, high = (format_metric(metric, end) for end in ends)
    return f"{text} ({low} to {high})"


def format_gain(metric: str, gain: Mean | None) -> str:
    """By how much one group is better than another: accuracies in percentage points, others in the metric's unit."""
    if gain is None:
        return "-"
    scale, digits, unit = (100, 1, " points") if "accuracy" in metric else (1, 3, "")
    text = f"{gain.value * scale:+.{digits}f}{unit}"
    if gain.interval is None:
        return text
    low, high = (f"{end * scale:+.{digits}f}" for end in gain.interval)
    return f"{text} ({low} to {high})"


def format_amount(axis: str, amount: float) -> str:
    """What was spent: 12 trials, 40 s, 0.031 CPU hours."""
    if axis == "seconds":
        return format_duration(amount)
    if axis in ("trials", "epochs"):
        return f"{amount:,.0f} {axis}"
    return f"{amount:.3g} {'of ' * (axis == 'money')}{_cost_name(axis)}"


def _cost_name(cost: str) -> str:
    return {"money": "money", "gpu_hours": "GPU hours", "cpu_hours": "CPU hours"}[cost]


def _goal(found: Comparison) -> str:
    return "maximize" if found.sign > 0 else "minimize"


def _best(found: Comparison, group: Group) -> str:
    values = [sweep.leaders[0].value or 0.0 for sweep in group.sweeps]
    return format_mean(found.metric, mean_of(values))


def comparison_contents(found: Comparison) -> dict[str, Any]:
    """What a page says about a comparison, as text."""
    groups = [
        {
            "letter": letter,
            "colour": colour,
            "name": group.name,
            "best": _best(found, group),
            "trials": _totals(group, "trials"),
            "epochs": _totals(group, "epochs"),
            "time": ", ".join(format_duration(course.total("seconds")) for course in group.courses),
            "cost": ", ".join(f"{course.total(found.cost):.3g}" for course in group.courses),
        }
        for letter, colour, group in zip(ascii_uppercase, COLOURS, found.groups, strict=False)
    ]
    parameters = [
        {
            "name": one.name,
            "moved": one.has_moved,
            "cells": [
                (", ".join(map(format_value, best)), searched)
                for best, searched in zip(one.best, one.searched, strict=True)
            ],
        }
        for one in found.parameters
    ]
    return {
        "goal": _goal(found),
        "metric": found.metric,
        "cost": _cost_name(found.cost),
        "groups": groups,
        "warnings": found.warnings,
        "rows": [_row(found.metric, point) for point in found.points],
        "parameters": parameters,
        "differences": found.differences,
    }


def _totals(group: Group, axis: str) -> str:
    return ", ".join(f"{course.total(axis):,.0f}" for course in group.courses)


def _row(metric: str, point: Point) -> dict[str, Any]:
    return {
        "amount": format_amount(point.axis, point.amount),
        "means": [format_mean(metric, mean) for mean in point.means],
        "gains": [format_gain(metric, gain) for gain in point.gains],
    }


def _chart(found: Comparison, axis: str) -> str:
    """The best value so far of each sweep over what it has spent."""
    courses: Sequence[tuple[str, Any]] = [
        (colour, course)
        for colour, group in zip(COLOURS, found.groups, strict=False)
        for course in group.courses
    ]
    most = max(course.total(axis) for _, course in courses)
    in_minutes = axis == "seconds" and most > 180
    unit = 60.0 if in_minutes else 1.0
    name = {"trials": "trials begun", "seconds": "minutes" if in_minutes else "seconds"}.get(axis)
    values = [value for _, course in courses for value in course.values]
    chart = Chart(
        Axis(0, most / unit or 1),
        axis_around(values, "accuracy" in found.metric),
        (name or axis.replace("_", " "), found.metric),
        width=560,
        height=280,
    )
    for colour, course in courses:
        points = [
            (amount / unit, value) for amount, value in zip(course.amounts[axis], course.values, strict=True)
        ]
        chart.line(points, colour, width=2, steps=True)
    return chart.svg()
