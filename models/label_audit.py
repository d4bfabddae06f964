"""Which labels are probably wrong: what a model that never saw a photo says of it, against its label.

Predictions are out of fold: logistic regression on the stored features of a frozen backbone. What is an issue, and
the ranking, are confident learning's (Northcutt et al. 2021) as cleanlab implements it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from binsweep.data.errors import UserError
from binsweep.models.metrics import N_RESAMPLES, count_metrics
from binsweep.models.precision import choose_precision
from binsweep.models.settings import Settings
from binsweep.models.train import PLAIN, TrialData, build_trial_model, open_batches

FOLDS = 5
# As good on real bins as the trained head (30 % of validation right), and calibrated; 1e-2 overfits.
STRENGTH = 1e-3
SHARE = 0.02  # of a split that is called an issue at most: a weak model doubts half of all labels
CONTROLS = 3  # random exclusions that the effect is compared with
Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class JudgedLabel:
    """One photo of train or validation; `score` from 0 (surely wrong) to 1.

    `issue`: confident learning calls it wrong, and it is among the most doubtful SHARE of its split.
    """

    id: str
    split: str
    row: int  # in its split's bank
    label: int
    suggested: int
    p_label: float
    p_suggested: float
    score: float
    issue: bool


@dataclass(frozen=True)
class ExclusionEffect:
    """Scores on validation of the same model trained with all labels, without the issues, and without as many others
    drawn by chance (the mean of CONTROLS draws); `interval`: 95 % of the difference without - all in accuracy.

    `unjudged`: how many photos of each count nobody can say anything about, because no other one of train has it.
    """

    model_accuracy: float  # out of fold, on train: how much the model's word is worth
    excluded: int
    validation: int
    every: dict[str, float]
    without: dict[str, float]
    control: dict[str, float]
    interval: tuple[float, float]
    unjudged: dict[int, int]


def stored_features(data: TrialData, backbone: str) -> tuple[Features, Features]:
    """Features float32 [N, F] of train and validation by a frozen backbone, from its bank."""
    settings = Settings(backbone=backbone)
    precision = choose_precision(settings.precision)
    counter = build_trial_model(settings, data, precision)
    found = []
    for bank, augment in ((data.train, settings.augment), (data.validation, PLAIN)):
        batches = open_batches(counter, settings, bank, data.banks, precision, augment)
        rows = torch.arange(len(bank.labels))
        found.append(batches.take(rows, torch.zeros_like(rows)).float().cpu().numpy())
    return found[0], found[1]


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=300))


def _say(model: Any, features: Features, classes: int) -> Probabilities:
    """Probabilities [N, classes] of a fitted model, which knows only the classes that it was fitted on."""
    table = np.zeros((len(features), classes))
    table[:, model.classes_] = model.predict_proba(features)
    return table


def _out_of_fold(features: Features, labels: Labels, classes: int, seed: int) -> Probabilities:
    """What models of the other folds say of each photo; a class of one photo is in no other fold, and gets 0 there."""
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(min(FOLDS, int(np.bincount(labels).max())), shuffle=True, random_state=seed)
    table = np.zeros((len(labels), classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer photos than folds
        for rest, fold in folds.split(features, labels):
            table[fold] = _say(_model().fit(features[rest], labels[rest]), features[fold], classes)
    return table


def audit(
    data: TrialData, backbone: str = "efficientnet_lite0", seed: int = 0
) -> tuple[list[JudgedLabel], ExclusionEffect]:
    """Every photo of train and validation, the most doubtful first, and what leaving out those of train changes.

    A photo of train is judged by models of the other folds of train, one of validation by a model of all of train:
    no label of validation has a say in what is left out of train, so the effect on validation is an honest one.
    A photo is not judged where no other one of train has its count. Raises UserError where that leaves nothing.
    """
    train, validation = stored_features(data, backbone)
    labels, many = data.train.labels, len(data.classes)
    photos = np.bincount(labels, minlength=many)
    if (photos > 0).sum() < 2 or photos.max() < 2:
        have = ", ".join(f"{n} of {count}" for n, count in zip(photos, data.classes, strict=True))
        raise UserError(
            f"the train split has too few photos for an audit: {have}",
            "photos of at least two counts, and several of each",
        )
    rows = np.flatnonzero(photos[labels] > 1)
    held = np.flatnonzero(photos[data.validation.labels] > 0)
    if not len(held):
        raise UserError(
            "no photo of validation has a count that train has, too", "more photos, or another data.split"
        )
    left = [*np.delete(labels, rows), *np.delete(data.validation.labels, held)]
    said = [
        _out_of_fold(train, labels, many, seed)[rows],
        _say(_model().fit(train, labels), validation[held], many),
    ]
    found, doubts = _doubts("train", data.train, rows, said[0], data.classes)
    doubts += _doubts("validation", data.validation, held, said[1], data.classes)[1]
    doubts.sort(key=lambda doubt: (doubt.score, doubt.id))
    issues: NDArray[np.bool_] = np.zeros(len(labels), bool)
    issues[rows] = found
    right = float((said[0].argmax(1) == labels[rows]).mean())
    effect = _effect(
        train,
        labels,
        validation[held],
        data.validation.labels[held],
        issues,
        data.classes,
        seed,
        said[1],
        right,
    )
    unjudged = Counter(data.classes[label] for label in left)
    return doubts, replace(effect, unjudged=dict(sorted(unjudged.items())))


def _doubts(
    name: str, bank: Any, rows: NDArray[np.int64], probabilities: Probabilities, classes: Sequence[int]
) -> tuple[NDArray[np.bool_], list[JudgedLabel]]:
    """Which labels of a split's `rows` are issues, and all that is known of each."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels = bank.labels[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with few photos
        found = find_label_issues(labels, probabilities, filter_by="both", n_jobs=1)
    scores = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    found &= scores <= np.quantile(scores, SHARE)
    return found, [
        _doubt(name, int(row), bank, probabilities[place], scores[place], found[place], classes)
        for place, row in enumerate(rows)
    ]


def _doubt(
    split: str,
    row: int,
    bank: Any,
    probabilities: Probabilities,
    score: float,
    issue: bool,
    classes: Sequence[int],
) -> JudgedLabel:
    label, top = int(bank.labels[row]), int(probabilities.argmax())
    p_label, p_top = float(probabilities[label]), float(probabilities[top])
    return JudgedLabel(
        bank.ids[row], split, row, classes[label], classes[top], p_label, p_top, float(score), bool(issue)
    )


def _effect(
    train: Features,
    labels: Labels,
    validation: Features,
    held: Labels,
    issues: NDArray[np.bool_],
    classes: Sequence[int],
    seed: int,
    before: Probabilities,
    right: float,
) -> ExclusionEffect:
    counts = np.asarray(classes)
    actual = counts[held]

    def scores(probabilities: Probabilities) -> dict[str, float]:
        loss = -np.log(probabilities[np.arange(len(held)), held].clip(1e-12)).mean()
        return {**count_metrics(counts[probabilities.argmax(1)], actual), "loss": float(loss)}

    def without(rows: NDArray[np.bool_]) -> Probabilities:
        return _say(_model().fit(train[~rows], labels[~rows]), validation, len(classes))

    after = without(issues)
    draw = np.random.default_rng(seed)
    controls = []
    for _ in range(CONTROLS):
        chance = np.zeros(len(labels), bool)
        chance[draw.choice(len(labels), int(issues.sum()), replace=False)] = True
        controls.append(scores(without(chance)))
    # Bootstrap over photos, which draws how many have each difference: the photos may be many.
    difference = (after.argmax(1) == held).astype(np.int64) - (before.argmax(1) == held)
    kinds, photos = np.unique(difference, return_counts=True)
    means = draw.multinomial(len(held), photos / len(held), N_RESAMPLES) @ kinds / len(held)
    low, high = np.quantile(means, [0.025, 0.975])
    control = {name: float(np.mean([one[name] for one in controls])) for name in controls[0]}
    interval = (float(low), float(high))
    return ExclusionEffect(
        right, int(issues.sum()), len(held), scores(before), scores(after), control, interval, {}
    )
