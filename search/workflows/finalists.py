"""Finalists: a sweep's best configurations trained again.

The best of many trials is partly lucky. Therefore the first few are trained again with fresh seeds, from the same
banks, and chosen by their mean validation value.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from binsweep.data.atomic_write import write_json
from binsweep.data.errors import UserError
from binsweep.data.resource_limits import cores
from binsweep.models.backbones.library import interpolation_of
from binsweep.models.checkpoint import Checkpoint, load_checkpoint
from binsweep.models.levels import Level, total_epochs
from binsweep.models.precision import threads_of
from binsweep.models.settings import Settings
from binsweep.models.train import Snapshot, TrainOptions, train
from binsweep.models.training_state import load_training_state
from binsweep.models.training_work import level_work
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.photo_trial import BEST, LAST, run_trial
from binsweep.search.execution.trial import TrialTask
from binsweep.search.history.run_keys import SWEEP, finalist_key, refit_key, trial_key
from binsweep.search.recording.photo_records import FIGURES
from binsweep.search.recording.run_params import run_params
from binsweep.search.spec.objective import is_finite
from binsweep.search.spec.sweep_spec import PhotoSpec, SweepSpec
from binsweep.search.terminal.format import format_duration, format_metric
from binsweep.tracking.evaluation.figures import write_evaluation
from binsweep.tracking.run_tags import environment_tags
from binsweep.tracking.runlog.run_log import RunLog

DONE_FILE = "done.json"
MAX_SEND_SECONDS = 60.0
MAX_AUTO_FINALISTS = 3
MAX_AUTO_SHARE = 1 / 3  # of a sweep's time, for the trainings of `finalists: auto`
GATE_SECONDS = 60.0  # for choosing, testing and serving the candidate; measured on two slow cores
SHARED_EFFICIENCY = 0.75  # of all cores on one training, against one training on each core
SEED_STRIDE = 15_485_863  # keeps fresh seeds far from the seeds of other trials


@dataclass(frozen=True)
class Training:
    """A configuration's training: the run log's key of its run, the checkpoint of its best epoch with its value, and
    the trial of the sweep that it repeats."""

    key: str
    checkpoint: Path
    value: float
    trial: int


# Trains with a fresh seed 1, 2, ...; None if the training came to nothing.
TrainAgain = Callable[[int], Training | None]


@dataclass(frozen=True)
class Finalist:
    """A trial of the sweep, its value in it, and its trainings with fresh seeds, best first."""

    number: int
    value: float
    trainings: list[Training]

    @property
    def mean(self) -> float:
        """The mean value of the fresh seeds."""
        return mean(training.value for training in self.trainings)


@dataclass(frozen=True)
class FinalistPlan:
    """How many leaders are trained again, each with how many fresh seeds; 0 takes the best trial as it is."""

    finalists: int
    seeds: int


def plan_finalists(
    folder: Path, spec: PhotoSpec, leaders: Sequence[Mapping[str, Any]], seconds: float
) -> FinalistPlan:
    """The plan of `register`; `finalists: auto` chooses the largest that takes so many seconds at most.

    The cost of a training is that of the leader's, by the seconds of its best epoch.
    """
    if spec.register.finalists != "auto":
        return FinalistPlan(spec.register.finalists, spec.register.seeds)
    checkpoint = _leader_checkpoint(folder, leaders[0], 1)
    each = _training_seconds(spec, checkpoint)
    plan = _largest_plan(spec, len(leaders), each, seconds)
    seeds = f"{plan.seeds} seed{'s' if plan.seeds > 1 else ''} each"
    what = f"{plan.finalists} with {seeds}" if plan.finalists else "none, the best trial is taken as it is"
    print(
        f"finalists: {what}; one training takes about {format_duration(each)}, and "
        f"{format_duration(seconds)} may be spent",
        file=sys.stderr,
    )
    return plan


def promotion_seconds(spec: PhotoSpec, controller: Controller) -> float:
    """How much of a sweep's time is kept for its promotion: for the finalists' trainings, if the present leader is
    theirs, and for what comes after. With `finalists: auto` at most a third of the time is planned for trainings."""
    leader = next(iter(controller.leaderboard()), None)
    seconds = None if leader is None else controller.training_seconds(leader.number)
    if leader is None or seconds is None or controller.budget.minutes is None:
        return GATE_SECONDS
    settings = leader.levels[-1].settings
    assert isinstance(settings, Settings)
    each = _on_all_cores(spec, settings, seconds)
    register = spec.register
    if register.finalists == "auto":
        plan = _largest_plan(spec, MAX_AUTO_FINALISTS, each, 60 * controller.budget.minutes * MAX_AUTO_SHARE)
    else:
        plan = FinalistPlan(register.finalists, register.seeds)
    return GATE_SECONDS + _n_trainings(spec, plan) * each


def _training_seconds(spec: PhotoSpec, checkpoint: Checkpoint) -> float:
    """How long a checkpoint's training takes on all cores, by the seconds of its epoch and what epochs of earlier
    sections cost against it."""
    levels = checkpoint.levels
    epochs = sum(level.settings.epochs * level_work(level) / level_work(levels[-1]) for level in levels)
    return _on_all_cores(spec, checkpoint.settings, epochs * checkpoint.metrics["seconds"])


def _on_all_cores(spec: PhotoSpec, settings: Settings, seconds: float) -> float:
    """How long a training takes on all cores that took so many seconds in the sweep."""
    cpus = spec.resources.of(asdict(settings)).cpus_per_trial
    if threads_of(settings.trainable, cores()) > cpus:  # in the sweep, other trials had the other cores
        seconds *= max(cpus / cores() / SHARED_EFFICIENCY, 1 / cores())
    return seconds


def _n_trainings(spec: PhotoSpec, plan: FinalistPlan) -> int:
    """The trainings of a plan; `register.refit` trains what is averaged once more."""
    register = spec.register
    refits = (register.seeds if register.ensemble else 1) if register.refit else 0
    return plan.finalists * plan.seeds + min(refits, plan.seeds)


def _largest_plan(spec: PhotoSpec, leaders: int, each: float, seconds: float) -> FinalistPlan:
    """The largest plan of trainings that fits. Fewer finalists are given up before fewer seeds, as seeds can also be
    averaged."""
    seeds = spec.register.seeds
    plans = [FinalistPlan(finalists, seeds) for finalists in range(min(leaders, MAX_AUTO_FINALISTS), 0, -1)]
    plans += [FinalistPlan(1, fewer) for fewer in range(seeds - 1, 0, -1)]
    fitting = (plan for plan in plans if _n_trainings(spec, plan) * each <= seconds)
    return next(fitting, FinalistPlan(0, 0))


def _leader_checkpoint(folder: Path, leader: Mapping[str, Any], place: int) -> Checkpoint:
    """The checkpoint of a leader; raises UserError if its file is gone."""
    file = folder / leader["checkpoint"]
    if not file.exists():
        raise UserError(
            f"{file}: the weights of finalist {place} are gone",
            f"put weights/{BEST} of trial {leader['number']}'s run in MLflow there, or run the sweep again",
        )
    return load_checkpoint(file)


def fresh_seed(seed: int, number: int) -> int:
    """The fresh seed 1, 2, ... of a trial that had `seed`."""
    return (seed + number * SEED_STRIDE) % 2**31


def _with_settings(levels: Sequence[Level], **changes: Any) -> tuple[Level, ...]:
    return tuple(replace(level, settings=replace(level.settings, **changes)) for level in levels)


def train_finalists(
    folder: Path,
    spec: PhotoSpec,
    data: TrialData,
    leaders: Sequence[Mapping[str, Any]],
    plan: FinalistPlan,
    runlog: RunLog,
) -> list[Finalist]:
    """Train the first of the leaderboard again, best mean first; each training is a child run.

    Trainings that an earlier call has finished are reused, and an interrupted one is resumed. A configuration with a
    diverged training is left out; raises UserError if none remains.
    """

    def train_again(leader: Mapping[str, Any], place: int) -> TrainAgain:
        checkpoint = _leader_checkpoint(folder, leader, place)
        return lambda seed: _train_again(folder, spec, data, leader["number"], seed, checkpoint, runlog)

    finalists = rank_finalists(spec, leaders[: plan.finalists], plan.seeds, train_again, "diverged")
    if not finalists:
        raise UserError(
            f"every finalist of {folder.name} diverged with a fresh seed",
            "narrow the space, or set register.finalists: 0",
        )
    return finalists


def rank_finalists(
    spec: SweepSpec,
    leaders: Sequence[Mapping[str, Any]],
    seeds: int,
    train_again: Callable[[Mapping[str, Any], int], TrainAgain],
    failure: str,
) -> list[Finalist]:
    """Train each of the leaders with fresh seeds 1, 2, ..., best mean first.

    `train_again(leader, place)` gives what trains the leader in that place, from 1. A configuration of which a training
    comes to nothing (None), which is told by the word `failure`, is left out.
    """
    finalists = []
    for place, leader in enumerate(leaders, 1):
        train = train_again(leader, place)
        trainings = []
        for seed in range(1, seeds + 1):
            name = f"trial {leader['number']}, seed {seed} of {seeds}"
            training = train(seed)
            outcome = (
                failure if training is None else f"{spec.metric} {format_metric(spec.metric, training.value)}"
            )
            print(f"finalist {place} of {len(leaders)}: {name}: {outcome}", file=sys.stderr)
            if training is not None:
                trainings.append(training)
        if len(trainings) == seeds:
            trainings.sort(key=lambda one: -spec.objective.sign * one.value)
            finalists.append(Finalist(leader["number"], leader["value"], trainings))
    return sorted(finalists, key=lambda one: -spec.objective.sign * one.mean)


def describe_finalists(spec: SweepSpec, plan: FinalistPlan, finalists: Sequence[Finalist]) -> str:
    """How the best of the finalists was chosen."""
    if not plan.finalists:
        return f"trial {finalists[0].number} as the sweep left it, the best of many by validation"

    def describe(finalist: Finalist) -> str:
        *fresh, searched = (
            format_metric(spec.metric, value)
            for value in [*(training.value for training in finalist.trainings), finalist.value]
        )
        mean = format_metric(spec.metric, finalist.mean)
        return f"trial {finalist.number}: {mean} ({' and '.join(fresh)}; in the sweep {searched})"

    seeds = f"{plan.seeds} fresh seed{'s' if plan.seeds > 1 else ''}"
    return f"finalists by mean {spec.metric} of {seeds}: " + "; ".join(map(describe, finalists))


def as_searched(folder: Path, leader: Mapping[str, Any]) -> Training:
    """The training of a trial of the leaderboard in the sweep itself."""
    number = leader["number"]
    return Training(trial_key(number), folder / leader["checkpoint"], leader["value"], number)


def finalist_folder(folder: Path, number: int, seed: int) -> Path:
    """The folder of a trial's training with a fresh seed."""
    return folder / "finalists" / f"trial-{number:04d}-seed-{seed}"


def sent_run(runlog: RunLog, key: str, folder: Path, tracking_uri: str) -> str:
    """The id of a run in MLflow, once it has arrived there. Raises UserError if it does not in time."""
    runlog.flush(MAX_SEND_SECONDS)
    run_id = runlog.sent_run_id(key)
    if run_id is None:
        raise UserError(
            f"the run {key} of {folder.name} has not reached {tracking_uri}",
            "try again when the server answers; nothing is lost",
        )
    return run_id


def _train_again(
    folder: Path,
    spec: PhotoSpec,
    data: TrialData,
    number: int,
    seed: int,
    checkpoint: Checkpoint,
    runlog: RunLog,
) -> Training | None:
    """One training of a finalist, unless an earlier call has finished it; None if it diverged."""
    key = finalist_key(number, seed)
    place = finalist_folder(folder, number, seed)
    fresh = replace(checkpoint.settings, seed=fresh_seed(checkpoint.settings.seed, seed))
    if not (place / DONE_FILE).exists():
        levels = _with_settings(checkpoint.levels, seed=fresh.seed)
        begin_run(runlog, key, f"finalist {number:03d}, seed {seed}", "finalist", number, run_params(levels))
        threads = threads_of(fresh.trainable, cores())
        task = TrialTask(number, levels, place, spec.metric, spec.goal, threads, rules=spec.health)
        diverged = False

        def send(epoch: int, metrics: dict[str, float]) -> bool:
            nonlocal diverged
            runlog.metrics(key, epoch, metrics)
            diverged = not is_finite(metrics)
            return not diverged

        with restored_threads():
            try:
                run_trial(task, data, send)
            except BaseException:
                runlog.end_run(key, "KILLED")
                raise
        (place / LAST).unlink(missing_ok=True)
        _end_run(runlog, key, place, data, diverged)
        write_json(place / DONE_FILE, {"diverged": diverged})
    if json.loads((place / DONE_FILE).read_text())["diverged"]:
        return None
    return Training(key, place / BEST, load_checkpoint(place / BEST).metrics[spec.metric], number)


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Afterwards, torch uses as many threads as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def begin_run(runlog: RunLog, key: str, name: str, kind: str, number: int, params: Mapping[str, Any]) -> None:
    """Begin the child run of a training after the search, of a trial's configuration."""
    tags = environment_tags() | {"binsweep.kind": kind, "trial": str(number), "seed": str(params["seed"])}
    runlog.start_run(key, name, SWEEP, tags, params)


def _end_run(runlog: RunLog, key: str, place: Path, data: TrialData, diverged: bool) -> None:
    if not diverged:
        checkpoint = load_checkpoint(place / BEST)
        interpolation = interpolation_of(checkpoint.settings.backbone)
        bank, classes = data.at_size(checkpoint.image_size, interpolation).validation, data.classes
        probabilities = checkpoint.log_probabilities.exp().numpy()
        actual = np.asarray(classes)[bank.labels]
        title = f"validation, epoch {checkpoint.epoch}: accuracy {checkpoint.metrics['val_accuracy']:.1%}"
        write_evaluation(
            place / FIGURES, probabilities, actual, classes, bank.ids, bank.pixels.__getitem__, title
        )
        runlog.artifact(key, place / FIGURES, FIGURES)
        runlog.artifact(key, place / BEST, "weights")
        runlog.metrics(key, checkpoint.epoch, {"best_epoch": float(checkpoint.epoch)})
    runlog.end_run(key, "FAILED" if diverged else "FINISHED")


def refit(
    folder: Path, spec: PhotoSpec, data: TrialData, training: Training, epochs: int, runlog: RunLog
) -> Training:
    """Train a training's configuration again with its seed, on train and validation together, for so many epochs.

    The validation values of the result are no evidence.
    """
    key = refit_key(training.key)
    place = training.checkpoint.parent / f"refit-{epochs}"
    if not (place / DONE_FILE).exists():
        place.mkdir(exist_ok=True)
        checkpoint = load_checkpoint(training.checkpoint)
        name = f"refit of {training.key}"
        begin_run(runlog, key, name, "refit", training.trial, run_params(checkpoint.levels))
        with restored_threads():
            _train_on_both(checkpoint, data, epochs, place, key, runlog)
        runlog.artifact(key, place / BEST, "weights")
        runlog.end_run(key, "FINISHED")
        write_json(place / DONE_FILE, {"epochs": epochs})
    print(f"refit of {training.key} on train and validation: {epochs} epochs, as it took", file=sys.stderr)
    return replace(training, key=key, checkpoint=place / BEST)


def _train_on_both(
    checkpoint: Checkpoint, data: TrialData, epochs: int, place: Path, key: str, runlog: RunLog
) -> None:
    """Train `epochs` epochs on both splits; resumes an interrupted training."""

    def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        # Validation metrics of a model that was trained on validation mean nothing.
        runlog.metrics(key, epoch, {k: v for k, v in metrics.items() if not k.startswith("val_")})
        if epoch == epochs:
            snapshot.checkpoint().save(place / BEST)
        else:
            snapshot.state().save(place / LAST)
        return epoch < epochs

    settings = checkpoint.settings
    # Another seed may have been best in a later section than this one.
    epochs = min(epochs, total_epochs(checkpoint.levels))
    torch.set_num_threads(threads_of(settings.trainable, cores()))
    state = load_training_state(place / LAST)
    options = TrainOptions(start_from=state, refit=True, earlier=checkpoint.earlier)
    train(settings, data.at_size(checkpoint.image_size, interpolation_of(settings.backbone)), report, options)
    (place / LAST).unlink(missing_ok=True)
