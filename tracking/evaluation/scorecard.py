"""The scores of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from binsweep.models.decoding import DECODINGS, decode_counts
from binsweep.models.metrics import (
    CalibrationBin,
    Counts,
    all_scores,
    calibration_error,
    intervals,
    per_class,
    reliability,
)
from binsweep.tracking.evaluation.predictions import Predictions

Scores = dict[str, float]


@dataclass(frozen=True)
class Scorecard:
    """Scores (accuracy, rmse, mae, within_one, macro_f1) of a model and of the constant `guess`, each with 95 %
    bootstrap intervals; accuracy, rmse and support per true count; the expected calibration error with its bins.

    `decodings` are the scores on these photos of each way to turn the distribution into one count.
    """

    images: int
    scores: Scores
    intervals: dict[str, tuple[float, float]]
    guess: int
    guess_scores: Scores
    guess_intervals: dict[str, tuple[float, float]]
    classes: dict[int, Scores]
    calibration_error: float
    reliability: list[CalibrationBin]
    decodings: dict[str, Scores]


def score(predictions: Predictions, actual: Counts, guess: int) -> Scorecard:
    """The scorecard of a model's predictions for photos with the true counts `actual` [N]."""
    counts, constant = predictions.counts, np.full_like(actual, guess)
    bins = reliability(confidence(predictions), counts == actual)
    classes = sorted({*predictions.classes, *np.unique(actual).tolist()})
    return Scorecard(
        images=len(actual),
        scores=all_scores(counts, actual),
        intervals=intervals(counts, actual),
        guess=guess,
        guess_scores=all_scores(constant, actual),
        guess_intervals=intervals(constant, actual),
        classes=per_class(counts, actual, classes),
        calibration_error=calibration_error(bins),
        reliability=bins,
        decodings={
            name: all_scores(decode_counts(predictions.probabilities, predictions.classes, name), actual)
            for name in DECODINGS
        },
    )


def confidence(predictions: Predictions) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The probability of each predicted count, float64 [N]."""
    columns = np.searchsorted(predictions.classes, predictions.counts)
    chosen: np.ndarray[Any, np.dtype[np.float64]] = predictions.probabilities[
        np.arange(len(columns)), columns
    ]
    return chosen
