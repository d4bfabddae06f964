"""What an evaluation found, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from binsweep.models.metrics import (
    CalibrationBin,
    Counts,
    all_scores,
    calibration_error,
    intervals,
    per_class,
    reliability,
)
from binsweep.models.predictor import DECODINGS, decode_counts
from binsweep.tracking.evaluation.predictions import Predictions

Scores = dict[str, float]


@dataclass(frozen=True)
class Scorecard:
    """Scores (accuracy, rmse, mae, within_one, macro_f1) with 95 % bootstrap intervals, beside those of always
    saying `guess`; per true count accuracy, rmse and support; the expected calibration error with its bins.

    `decodings` are the scores of each way to make one count of a distribution, here.
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


def score(said: Predictions, actual: Counts, guess: int) -> Scorecard:
    """The scorecard of a model's answers about photos with the true counts `actual` [N]."""
    always = np.full_like(actual, guess)
    table = reliability(confidence(said), said.counts == actual)
    kinds = sorted({*said.classes, *np.unique(actual).tolist()})
    return Scorecard(
        images=len(actual),
        scores=all_scores(said.counts, actual),
        intervals=intervals(said.counts, actual),
        guess=guess,
        guess_scores=all_scores(always, actual),
        guess_intervals=intervals(always, actual),
        classes=per_class(said.counts, actual, kinds),
        calibration_error=calibration_error(table),
        reliability=table,
        decodings={
            name: all_scores(decode_counts(said.probabilities, said.classes, name), actual)
            for name in DECODINGS
        },
    )


def confidence(said: Predictions) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The probability of the count that was given, float64 [N]."""
    place = np.searchsorted(said.classes, said.counts)
    chosen: np.ndarray[Any, np.dtype[np.float64]] = said.probabilities[np.arange(len(place)), place]
    return chosen
