"""Finalists: a sweep's best configurations trained again, and the final model.

The best of many trials is partly lucky. Therefore the first few are trained again with fresh seeds, from the same
banks, and chosen by their mean validation value. Averaging, mirroring and other decodings are used only if they are
significantly better on the validation split.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from binsweep.data.atomic_write import write_json
from binsweep.data.errors import UserError
from binsweep.data.resource_limits import cores
from binsweep.models.checkpoint import Checkpoint, load_checkpoint, model_from_checkpoint
from binsweep.models.metrics import Counts, count_metrics
from binsweep.models.precision import threads_of
from binsweep.models.predictor import DECODINGS, Decoding, Predictor, decode_counts
from binsweep.models.settings import Settings
from binsweep.models.train import Snapshot, TrainOptions, train
from binsweep.models.training_state import load_training_state
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.trial import BEST, LAST, TrialTask, run_trial
from binsweep.search.history.run_keys import SWEEP, finalist_key, refit_key
from binsweep.search.recording.recorder import FIGURES
from binsweep.search.spec.objective import is_finite
from binsweep.search.spec.parser import SweepSpec
from binsweep.search.terminal.format import format_metric
from binsweep.tracking.evaluation.figures import write_evaluation
from binsweep.tracking.promotion.candidate import measure_of
from binsweep.tracking.promotion.paired_tests import ALPHA, p_value
from binsweep.tracking.run_tags import environment_tags
from binsweep.tracking.runlog.run_log import RunLog

DONE_FILE = "done.json"
SEED_STRIDE = 15_485_863  # keeps fresh seeds far from the seeds of other trials
PREDICT_BATCH_SIZE = 32


@dataclass(frozen=True)
class Training:
    """A configuration trained again: the run log's key of its run, and the checkpoint of its best epoch."""

    key: str
    checkpoint: Path
    value: float


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


class Inference(NamedTuple):
    """How the final model predicts: the number of averaged trainings, whether the mirror image is averaged too, and
    how a distribution becomes one count; `notes` lists every alternative that was tried."""

    members: int
    flip: bool
    decoding: Decoding
    notes: list[str]


@dataclass(frozen=True)
class FinalModel:
    """The final model, its run's key, its probabilities on the validation split [N, K], and notes on the choice."""

    key: str
    predictor: Predictor
    validation: NDArray[np.float32]
    notes: list[str]


def _with_fresh_seed(settings: Settings, number: int) -> Settings:
    return replace(settings, seed=(settings.seed + number * SEED_STRIDE) % 2**31)


def train_finalists(
    folder: Path, spec: SweepSpec, data: TrialData, leaders: Sequence[Mapping[str, Any]], runlog: RunLog
) -> list[Finalist]:
    """Train the first `register.finalists` of the leaderboard again, best mean first; each training is a child run.

    Trainings that an earlier call has finished are reused, and an interrupted one is resumed. A configuration with a
    diverged training is left out; raises UserError if none remains.
    """
    finalists = []
    chosen = leaders[: spec.register.finalists]
    for place, leader in enumerate(chosen, 1):
        file = folder / leader["checkpoint"]
        if not file.exists():
            raise UserError(
                f"{file}: the weights of finalist {place} are gone",
                f"put weights/{BEST} of trial {leader['number']}'s run in MLflow there, or run the sweep again",
            )
        settings = load_checkpoint(file).settings
        trainings = []
        for seed in range(1, spec.register.seeds + 1):
            name = f"trial {leader['number']}, seed {seed} of {spec.register.seeds}"
            training = _train_again(folder, spec, data, leader["number"], seed, settings, runlog)
            outcome = (
                "diverged"
                if training is None
                else f"{spec.metric} {format_metric(spec.metric, training.value)}"
            )
            print(f"finalist {place} of {len(chosen)}: {name}: {outcome}", file=sys.stderr)
            if training is not None:
                trainings.append(training)
        if len(trainings) == spec.register.seeds:
            trainings.sort(key=lambda one: -spec.objective.sign * one.value)
            finalists.append(Finalist(leader["number"], leader["value"], trainings))
    if not finalists:
        raise UserError(
            f"every finalist of {folder.name} diverged with a fresh seed",
            "narrow the space, or set register.finalists: 0",
        )
    return sorted(finalists, key=lambda one: -spec.objective.sign * one.mean)


def _train_again(
    folder: Path,
    spec: SweepSpec,
    data: TrialData,
    number: int,
    seed: int,
    settings: Settings,
    runlog: RunLog,
) -> Training | None:
    """One training of a finalist, unless an earlier call has finished it; None if it diverged."""
    key = finalist_key(number, seed)
    place = folder / "finalists" / f"trial-{number:04d}-seed-{seed}"
    fresh = _with_fresh_seed(settings, seed)
    if not (place / DONE_FILE).exists():
        _begin_run(runlog, key, f"finalist {number:03d}, seed {seed}", "finalist", number, fresh)
        threads = threads_of(fresh.trainable, cores())
        task = TrialTask(number, fresh, place, spec.metric, spec.goal, threads, rules=spec.health)
        diverged = False

        def send(epoch: int, metrics: dict[str, float]) -> bool:
            nonlocal diverged
            runlog.metrics(key, epoch, metrics)
            diverged = not is_finite(metrics)
            return not diverged

        with _restored_threads():
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
    return Training(key, place / BEST, load_checkpoint(place / BEST).metrics[spec.metric])


@contextlib.contextmanager
def _restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin_run(runlog: RunLog, key: str, name: str, kind: str, number: int, settings: Settings) -> None:
    tags = environment_tags() | {"binsweep.kind": kind, "trial": str(number), "seed": str(settings.seed)}
    runlog.start_run(key, name, SWEEP, tags, asdict(settings))


def _end_run(runlog: RunLog, key: str, place: Path, data: TrialData, diverged: bool) -> None:
    if not diverged:
        checkpoint = load_checkpoint(place / BEST)
        bank, classes = data.validation, data.classes
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
    folder: Path, spec: SweepSpec, data: TrialData, finalist: Finalist, members: int, runlog: RunLog
) -> list[Training]:
    """Train the finalist's first `members` trainings again on train and validation together, for the mean number of
    epochs to their best. The validation values of the result are no evidence."""
    epochs = round(mean(load_checkpoint(training.checkpoint).epoch for training in finalist.trainings))
    refitted = []
    for training in finalist.trainings[:members]:
        key = refit_key(training.key)
        place = training.checkpoint.parent / f"refit-{epochs}"
        if not (place / DONE_FILE).exists():
            place.mkdir(exist_ok=True)
            settings = load_checkpoint(training.checkpoint).settings
            _begin_run(runlog, key, f"refit of {training.key}", "refit", finalist.number, settings)
            with _restored_threads():
                _train_on_both(settings, data, epochs, place, key, runlog)
            runlog.artifact(key, place / BEST, "weights")
            runlog.end_run(key, "FINISHED")
            write_json(place / DONE_FILE, {"epochs": epochs})
        print(f"refit on train and validation: {epochs} epochs, as its trainings took", file=sys.stderr)
        refitted.append(Training(key, place / BEST, training.value))
    return refitted


def _train_on_both(
    settings: Settings, data: TrialData, epochs: int, place: Path, key: str, runlog: RunLog
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

    torch.set_num_threads(threads_of(settings.trainable, cores()))
    options = TrainOptions(start_from=load_training_state(place / LAST), refit=True)
    train(settings, data, report, options)
    (place / LAST).unlink(missing_ok=True)


def choose_inference(spec: SweepSpec, data: TrialData, checkpoints: Sequence[Checkpoint]) -> Inference:
    """Choose the inference of the final model; `checkpoints` are ordered best first.

    An alternative is taken only if it is significantly better on validation, in the sweep's metric.
    """
    classes, measure = data.classes, measure_of(spec.metric)
    actual: Counts = np.asarray(classes)[data.validation.labels]
    notes: list[str] = []

    def p_of(name: str, other: Counts, now: Counts, alpha: float) -> float:
        p = p_value(other, now, actual, measure)
        new, old = (format_metric(measure, count_metrics(counts, actual)[measure]) for counts in (other, now))
        required = "" if alpha == ALPHA else f", below {alpha:.2g} required"
        verdict = "taken" if p < alpha else "not taken"
        notes.append(f"{name}: validation {measure} {new} against {old} (p {p:.3f}{required}), {verdict}")
        return p

    members, flip, table = 1, False, _mean(checkpoints[:1])
    if spec.register.ensemble and len(checkpoints) > 1:
        mean_table = _mean(checkpoints)
        counts = [decode_counts(one, classes, "argmax") for one in (mean_table, table)]
        if p_of(f"mean of {len(checkpoints)} trainings", counts[0], counts[1], ALPHA) < ALPHA:
            members, table = len(checkpoints), mean_table
    if spec.register.flip:
        both = _predict(
            Predictor([model_from_checkpoint(one) for one in checkpoints[:members]], flip=True), data
        )
        counts = [decode_counts(one, classes, "argmax") for one in (both, table)]
        if p_of("mean with the mirror image", counts[0], counts[1], ALPHA) < ALPHA:
            flip, table = True, both
    now = decode_counts(table, classes, "argmax")
    alpha = ALPHA / (len(DECODINGS) - 1)  # Bonferroni, for the other decodings
    chances = {
        decoding: p_of(f"{decoding} instead of argmax", decode_counts(table, classes, decoding), now, alpha)
        for decoding in DECODINGS[1:]
    }
    surest = min(chances, key=lambda decoding: chances[decoding])
    return Inference(members, flip, surest if chances[surest] < alpha else "argmax", notes)


def build_final_model(
    folder: Path, spec: SweepSpec, data: TrialData, finalist: Finalist, runlog: RunLog
) -> FinalModel:
    """Build the final model from a finalist."""
    checkpoints = [load_checkpoint(training.checkpoint) for training in finalist.trainings]
    members, flip, decoding, notes = choose_inference(spec, data, checkpoints)
    trainings, chosen = finalist.trainings[:members], checkpoints[:members]
    if spec.register.refit:
        trainings = refit(folder, spec, data, finalist, members, runlog)
        chosen = [load_checkpoint(training.checkpoint) for training in trainings]
        notes.append(f"trained again on train and validation together for {chosen[0].epoch} epochs")
    predictor = Predictor([model_from_checkpoint(one) for one in chosen], flip, decoding).eval()
    validation = _predict(predictor, data) if flip else _mean(chosen)
    return FinalModel(trainings[0].key, predictor, validation, notes)


def _mean(checkpoints: Sequence[Checkpoint]) -> NDArray[np.float32]:
    """The mean probabilities of checkpoints on the validation split, float32 [N, K]."""
    tables = [checkpoint.log_probabilities.exp().numpy() for checkpoint in checkpoints]
    average: NDArray[np.float32] = np.mean(tables, axis=0)
    return average


def _predict(predictor: Predictor, data: TrialData) -> NDArray[np.float32]:
    """The probabilities on the validation split, float32 [N, K]."""
    predictor.eval().to(memory_format=torch.channels_last)
    pixels = data.validation.pixels
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), PREDICT_BATCH_SIZE):
            parts.append(
                predictor(torch.from_numpy(np.array(pixels[start : start + PREDICT_BATCH_SIZE]))).numpy()
            )
    return np.concatenate(parts)
