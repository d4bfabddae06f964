"""A sweep's history as DataFrames, and as HTML for a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from binsweep.search.history.comparison import Comparison, Mean
from binsweep.search.history.run_log_reader import read_epochs
from binsweep.search.history.sweep_history import SweepHistory
from binsweep.search.report.status import format_lines

MAX_ROWS = 10  # of the leaderboard in a notebook


def leaderboard_frame(history: SweepHistory) -> pd.DataFrame:
    """The trials with a result, best first: trial, the metric at its best epoch, that epoch, state, searched values."""
    columns = ["trial", history.spec.metric, "epoch", "state"]
    names = list(history.spec.space)
    rows = [
        [trial.number, trial.value, trial.epoch, trial.state, *(trial.params.get(name) for name in names)]
        for trial in history.leaders
    ]
    return pd.DataFrame(rows, columns=[*columns, *_searched(names, columns)])


def trials_frame(history: SweepHistory) -> pd.DataFrame:
    """All trials by number: state, the metric at its best epoch, that epoch, the epochs trained and planned, seconds
    with a worker, searched values, and why it was suggested and why it ended."""
    columns = ["state", history.spec.metric, "epoch", "epochs_done", "epochs_planned", "seconds"]
    names, ends = list(history.spec.space), ["suggested", "reason"]
    rows = [
        [
            *(trial.state, trial.value, trial.epoch, trial.epochs_done, trial.epochs, trial.seconds),
            *(trial.params.get(name) for name in names),
            *(trial.suggested, trial.reason),
        ]
        for trial in history.trials
    ]
    index = pd.Index([trial.number for trial in history.trials], name="trial")
    searched = _searched(names, ["trial", *columns, *ends])
    return pd.DataFrame(rows, index=index, columns=[*columns, *searched, *ends])


def epochs_frame(folder: Path) -> pd.DataFrame:
    """Every metric of every epoch of every trial: trial, epoch, and one column per metric."""

    def rows() -> Iterator[dict[str, Any]]:
        for trial, epoch, metrics in read_epochs(folder):
            yield {"trial": trial, "epoch": epoch, **metrics}

    frame = pd.DataFrame(rows())
    if frame.empty:
        return pd.DataFrame(columns=["trial", "epoch"])
    # A lost worker's epochs are reported again: the last report counts, as in MLflow.
    return frame.drop_duplicates(["trial", "epoch"], keep="last").sort_values(
        ["trial", "epoch"], ignore_index=True
    )


def comparison_frame(found: Comparison) -> pd.DataFrame:
    """Each group after equal amounts: axis, amount, group (from 1), the mean of its sweeps and its interval, what it is
    better than the first group by, and that interval."""
    columns = ["axis", "amount", "group", "mean", "low", "high", "gain", "gain_low", "gain_high"]
    rows = [
        [point.axis, point.amount, group, *_with_interval(mean), *_with_interval(gain)]
        for point in found.points
        for group, (mean, gain) in enumerate(zip(point.means, point.gains, strict=True), 1)
    ]
    return pd.DataFrame(rows, columns=columns)


def _with_interval(mean: Mean | None) -> tuple[float, float, float]:
    if mean is None:
        return (math.nan, math.nan, math.nan)
    return (mean.value, *(mean.interval or (math.nan, math.nan)))


def moved_frame(found: Comparison) -> pd.DataFrame:
    """The values of each sweep's best trial: one row per searched name, whether it has moved, one column per sweep."""
    columns = ["has_moved", *(sweep.id for group in found.groups for sweep in group.sweeps)]
    rows = [[one.has_moved, *(value for best in one.best for value in best)] for one in found.parameters]
    names = pd.Index([one.name for one in found.parameters], name="parameter")
    return pd.DataFrame(rows, index=names, columns=columns)


def as_html(history: SweepHistory) -> str:
    """A sweep's state and the head of its leaderboard."""
    lines = "<br>".join(html.escape(line) for line in format_lines(history))
    frame = leaderboard_frame(history)
    table = frame.head(MAX_ROWS).to_html(index=False, border=0) if len(frame) else ""
    more = f"<p>and {len(frame) - MAX_ROWS} more trials</p>" if len(frame) > MAX_ROWS else ""
    return f"<div><p>{lines}</p>{table}{more}</div>"


def _searched(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The columns of searched values; own code may have searched one that is called like another column."""
    return [f"params.{name}" if name in taken else name for name in names]
