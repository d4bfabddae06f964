"""The scores of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from binsweep.data.labels import Label, sorted_labels
from binsweep.models.decoding import decode_labels
from binsweep.models.labelling import Labelling, labelling_of
from binsweep.models.metrics import CalibrationBin, Labels, calibration_error, reliability
from binsweep.tracking.evaluation.predictions import Predictions

Scores = dict[str, float]


@dataclass(frozen=True)
class Scorecard:
    """Scores (`score_names` of the labelling) of a model and of the constant `guess`, each with 95 % bootstrap
    intervals; scores and support per true label; the expected calibration error with its bins.

    The guess has no scores of probabilities. `decodings` are the scores on these photos of each way to turn the
    distribution into one label, where there are several.
    """

    images: int
    scores: Scores
    intervals: dict[str, tuple[float, float]]
    guess: Label
    guess_scores: Scores
    guess_intervals: dict[str, tuple[float, float]]
    classes: dict[Label, Scores]
    calibration_error: float
    reliability: list[CalibrationBin]
    decodings: dict[str, Scores]

    @property
    def labelling(self) -> Labelling:
        """What to ask about its labels."""
        return labelling_of([self.guess])

    @property
    def score_names(self) -> dict[str, str]:
        """The scores that it has, with their names for people."""
        return {key: name for key, name in self.labelling.score_names.items() if key in self.scores}


def score(predictions: Predictions, actual: Labels, guess: Label) -> Scorecard:
    """The scorecard of a model's predictions for photos with the true labels `actual` [N]."""
    labelling = labelling_of(predictions.classes)
    answers, constant = predictions.labels, np.full(len(actual), guess)
    bins = reliability(confidence(predictions), answers == actual)
    classes = sorted_labels({*predictions.classes, *np.unique(actual).tolist()})
    further, further_intervals = labelling.probability_scores(
        predictions.probabilities, actual, predictions.classes
    )
    decodings = labelling.decodings if len(labelling.decodings) > 1 else ()
    return Scorecard(
        images=len(actual),
        scores=labelling.answer_scores(answers, actual) | further,
        intervals=labelling.intervals(answers, actual) | further_intervals,
        guess=guess,
        guess_scores=labelling.answer_scores(constant, actual),
        guess_intervals=labelling.intervals(constant, actual),
        classes=labelling.per_class(answers, actual, classes),
        calibration_error=calibration_error(bins),
        reliability=bins,
        decodings={
            name: labelling.answer_scores(
                decode_labels(predictions.probabilities, predictions.classes, name), actual
            )
            for name in decodings
        },
    )


def confidence(predictions: Predictions) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The probability of each predicted label, float64 [N]."""
    columns = np.searchsorted(np.asarray(predictions.classes), predictions.labels)
    chosen: np.ndarray[Any, np.dtype[np.float64]] = predictions.probabilities[
        np.arange(len(columns)), columns
    ]
    return chosen
