"""Scores of named classes agree with scikit-learn's; what differs between counts and names is asked of one object."""

import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from binsweep.models.class_metrics import class_intervals, class_scores, per_name, top_hits
from binsweep.models.decoding import answer_columns, answer_rows
from binsweep.models.labelling import COUNTING, NAMING, labelling_of, metric_keys

CLASSES = [f"class {letter}" for letter in "abcdefghijkl"]
RNG = np.random.default_rng(0)
TABLE = RNG.dirichlet(np.full(len(CLASSES), 0.3), 400)
# Some classes are rare, one never occurs, and the model is right more often than not.
ACTUAL = np.array(CLASSES)[RNG.choice(11, 400, p=RNG.dirichlet(np.full(11, 1.0)))]
TABLE[np.arange(400), np.searchsorted(CLASSES, ACTUAL)] += 0.3 * RNG.random(400)
TABLE /= TABLE.sum(axis=1, keepdims=True)
PREDICTED = np.array(CLASSES)[TABLE.argmax(axis=1)]


def test_scores_agree_with_scikit_learn() -> None:
    scores = class_scores(PREDICTED, ACTUAL)
    assert scores == pytest.approx(
        {
            "accuracy": np.mean(PREDICTED == ACTUAL),
            "balanced_accuracy": balanced_accuracy_score(ACTUAL, PREDICTED),
            "macro_f1": f1_score(ACTUAL, PREDICTED, average="macro"),
        }
    )
    further, ranges = NAMING.probability_scores(TABLE, ACTUAL, CLASSES)
    assert further == pytest.approx(
        {
            "log_loss": log_loss(ACTUAL, TABLE, labels=CLASSES),
            "top3_accuracy": top_k_accuracy_score(ACTUAL, TABLE, k=3, labels=CLASSES),
        }
    )
    for name, (low, high) in ranges.items():
        assert low < further[name] < high


def test_scores_per_class_agree_with_scikit_learn() -> None:
    present = sorted(set(ACTUAL))
    precision, recall, f1, support = precision_recall_fscore_support(
        ACTUAL, PREDICTED, labels=present, zero_division=0
    )
    table = per_name(PREDICTED, ACTUAL, CLASSES)
    assert list(table) == present
    for place, name in enumerate(present):
        assert table[name] == pytest.approx(
            {
                "accuracy": recall[place],
                "precision": precision[place],
                "f1": f1[place],
                "support": support[place],
            }
        )


def test_intervals_are_those_of_drawing_photos_again() -> None:
    rng, drawn = np.random.default_rng(1), []
    for _ in range(400):
        rows = rng.integers(0, len(ACTUAL), len(ACTUAL))
        drawn.append(class_scores(PREDICTED[rows], ACTUAL[rows]))
    for name, (low, high) in class_intervals(PREDICTED, ACTUAL).items():
        wanted = np.percentile([scores[name] for scores in drawn], [2.5, 97.5])
        assert (low, high) == pytest.approx(tuple(wanted), abs=0.03)


def test_top_three() -> None:
    hits = top_hits(TABLE, CLASSES, ACTUAL, 3)
    assert hits[PREDICTED == ACTUAL].all() and not hits.all()
    best = NAMING.best_of("top3_accuracy", TABLE, CLASSES, ACTUAL)
    assert best is not None and np.array_equal(best == ACTUAL, hits)
    assert NAMING.best_of("accuracy", TABLE, CLASSES, ACTUAL) is None


def test_validation_scores_of_names() -> None:
    scores = NAMING.validation_scores(TABLE, PREDICTED, ACTUAL, CLASSES)
    assert scores["top3_accuracy"] == pytest.approx(top_k_accuracy_score(ACTUAL, TABLE, k=3, labels=CLASSES))
    assert {name for name in scores if name.startswith("accuracy_class_")} == {
        f"accuracy_class_{name}" for name in set(ACTUAL)
    }
    two = np.array(CLASSES[:2])
    few = NAMING.validation_scores(np.eye(2), two, two, CLASSES[:2])
    assert "top3_accuracy" not in few


def test_a_class_that_the_model_does_not_know_is_a_miss() -> None:
    actual = np.array(["class a", "unheard of"])
    further, _ = NAMING.probability_scores(TABLE[:2], actual, CLASSES)
    alone, _ = NAMING.probability_scores(TABLE[:1], actual[:1], CLASSES)
    assert np.isfinite(further["log_loss"]) and further["log_loss"] > alone["log_loss"] + 5


def test_metric_names_of_classes_are_different_and_accepted() -> None:
    names = ["a b", "a+b", "a*b", "A/B", "..", "\u00fc\u7834", "x" * 300]
    keys = metric_keys(names)
    assert len({key.casefold() for key in keys.values()}) == len(names)
    assert all(
        key.isascii() is name.isascii() and "/" not in key and len(key) < 110 for name, key in keys.items()
    )
    assert metric_keys([0, 1, 12]) == {0: "0", 1: "1", 12: "12"}


def test_rows_of_answers() -> None:
    (row,) = answer_rows(np.array([[0.2, 0.5, 0.3]], np.float32), ["ok", "torn", "wet"], "argmax")
    assert row["label"] == "torn" and row["confidence"] == pytest.approx(0.5)
    assert list(row) == list(answer_columns(["ok"])) == ["label", "confidence", "probabilities"]
    assert row["probabilities"] == pytest.approx({"ok": 0.2, "torn": 0.5, "wet": 0.3})
    (row,) = answer_rows(np.array([[0.2, 0.5, 0.3]], np.float32), [1, 2, 5], "mean")
    assert (
        list(row) == list(answer_columns([1])) == ["count", "expected_count", "confidence", "probabilities"]
    )
    assert (row["count"], row["expected_count"]) == (2, pytest.approx(2.7)) and type(row["count"]) is int


def test_the_labels_say_which_of_the_two() -> None:
    assert labelling_of([0, 1]) is COUNTING and labelling_of(["0", "1"]) is NAMING
    words = " ".join(str(value) for value in vars(NAMING.words).values())
    assert "count" not in words and "bin" not in words and "item" not in words
