"""Paired tests of two models on the same photos: only photos on which they differ carry information."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, ndtri

from binsweep.models.class_metrics import cell_scores, cells_of, resample
from binsweep.models.labelling import Measure
from binsweep.models.metrics import N_RESAMPLES, Counts, Labels

SHARES_RIGHT: tuple[Measure, ...] = ("accuracy", "top3_accuracy")  # of photos, so that McNemar's test fits
ERRORS: tuple[Measure, ...] = ("rmse", "mae")  # the smaller, the better
Correction = Literal["none", "bonferroni"]
ALPHA = 0.05  # the false positive rate: how often a candidate that is no better may pass
Z_POWER_80 = 0.842  # the 80 % quantile of the normal distribution
MAX_BLOCK_NUMBERS = 4_000_000  # that the bootstrap holds in memory at a time, 32 MB


def significance_level(correction: Correction, decision_number: int) -> float:
    """The p below which a candidate counts as better in the test split's `decision_number`-th decision (from 1).

    Bonferroni over a series of unknown length: the k-th decision may spend ALPHA / (k (k + 1)), which adds up to
    ALPHA however many follow. The chance that any candidate passes by luck therefore stays at ALPHA.
    """
    return ALPHA if correction == "none" else ALPHA / (decision_number * (decision_number + 1))


def mcnemar_test(candidate: Labels, other: Labels, actual: Labels) -> tuple[float, int, int]:
    """One-sided mid-p McNemar test that the candidate is right more often; arrays [N].

    Returns (p, photos that only the candidate has right, photos that only the other has right). Under the null
    hypothesis the first is binomial with half the sum of both (McNemar 1947; the mid-p variant, less conservative
    than the exact test: Fagerland, Lydersen, Laake, BMC Med. Res. Methodol. 13:91, 2013). 0.5 if they never differ.
    """
    candidate_right, other_right = candidate == actual, other == actual
    won, lost = int(np.sum(candidate_right & ~other_right)), int(np.sum(other_right & ~candidate_right))
    p_more = bdtrc(won, won + lost, 0.5)
    p_equal = 1 - p_more - (bdtr(won - 1, won + lost, 0.5) if won else 0.0)
    return float(p_more + p_equal / 2), won, lost


def bootstrap_test(
    candidate: Labels,
    other: Labels,
    actual: Labels,
    measure: Measure,
    seed: int = 0,
    resamples: int = N_RESAMPLES,
) -> tuple[float, float, float]:
    """Paired bootstrap over photos of the difference candidate - other in `measure`; arrays [N].

    Returns (p, low, high): the share of resamples in which the candidate is not better, and the central 95 % of
    the differences (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16). The
    difference depends only on how many photos have each pair of losses (or, for scores of classes, of answers), and
    drawing N photos with replacement draws those numbers from a multinomial distribution, so N may be large.
    """
    if measure in ("balanced_accuracy", "macro_f1"):
        differences = _class_differences(candidate, other, actual, measure, seed, resamples)
    else:
        differences = _loss_differences(candidate, other, actual, measure, seed, resamples)
    sign = -1 if measure in ERRORS else 1
    p = (1 + np.sum(sign * differences <= 0)) / (1 + resamples)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(p), float(low), float(high)


def _class_differences(
    candidate: Labels, other: Labels, actual: Labels, measure: Measure, seed: int, resamples: int
) -> NDArray[np.float64]:
    cells, photos, n = cells_of([candidate, other], actual)
    parts = []
    for draws in resample(photos, n, resamples, seed):
        mine, theirs = (cell_scores(answers, cells[-1], draws, n)[measure] for answers in cells[:2])
        parts.append(mine - theirs)
    return np.concatenate(parts)


def _loss_differences(
    candidate: Counts, other: Counts, actual: Counts, measure: Measure, seed: int, resamples: int
) -> NDArray[np.float64]:
    losses = np.stack([_loss(candidate, actual, measure), _loss(other, actual, measure)])
    pairs, photos = np.unique(losses, axis=1, return_counts=True)
    rng, share = np.random.default_rng(seed), photos / len(actual)
    differences = np.empty(resamples)
    block = max(1, MAX_BLOCK_NUMBERS // len(photos))
    for start in range(0, resamples, block):
        draws = rng.multinomial(len(actual), share, min(block, resamples - start))
        candidate_loss, other_loss = (draws @ pairs.T / len(actual)).T
        if measure == "rmse":
            candidate_loss, other_loss = np.sqrt(candidate_loss), np.sqrt(other_loss)
        differences[start : start + len(draws)] = candidate_loss - other_loss
    return differences if measure in ERRORS else -differences


def _loss(predicted: Counts, actual: Counts, measure: Measure) -> Counts:
    """Each photo's term in the mean behind `measure`: wrong or not, squared or absolute error."""
    if measure not in ERRORS:
        wrong: Counts = (predicted != actual).astype(np.int64)
        return wrong
    error: Counts = np.abs(predicted - actual)
    return error**2 if measure == "rmse" else error


def p_value(candidate: Labels, other: Labels, actual: Labels, measure: Measure) -> float:
    """The p of the measure's one-sided paired test that the candidate is better."""
    if measure in SHARES_RIGHT:
        return mcnemar_test(candidate, other, actual)[0]
    return bootstrap_test(candidate, other, actual, measure)[0]


def detectable_difference(won: int, lost: int, photos: int, alpha: float = ALPHA) -> float:
    """The difference in accuracy that this test detects with 80 % power, given how often the two models differ.

    The difference has a standard error of about sqrt(d / N) for a share d of discordant photos (Miettinen,
    Biometrics 24, 1968).
    """
    return (-float(ndtri(alpha)) + Z_POWER_80) * math.sqrt(max(won + lost, 1)) / photos
