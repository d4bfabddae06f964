"""Metrics on counts, checked by hand."""

import numpy as np
import pytest

from binsweep.models.decoding import decode_labels
from binsweep.models.metrics import (
    all_scores,
    calibration_error,
    commonest,
    confusion_matrix,
    count_metrics,
    intervals,
    per_class,
    reliability,
)

ACTUAL = np.array([0, 2, 2, 5])
PREDICTED = np.array([0, 2, 5, 2])


def test_metrics_are_on_counts_not_on_class_indices() -> None:
    scores = count_metrics(PREDICTED, ACTUAL)
    assert scores == {"accuracy": 0.5, "rmse": pytest.approx(np.sqrt(18 / 4)), "mae": 1.5}


def test_confusion_has_true_rows_and_predicted_columns() -> None:
    matrix = confusion_matrix(PREDICTED, ACTUAL, [0, 2, 5])
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 0]]


def test_per_class_leaves_out_absent_counts() -> None:
    table = per_class(PREDICTED, ACTUAL, [0, 1, 2, 5])
    assert list(table) == [0, 2, 5]
    assert table[2] == {"accuracy": 0.5, "rmse": pytest.approx(np.sqrt(4.5)), "support": 2.0}


def test_the_commonest_count_is_the_least_of_several() -> None:
    assert commonest(np.array([2, 2, 0])) == 2 and commonest(np.array([3, 1])) == 1


def test_all_scores_agree_with_the_simple_ones_and_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    dice = np.random.default_rng(0)
    actual, predicted = dice.integers(0, 6, 500), dice.integers(0, 5, 500)
    scores = all_scores(predicted, actual)
    assert scores == pytest.approx(
        {
            **count_metrics(predicted, actual),
            "within_one": np.mean(np.abs(predicted - actual) <= 1),
            "macro_f1": f1_score(actual, predicted, average="macro"),
        }
    )
    for name, (low, high) in intervals(predicted, actual).items():
        assert low < scores[name] < high
    # A bootstrap by hand: photos drawn one by one.
    draws = dice.integers(0, 500, (2000, 500))
    wanted = np.percentile(np.sqrt(((predicted - actual) ** 2)[draws].mean(axis=1)), [2.5, 97.5])
    assert intervals(predicted, actual)["rmse"] == pytest.approx(tuple(wanted), abs=0.02)


def test_calibration_is_the_gap_between_confidence_and_accuracy() -> None:
    sure = np.array([0.95, 0.95, 0.25, 1.0])
    table = reliability(sure, np.array([True, False, False, True]))
    assert [(row.low, row.photos) for row in table] == [(0.2, 1), (0.9, 3)]
    assert calibration_error(table) == pytest.approx((0.25 + 3 * abs(2.9 / 3 - 2 / 3)) / 4)


def test_a_distribution_becomes_one_of_the_classes() -> None:
    table = np.array([[0.4, 0.25, 0.35], [0.0, 0.1, 0.9], [0.5, 0.5, 0.0]], np.float32)
    assert decode_labels(table, (0, 2, 5), "argmax").tolist() == [0, 5, 0]
    assert decode_labels(table, (0, 2, 5), "median").tolist() == [2, 5, 0]
    assert decode_labels(table, (0, 2, 5), "mean").tolist() == [
        2,
        5,
        0,
    ]  # 2.25, 4.7, 1.0: the least of two as near
    # Of 0, 2 and 5 in the first row: 0.25 * 3 + 0.35 * 6 = 2.85, 0.4 * 3 + 0.35 * 4 = 2.6, 0.4 * 6 + 0.25 * 4 = 3.4.
    assert decode_labels(table, (0, 2, 5), "compromise").tolist() == [2, 5, 0]
    torn = np.array([[0.4, 0.25, 0.35], [0.5, 0.1, 0.4]])
    assert decode_labels(torn, (1, 2, 3), "compromise").tolist() == [2, 1]
