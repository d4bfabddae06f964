"""Which labels are probably wrong: what a model that never saw a photo says of it, against its label.

Predictions are out of fold: logistic regression on the stored features of a frozen backbone. What is an issue, and
the ranking, are confident learning's (Northcutt et al. 2021) as cleanlab implements it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.arithmetic import choose_arithmetic
from models.metrics import count_metrics
from models.settings import Settings
from models.train import PLAIN, TrialData, open_batches, open_counter

FOLDS = 5
# As good on real bins as the trained head (30 % of validation right), and calibrated; 1e-2 overfits.
STRENGTH = 1e-3
SHARE = 0.02  # of a split that is called an issue at most: a weak model doubts half of all labels
CONTROLS = 3  # random exclusions that the effect is compared with
Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Doubt:
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
class Effect:
    """Scores on validation of the same model trained with all labels, without the issues, and without as many others
    drawn by chance (the mean of CONTROLS draws); `interval`: 95 % of the difference without - all in accuracy."""

    model_accuracy: float  # out of fold, on train: how much the model's word is worth
    excluded: int
    validation: int
    every: dict[str, float]
    without: dict[str, float]
    control: dict[str, float]
    interval: tuple[float, float]


def stored_features(data: TrialData, backbone: str) -> tuple[Features, Features]:
    """Features float32 [N, F] of train and validation by a frozen backbone, from its bank."""
    settings = Settings(backbone=backbone)
    arithmetic = choose_arithmetic(settings.precision)
    counter = open_counter(settings, data, arithmetic)
    found = []
    for bank, augment in ((data.train, settings.augment), (data.validation, PLAIN)):
        batches = open_batches(counter, settings, bank, data.banks, arithmetic, augment)
        rows = torch.arange(len(bank.labels))
        found.append(batches.take(rows, torch.zeros_like(rows)).float().cpu().numpy())
    return found[0], found[1]


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=300))


def audit(data: TrialData, backbone: str = "efficientnet_lite0", seed: int = 0) -> tuple[list[Doubt], Effect]:
    """Every photo of train and validation, the most doubtful first, and what leaving out those of train changes.

    A photo of train is judged by models of the other folds of train, one of validation by a model of all of train:
    no label of validation has a say in what is left out of train, so the effect on validation is an honest one.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    train, validation = stored_features(data, backbone)
    labels, held = data.train.labels, data.validation.labels
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    model = _model().fit(train, labels)
    said = [
        cross_val_predict(_model(), train, labels, cv=folds, method="predict_proba"),
        model.predict_proba(validation),
    ]
    doubts = []
    issues: NDArray[np.bool_] = np.zeros(len(labels), bool)
    for name, bank, probabilities in zip(
        ("train", "validation"), (data.train, data.validation), said, strict=True
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with few photos
            found = find_label_issues(bank.labels, probabilities, filter_by="both", n_jobs=1)
        scores = get_label_quality_scores(bank.labels, probabilities, method="normalized_margin")
        found &= scores <= np.quantile(scores, SHARE)
        doubts += [
            _doubt(name, row, bank, probabilities[row], scores[row], found[row], data.classes)
            for row in range(len(found))
        ]
        issues = found if name == "train" else issues
    doubts.sort(key=lambda doubt: (doubt.score, doubt.id))
    right = float((said[0].argmax(1) == labels).mean())
    return doubts, _effect(train, labels, validation, held, issues, data.classes, seed, said[1], right)


def _doubt(
    split: str,
    row: int,
    bank: Any,
    probabilities: Probabilities,
    score: float,
    issue: bool,
    classes: Sequence[int],
) -> Doubt:
    label, top = int(bank.labels[row]), int(probabilities.argmax())
    p_label, p_top = float(probabilities[label]), float(probabilities[top])
    return Doubt(
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
) -> Effect:
    counts = np.asarray(classes)
    actual = counts[held]

    def scores(probabilities: Probabilities) -> dict[str, float]:
        loss = -np.log(probabilities[np.arange(len(held)), held].clip(1e-12)).mean()
        return {**count_metrics(counts[probabilities.argmax(1)], actual), "loss": float(loss)}

    def without(rows: NDArray[np.bool_]) -> Probabilities:
        said: Probabilities = _model().fit(train[~rows], labels[~rows]).predict_proba(validation)
        return said

    after = without(issues)
    draw = np.random.default_rng(seed)
    controls = []
    for _ in range(CONTROLS):
        chance = np.zeros(len(labels), bool)
        chance[draw.choice(len(labels), int(issues.sum()), replace=False)] = True
        controls.append(scores(without(chance)))
    difference = (after.argmax(1) == held).astype(float) - (before.argmax(1) == held)
    means = difference[draw.integers(0, len(held), (2000, len(held)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    control = {name: float(np.mean([one[name] for one in controls])) for name in controls[0]}
    return Effect(
        right, int(issues.sum()), len(held), scores(before), scores(after), control, (float(low), float(high))
    )
