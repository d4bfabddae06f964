"""The label audit finds labels that were made wrong, and leaves the test split alone."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from models.audit import Doubt, Effect, audit
from models.train import TrialData

WRONG = (3, 10, 17, 24, 31, 38, 44, 50)  # rows of train


@pytest.fixture(scope="module")
def audited(trial_data: TrialData) -> tuple[list[Doubt], Effect]:
    bank = copy.copy(trial_data.train)
    bank.labels = bank.labels.copy()
    for row in WRONG:
        bank.labels[row] = (
            2 - bank.labels[row] if bank.labels[row] != 1 else 2
        )  # none is two, two none, one two
    return audit(replace(trial_data, train=bank))


def test_wrong_labels_come_first(audited: tuple[list[Doubt], Effect], trial_data: TrialData) -> None:
    doubts, _ = audited
    train = [doubt.row for doubt in doubts if doubt.split == "train"]
    places = [train.index(row) for row in WRONG]
    assert np.mean(places) < 0.35 * len(train)  # by chance 0.5
    assert len(doubts) == len(trial_data.train) + len(trial_data.validation)
    assert [doubt.score for doubt in doubts] == sorted(doubt.score for doubt in doubts)
    assert {doubt.id for doubt in doubts} == {*trial_data.train.ids, *trial_data.validation.ids}


def test_a_doubt_says_what_the_model_says(audited: tuple[list[Doubt], Effect]) -> None:
    for doubt in audited[0]:
        assert doubt.p_suggested >= doubt.p_label and (doubt.suggested != doubt.label or not doubt.issue)


def test_the_effect_is_that_of_train_alone(
    audited: tuple[list[Doubt], Effect], trial_data: TrialData
) -> None:
    doubts, effect = audited
    assert effect.excluded == sum(doubt.issue for doubt in doubts if doubt.split == "train")
    assert effect.validation == len(trial_data.validation)
    gain = effect.without["accuracy"] - effect.every["accuracy"]
    assert effect.interval[0] <= gain <= effect.interval[1]
