"""Everything about one trial, as text and JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from binsweep.search.history.decisions import read_decisions
from binsweep.search.history.run_keys import trial_key
from binsweep.search.history.run_log_reader import epochs_of_trial
from binsweep.search.history.sweep_history import SweepHistory, TrialHistory
from binsweep.search.terminal.format import format_duration, format_metric, format_value

MAX_COLUMNS = 6  # metrics of an epoch, beside the objective


def trial_json(
    history: SweepHistory,
    trial: TrialHistory,
    folder: Path,
    metrics: Mapping[int, Mapping[str, float | None]] | None = None,
) -> dict[str, Any]:
    """A trial as plain values: what it is, its metrics by epoch, what was decided about it; `metrics` are read where
    the caller has not read them."""
    return {
        "sweep": history.id,
        "trial": trial.number,
        "state": trial.state,
        "params": trial.params,
        "suggested_because": trial.suggested,
        "ended_because": trial.reason,
        "metric": history.spec.metric,
        "value": trial.value,
        "epoch": trial.epoch,
        "epochs_done": trial.epochs_done,
        "epochs": trial.epochs,
        "seconds": trial.seconds,
        "level": history.level_of(trial),
        "warnings": trial.warnings,
        "metrics": epochs_of_trial(folder, trial.number) if metrics is None else metrics,
        "decisions": read_decisions(folder, trial.number),
    }


def trial_text(history: SweepHistory, trial: TrialHistory, folder: Path) -> str:
    """A trial for a terminal."""
    found, metric = trial_json(history, trial, folder), history.spec.metric
    head = f"{history.id}, trial {trial.number}: {trial.state} after {trial.epochs_done} of {trial.epochs} epochs"
    lines = [head]
    if trial.epoch:
        lines.append(f"best: {metric} {format_metric(metric, trial.value)} at epoch {trial.epoch}")
    values = ", ".join(f"{name} {format_value(value)}" for name, value in trial.params.items())
    lines += [f"values: {values}", f"tried because: {trial.suggested}"]
    if trial.reason:
        lines.append(f"{trial.state} because: {trial.reason}")
    if found["level"]:
        lines.append(f"level: {found['level']}")
    lines.append(f"time with a worker: {format_duration(trial.seconds)}")
    lines += [f"{name}: {text}" for name, text in sorted(trial.warnings.items())]
    lines += _epoch_table(metric, found["metrics"])
    if found["decisions"]:
        lines.append("decisions:")
        for one in found["decisions"]:
            at = time.strftime("%H:%M:%S", time.localtime(one["time"]))
            lines.append(f"  {at}  epoch {one['epoch']}: {one['what']} ({one['reason']})")
    own = folder / trial_key(trial.number)
    return "\n".join([*lines, f"files: {own}"] if own.exists() else lines)


def _epoch_table(metric: str, epochs: dict[int, dict[str, float]]) -> list[str]:
    """A line for each epoch with the objective and the first other metrics."""
    if not epochs:
        return []
    names = dict.fromkeys(name for metrics in epochs.values() for name in metrics if "/" not in name)
    shown = [metric, *[name for name in names if name != metric][:MAX_COLUMNS]]
    width = max(10, *(len(name) for name in shown))
    lines = ["epoch  " + "  ".join(f"{name:>{width}}" for name in shown)]
    for epoch, metrics in sorted(epochs.items()):
        cells = (f"{metrics[name]:>{width}.4g}" if name in metrics else " " * width for name in shown)
        lines.append(f"{epoch:>5}  " + "  ".join(cells))
    return lines
