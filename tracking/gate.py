"""The gate: what a candidate must show before it becomes champion, each rule with its figures.

A champion gives way only to a candidate that is better beyond chance on the same photos. Both count the same
photos, so the tests are paired: only photos on which the two differ say anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc

from models.metrics import RESAMPLES, Counts, count_metrics

Measure = Literal["accuracy", "rmse", "mae"]
ALPHA = 0.05  # how often a candidate that is no better may pass
SAME = 1e-4  # served and evaluated probabilities may differ by this much
PACKED = 0.03  # registered and trained probabilities of a count may differ by this much on average
Z_ALPHA, Z_POWER = 1.645, 0.842  # one-sided 5 % and 80 % of the normal distribution
MEANINGFUL = 0.05  # points of accuracy; a test that cannot show them has no power worth the name


@dataclass(frozen=True)
class Gate:
    """What may be asked beyond being better; None asks nothing."""

    class_floor: float | None = None  # least accuracy of every class that has photos, 0 to 1
    max_latency_ms: float | None = None  # median of one photo over HTTP
    max_megabytes: float | None = None  # of the model's files
    approval: bool = False  # a person must say so, too


@dataclass(frozen=True)
class Rule:
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
    candidate: Counts, other: Counts, actual: Counts, measure: Measure, seed: int = 0
) -> tuple[float, float, float]:
    """Paired bootstrap over photos of the difference candidate - other in `measure`; arrays [N].

    Returns (p, low, high): the share of resamples in which the candidate is not better, and the central 95 % of
    the differences (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16).
    """
    draws = _resamples(len(actual), seed)
    differences = _scores(candidate, actual, draws, measure) - _scores(other, actual, draws, measure)
    sign = 1 if measure == "accuracy" else -1
    p = (1 + np.sum(sign * differences <= 0)) / (1 + len(draws))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(p), float(low), float(high)


def chance_of_no_better(candidate: Counts, other: Counts, actual: Counts, measure: Measure) -> float:
    """The p of the paired test that suits the measure."""
    if measure == "accuracy":
        return better_by_mcnemar(candidate, other, actual)[0]
    return better_by_bootstrap(candidate, other, actual, measure)[0]


def detectable(won: int, lost: int, photos: int) -> float:
    """The difference in accuracy that this test shows in 80 % of the cases, given how often the two differ.

    The difference has a standard error of about sqrt(d / N) for a share d of discordant photos (Miettinen,
    Biometrics 24, 1968).
    """
    return (Z_ALPHA + Z_POWER) * math.sqrt(max(won + lost, 1)) / photos


def _resamples(photos: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, photos, (RESAMPLES, photos))


def _scores(
    predicted: Counts, actual: Counts, draws: NDArray[np.int64], measure: Measure
) -> NDArray[np.float64]:
    error = (predicted - actual).astype(np.float64)
    each: dict[str, Callable[[], NDArray[np.float64]]] = {
        "accuracy": lambda: np.asarray(error == 0, np.float64)[draws].mean(axis=1),
        "rmse": lambda: np.sqrt((error**2)[draws].mean(axis=1)),
        "mae": lambda: np.abs(error)[draws].mean(axis=1),
    }
    return each[measure]()


def judge_against(
    candidate: Counts, other: Counts, actual: Counts, measure: Measure, whose: str, strict: bool
) -> list[Rule]:
    """Whether the candidate is better than `whose` counts in `measure`, beyond chance.

    With `strict` it must also not be worse beyond chance in the other one of accuracy and rmse.
    """
    mine, theirs = count_metrics(candidate, actual), count_metrics(other, actual)
    rules = [_better(candidate, other, actual, measure, mine[measure], theirs[measure], whose)]
    if strict:
        second: Measure = "rmse" if measure == "accuracy" else "accuracy"
        p, _, _ = better_by_bootstrap(other, candidate, actual, second)
        text = (
            f"{second} {mine[second]:.4f} against {whose}'s {theirs[second]:.4f}, {_p(p)} for no difference"
        )
        rules.append(Rule(f"not worse in {second}", p >= ALPHA, text))
    return rules


def _better(
    candidate: Counts, other: Counts, actual: Counts, measure: Measure, mine: float, theirs: float, whose: str
) -> Rule:
    photos = len(actual)
    if measure == "accuracy":
        p, won, lost = better_by_mcnemar(candidate, other, actual)
        how = f"{won} photos to {lost} where they differ, McNemar {_p(p)}"
    else:
        p, low, high = better_by_bootstrap(candidate, other, actual, measure)
        _, won, lost = better_by_mcnemar(candidate, other, actual)
        how = f"difference {mine - theirs:+.4f} (95 % from {low:+.4f} to {high:+.4f}), bootstrap {_p(p)}"
    passed = p < ALPHA
    text = (
        f"test {measure} {mine:.4f} {'beats' if passed else 'does not beat'} {whose}'s {theirs:.4f} ({how})"
    )
    reach = detectable(won, lost, photos)
    if not passed and reach > MEANINGFUL:
        text += f"; {photos} photos are too few to tell: only {100 * reach:.0f} points or more would show"
    return Rule(f"better than {whose}", passed, text)


def judge_classes(table: dict[int, dict[str, float]], floor: float) -> Rule:
    """Whether every class that has photos reaches the least accuracy."""
    below = {count: row["accuracy"] for count, row in table.items() if row["accuracy"] < floor}
    named = ", ".join(f"{count} items: {accuracy:.1%}" for count, accuracy in below.items())
    return Rule(
        "classes", not below, f"below {floor:.0%}: {named}" if below else f"each at least {floor:.0%}"
    )


def judge_served(
    counts: Counts, probabilities: NDArray[np.float64], served: list[dict[str, Any]], classes: tuple[int, ...]
) -> Rule:
    """Whether the served model says what the evaluated one said; `counts` [N], `probabilities` [N, K]."""
    off = [row for row, said in enumerate(served) if said["count"] != counts[row]]
    given = np.array([[said["probabilities"][str(count)] for count in classes] for said in served])
    furthest = float(np.abs(given - probabilities[: len(served)]).max())
    text = (
        f"{len(served)} photos: {len(off)} other counts, probabilities differ by at most {furthest:.1e}"
        f" ({SAME:g} allowed)"
    )
    return Rule("served as evaluated", not off and furthest <= SAME, text)


def judge_packed(registered: NDArray[np.float64], trained: NDArray[np.floating[Any]]) -> Rule:
    """Whether the registered model says about validation photos what the trained one said; both [M, K].

    Only nearly, because training may compute in bf16 and the registered model does not. Another normalisation, or
    classes in another order, move the probabilities by far more.
    """
    furthest = float(np.abs(registered - trained).mean(axis=0).max())
    text = f"{len(registered)} validation photos: probabilities differ by {furthest:.4f} on average"
    text += f" ({PACKED:g} allowed)"
    return Rule("registered as trained", furthest <= PACKED, text)


def judge_limit(name: str, value: float, limit: float, unit: str) -> Rule:
    """Whether a cost stays within its limit."""
    return Rule(name, value <= limit, f"{value:.1f} {unit}, at most {limit:g} allowed")


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"
