"""The gate's rules: what a candidate must show before it becomes champion. Each result carries its figures.

A candidate replaces the champion only if it is better beyond chance on the same photos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from binsweep.data.labels import Label
from binsweep.models.labelling import Measure, labelling_of
from binsweep.models.metrics import N_RESAMPLES, Labels
from binsweep.tracking.evaluation.predictions import answer_of
from binsweep.tracking.promotion.paired_tests import (
    ALPHA,
    SHARES_RIGHT,
    Correction,
    bootstrap_test,
    detectable_difference,
    mcnemar_test,
    p_value,
)

MAX_SERVED_DIFFERENCE = 1e-4  # between the probabilities of the served and of the evaluated model
# Between the probabilities of the registered and of the trained model, averaged over the photos.
MAX_REGISTERED_DIFFERENCE = 0.03
MAX_DETECTABLE = 0.05  # in accuracy; a test that detects only larger differences has too few photos


@dataclass(frozen=True)
class PromotionCriteria:
    """Optional requirements on top of being better; None requires nothing."""

    min_class_accuracy: float | None = None  # least accuracy of every class that has photos, 0 to 1
    max_latency_ms: float | None = None  # median of one photo over HTTP
    max_megabytes: float | None = None  # of the model's weights
    approval: bool = False  # a person must approve
    beats_guess: Sequence[Measure] = ()  # scores in which it must be better than the constant guess
    correction: Correction = "none"  # for the earlier decisions of the same test split


@dataclass(frozen=True)
class RuleResult:
    """One rule's outcome: `text` gives its figures in plain words."""

    name: str
    passed: bool
    text: str


def judge_against(
    candidate: Labels,
    other: Labels,
    actual: Labels,
    measure: Measure,
    opponent: str,
    strict: bool,
    alpha: float = ALPHA,
) -> list[RuleResult]:
    """Whether the candidate is better than the opponent's answers in `measure`, beyond chance (p below `alpha`).

    With `strict` it must also not be worse beyond chance in a second measure: the other one of accuracy and, for
    counts, rmse, for names macro F1. For top3_accuracy, `best_of` of the labelling makes the answers.
    """
    rules = [_judge_better(candidate, other, actual, measure, opponent, alpha)]
    if strict:
        second = labelling_of(actual[:1].tolist()).second(measure)
        rules.append(judge_no_worse(candidate, other, actual, second, opponent, f"not worse in {second}"))
    return rules


def judge_no_worse(
    candidate: Labels, other: Labels, actual: Labels, measure: Measure, opponent: str, name: str
) -> RuleResult:
    """Whether the candidate is not worse than the opponent's answers in `measure` beyond chance."""
    mine, theirs = (_score(answers, actual, measure) for answers in (candidate, other))
    p = p_value(other, candidate, actual, measure)
    text = f"{measure} {mine:.4f} against {opponent}'s {theirs:.4f} (test that it is worse: {format_p(p)})"
    return RuleResult(name, p >= ALPHA, text)


def judge_against_guess(
    candidate: Labels, guess: Label, actual: Labels, measures: Sequence[Measure], alpha: float = ALPHA
) -> list[RuleResult]:
    """Whether the candidate is better than the constant `guess`, in each of `measures`."""
    constant = np.full(len(actual), guess)
    results = []
    for measure in measures:
        rule = _judge_better(candidate, constant, actual, measure, "the constant guess", alpha)
        results.append(RuleResult(f"beats the guess in {measure}", rule.passed, rule.text))
    return results


def no_better_than_guess(candidate: Labels, guess: Label, actual: Labels) -> str:
    """The scores in which a model is no better than the constant `guess` beyond chance, in words; "" for none."""
    labelling, constant = labelling_of([guess]), np.full(len(actual), guess)
    mine, theirs = (labelling.answer_scores(answers, actual) for answers in (candidate, constant))
    weak = []
    for measure in labelling.tested:
        p = p_value(candidate, constant, actual, measure)
        if p >= ALPHA:
            weak.append(f"{measure} {mine[measure]:.4f} against {theirs[measure]:.4f} ({format_p(p)})")
    return f"no better than always answering {guess}, beyond chance: {', '.join(weak)}" if weak else ""


def _score(answers: Labels, actual: Labels, measure: Measure) -> float:
    shown = "accuracy" if measure in SHARES_RIGHT else measure
    return labelling_of(actual[:1].tolist()).answer_scores(answers, actual)[shown]


def _judge_better(
    candidate: Labels, other: Labels, actual: Labels, measure: Measure, opponent: str, alpha: float
) -> RuleResult:
    photos = len(actual)
    mine, theirs = (_score(answers, actual, measure) for answers in (candidate, other))
    p, won, lost = mcnemar_test(candidate, other, actual)
    evidence = f"{won} photos to {lost} where they differ, McNemar {format_p(p, alpha)}"
    if measure not in SHARES_RIGHT:
        # Enough resamples to reach a p below a small alpha.
        resamples = max(N_RESAMPLES, math.ceil(20 / alpha))
        p, low, high = bootstrap_test(candidate, other, actual, measure, resamples=resamples)
        interval = f"95 % from {low:+.4f} to {high:+.4f}"
        evidence = f"difference {mine - theirs:+.4f} ({interval}), bootstrap {format_p(p, alpha)}"
    if alpha < ALPHA:
        evidence += f", below {alpha:.2g} required"
    passed = p < alpha
    verb = "beats" if passed else "does not beat"
    text = f"test {measure} {mine:.4f} {verb} {opponent}'s {theirs:.4f} ({evidence})"
    detectable = detectable_difference(won, lost, photos, alpha)
    if not passed and detectable > MAX_DETECTABLE:
        least = f"{100 * detectable:.0f} points of accuracy"
        text += f"; {photos} photos are too few: they show only differences of {least} or more"
    return RuleResult(f"better than {opponent}", passed, text)


def judge_classes(
    table: Mapping[Label, Mapping[str, float]], floor: float, classes: Sequence[Label] = ()
) -> RuleResult:
    """Whether every class that has photos reaches the least accuracy; the text names those of `classes` without any."""
    below = {label: row["accuracy"] for label, row in table.items() if row["accuracy"] < floor}
    describe = labelling_of(list(table)).describe
    named = ", ".join(f"{describe(label)}: {accuracy:.1%}" for label, accuracy in below.items())
    text = f"below {floor:.0%}: {named}" if below else f"each at least {floor:.0%}"
    if absent := [str(label) for label in classes if label not in table]:
        text += f"; unknown for {', '.join(absent)}: no test photos"
    return RuleResult("classes", not below, text)


def judge_served(
    labels: Labels,
    probabilities: NDArray[np.float64],
    answers: Sequence[dict[str, Any]],
    classes: Sequence[Label],
) -> RuleResult:
    """Whether the served model answers as the evaluated one; `labels` [N], `probabilities` [N, K].

    `answers` are the server's rows for the first photos.
    """
    name, photos = "served as evaluated", len(answers)
    errors = [str(answer["error"]) for answer in answers if answer.get("error")]
    if errors:
        return RuleResult(name, False, f"{photos} photos: {len(errors)} without an answer ({errors[0]})")
    other = [row for row, answer in enumerate(answers) if answer_of(answer) != labels[row]]
    served = np.array([[answer["probabilities"][str(label)] for label in classes] for answer in answers])
    words = labelling_of(classes).words
    difference = float(np.abs(served - probabilities[:photos]).max())
    text = (
        f"{photos} photos: {len(other)} other {words.answers}, probabilities differ by at most {difference:.1e}"
        f" ({MAX_SERVED_DIFFERENCE:g} allowed)"
    )
    return RuleResult(name, not other and difference <= MAX_SERVED_DIFFERENCE, text)


def judge_registered(registered: NDArray[np.float64], trained: NDArray[np.floating[Any]]) -> RuleResult:
    """Whether the registered model predicts the same as the trained one on validation photos; both [M, K].

    Only nearly the same, because training may compute in bf16 and the registered model does not. Another
    normalisation, or classes in another order, move the probabilities by far more.
    """
    difference = float(np.abs(registered - trained).mean(axis=0).max())
    text = f"{len(registered)} validation photos: probabilities differ by {difference:.4f} on average"
    text += f" ({MAX_REGISTERED_DIFFERENCE:g} allowed)"
    return RuleResult("registered as trained", difference <= MAX_REGISTERED_DIFFERENCE, text)


def judge_limit(name: str, value: float, limit: float, unit: str) -> RuleResult:
    """Whether a cost stays within its limit."""
    return RuleResult(name, value <= limit, f"{value:.1f} {unit}, at most {limit:g} allowed")


def format_p(p: float, alpha: float = ALPHA) -> str:
    """A p-value for people; exact where it decides."""
    return "p < 0.001" if p < 0.001 <= alpha else f"p {p:.3f}" if p >= 0.001 else f"p {p:.1g}"
