"""The gate: what a candidate must show before it becomes champion, each rule with its figures.

A champion gives way only to a candidate that is better beyond chance on the same photos. Both count the same
photos, so the tests are paired: only photos on which the two differ say anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, ndtri

from binsweep.models.metrics import RESAMPLES, Counts, count_metrics

Measure = Literal["accuracy", "rmse", "mae"]
MEASURES: tuple[Measure, ...] = ("accuracy", "rmse", "mae")
Correction = Literal["none", "bonferroni"]
ALPHA = 0.05  # how often a candidate that is no better may pass
SAME = 1e-4  # served and evaluated probabilities may differ by this much
PACKED = 0.03  # registered and trained probabilities of a count may differ by this much on average
Z_POWER = 0.842  # 80 % of the normal distribution
MEANINGFUL = 0.05  # points of accuracy; a test that cannot show them has no power worth the name
FEWEST = (
    30  # photos that are new to champion and candidate; fewer say nothing, and a bootstrap over them too much
)
BLOCK = 4_000_000  # numbers that the bootstrap holds at a time, 32 MB


@dataclass(frozen=True)
class PromotionCriteria:
    """What may be asked beyond being better; None asks nothing."""

    min_class_accuracy: float | None = None  # least accuracy of every class that has photos, 0 to 1
    max_latency_ms: float | None = None  # median of one photo over HTTP
    max_megabytes: float | None = None  # of the model's files
    approval: bool = False  # a person must say so, too
    beats_guess: Sequence[Measure] = ()  # scores in which it must be better than the constant guess
    correction: Correction = "none"  # for how often the test split has decided before


def level(correction: Correction, decision: int) -> float:
    """The p below which a candidate is better, where this is the test split's `decision`-th decision (from 1 on).

    Bonferroni over a series whose end nobody knows: the k-th decision may spend ALPHA / (k (k + 1)), which adds up
    to ALPHA however many follow. So the chance that any candidate of all passes by luck alone stays at ALPHA.
    """
    return ALPHA if correction == "none" else ALPHA / (decision * (decision + 1))


@dataclass(frozen=True)
class RuleResult:
    """One rule's outcome: `text` gives its figures in plain words."""

    name: str
    passed: bool
    text: str


def better_by_mcnemar(candidate: Counts, other: Counts, actual: Counts) -> tuple[float, int, int]:
    """One-sided mid-p McNemar test that the candidate is right more often; arrays [N].

    Returns (p, photos that only the candidate has right, photos that only the other has right). Under the null
    hypothesis the first is binomial with half the sum of both (McNemar 1947; the mid-p variant, less conservative
    than the exact test: Fagerland, Lydersen, Laake, BMC Med. Res. Methodol. 13:91, 2013). 0.5 when they never differ.
    """
    right, others = candidate == actual, other == actual
    won, lost = int(np.sum(right & ~others)), int(np.sum(others & ~right))
    more = bdtrc(won, won + lost, 0.5)  # the chance of more than `won`
    as_many = 1 - more - (bdtr(won - 1, won + lost, 0.5) if won else 0.0)
    return float(more + as_many / 2), won, lost


def better_by_bootstrap(
    candidate: Counts,
    other: Counts,
    actual: Counts,
    measure: Measure,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:
    """Paired bootstrap over photos of the difference candidate - other in `measure`; arrays [N].

    Returns (p, low, high): the share of resamples in which the candidate is not better, and the central 95 % of
    the differences (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16). The
    difference depends only on how many photos have each pair of losses, and drawing N photos with replacement draws
    those numbers from a multinomial distribution: N may be large.
    """
    losses = np.stack([_loss(candidate, actual, measure), _loss(other, actual, measure)])
    pairs, photos = np.unique(losses, axis=1, return_counts=True)
    dice, share = np.random.default_rng(seed), photos / len(actual)
    differences = np.empty(resamples)
    block = max(1, BLOCK // len(photos))
    for start in range(0, resamples, block):
        draws = dice.multinomial(len(actual), share, min(block, resamples - start))
        mine, theirs = (draws @ pairs.T / len(actual)).T
        if measure == "rmse":
            mine, theirs = np.sqrt(mine), np.sqrt(theirs)
        differences[start : start + len(draws)] = mine - theirs
    if measure == "accuracy":
        differences = -differences
    sign = 1 if measure == "accuracy" else -1
    p = (1 + np.sum(sign * differences <= 0)) / (1 + resamples)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(p), float(low), float(high)


def _loss(predicted: Counts, actual: Counts, measure: Measure) -> Counts:
    """What each photo adds to the mean that `measure` is made of: wrong or not, squared or absolute error."""
    off = np.abs(predicted - actual)
    losses: dict[str, Counts] = {"accuracy": (off > 0).astype(np.int64), "rmse": off**2, "mae": off}
    return losses[measure]


def chance_of_no_better(candidate: Counts, other: Counts, actual: Counts, measure: Measure) -> float:
    """The p of the paired test that suits the measure."""
    if measure == "accuracy":
        return better_by_mcnemar(candidate, other, actual)[0]
    return better_by_bootstrap(candidate, other, actual, measure)[0]


def detectable(won: int, lost: int, photos: int, alpha: float = ALPHA) -> float:
    """The difference in accuracy that this test shows in 80 % of the cases, given how often the two differ.

    The difference has a standard error of about sqrt(d / N) for a share d of discordant photos (Miettinen,
    Biometrics 24, 1968).
    """
    return (-float(ndtri(alpha)) + Z_POWER) * math.sqrt(max(won + lost, 1)) / photos


def judge_against(
    candidate: Counts,
    other: Counts,
    actual: Counts,
    measure: Measure,
    whose: str,
    strict: bool,
    alpha: float = ALPHA,
) -> list[RuleResult]:
    """Whether the candidate is better than `whose` counts in `measure`, beyond chance (p below `alpha`).

    With `strict` it must also not be worse beyond chance in the other one of accuracy and rmse.
    """
    rules = [_better(candidate, other, actual, measure, whose, alpha)]
    if strict:
        second: Measure = "rmse" if measure == "accuracy" else "accuracy"
        rules.append(judge_no_worse(candidate, other, actual, second, whose, f"not worse in {second}"))
    return rules


def judge_no_worse(
    candidate: Counts, other: Counts, actual: Counts, measure: Measure, whose: str, name: str
) -> RuleResult:
    """Whether the candidate is not worse than `whose` counts in `measure` beyond chance."""
    mine, theirs = (count_metrics(counts, actual)[measure] for counts in (candidate, other))
    p = chance_of_no_better(other, candidate, actual, measure)
    text = f"{measure} {mine:.4f} against {whose}'s {theirs:.4f}, {_p(p)} for no difference"
    return RuleResult(name, p >= ALPHA, text)


def judge_guess(
    candidate: Counts, guess: int, actual: Counts, measures: Sequence[Measure], alpha: float = ALPHA
) -> list[RuleResult]:
    """Whether the candidate is better than always saying `guess`, in each of `measures`."""
    always = np.full_like(actual, guess)
    rules = [_better(candidate, always, actual, measure, "the constant guess", alpha) for measure in measures]
    return [
        RuleResult(f"beats the guess in {measure}", rule.passed, rule.text)
        for measure, rule in zip(measures, rules, strict=True)
    ]


def no_better_than_guess(candidate: Counts, guess: int, actual: Counts) -> str:
    """In which scores a model is no better than always saying `guess`, beyond chance, in words; "" for none."""
    always = np.full_like(actual, guess)
    mine, theirs = count_metrics(candidate, actual), count_metrics(always, actual)
    weak = []
    for measure in MEASURES:
        p = chance_of_no_better(candidate, always, actual, measure)
        if p >= ALPHA:
            weak.append(f"{measure} {mine[measure]:.4f} against {theirs[measure]:.4f} ({_p(p)})")
    return f"no better than always saying {guess}, beyond chance: {', '.join(weak)}" if weak else ""


def _better(
    candidate: Counts, other: Counts, actual: Counts, measure: Measure, whose: str, alpha: float
) -> RuleResult:
    photos = len(actual)
    mine, theirs = (count_metrics(counts, actual)[measure] for counts in (candidate, other))
    p, won, lost = better_by_mcnemar(candidate, other, actual)
    how = f"{won} photos to {lost} where they differ, McNemar {_p(p, alpha)}"
    if measure != "accuracy":
        # Enough that a small level can be reached at all.
        resamples = max(RESAMPLES, math.ceil(20 / alpha))
        p, low, high = better_by_bootstrap(candidate, other, actual, measure, resamples=resamples)
        how = (
            f"difference {mine - theirs:+.4f} (95 % from {low:+.4f} to {high:+.4f}), bootstrap {_p(p, alpha)}"
        )
    if alpha < ALPHA:
        how += f", below {alpha:.2g} wanted"
    passed = p < alpha
    text = (
        f"test {measure} {mine:.4f} {'beats' if passed else 'does not beat'} {whose}'s {theirs:.4f} ({how})"
    )
    reach = detectable(won, lost, photos, alpha)
    if not passed and reach > MEANINGFUL:
        text += f"; {photos} photos are too few to tell: only {100 * reach:.0f} points or more would show"
    return RuleResult(f"better than {whose}", passed, text)


def judge_classes(
    table: dict[int, dict[str, float]], floor: float, classes: Sequence[int] = ()
) -> RuleResult:
    """Whether every class that has photos reaches the least accuracy; of `classes` those without any are named."""
    below = {count: row["accuracy"] for count, row in table.items() if row["accuracy"] < floor}
    named = ", ".join(f"{count} items: {accuracy:.1%}" for count, accuracy in below.items())
    text = f"below {floor:.0%}: {named}" if below else f"each at least {floor:.0%}"
    if absent := [str(count) for count in classes if count not in table]:
        text += f"; not known of {', '.join(absent)}, which no test photo shows"
    return RuleResult("classes", not below, text)


def judge_served(
    counts: Counts, probabilities: NDArray[np.float64], served: list[dict[str, Any]], classes: tuple[int, ...]
) -> RuleResult:
    """Whether the served model says what the evaluated one said; `counts` [N], `probabilities` [N, K]."""
    name = "served as evaluated"
    refused = [str(said["error"]) for said in served if said.get("error")]
    if refused:
        return RuleResult(
            name, False, f"{len(served)} photos: {len(refused)} without an answer ({refused[0]})"
        )
    off = [row for row, said in enumerate(served) if said["count"] != counts[row]]
    given = np.array([[said["probabilities"][str(count)] for count in classes] for said in served])
    furthest = float(np.abs(given - probabilities[: len(served)]).max())
    text = (
        f"{len(served)} photos: {len(off)} other counts, probabilities differ by at most {furthest:.1e}"
        f" ({SAME:g} allowed)"
    )
    return RuleResult(name, not off and furthest <= SAME, text)


def judge_packed(registered: NDArray[np.float64], trained: NDArray[np.floating[Any]]) -> RuleResult:
    """Whether the registered model says about validation photos what the trained one said; both [M, K].

    Only nearly, because training may compute in bf16 and the registered model does not. Another normalisation, or
    classes in another order, move the probabilities by far more.
    """
    furthest = float(np.abs(registered - trained).mean(axis=0).max())
    text = f"{len(registered)} validation photos: probabilities differ by {furthest:.4f} on average"
    text += f" ({PACKED:g} allowed)"
    return RuleResult("registered as trained", furthest <= PACKED, text)


def judge_limit(name: str, value: float, limit: float, unit: str) -> RuleResult:
    """Whether a cost stays within its limit."""
    return RuleResult(name, value <= limit, f"{value:.1f} {unit}, at most {limit:g} allowed")


def _p(p: float, alpha: float = ALPHA) -> str:
    return "p < 0.001" if p < 0.001 <= alpha else f"p {p:.3f}" if p >= 0.001 else f"p {p:.1g}"
