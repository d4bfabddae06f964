"""The label audit finds deliberately wrong labels, and leaves the test split alone."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from binsweep.data.errors import UserError
from binsweep.models.label_audit import ExclusionEffect, JudgedLabel, audit
from binsweep.models.trial_data import TrialData
from binsweep.search.workflows.label_audit import effect_lines

WRONG = (3, 10, 17, 24, 31, 38, 44, 50)  # rows of train


@pytest.fixture(scope="module")
def audited(trial_data: TrialData) -> tuple[list[JudgedLabel], ExclusionEffect]:
    bank = copy.copy(trial_data.train)
    bank.labels = bank.labels.copy()
    for row in WRONG:
        bank.labels[row] = (
            2 - bank.labels[row] if bank.labels[row] != 1 else 2
        )  # none is two, two none, one two
    return audit(replace(trial_data, train=bank))


def test_wrong_labels_come_first(
    audited: tuple[list[JudgedLabel], ExclusionEffect], trial_data: TrialData
) -> None:
    doubts, _ = audited
    train = [doubt.row for doubt in doubts if doubt.split == "train"]
    places = [train.index(row) for row in WRONG]
    assert np.mean(places) < 0.35 * len(train)  # by chance 0.5
    assert len(doubts) == len(trial_data.train) + len(trial_data.validation)
    assert [doubt.score for doubt in doubts] == sorted(doubt.score for doubt in doubts)
    assert {doubt.id for doubt in doubts} == {*trial_data.train.ids, *trial_data.validation.ids}


def test_a_doubt_says_what_the_model_says(audited: tuple[list[JudgedLabel], ExclusionEffect]) -> None:
    for doubt in audited[0]:
        assert doubt.p_suggested >= doubt.p_label and (doubt.suggested != doubt.label or not doubt.issue)


def test_the_effect_is_that_of_train_alone(
    audited: tuple[list[JudgedLabel], ExclusionEffect], trial_data: TrialData
) -> None:
    doubts, effect = audited
    assert effect.excluded == sum(doubt.issue for doubt in doubts if doubt.split == "train")
    assert effect.validation == len(trial_data.validation)
    gain = effect.without["accuracy"] - effect.every["accuracy"]
    assert effect.interval[0] <= gain <= effect.interval[1]


def relabelled(trial_data: TrialData, train: int | None, validation: int | None = None) -> TrialData:
    """Keeps only the first `train` photos labelled two in train, and the first `validation` in validation; the other
    ones become one. None keeps all."""
    banks = {}
    for name, kept in (("train", train), ("validation", validation)):
        bank = copy.copy(getattr(trial_data, name))
        bank.labels = bank.labels.copy()
        if kept is not None:
            bank.labels[np.flatnonzero(bank.labels == 2)[kept:]] = 1
        banks[name] = bank
    return replace(trial_data, **banks)


@pytest.mark.parametrize("photos", [0, 1, 2])
def test_a_count_without_photos_in_train_is_not_judged(trial_data: TrialData, photos: int) -> None:
    data = relabelled(trial_data, photos)
    doubts, effect = audit(data)
    held = int((data.validation.labels == 2).sum())
    assert held > 0 and effect.unjudged == ({2: held} if photos == 0 else {2: 1} if photos == 1 else {})
    judged = [(doubt.split, doubt.label) for doubt in doubts]
    assert judged.count(("validation", 2)) == (0 if photos == 0 else held)
    assert judged.count(("train", 2)) == (2 if photos == 2 else 0)
    assert len(doubts) == len(data.train) + len(data.validation) - sum(effect.unjudged.values())
    lines = effect_lines(effect)
    assert (f"not judged, because train has no other photo of that count: {held} of 2" in lines) == (
        photos == 0
    )


def test_a_count_without_photos_in_validation_is_judged_in_train(trial_data: TrialData) -> None:
    doubts, effect = audit(relabelled(trial_data, None, 0))
    assert effect.unjudged == {} and len(doubts) == len(trial_data.train) + len(trial_data.validation)


def test_too_little_for_an_audit_is_said(trial_data: TrialData) -> None:
    bank = copy.copy(trial_data.train)
    bank.labels = np.ones_like(bank.labels)
    with pytest.raises(UserError, match=r"too few photos for an audit: 0 of 0, .* of 1, 0 of 2"):
        audit(replace(trial_data, train=bank))
