"""The gate's tests and rules, on counts made up for the purpose."""

import tracemalloc

import numpy as np
import pytest
from scipy.stats import binomtest

from binsweep.models.class_metrics import class_scores
from binsweep.models.metrics import Counts, Labels, count_metrics, intervals
from binsweep.tracking.promotion.gate import (
    judge_against,
    judge_classes,
    judge_limit,
    judge_served,
    no_better_than_guess,
)
from binsweep.tracking.promotion.paired_tests import (
    ALPHA,
    bootstrap_test,
    detectable_difference,
    mcnemar_test,
    p_value,
    significance_level,
)


def counters(
    dice: np.random.Generator, photos: int, accuracy: float, gain: float, differ: float
) -> tuple[Counts, Counts, Counts]:
    """True counts and those of two counters: the second is right in `accuracy` of the photos, the first in `gain`
    more, and one of them alone is right in a share `differ` of the photos."""
    actual = dice.integers(0, 6, photos)
    won, lost = (differ + gain) / 2, (differ - gain) / 2
    both = accuracy - lost
    kind = dice.choice(4, photos, p=[both, won, lost, 1 - both - won - lost])
    wrong = np.where(actual == 5, 4, actual + 1)
    first = np.where((kind == 0) | (kind == 1), actual, wrong)
    second = np.where((kind == 0) | (kind == 2), actual, wrong)
    return first, second, actual


def test_mcnemar_is_the_mid_p_of_the_binomial() -> None:
    dice = np.random.default_rng(0)
    first, second, actual = counters(dice, 300, 0.4, 0.05, 0.3)
    p, won, lost = mcnemar_test(first, second, actual)
    assert won == np.sum((first == actual) & (second != actual)) and lost > 0
    exact = binomtest(won, won + lost, alternative="greater").pvalue
    above = binomtest(won + 1, won + lost, alternative="greater").pvalue
    assert p == pytest.approx((exact + above) / 2)
    assert mcnemar_test(second, second, actual)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("measure", ["accuracy", "rmse"])
def test_one_that_is_no_better_seldom_passes_and_a_better_one_mostly(measure: str) -> None:
    dice = np.random.default_rng(1)
    rates = {}
    for gain in (0.0, 0.05):
        passed = 0
        for _ in range(300):
            first, second, actual = counters(dice, 1000, 0.35, gain, 0.25)
            (rule,) = judge_against(first, second, actual, measure, "the champion", strict=False)  # type: ignore[arg-type]
            passed += rule.passed
        rates[gain] = passed / 300
    assert rates[0.0] <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / 300) ** 0.5
    assert rates[0.05] >= 0.8


def test_a_worse_rmse_refuses_a_better_accuracy() -> None:
    dice = np.random.default_rng(2)
    first, second, actual = counters(dice, 1000, 0.4, 0.1, 0.3)
    far = np.where(first == actual, first, (actual + 3) % 6)  # its mistakes are large ones
    better, not_worse = judge_against(far, second, actual, "accuracy", "the champion", strict=True)
    assert better.passed and not not_worse.passed and "rmse" in not_worse.text
    assert all(rule.passed for rule in judge_against(first, second, actual, "accuracy", "x", strict=True))


def test_a_test_split_that_is_too_small_is_named() -> None:
    dice = np.random.default_rng(3)
    first, second, actual = counters(dice, 60, 0.4, 0.0, 0.3)
    (rule,) = judge_against(first, second, actual, "accuracy", "the champion", strict=False)
    assert not rule.passed and "60 photos are too few" in rule.text
    first, second, actual = counters(dice, 20_000, 0.4, 0.0, 0.3)
    (rule,) = judge_against(first, second, actual, "accuracy", "the champion", strict=False)
    assert not rule.passed and "too few" not in rule.text
    assert detectable_difference(150, 150, 1000) == pytest.approx(0.043, abs=0.001)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    dice = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        first, _, actual = counters(dice, 500, 0.35, 0.0, 0.2)
        low, high = intervals(first, actual)["accuracy"]
        held += low <= 0.35 <= high
    assert 0.9 <= held / 200 <= 0.99
    p, low, high = bootstrap_test(first, first, actual, "rmse")
    assert p == 1.0 and low == high == 0.0


def test_floors_limits_and_served_answers() -> None:
    table = {1: {"accuracy": 0.3, "support": 9.0}, 2: {"accuracy": 0.05, "support": 9.0}}
    assert not judge_classes(table, 0.1).passed and "2 items: 5.0%" in judge_classes(table, 0.1).text
    assert judge_classes(table, 0.05).passed
    assert judge_limit("latency", 10.0, 10.0, "ms").passed and not judge_limit("latency", 11, 10, "ms").passed
    counts, probabilities = np.array([1, 2]), np.array([[0.9, 0.1], [0.2, 0.8]])
    answers = [
        {"count": 1, "probabilities": {"1": 0.9, "2": 0.1}},
        {"count": 2, "probabilities": {"1": 0.2, "2": 0.8}},
    ]
    assert judge_served(counts, probabilities, answers, (1, 2)).passed
    answers[1]["probabilities"] = {"1": 0.21, "2": 0.79}
    assert not judge_served(counts, probabilities, answers, (1, 2)).passed
    assert not judge_served(np.array([1, 1]), probabilities, answers, (1, 2)).passed
    broken = [answers[0], {"count": None, "probabilities": None, "error": "broken JPEG image"}]
    rule = judge_served(counts, probabilities, broken, (1, 2))
    assert not rule.passed and "1 without an answer (broken JPEG image)" in rule.text
    assert "unknown for 3: no test photos" in judge_classes(table, 0.05, (1, 2, 3)).text


def test_the_bootstrap_of_many_photos_is_small_and_that_of_few_as_it_was() -> None:
    """It held 2,000 times the photos: 3.4 GB for 107,000."""
    dice = np.random.default_rng(5)
    many = 107_000
    actual = dice.integers(0, 31, many)
    first, second = ((actual + dice.integers(-9, 10, many)).clip(0, 30) for _ in range(2))
    tracemalloc.start()
    bootstrap_test(first, second, actual, "rmse")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6
    first, second, actual = counters(dice, 400, 0.4, 0.05, 0.3)
    for measure in ("accuracy", "rmse", "mae"):
        p, low, high = bootstrap_test(first, second, actual, measure)  # type: ignore[arg-type]
        rows = np.random.default_rng(1).integers(0, 400, (2000, 400))
        values = [
            np.array([count_metrics(one[row], actual[row])[measure] for row in rows])
            for one in (first, second)
        ]
        differences = values[0] - values[1]
        plain = np.mean(differences <= 0 if measure == "accuracy" else differences >= 0)
        assert p == pytest.approx(plain, abs=0.03)
        assert [low, high] == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=0.01)


def test_decisions_by_one_test_split_may_spend_no_more_together_than_one() -> None:
    assert significance_level("none", 50) == ALPHA
    assert sum(significance_level("bonferroni", number) for number in range(1, 10_000)) == pytest.approx(
        ALPHA, rel=1e-3
    )
    dice = np.random.default_rng(6)
    first, second, actual = counters(dice, 2000, 0.4, 0.1, 0.3)
    for measure in ("accuracy", "rmse"):  # a level below what 2,000 resamples can show can still be reached
        alpha = significance_level("bonferroni", 30)
        (rule,) = judge_against(first, second, actual, measure, "x", strict=False, alpha=alpha)  # type: ignore[arg-type]
        assert rule.passed and f"below {alpha:.2g} required" in rule.text, rule.text


NAMES = np.array(["ok", "scratched", "torn"])


def namers(dice: np.random.Generator, photos: int, rare: float) -> tuple[Labels, Labels, Labels]:
    """True names, of which the last is seldom, and two answers that are equally accurate: the first is right about the
    rare class more often, and about the common ones less."""
    actual = dice.choice(3, photos, p=[0.55, 0.35, 0.1])
    seldom = actual == 2
    lost = 0.1 * rare / 0.9  # so that both are right equally often
    first = np.where(dice.random(photos) < np.where(seldom, 0.3 + rare, 0.8 - lost), actual, (actual + 1) % 3)
    second = np.where(dice.random(photos) < np.where(seldom, 0.3, 0.8), actual, (actual + 1) % 3)
    return NAMES[first], NAMES[second], NAMES[actual]


@pytest.mark.parametrize("measure", ["balanced_accuracy", "macro_f1"])
def test_scores_of_classes_are_tested_by_a_bootstrap(measure: str) -> None:
    """One that is no better seldom passes; one that is better about the rare class mostly, where accuracy is blind."""
    dice = np.random.default_rng(5)
    rates = {}
    for rare in (0.0, 0.45):
        passed = accurate = 0
        for _ in range(100):
            first, second, actual = namers(dice, 900, rare)
            (rule,) = judge_against(first, second, actual, measure, "the champion", strict=False)  # type: ignore[arg-type]
            passed += rule.passed
            accurate += p_value(first, second, actual, "accuracy") < ALPHA
        rates[rare] = passed / 100
        assert accurate / 100 <= 0.15
    assert rates[0.0] <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / 100) ** 0.5 and rates[0.45] >= 0.8


def test_the_bootstrap_of_classes_is_that_of_drawing_photos_again() -> None:
    dice = np.random.default_rng(6)
    first, second, actual = namers(dice, 400, 0.2)
    drawn = []
    for _ in range(500):
        rows = dice.integers(0, 400, 400)
        mine, theirs = (class_scores(one[rows], actual[rows])["macro_f1"] for one in (first, second))
        drawn.append(mine - theirs)
    p, low, high = bootstrap_test(first, second, actual, "macro_f1")
    assert (low, high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.02)
    assert p == pytest.approx(np.mean(np.array(drawn) <= 0), abs=0.04)


def test_rules_about_names() -> None:
    dice = np.random.default_rng(7)
    first, second, actual = namers(dice, 600, 0.4)
    _, not_worse = judge_against(first, second, actual, "accuracy", "the champion", strict=True)
    assert not_worse.name == "not worse in macro_f1" and not_worse.passed
    assert not no_better_than_guess(first, "ok", actual)
    weak = no_better_than_guess(np.full(600, "ok"), "ok", actual)
    assert weak.startswith("no better than always answering ok") and "macro_f1" in weak and "rmse" not in weak
    table = {"ok": {"accuracy": 0.9}, "torn": {"accuracy": 0.05}}
    rule = judge_classes(table, 0.1, ["ok", "scratched", "torn"])
    assert not rule.passed and rule.text == "below 10%: torn: 5.0%; unknown for scratched: no test photos"
    answers = [{"label": "ok", "probabilities": {"ok": 1.0, "torn": 0.0}, "error": ""}]
    for label, passed in (("ok", True), ("torn", False)):
        rule = judge_served(np.array([label]), np.array([[1.0, 0.0]]), answers, ("ok", "torn"))
        assert rule.passed is passed and ("other labels" in rule.text)
