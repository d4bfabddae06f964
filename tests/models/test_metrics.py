"""Metrics on counts, checked by hand."""

import numpy as np
import pytest

from models.metrics import confusion_matrix, constant_guess, count_metrics, per_class

ACTUAL = np.array([0, 2, 2, 5])
SAID = np.array([0, 2, 5, 2])


def test_metrics_are_on_counts_not_on_class_indices() -> None:
    scores = count_metrics(SAID, ACTUAL)
    assert scores == {"accuracy": 0.5, "rmse": pytest.approx(np.sqrt(18 / 4)), "mae": 1.5}


def test_confusion_has_true_rows_and_predicted_columns() -> None:
    matrix = confusion_matrix(SAID, ACTUAL, [0, 2, 5])
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 0]]


def test_per_class_leaves_out_absent_counts() -> None:
    table = per_class(SAID, ACTUAL, [0, 1, 2, 5])
    assert list(table) == [0, 2, 5]
    assert table[2] == {"accuracy": 0.5, "rmse": pytest.approx(np.sqrt(4.5)), "support": 2.0}


def test_the_constant_guess_comes_from_training() -> None:
    guess = constant_guess(np.array([2, 2, 0]), ACTUAL)
    assert guess["guess"] == 2 and guess["accuracy"] == 0.5
