"""The decision about a candidate, from the evidence alone: no server is queried and nothing is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from binsweep.data.labels import Label, sorted_labels
from binsweep.models.labelling import Measure, labelling_of
from binsweep.models.metrics import Labels
from binsweep.models.predictor import Predictor
from binsweep.tracking.evaluation.predictions import Predictions
from binsweep.tracking.evaluation.scorecard import Scores
from binsweep.tracking.promotion.candidate import Candidate
from binsweep.tracking.promotion.evidence import ChampionEvidence, Evidence
from binsweep.tracking.promotion.gate import (
    PromotionCriteria,
    RuleResult,
    judge_against,
    judge_against_guess,
    judge_classes,
    judge_limit,
    judge_no_worse,
    judge_registered,
    judge_served,
    no_better_than_guess,
)
from binsweep.tracking.promotion.paired_tests import ALPHA, significance_level
from binsweep.tracking.promotion.version_tags import timestamp
from binsweep.tracking.runlog.sender import user_name

MIN_COMPARED_PHOTOS = 30  # new to champion and candidate; a bootstrap over fewer claims too much


@dataclass(frozen=True)
class PromotionDecision:
    """The outcome of a promotion; stored as JSON.

    `candidate` and `guess` are scores on the test split (`score_names` of the labelling), `intervals` the candidate's
    95 % intervals. `champion` holds the champion's scores on the `compared` photos that are new to both:
    None without a champion, or if no photo is. `decided` counts the decisions of the test split, including this one.
    `notes` tell how the candidate was chosen and compared; `warning` names the scores in which it is no better than
    the guess, "" for none. `version` is None for a dry run.
    """

    version: str | None
    promoted: bool
    reason: str
    rules: list[RuleResult]
    candidate: Scores
    intervals: dict[str, tuple[float, float]]
    champion: Scores | None
    champion_version: str | None
    guess: dict[str, Any]
    images: int
    fingerprint: str
    notes: list[str]
    at: str
    by: str
    compared: int = 0
    decided: int = 1
    warning: str = ""
    unit: str = "photos"  # what the test split has


def judge(
    candidate: Candidate,
    gate: PromotionCriteria,
    evidence: Evidence,
    approved: bool,
    version: str | None,
) -> PromotionDecision:
    """Apply every rule of the gate; `version` is None for a dry run."""
    card, champion = evidence.card, evidence.champion
    alpha = significance_level(gate.correction, evidence.decision_number)
    rules = [
        *_judge_answers(candidate, gate, evidence, alpha),
        *_judge_model(candidate, gate, evidence),
    ]
    earned = all(rule.passed for rule in rules)
    rules += _judge_approval(candidate.sweep, gate, approved, evidence.predictions.classes, champion)
    failed = [rule for rule in rules if not rule.passed]
    warning = no_better_than_guess(evidence.predictions.labels, evidence.guess, evidence.actual)
    reason = "; ".join(rule.text for rule in failed) if failed else rules[0].text
    return PromotionDecision(
        version=version,
        promoted=not failed and version is not None,
        reason=f"{reason}; but it is {warning}" if warning and earned else reason,
        rules=rules,
        candidate=card.scores,
        intervals=card.intervals,
        champion=_champion_scores(evidence),
        champion_version=None if champion is None else champion.version,
        guess={"guess": _as_number(evidence.guess), **card.guess_scores},
        images=len(evidence.items),
        fingerprint=candidate.manifest.fingerprint,
        notes=_notes(candidate, gate, evidence, alpha),
        at=timestamp(),
        by=user_name(),
        compared=0 if champion is None else int(champion.compared.sum()),
        decided=evidence.decision_number,
        warning=warning,
    )


def _judge_answers(
    candidate: Candidate, gate: PromotionCriteria, evidence: Evidence, alpha: float
) -> list[RuleResult]:
    """Whether the candidate answers better than the champion, or without one than the constant guess."""
    predictions, actual, guess = evidence.predictions, evidence.actual, evidence.guess
    champion, measure = evidence.champion, candidate.measure
    if champion is None:
        # Only the objective decides; the other scores that are no better than the guess become a warning.
        rules = judge_against(
            _judged(predictions, actual, measure),
            _constant(candidate, actual, measure),
            actual,
            measure,
            "the constant guess",
            strict=False,
            alpha=alpha,
        )
    else:
        rules = _judge_against_champion(evidence, champion, measure, alpha)
    others = [one for one in gate.beats_guess if champion is not None or one != measure]
    return [*rules, *judge_against_guess(predictions.labels, guess, actual, others)]


def _judge_against_champion(
    evidence: Evidence, champion: ChampionEvidence, measure: Measure, alpha: float
) -> list[RuleResult]:
    """Whether the candidate is better than the champion on the photos that are new to both."""
    compared, photos = int(champion.compared.sum()), len(evidence.items)
    required = min(MIN_COMPARED_PHOTOS, photos)
    if compared < required:
        text = (
            f"cannot be compared with the champion: {compared} of {photos} test photos are new to both, and at least "
            f"{required} are needed; split the data as the champion's were, or choose another register.model"
        )
        return [RuleResult("better than the champion", False, text)]
    mine, theirs = evidence.predictions.take(champion.compared), champion.predictions.take(champion.compared)
    actual = evidence.actual[champion.compared]
    labelling = labelling_of(mine.classes)
    rules = judge_against(
        _judged(mine, actual, measure),
        _judged(theirs, actual, measure),
        actual,
        measure,
        "the champion",
        strict=False,
        alpha=alpha,
    )
    second = labelling.second(measure)
    name = f"not worse in {second}"
    rules.append(judge_no_worse(mine.labels, theirs.labels, actual, second, "the champion", name))
    known = np.isin(actual, theirs.classes)
    gained = sorted_labels(set(mine.classes) - set(theirs.classes))
    if gained and known.any():
        # The champion is always wrong on the new classes, which must not hide that the candidate got worse on the rest.
        rule = judge_no_worse(
            _judged(mine.take(known), actual[known], measure),
            _judged(theirs.take(known), actual[known], measure),
            actual[known],
            measure,
            "the champion",
            f"not worse on the {labelling.words.plural} that both know",
        )
        text = f"{rule.text} ({known.sum()} photos; the champion cannot predict {_join(gained)})"
        rules.append(RuleResult(rule.name, rule.passed, text))
    return rules


def _judge_model(candidate: Candidate, gate: PromotionCriteria, evidence: Evidence) -> list[RuleResult]:
    """The rules that need neither champion nor guess: the same model everywhere, accuracy per class, latency, size."""
    predictions = evidence.predictions
    rules = [
        judge_registered(evidence.validation, candidate.validation[: len(evidence.validation)]),
        judge_served(predictions.labels, predictions.probabilities, evidence.served, predictions.classes),
    ]
    if gate.min_class_accuracy is not None:
        rules.append(judge_classes(evidence.card.classes, gate.min_class_accuracy, predictions.classes))
    if gate.max_latency_ms is not None:
        rules.append(judge_limit("latency", evidence.latency_ms, gate.max_latency_ms, "ms for one photo"))
    if gate.max_megabytes is not None:
        rules.append(judge_limit("size", _megabytes(candidate.predictor), gate.max_megabytes, "MB"))
    return rules


def _judge_approval(
    sweep: str,
    gate: PromotionCriteria,
    approved: bool,
    classes: Sequence[Label],
    champion: ChampionEvidence | None,
) -> list[RuleResult]:
    """A person's approval, if the gate requires it or the candidate knows fewer classes than the champion."""
    reasons = ["register.gate.approval requires it"] if gate.approval else []
    lost = sorted_labels(set(champion.predictions.classes) - set(classes)) if champion is not None else []
    if lost:
        reasons.append(f"it cannot predict {_join(lost)}, which the champion can")
    if not reasons:
        return []
    text = "given" if approved else f"a person must approve: `binsweep promote {sweep} --approve`"
    if lost and not approved:
        text += ", or choose another register.model"
    return [RuleResult("approval", approved, f"{text} ({'; '.join(reasons)})")]


def _champion_scores(evidence: Evidence) -> Scores | None:
    champion = evidence.champion
    if champion is None or not champion.compared.any():
        return None
    predictions, actual = champion.predictions.take(champion.compared), evidence.actual[champion.compared]
    labelling = labelling_of(predictions.classes)
    of_probabilities, _ = labelling.probability_scores(predictions.probabilities, actual, predictions.classes)
    return labelling.answer_scores(predictions.labels, actual) | of_probabilities


def _notes(candidate: Candidate, gate: PromotionCriteria, evidence: Evidence, alpha: float) -> list[str]:
    """How the candidate was chosen and compared."""
    notes = [*candidate.notes, describe_decision_number(evidence.decision_number, gate, alpha)]
    if (left_out := len(candidate.manifest.split("test")) - len(evidence.items)) > 0:
        notes.append(f"{left_out} test photos are left out: their exact copies are in train or validation")
    return notes if evidence.champion is None else notes + evidence.champion.notes


def describe_decision_number(number: int, gate: PromotionCriteria, alpha: float) -> str:
    """How often the test split has decided, and what that means for this decision."""
    text = f"decision {number} by this test split"
    if gate.correction != "none":
        return f"{text}: p below {alpha:.2g} is required (register.gate.correction: {gate.correction})"
    if number > 1:
        chance = 1 - (1 - ALPHA) ** number
        text += f": with {number} candidates that are no better, at least one passes with probability {chance:.0%}"
        text += "; register.gate.correction: bonferroni keeps it at 5 %"
    return text


def _megabytes(predictor: Predictor) -> float:
    sizes = [tensor.numel() * tensor.element_size() for tensor in predictor.state_dict().values()]
    return float(sum(sizes)) / 1e6


def _judged(predictions: Predictions, actual: Labels, measure: Measure) -> Labels:
    """The answers that a measure judges: `best_of` for one that allows several."""
    labelling, classes = labelling_of(predictions.classes), predictions.classes
    best = labelling.best_of(measure, predictions.probabilities, classes, actual)
    return predictions.labels if best is None else best


def _constant(candidate: Candidate, actual: Labels, measure: Measure) -> Labels:
    """The constant guess: the commonest training label, and for a measure that allows several, the commonest ones."""
    labelling, classes = candidate.labelling, candidate.manifest.classes
    counts = candidate.manifest.class_counts("train")
    table = np.tile([float(counts[label]) for label in classes], (len(actual), 1))
    best = labelling.best_of(measure, table, classes, actual)
    return np.full(len(actual), candidate.guess) if best is None else best


def _as_number(guess: Label) -> Label | float:
    return guess if isinstance(guess, str) else float(guess)


def _join(labels: Sequence[Label]) -> str:
    return ", ".join(map(str, labels))
