"""What differs between counting items and naming classes: scores, decodings, and the words of reports.

Everything else asks one of these two, COUNTING or NAMING, and does not look at the kind of labels itself.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from binsweep.data.labels import Label, kind_of
from binsweep.models.class_metrics import class_intervals, class_scores, per_name, top_hits
from binsweep.models.decoding import DECODINGS, Decoding
from binsweep.models.metrics import (
    Labels,
    all_scores,
    count_metrics,
    intervals,
    log_losses,
    per_class,
)

Goal = Literal["maximize", "minimize"]
# The scores of answers that a paired test can compare.
Measure = Literal["accuracy", "rmse", "mae", "balanced_accuracy", "macro_f1", "top3_accuracy"]
Probabilities = NDArray[np.floating[Any]]
Scores = dict[str, float]
TOP = 3  # the answers of the top-3 accuracy
MIN_CLASSES_FOR_TOP = 11  # with fewer classes, being among the first three says little
MAX_CLASS_METRICS = 50  # classes whose accuracy is logged in every epoch


@dataclass(frozen=True)
class Words:
    """How reports speak of labels. `photos_of` has a place for one label, the others stand alone."""

    does: str  # what a model does, as a sentence
    ask: str  # the same, as a purpose
    noun: str
    plural: str
    kind: str  # what the labels are called, as in `data.labels`
    answer: str  # what a photo is answered with, a key of the answer
    answers: str
    true: str  # beside the rows and columns of a confusion matrix
    predicted: str
    column: str  # of tables with a row for each label
    photos_column: str  # of the number of photos, in files
    subject: str  # what is photographed
    subjects: str
    photos_of: str
    one: str  # one label, where its number is told


class Labelling(ABC):
    """One of the two kinds of labels. Arrays of labels are int64 or str [N], probabilities [N, K]."""

    words: ClassVar[Words]
    metrics: ClassVar[Mapping[str, Goal]]  # objectives of a sweep; of validation only
    decodings: ClassVar[tuple[Decoding, ...]]
    heads: ClassVar[tuple[str, ...]]  # that can learn these labels
    score_names: ClassVar[Mapping[str, str]]  # of an evaluation, with their names for people
    class_scores: ClassVar[Mapping[str, str]]  # of the photos of one class, with their names for people
    # in which a model must be better than a constant, or a warning says that it is not
    tested: ClassVar[tuple[Measure, ...]]

    @abstractmethod
    def beside(self, metric: str) -> str:
        """The metric that tables show next to an objective."""

    @abstractmethod
    def second(self, measure: Measure) -> Measure:
        """The measure in which a better model must not be worse."""

    @abstractmethod
    def measure_of(self, metric: str) -> Measure:
        """The score of test photos that decides where a sweep has this objective."""

    @abstractmethod
    def answer_scores(self, predicted: Labels, actual: Labels) -> Scores:
        """The scores that depend on the answers alone."""

    @abstractmethod
    def training_scores(self, predicted: Labels, actual: Labels) -> Scores:
        """The scores of an epoch that depend on the answers alone, on the training photos."""

    @abstractmethod
    def validation_scores(
        self, probabilities: Probabilities, predicted: Labels, actual: Labels, classes: Sequence[Label]
    ) -> Scores:
        """The scores of an epoch on the validation photos, besides the loss, with the accuracy of each class."""

    @abstractmethod
    def intervals(self, predicted: Labels, actual: Labels) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals over photos of `answer_scores`."""

    @abstractmethod
    def probability_scores(
        self, probabilities: Probabilities, actual: Labels, classes: Sequence[Label]
    ) -> tuple[Scores, dict[str, tuple[float, float]]]:
        """The scores that depend on the probabilities, with their 95 % intervals."""

    @abstractmethod
    def per_class(self, predicted: Labels, actual: Labels, classes: Sequence[Label]) -> dict[Label, Scores]:
        """`class_scores` and support (photos) of each true label; labels without a photo are left out."""

    @abstractmethod
    def best_of(
        self, measure: Measure, probabilities: Probabilities, classes: Sequence[Label], actual: Labels
    ) -> Labels | None:
        """Answers whose accuracy is the measure, where it judges more than one answer; else None."""

    def describe(self, label: Label) -> str:
        """A label where it is told about."""
        return self.words.one.format(label)


class _Counting(Labelling):
    words = Words(
        does="Counts the items in the photo of one bin",
        ask="count the items in a photo",
        noun="count",
        plural="counts",
        kind="counts",
        answer="count",
        answers="counts",
        true="true items",
        predicted="predicted items",
        column="items",
        photos_column="bins",
        subject="bin",
        subjects="bins",
        photos_of="the bins with {}",
        one="{} items",
    )
    metrics: ClassVar[Mapping[str, Goal]] = {
        "val_accuracy": "maximize",
        "val_loss": "minimize",
        "val_rmse": "minimize",
        "val_mae": "minimize",
    }
    decodings = DECODINGS
    heads = ("classify", "ordinal", "regress")
    score_names: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "rmse": "RMSE",
        "mae": "MAE",
        "within_one": "within one",
        "macro_f1": "macro F1",
    }
    class_scores: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy", "rmse": "RMSE"}
    tested: ClassVar[tuple[Measure, ...]] = ("accuracy", "rmse", "mae")

    def beside(self, metric: str) -> str:
        return "val_rmse"

    def second(self, measure: Measure) -> Measure:
        return "rmse" if measure == "accuracy" else "accuracy"

    def measure_of(self, metric: str) -> Measure:
        return "rmse" if metric.endswith("rmse") else "mae" if metric.endswith("mae") else "accuracy"

    def answer_scores(self, predicted: Labels, actual: Labels) -> Scores:
        return all_scores(predicted, actual)

    def training_scores(self, predicted: Labels, actual: Labels) -> Scores:
        return count_metrics(predicted, actual)

    def validation_scores(
        self, probabilities: Probabilities, predicted: Labels, actual: Labels, classes: Sequence[Label]
    ) -> Scores:
        table = self.per_class(predicted, actual, np.unique(actual).tolist())
        accuracies = {f"accuracy_class_{count}": row["accuracy"] for count, row in table.items()}
        return count_metrics(predicted, actual) | accuracies

    def intervals(self, predicted: Labels, actual: Labels) -> dict[str, tuple[float, float]]:
        return intervals(predicted, actual)

    def probability_scores(
        self, probabilities: Probabilities, actual: Labels, classes: Sequence[Label]
    ) -> tuple[Scores, dict[str, tuple[float, float]]]:
        return {}, {}

    def per_class(self, predicted: Labels, actual: Labels, classes: Sequence[Label]) -> dict[Label, Scores]:
        return per_class(predicted, actual, classes)

    def best_of(
        self, measure: Measure, probabilities: Probabilities, classes: Sequence[Label], actual: Labels
    ) -> Labels | None:
        return None


class _Naming(Labelling):
    words = Words(
        does="Says which class a photo shows",
        ask="say which class a photo shows",
        noun="class",
        plural="classes",
        kind="names",
        answer="label",
        answers="labels",
        true="true class",
        predicted="predicted class",
        column="class",
        photos_column="photos",
        subject="photo",
        subjects="scenes",
        photos_of="the photos of {}",
        one="{}",
    )
    metrics: ClassVar[Mapping[str, Goal]] = {
        "val_accuracy": "maximize",
        "val_balanced_accuracy": "maximize",
        "val_macro_f1": "maximize",
        "val_loss": "minimize",
        "val_top3_accuracy": "maximize",
    }
    decodings: ClassVar[tuple[Decoding, ...]] = ("argmax",)  # names have no order
    heads = ("classify",)
    score_names: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro F1",
        "top3_accuracy": "top-3 accuracy",
        "log_loss": "log loss",
    }
    class_scores: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy", "precision": "precision", "f1": "F1"}
    tested: ClassVar[tuple[Measure, ...]] = ("accuracy", "balanced_accuracy", "macro_f1")

    def beside(self, metric: str) -> str:
        return "val_accuracy" if metric == "val_macro_f1" else "val_macro_f1"

    def second(self, measure: Measure) -> Measure:
        return "macro_f1" if measure == "accuracy" else "accuracy"

    def measure_of(self, metric: str) -> Measure:
        deciding: dict[str, Measure] = {
            "val_balanced_accuracy": "balanced_accuracy",
            "val_macro_f1": "macro_f1",
            "val_top3_accuracy": "top3_accuracy",
        }
        return deciding.get(metric, "accuracy")

    def answer_scores(self, predicted: Labels, actual: Labels) -> Scores:
        return class_scores(predicted, actual)

    def training_scores(self, predicted: Labels, actual: Labels) -> Scores:
        return {"accuracy": float(np.mean(predicted == actual))}

    def validation_scores(
        self, probabilities: Probabilities, predicted: Labels, actual: Labels, classes: Sequence[Label]
    ) -> Scores:
        scores = class_scores(predicted, actual)
        if len(classes) >= MIN_CLASSES_FOR_TOP:
            scores["top3_accuracy"] = float(top_hits(probabilities, classes, actual, TOP).mean())
        if len(classes) <= MAX_CLASS_METRICS:
            keys = metric_keys(classes)
            table = self.per_class(predicted, actual, classes)
            scores |= {f"accuracy_class_{keys[name]}": row["accuracy"] for name, row in table.items()}
        return scores

    def intervals(self, predicted: Labels, actual: Labels) -> dict[str, tuple[float, float]]:
        return class_intervals(predicted, actual)

    def probability_scores(
        self, probabilities: Probabilities, actual: Labels, classes: Sequence[Label]
    ) -> tuple[Scores, dict[str, tuple[float, float]]]:
        terms = {"log_loss": _log_losses(probabilities, actual, classes)}
        if len(classes) >= MIN_CLASSES_FOR_TOP:
            terms["top3_accuracy"] = top_hits(probabilities, classes, actual, TOP).astype(np.float64)
        scores, ranges = {}, {}
        for name, values in terms.items():
            # The mean of many photos: the normal approximation is as good as a bootstrap.
            mean, error = float(values.mean()), 1.96 * float(values.std()) / np.sqrt(len(values))
            scores[name] = mean
            ranges[name] = (
                max(0.0, mean - error),
                mean + error if name == "log_loss" else min(1.0, mean + error),
            )
        return scores, ranges

    def per_class(self, predicted: Labels, actual: Labels, classes: Sequence[Label]) -> dict[Label, Scores]:
        return per_name(predicted, actual, classes)

    def best_of(
        self, measure: Measure, probabilities: Probabilities, classes: Sequence[Label], actual: Labels
    ) -> Labels | None:
        if measure != "top3_accuracy":
            return None
        first = np.asarray(classes)[probabilities.argmax(axis=1)]
        best: Labels = np.where(top_hits(probabilities, classes, actual, TOP), actual, first)
        return best


COUNTING, NAMING = _Counting(), _Naming()


def labelling_of(classes: Sequence[Label]) -> Labelling:
    """What to ask about these classes: COUNTING or NAMING."""
    return NAMING if kind_of(classes) == "names" else COUNTING


def labelling_of_scores(names: Collection[str]) -> Labelling:
    """The same by the names of an epoch's metrics."""
    return NAMING if "val_macro_f1" in names else COUNTING


def metric_keys(classes: Sequence[Label]) -> dict[Label, str]:
    """Different names for metrics of classes, as MLflow accepts them: letters, digits, `_`, `-`, `.` and blanks."""
    keys: dict[Label, str] = {}
    used = set[str]()
    for label in classes:
        plain = re.sub(r"[^\w\-. ]", "_", str(label))[:100].strip(" .") or "_"
        key, number = plain, 1
        while key.casefold() in used:
            number += 1
            key = f"{plain}_{number}"
        used.add(key.casefold())
        keys[label] = key
    return keys


def _log_losses(
    probabilities: Probabilities, actual: Labels, classes: Sequence[Label]
) -> NDArray[np.float64]:
    """`log_losses` by labels; a photo of a class that the model does not know has the largest loss."""
    known = np.searchsorted(np.asarray(classes), actual).clip(max=len(classes) - 1)
    right = np.asarray(classes)[known] == actual
    return log_losses(np.where(right[:, None], probabilities, 0.0), known)
