"""What an evaluation found, as numbers, files and one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from binsweep.models.metrics import (
    Bin,
    Counts,
    all_scores,
    calibration_error,
    confusion_matrix,
    intervals,
    per_class,
    reliability,
)
from binsweep.models.predictor import DECODINGS, decode_counts
from binsweep.tracking.evaluation.figures import Picture, draw_reliability, write_figures
from binsweep.tracking.evaluation.predictions import Predictions
from binsweep.tracking.evaluation.report import render

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
    reliability: list[Bin]
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


def write_scorecard(
    folder: Path,
    card: Scorecard,
    said: Predictions,
    actual: Counts,
    ids: Sequence[str],
    picture: Picture,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
) -> None:
    """Write into `folder`: report.html (one page that needs nothing else), scores.json, predictions.parquet,
    confusion_matrix.csv and .png, per_class.csv, reliability.png and mistakes.jpg.

    `facts` head the page; `notes` are sentences below them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sure = confidence(said)
    columns = {f"p{count}": said.probabilities[:, place] for place, count in enumerate(said.classes)}
    table = {"id": list(ids), "true": actual, "predicted": said.counts, "confidence": sure, **columns}
    pd.DataFrame(table).to_parquet(folder / "predictions.parquet", index=False)
    title = f"accuracy {card.scores['accuracy']:.1%} on {card.images} photos"
    kinds = list(card.classes.keys() | set(said.classes))
    write_figures(folder, said.counts, sure, actual, sorted(kinds), ids, picture, title)
    draw_reliability(card.reliability, card.calibration_error, folder / "reliability.png")
    (folder / "scores.json").write_text(json.dumps(asdict(card) | {"facts": dict(facts)}, indent=1))
    matrix = confusion_matrix(said.counts, actual, sorted(kinds))
    (folder / "report.html").write_text(
        render(card, matrix, sorted(kinds), facts, notes, folder), encoding="utf-8"
    )
