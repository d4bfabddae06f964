"""Predictions of own code as a table, and the paired tests of two such tables on the same rows."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from binsweep.data.errors import UserError
from binsweep.models.labelling import Measure
from binsweep.models.metrics import N_RESAMPLES
from binsweep.tracking.promotion.gate import RuleResult, format_p
from binsweep.tracking.promotion.paired_tests import ALPHA, bootstrap_test, mcnemar_test

REQUIRED = ("id", "truth", "prediction")
MIN_COMPARED_ROWS = 30  # that candidate and champion both have; a test of fewer claims too much


@dataclass(frozen=True)
class PredictionTable:
    """N rows of a split: their ids, what is true, what the model predicts, and, where they are given, what the served
    model is sent for each (`inputs`) and the probabilities."""

    ids: tuple[str, ...]
    truth: tuple[Any, ...]
    prediction: tuple[Any, ...]
    inputs: tuple[Any, ...] | None = None
    probabilities: tuple[Any, ...] | None = None

    @property
    def is_numeric(self) -> bool:
        """Whether its truth is a quantity, such as a price, rather than one of several labels."""
        return any(isinstance(value, float) and value != int(value) for value in self.truth)

    def take(self, ids: Sequence[str]) -> PredictionTable:
        """The rows with these ids, in their order."""
        place = {one: row for row, one in enumerate(self.ids)}
        rows = [place[one] for one in ids]
        return PredictionTable(
            tuple(ids), tuple(self.truth[row] for row in rows), tuple(self.prediction[row] for row in rows)
        )

    @property
    def digest(self) -> str:
        """What identifies its rows: their ids and truths."""
        rows = sorted(zip(self.ids, map(str, self.truth), strict=True))
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def parse_table(columns: Mapping[str, Sequence[Any]], where: str) -> PredictionTable:
    """A table from its columns. Raises UserError, naming `where`, if it lacks one or its rows do not fit together."""
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        have = ", ".join(columns) or "none"
        raise UserError(
            f"{where}: no column {missing[0]}", f"it needs id, truth and prediction; it has {have}"
        )
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"{where}: its columns differ in length: {told}", "give one value for each row")
    ids = tuple(str(value) for value in columns["id"])
    if not ids:
        raise UserError(f"{where}: no rows", "return the predictions of every row of the split")
    twice = [one for one, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(
            f"{where}: the id {twice[0]} occurs more than once", "give every row an id of its own"
        )
    for name in ("truth", "prediction"):
        for row, value in enumerate(columns[name]):
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                raise UserError(
                    f"{where}: {name} of {ids[row]} is {value}", "give a label or a finite number"
                )
    inputs, chances = columns.get("input"), columns.get("probabilities")
    return PredictionTable(
        ids,
        tuple(columns["truth"]),
        tuple(columns["prediction"]),
        None if inputs is None else tuple(inputs),
        None if chances is None else tuple(chances),
    )


def measure_for(metric: str, table: PredictionTable) -> Measure:
    """The score that decides: that of the objective, else accuracy for labels and RMSE for quantities."""
    for name in ("rmse", "mae", "accuracy"):
        if metric.endswith(name):
            return name
    return "rmse" if table.is_numeric else "accuracy"


def as_numbers(
    measure: Measure, *columns: Sequence[Any], where: str = "predict"
) -> list[NDArray[np.float64]]:
    """Columns as numbers: labels by their places among all of them. Raises UserError for a quantity that is none."""
    if measure == "accuracy":
        labels = {label: place for place, label in enumerate(sorted({str(v) for c in columns for v in c}))}
        return [np.array([labels[str(value)] for value in column], float) for column in columns]
    try:
        return [np.array([float(value) for value in column]) for column in columns]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {measure} needs numbers: {error}", "or optimise an accuracy") from error


def score(measure: Measure, prediction: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Accuracy, RMSE or MAE of N predictions."""
    error = np.abs(prediction - truth)
    if measure == "accuracy":
        return float(np.mean(error == 0))
    return float(np.sqrt(np.mean(error**2))) if measure == "rmse" else float(np.mean(error))


def interval(
    measure: Measure, prediction: NDArray[np.float64], truth: NDArray[np.float64], seed: int = 0
) -> tuple[float, float]:
    """The 95 % bootstrap interval of a score over rows (Efron and Tibshirani, 1993, chapter 13)."""
    losses, counts = np.unique(np.abs(prediction - truth), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(truth), counts / len(truth), N_RESAMPLES)
    terms = {"accuracy": losses == 0, "rmse": losses**2, "mae": losses}[measure]
    means = draws @ terms.astype(float) / len(truth)
    low, high = np.percentile(np.sqrt(means) if measure == "rmse" else means, [2.5, 97.5])
    return float(low), float(high)


def constant_guess(measure: Measure, table: PredictionTable) -> Any:
    """The best constant by the rows of a split: the most common label, the mean (RMSE) or the median (MAE)."""
    if measure == "accuracy":
        return Counter(map(str, table.truth)).most_common(1)[0][0]
    numbers = [float(value) for value in table.truth]
    return float(np.mean(numbers)) if measure == "rmse" else float(np.median(numbers))


def judge_better(
    measure: Measure,
    candidate: NDArray[np.float64],
    other: NDArray[np.float64],
    truth: NDArray[np.float64],
    opponent: str,
    alpha: float = ALPHA,
) -> RuleResult:
    """Whether the candidate is better than the opponent on the same rows beyond chance: McNemar's test for accuracy,
    the paired bootstrap for the others."""
    mine, theirs = score(measure, candidate, truth), score(measure, other, truth)
    if measure == "accuracy":
        p, won, lost = mcnemar_test(candidate, other, truth)
        evidence = f"{won} rows to {lost} where they differ, McNemar {format_p(p, alpha)}"
    else:
        resamples = max(N_RESAMPLES, math.ceil(20 / alpha))
        p, low, high = bootstrap_test(candidate, other, truth, measure, resamples=resamples)
        interval_text = f"95 % from {low:+.4g} to {high:+.4g}"
        evidence = f"difference {mine - theirs:+.4g} ({interval_text}), bootstrap {format_p(p, alpha)}"
    required = f", below {alpha:.2g} required" if alpha < ALPHA else ""
    verb = "beats" if p < alpha else "does not beat"
    text = f"test {measure} {mine:.4f} {verb} {opponent}'s {theirs:.4f} ({evidence}{required})"
    return RuleResult(f"better than {opponent}", p < alpha, text)


def judge_answers(table: PredictionTable, answers: Sequence[Any]) -> RuleResult:
    """Whether a server's answers for the first rows are the predictions that were judged.

    An answer is the prediction itself, or a dict with a `prediction`.
    """
    name, wrong = "served as evaluated", []
    for row, answer in enumerate(answers):
        given = answer.get("prediction") if isinstance(answer, Mapping) else answer
        if not _is_same(given, table.prediction[row]):
            wrong.append(f"{table.ids[row]}: {given!r} instead of {table.prediction[row]!r}")
    text = (
        f"{len(answers)} rows: all answers equal"
        if not wrong
        else f"{len(wrong)} of {len(answers)} rows differ"
    )
    return RuleResult(name, not wrong, f"{text} ({wrong[0]})" if wrong else text)


def _is_same(given: Any, expected: Any) -> bool:
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(expected, float) and isinstance(given, int | float):
        return math.isclose(given, expected, rel_tol=1e-4, abs_tol=1e-6)
    return bool(given == expected) or str(given) == str(expected)
