"""The final model: the trainings that answer together, and how their probabilities become a count.

Every alternative is judged on the validation split, and taken only if it is significantly better there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ttest_rel

from binsweep.models.backbones.library import interpolation_of
from binsweep.models.calibration import fit_temperature
from binsweep.models.checkpoint import Checkpoint, load_checkpoint, model_from_checkpoint
from binsweep.models.decoding import BEST_DECODING, Decoding, decode_labels
from binsweep.models.labelling import labelling_of
from binsweep.models.metrics import Counts, log_losses
from binsweep.models.predictor import Predictor, calibrate
from binsweep.models.trial_data import TrialData
from binsweep.search.spec.sweep_spec import PhotoSpec
from binsweep.search.terminal.format import format_metric
from binsweep.search.workflows.finalists import Training, refit
from binsweep.tracking.promotion.paired_tests import ALPHA, p_value
from binsweep.tracking.runlog.run_log import RunLog

MAX_MEMBERS = 3  # an answer takes as many times as long
PREDICT_BATCH_SIZE = 32


class Inference(NamedTuple):
    """How the final model predicts: which trainings are averaged, whether the mirror image is averaged too, the
    temperature of its probabilities, and how these become one count; `notes` lists every alternative that was tried."""

    members: list[int]
    flip: bool
    temperature: float
    decoding: Decoding
    notes: list[str]


@dataclass(frozen=True)
class FinalModel:
    """The final model, its run's key, its probabilities on the validation split [N, K], and notes on the choice."""

    key: str
    predictor: Predictor
    validation: NDArray[np.float32]
    notes: list[str]


def choose_inference(spec: PhotoSpec, data: TrialData, checkpoints: Sequence[Checkpoint]) -> Inference:
    """Choose the inference of the final model; the first of `checkpoints` is the best, the others can join it.

    Trainings are added one by one, each time the one whose mean with those before is best (Caruana et al., Ensemble
    selection from libraries of models, ICML 2004). A mean is taken if it is significantly better on validation than
    what was taken before it, in log loss, which sees every photo's probability, where the metric sees only the answers
    that change; two more trainings may show what one more does not. Then come the temperature and the decoding
    (`_choose_decoding`).
    """
    labels, notes = data.validation.labels, []

    def is_better(name: str, other: NDArray[np.float32], now: NDArray[np.float32]) -> bool:
        new, old = log_losses(other, labels), log_losses(now, labels)
        p = float(ttest_rel(new, old, alternative="less").pvalue) if np.any(new != old) else 1.0
        verdict = "taken" if p < ALPHA else "not taken"
        notes.append(
            f"{name}: validation log loss {new.mean():.3f} against {old.mean():.3f} (p {p:.3f}), {verdict}"
        )
        return p < ALPHA

    members, flip, table = [0], False, _mean(checkpoints[:1])
    # A served model reads photos at one size, in one way.
    read_as = [(one.image_size, interpolation_of(one.settings.backbone)) for one in checkpoints]
    alike = [place for place, one in enumerate(read_as) if one == read_as[0]]
    added = [0]
    while spec.register.ensemble and len(added) < min(MAX_MEMBERS, len(alike)):
        others = [place for place in alike if place not in added]
        tables = {one: _mean([checkpoints[place] for place in (*added, one)]) for one in others}
        best = min(others, key=lambda one: log_losses(tables[one], labels).mean())
        added.append(best)
        if is_better(f"mean of {len(added)} trainings", tables[best], table):
            members, table = list(added), tables[best]
    if spec.register.flip:
        models = [model_from_checkpoint(checkpoints[place]) for place in members]
        both = _predict(Predictor(models, flip=True), data)
        if is_better("mean with the mirror image", both, table):
            flip, table = True, both
    temperature = fit_temperature(table, labels)
    calibrated = calibrate(torch.from_numpy(table), temperature).numpy()
    old, new = (log_losses(one, labels).mean() for one in (table, calibrated))
    notes.append(f"temperature {temperature:.2f}: validation log loss {new:.3f} against {old:.3f}")
    decoding = _choose_decoding(spec, data, calibrated, notes)
    return Inference(members, flip, temperature, decoding, notes)


def _choose_decoding(
    spec: PhotoSpec, data: TrialData, table: NDArray[np.float32], notes: list[str]
) -> Decoding:
    """How the probabilities `table` [N, K] of the validation split become labels; names have one way only.

    The one that fits the sweep's measure, unless another is significantly better in it. Where the measure is accuracy,
    another is also taken if its accuracy is the same within one standard error and its RMSE significantly smaller: who
    counts things wants small mistakes as well. Of several such ones, the best in the measure is taken.
    """
    classes, labelling = data.classes, labelling_of(data.classes)
    measure, decodings = labelling.measure_of(spec.metric), labelling.decodings
    usual = BEST_DECODING.get(measure, "argmax")
    others = [decoding for decoding in decodings if decoding != usual]
    if not others:
        return usual
    actual: Counts = np.asarray(classes)[data.validation.labels]
    counts = {decoding: decode_labels(table, classes, decoding) for decoding in decodings}
    scores = {decoding: labelling.answer_scores(counts[decoding], actual) for decoding in decodings}
    alpha = ALPHA / len(others)  # Bonferroni
    chances: dict[Decoding, float] = {}
    for other in others:
        chances[other] = p_value(counts[other], counts[usual], actual, measure)
        new, old = (format_metric(measure, scores[one][measure]) for one in (other, usual))
        text = f"{other} instead of {usual}: validation {measure} {new} against {old} (p {chances[other]:.3f}"
        as_accurate = measure == "accuracy" and _same_accuracy(counts[other], counts[usual], actual)
        if chances[other] >= alpha and as_accurate:
            chances[other] = p_value(counts[other], counts[usual], actual, "rmse")
            new, old = (format_metric("rmse", scores[one]["rmse"]) for one in (other, usual))
            text += f"), rmse {new} against {old} (p {chances[other]:.3f}"
        verdict = "better" if chances[other] < alpha else "not taken"
        notes.append(f"{text}, below {alpha:.2g} required), {verdict}")
    taken = [other for other in others if chances[other] < alpha]
    sign = -1 if measure in ("rmse", "mae") else 1
    return max(taken, key=lambda one: (sign * scores[one][measure], -scores[one]["rmse"]), default=usual)


def _same_accuracy(one: Counts, other: Counts, actual: Counts) -> bool:
    """Whether the number of right answers differs by at most its standard error (Miettinen, Biometrics 24, 1968)."""
    won, lost = np.sum((one == actual) & (other != actual)), np.sum((one != actual) & (other == actual))
    return bool(abs(won - lost) <= np.sqrt(won + lost))


def build_final_model(
    folder: Path, spec: PhotoSpec, data: TrialData, trainings: Sequence[Training], runlog: RunLog
) -> FinalModel:
    """Build the final model from the first of `trainings`, and others that may join it."""
    checkpoints = [load_checkpoint(training.checkpoint) for training in trainings]
    members, flip, temperature, decoding, notes = choose_inference(spec, data, checkpoints)
    chosen = [trainings[place] for place in members]
    if len(chosen) > 1:
        notes.append(f"averages {', '.join(training.key for training in chosen)}")
    if spec.register.refit:
        epochs = {
            one.trial: round(
                mean(c.epoch for t, c in zip(trainings, checkpoints, strict=True) if t.trial == one.trial)
            )
            for one in chosen
        }
        chosen = [refit(folder, spec, data, one, epochs[one.trial], runlog) for one in chosen]
        lengths = " and ".join(str(n) for n in sorted(set(epochs.values())))
        notes.append(f"trained again on train and validation together for {lengths} epochs")
    final = [load_checkpoint(training.checkpoint) for training in chosen]
    predictor = Predictor([model_from_checkpoint(one) for one in final], flip, decoding, temperature).eval()
    table = calibrate(torch.from_numpy(_mean(final)), temperature).numpy()
    return FinalModel(chosen[0].key, predictor, _predict(predictor, data) if flip else table, notes)


def _mean(checkpoints: Sequence[Checkpoint]) -> NDArray[np.float32]:
    """The mean probabilities of checkpoints on the validation split, float32 [N, K]."""
    tables = [checkpoint.log_probabilities.exp().numpy() for checkpoint in checkpoints]
    average: NDArray[np.float32] = np.mean(tables, axis=0)
    return average


def _predict(predictor: Predictor, data: TrialData) -> NDArray[np.float32]:
    """The probabilities on the validation split, float32 [N, K]."""
    predictor.eval().to(memory_format=torch.channels_last)
    pixels = data.at_size(predictor.image_size, predictor.interpolation).validation.pixels
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), PREDICT_BATCH_SIZE):
            parts.append(
                predictor(torch.from_numpy(np.array(pixels[start : start + PREDICT_BATCH_SIZE]))).numpy()
            )
    return np.concatenate(parts)
