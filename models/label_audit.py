"""Which labels are probably wrong: a model that was not trained on a photo predicts it, against its label.

Predictions are out of fold, by logistic regression on the stored features of a frozen backbone. Label issues and their
ranking follow confident learning (Northcutt et al. 2021), as cleanlab implements it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from binsweep.data.errors import UserError
from binsweep.data.labels import Label
from binsweep.models.labelling import labelling_of
from binsweep.models.metrics import N_RESAMPLES
from binsweep.models.precision import choose_precision
from binsweep.models.settings import Settings
from binsweep.models.trial_data import NO_AUGMENT, BatchFactory, TrialData, build_trial_model

N_FOLDS = 5
# The C of the logistic regression. On real bins as accurate as the trained head (30 % of validation), and calibrated;
# 1e-2 overfits.
INVERSE_REGULARIZATION = 1e-3
MAX_ISSUE_SHARE = 0.02  # of a split: a weak model doubts half of all labels
N_CONTROLS = 3  # random exclusions that the effect is compared with
Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class JudgedLabel:
    """One photo of train or validation; `score` is the label quality, from 0 (surely wrong) to 1.

    `issue`: confident learning calls the label wrong, and its score is among the lowest MAX_ISSUE_SHARE of its split.
    """

    id: str
    split: str
    row: int  # in its split's bank
    label: Label
    suggested: Label
    p_label: float
    p_suggested: float
    score: float
    issue: bool


@dataclass(frozen=True)
class ExclusionEffect:
    """Validation scores of one model trained with all labels (`every`), without the issues (`without`), and without as
    many photos drawn at random (`control`, the mean of N_CONTROLS draws).

    `interval` is the 95 % interval of the difference `without` - `every` in accuracy. `unjudged` is the number of
    photos, by label, that cannot be judged because train has no other photo with their label.
    """

    model_accuracy: float  # out of fold, on train
    excluded: int
    validation: int
    every: dict[str, float]
    without: dict[str, float]
    control: dict[str, float]
    interval: tuple[float, float]
    unjudged: dict[Label, int]


def stored_features(data: TrialData, backbone: str) -> tuple[Features, Features]:
    """Features float32 [N, F] of train and validation, from the bank of a frozen backbone."""
    settings = Settings(backbone=backbone)
    precision = choose_precision(settings.precision)
    batches = BatchFactory(build_trial_model(settings, data, precision), settings, data.banks, precision)
    features = []
    for bank, augment in ((data.train, settings.augment), (data.validation, NO_AUGMENT)):
        rows = torch.arange(len(bank.labels))
        taken = batches.open(bank, augment).take(rows, torch.zeros_like(rows))
        features.append(taken.float().cpu().numpy())
    return features[0], features[1]


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_REGULARIZATION, max_iter=300))


def _predict_proba(model: Any, features: Features, classes: int) -> Probabilities:
    """Probabilities [N, classes] of a fitted model; 0 for classes without a photo in its training data."""
    probabilities = np.zeros((len(features), classes))
    probabilities[:, model.classes_] = model.predict_proba(features)
    return probabilities


def _out_of_fold(features: Features, labels: Labels, classes: int, seed: int) -> Probabilities:
    """Cross-validated predictions [N, classes]; a class with one photo gets 0 there, as no other fold has it."""
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(min(N_FOLDS, int(np.bincount(labels).max())), shuffle=True, random_state=seed)
    probabilities = np.zeros((len(labels), classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with fewer photos than folds
        for rest, fold in folds.split(features, labels):
            model = _model().fit(features[rest], labels[rest])
            probabilities[fold] = _predict_proba(model, features[fold], classes)
    return probabilities


@dataclass(frozen=True)
class _Probe:
    """The photos of an audit: the linear model is trained on `train` and scored on `validation`.

    Labels are class indices. `validation` has only the photos whose label also occurs in train.
    """

    train: Features
    train_labels: Labels
    validation: Features
    validation_labels: Labels
    classes: tuple[Label, ...]

    def predict_without(self, excluded: Mask) -> Probabilities:
        """Predictions for validation by a model that is trained without the `excluded` photos."""
        model = _model().fit(self.train[~excluded], self.train_labels[~excluded])
        return _predict_proba(model, self.validation, len(self.classes))

    def scores(self, probabilities: Probabilities) -> dict[str, float]:
        """The scores of the answers, and the loss, of predictions for validation."""
        names, labels = np.asarray(self.classes), self.validation_labels
        loss = -np.log(probabilities[np.arange(len(labels)), labels].clip(1e-12)).mean()
        labelling = labelling_of(self.classes)
        scores = labelling.answer_scores(names[probabilities.argmax(1)], names[labels])
        return {**{name: scores[name] for name in labelling.tested}, "loss": float(loss)}


def audit(
    data: TrialData, backbone: str = "efficientnet_lite0", seed: int = 0
) -> tuple[list[JudgedLabel], ExclusionEffect]:
    """Every photo of train and validation, lowest score first, and the effect of excluding the issues of train.

    A photo of train is judged by models of the other folds of train, one of validation by a model of all of train. So
    no label of validation influences which photos of train are excluded, and the effect on validation is unbiased. A
    photo is not judged if train has no other photo with its label. Raises UserError if too few can be judged.
    """
    train, validation = stored_features(data, backbone)
    labels, n_classes = data.train.labels, len(data.classes)
    photos = np.bincount(labels, minlength=n_classes)
    _check_enough(photos, data.classes)
    train_rows = np.flatnonzero(photos[labels] > 1)
    val_rows = np.flatnonzero(photos[data.validation.labels] > 0)
    if not len(val_rows):
        raise UserError(
            "no photo of validation has a label that train has, too", "more photos, or another data.split"
        )
    probe = _Probe(train, labels, validation[val_rows], data.validation.labels[val_rows], data.classes)
    train_predictions = _out_of_fold(train, labels, n_classes, seed)[train_rows]
    val_predictions = probe.predict_without(np.zeros(len(labels), bool))
    is_issue, judged = _judge_labels("train", data.train, train_rows, train_predictions, data.classes)
    judged += _judge_labels("validation", data.validation, val_rows, val_predictions, data.classes)[1]
    judged.sort(key=lambda label: (label.score, label.id))
    issues: Mask = np.zeros(len(labels), bool)
    issues[train_rows] = is_issue
    accuracy = float((train_predictions.argmax(1) == labels[train_rows]).mean())
    others = [*np.delete(labels, train_rows), *np.delete(data.validation.labels, val_rows)]
    unjudged = {data.classes[place]: many for place, many in sorted(Counter(others).items())}
    return judged, _effect(probe, issues, val_predictions, accuracy, unjudged, seed)


def _check_enough(photos: NDArray[np.int64], classes: Sequence[Label]) -> None:
    """Raise UserError unless train has `photos` of at least two classes, and two of one of them."""
    if (photos > 0).sum() < 2 or photos.max() < 2:
        have = ", ".join(f"{n} of {count}" for n, count in zip(photos, classes, strict=True))
        raise UserError(
            f"the train split has too few photos for an audit: {have}",
            "photos of at least two classes, and several of each",
        )


def _judge_labels(
    split: str, bank: Any, rows: NDArray[np.int64], probabilities: Probabilities, classes: Sequence[Label]
) -> tuple[Mask, list[JudgedLabel]]:
    """Which labels of a split's `rows` are issues, and the judgement of each."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels = bank.labels[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with few photos
        issues = find_label_issues(labels, probabilities, filter_by="both", n_jobs=1)
    scores = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    issues &= scores <= np.quantile(scores, MAX_ISSUE_SHARE)
    judged = []
    for row, label, p, score, issue in zip(rows, labels, probabilities, scores, issues, strict=True):
        top = int(p.argmax())
        suggestion = (classes[label], classes[top], float(p[label]), float(p[top]))
        judged.append(JudgedLabel(bank.ids[row], split, int(row), *suggestion, float(score), bool(issue)))
    return issues, judged


def _effect(
    probe: _Probe,
    issues: Mask,
    before: Probabilities,
    model_accuracy: float,
    unjudged: dict[Label, int],
    seed: int,
) -> ExclusionEffect:
    """The effect of excluding the `issues` of train; `before` are the predictions of the model trained with them."""
    after = probe.predict_without(issues)
    random = np.random.default_rng(seed)
    controls = []
    for _ in range(N_CONTROLS):
        drawn = np.zeros(len(issues), bool)
        drawn[random.choice(len(issues), int(issues.sum()), replace=False)] = True
        controls.append(probe.scores(probe.predict_without(drawn)))
    # Bootstrap over photos. It draws the number of photos with each difference (-1, 0, 1), as photos may be many.
    labels = probe.validation_labels
    difference = (after.argmax(1) == labels).astype(np.int64) - (before.argmax(1) == labels)
    differences, photos = np.unique(difference, return_counts=True)
    means = random.multinomial(len(labels), photos / len(labels), N_RESAMPLES) @ differences / len(labels)
    low, high = np.quantile(means, [0.025, 0.975])
    return ExclusionEffect(
        model_accuracy=model_accuracy,
        excluded=int(issues.sum()),
        validation=len(labels),
        every=probe.scores(before),
        without=probe.scores(after),
        control={name: float(np.mean([scores[name] for scores in controls])) for name in controls[0]},
        interval=(float(low), float(high)),
        unjudged=unjudged,
    )
