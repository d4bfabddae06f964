"""One trial of a sweep again: as a spec of its own, and its curve against the recorded one."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from binsweep.data.errors import UserError
from binsweep.models.levels import total_epochs
from binsweep.search.execution.controller import trial_seed
from binsweep.search.history.run_keys import trial_key, trial_number
from binsweep.search.history.run_log_reader import epochs_of_trial, read_history
from binsweep.search.history.sweep_history import SweepHistory, TrialHistory
from binsweep.search.history.sweep_state import find_folder, load_state
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.sweep_spec import PhotoSpec, SweepSpec
from binsweep.search.workflows.launch import LaunchOptions, plan_sweep, require_result
from binsweep.search.workflows.preflight import Runner
from binsweep.tracking.run_tags import environment_tags
from binsweep.tracking.runlog.sender import sweep_of_run
from binsweep.tracking.runlog.spool import read_spool

RUN_ID = re.compile(r"[0-9a-f]{32}")  # of MLflow
# Relative: sums in another order (other threads, another processor) differ in the last digits of float32, and such
# differences grow from step to step.
ROUNDING = 1e-4
NOT_OF_THE_TRAINING = ("seconds", "images_per_second")  # how fast it was
ENVIRONMENT = ("device", "mlflow.source.git.commit", "git.dirty")  # tags, besides those of versions
Verdict = Literal["equal", "equal within rounding", "differs"]


@dataclass(frozen=True)
class Rerun:
    """How the same trial went again. `first` is the first epoch that differs beyond rounding, `largest` the largest
    relative difference of a metric, and `name` that metric's."""

    sweep: str
    trial: int
    again: str  # the sweep of the repetition
    verdict: Verdict
    epochs: int  # that both have
    first: int | None
    largest: float
    name: str
    differences: list[str]  # of code, versions, data and machine


def find_trial(home: Path, place: str, tracking_uri: str | None = None) -> tuple[Path, int]:
    """The sweep's folder and the number of a trial, by SWEEP/NUMBER or the id of its run at `tracking_uri`.

    Raises UserError if there is none.
    """
    sweep, slash, text = place.rpartition("/")
    if slash and text.isdigit():
        return find_folder(home, sweep), int(text)
    if not RUN_ID.fullmatch(place) or tracking_uri is None:
        hint = "SWEEP/NUMBER, such as abid-3/12" + ", or the id of its run in MLflow" * (
            tracking_uri is not None
        )
        raise UserError(f"{place!r} names no trial", hint)
    sweep, key = sweep_of_run(tracking_uri, place)
    number = trial_number(key)
    if number is None:
        raise UserError(f"the run {place} is no trial of {sweep}, but {key}", "give that of a trial")
    return find_folder(home, sweep), number


def trial_of(history: SweepHistory, number: int) -> TrialHistory:
    """A trial of a sweep. Raises UserError if there is none of this number."""
    found = next((trial for trial in history.trials if trial.number == number), None)
    if found is None:
        numbers = [trial.number for trial in history.trials]
        have = f"from {min(numbers)} to {max(numbers)}" if numbers else "none yet"
        raise UserError(f"{history.id} has no trial {number}", f"its trials: {have}")
    return found


def spec_of_trial(spec: SweepSpec, trial: TrialHistory) -> dict[str, Any]:
    """A sweep file of this trial alone, which trains it with the same seed."""
    raw: dict[str, Any] = copy.deepcopy(spec.raw)
    raw["name"] = f"{spec.name[:180]}-trial-{trial.number}"
    raw["space"] = {name: [value] for name, value in trial.params.items()}
    raw["search"] = {
        "sampler": "random",
        "stopping": "none",
        "initial_points": [],
        "seed": _seed_of_sweep(spec, trial),
    }
    raw["budget"] = {"trials": 1}
    raw.pop("notify", None)
    return raw


def _seed_of_sweep(spec: SweepSpec, trial: TrialHistory) -> int:
    """The seed of a sweep whose first trial has the seed of this one: `trial_seed`, solved for its first argument."""
    inverse = pow(trial_seed(1, 0), -1, 2**31)
    return trial_seed(spec.search.seed, trial.number) * inverse % 2**31


def rerun_trial(home: Path, place: str, runner: Runner, tracking_uri: str) -> Rerun:
    """Train a trial again, as a sweep of its own, and compare the two curves.

    Raises UserError for a trial that does not exist or has no epoch, or whose data or code cannot be read.
    """
    folder, number = find_trial(home, place, tracking_uri)
    history = read_history(folder)
    trial = trial_of(history, number)
    if not trial.curve:
        raise UserError(
            f"{history.id}, trial {number}, has reported no epoch", "there is nothing to compare with"
        )
    spec = parse_spec(spec_of_trial(history.spec, trial), f"trial {number} of {history.id}")
    planned = plan_sweep(spec, home, LaunchOptions(runner, start_new=True))
    differences = _differences(folder, trial, spec, planned.prepared.fingerprint)
    result = planned.run(tracking_uri)
    require_result(result)
    before = _epochs_of(folder, number, history.spec)
    now = _epochs_of(result.folder, 0, spec)
    return compare_curves(history.id, number, result.id, before, now, differences)


def compare_curves(
    sweep: str,
    number: int,
    again: str,
    before: Mapping[int, Mapping[str, float]],
    now: Mapping[int, Mapping[str, float]],
    differences: list[str],
) -> Rerun:
    """Compare the metrics of two trainings, by epoch."""
    first, largest, name = None, 0.0, ""
    shared = sorted(before.keys() & now.keys())
    for epoch in shared:
        for metric in before[epoch].keys() & now[epoch].keys():
            difference = _relative(before[epoch][metric], now[epoch][metric])
            if difference > largest:
                largest, name = difference, metric
            if difference > ROUNDING and first is None:
                first = epoch
    verdict: Verdict = "equal" if not largest else "equal within rounding" if first is None else "differs"
    return Rerun(sweep, number, again, verdict, len(shared), first, largest, name, differences)


def _relative(one: float, other: float) -> float:
    """The difference of two values as a share of the larger one; 0 if both are NaN."""
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other))


def _epochs_of(folder: Path, number: int, spec: SweepSpec) -> dict[int, dict[str, float]]:
    """What the training of a trial has reported, by epoch, without what depends on how fast it was."""

    def belongs(name: str) -> bool:
        if isinstance(spec, PhotoSpec):
            return name == "lr" or name.startswith(("train_", "val_"))
        return name not in NOT_OF_THE_TRAINING

    return {
        epoch: {k: v for k, v in metrics.items() if belongs(k)}
        for epoch, metrics in epochs_of_trial(folder, number).items()
    }


def _differences(folder: Path, trial: TrialHistory, spec: SweepSpec, fingerprint: str) -> list[str]:
    """What is not as it was when the trial was trained."""
    found = []
    state = load_state(folder)
    if state.get("fingerprint") != fingerprint:
        found.append(f"{spec.source} has changed since")
    tags: dict[str, str] = next(
        (
            record["tags"]
            for record in read_spool(folder / "spool")
            if record["kind"] == "start" and record["key"] == trial_key(trial.number)
        ),
        {},
    )
    now = environment_tags()
    for name in sorted(tags.keys() | now.keys()):
        if name.startswith("version.") or name in ENVIRONMENT:
            was, present = tags.get(name), now.get(name)
            if was != present or (name == "git.dirty" and was == "true"):
                found.append(
                    f"{name.removeprefix('mlflow.source.')}: {was or 'none'} then, {present or 'none'} now"
                )
    planned = total_epochs(spec.sections(trial.params, 0))
    if trial.epochs != planned:
        found.append(
            f"it was shortened to {trial.epochs} of {planned} epochs, and its learning rate came down earlier"
        )
    return found
