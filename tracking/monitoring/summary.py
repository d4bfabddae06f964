"""What a version has seen and how right it was, read from its store: what the monitor's page and table are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from binsweep.models.labelling import Labelling, labelling_of
from binsweep.tracking.monitoring.drift import (
    RECENT_BLOCKS,
    Oddness,
    compared_figures,
    population_stability_index,
    reading,
    summed,
)
from binsweep.tracking.monitoring.drift_test import DriftTest, drift_tests
from binsweep.tracking.monitoring.figures import ANSWER, FIGURES, LATENCY
from binsweep.tracking.monitoring.reference import Reference
from binsweep.tracking.monitoring.store import AnsweredPhoto, Block, WatchStore
from binsweep.tracking.monitoring.truths import wilson_interval
from binsweep.tracking.monitoring.watcher import (
    ANSWERED,
    MEASURED,
    MISSED,
    PHOTOS,
    REFUSED,
    REQUESTS,
    SECONDS,
)

MAX_EXAMPLES = 20
LATENCY_SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class FigureDrift:
    """A figure of the `photos` last photos against the reference; `first_at` is when the test first found drift."""

    name: str
    title: str
    photos: int
    index: float | None
    reading: str
    test: DriftTest
    first_at: float | None
    reference: Mapping[str, int]
    seen: Mapping[str, int]
    course: Sequence[tuple[float, float]]  # the index of each block, and when the block ended


@dataclass(frozen=True)
class OddPhoto:
    """A photo unlike the validation photos, and the figure in which it is."""

    photo: AnsweredPhoto
    oddness: float
    figure: str
    thumbnail: bytes | None


@dataclass(frozen=True)
class LiveScores:
    """Scores of the last photos whose true label is known, with 95 % intervals."""

    photos: int
    right: int
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    labelling: Labelling


@dataclass(frozen=True)
class Summary:
    """Everything that is known of a version since it is watched (`began` to `ended`, seconds since 1970)."""

    began: float
    ended: float
    requests: Mapping[str, int]  # by status
    latency: Mapping[float, float]  # share of requests -> seconds in which as many were answered
    answered: int
    refused: int
    missed: int
    measured: int
    reference_photos: int
    figures: Sequence[FigureDrift]
    examples: Sequence[OddPhoto]
    live: LiveScores | None

    @property
    def drifting(self) -> list[FigureDrift]:
        """The figures in which the test has found drift."""
        return [figure for figure in self.figures if figure.test.drifts]


def summarize(store: WatchStore, version: str, reference: Reference | None) -> Summary:
    """Read everything about a version; without a reference there is nothing about drift."""
    totals, blocks = store.totals(version), store.blocks(version)
    photos = {place: times for place, (times, _) in totals.get(PHOTOS, {}).items()}
    return Summary(
        began=blocks[0].began,
        ended=blocks[-1].ended,
        requests={status: times for status, (times, _) in sorted(totals.get(REQUESTS, {}).items())},
        latency=_latency({int(place): times for place, (times, _) in totals.get(SECONDS, {}).items()}),
        answered=photos.get(ANSWERED, 0),
        refused=photos.get(REFUSED, 0),
        missed=photos.get(MISSED, 0),
        measured=photos.get(MEASURED, 0),
        reference_photos=0 if reference is None else reference.photos,
        figures=[] if reference is None else _figures(blocks, reference),
        examples=[] if reference is None else _examples(store, version, reference),
        live=live_scores(store.judged(version)),
    )


def _latency(bins: Mapping[int, int]) -> dict[float, float]:
    """For each of LATENCY_SHARES the upper edge of the bin with the last of so many requests; inf beyond the edges."""
    if not bins:
        return {}
    places = sorted(bins)
    below = np.cumsum([bins[place] for place in places])
    edges = [*LATENCY.edges.tolist(), float("inf")]
    return {share: edges[places[int(np.searchsorted(below, share * below[-1]))]] for share in LATENCY_SHARES}


def _figures(blocks: Sequence[Block], reference: Reference) -> list[FigureDrift]:
    tests = drift_tests(reference.counts, blocks)
    recent = summed(blocks[-RECENT_BLOCKS:])
    ended = {block.number: block.ended for block in blocks}
    found = []
    for name in compared_figures(reference.counts):
        expected, seen, test = reference.counts[name], recent.get(name, {}), tests[name]
        course = [
            (block.ended, index)
            for block in blocks
            if (index := population_stability_index(name, expected, block.counts.get(name, {}))) is not None
        ]
        index, photos = population_stability_index(name, expected, seen), sum(seen.values())
        title = FIGURES[name].title if name in FIGURES else "answers"
        first_at = None if test.first is None else ended[test.first]
        found.append(
            FigureDrift(
                name, title, photos, index, reading(index, photos), test, first_at, expected, seen, course
            )
        )
    return found


def _examples(store: WatchStore, version: str, reference: Reference) -> list[OddPhoto]:
    """The photos among the last ones that are most unlike the validation photos, the oddest first."""
    oddness = Oddness(reference.counts)
    ranked = sorted(
        ((*oddness.of(photo), photo) for photo in store.photos(version)),
        key=lambda row: (-row[0], row[2].sha256),
    )
    thumbnails = store.thumbnails(version)
    return [
        OddPhoto(photo, bits, figure, thumbnails.get(photo.sha256))
        for bits, figure, photo in ranked[:MAX_EXAMPLES]
    ]


def live_scores(judged: Sequence[tuple[str, str]]) -> LiveScores | None:
    """The scores of (answer, true label), both as JSON; None without any.

    The interval of the accuracy is Wilson's, because the bootstrap of the others knows none where all are right.
    """
    pairs: list[tuple[Any, Any]] = [(json.loads(answer), json.loads(truth)) for answer, truth in judged]
    pairs = [(answer, truth) for answer, truth in pairs if isinstance(answer, str) == isinstance(truth, str)]
    if not pairs:
        return None
    answers, truths = (np.array(column) for column in zip(*pairs, strict=True))
    labelling = labelling_of([pairs[0][1]])
    right = int(np.sum(answers == truths))
    intervals = {**labelling.intervals(answers, truths), "accuracy": wilson_interval(right, len(pairs))}
    return LiveScores(len(pairs), right, labelling.answer_scores(answers, truths), intervals, labelling)


def label_text(figure: str, place: str) -> str:
    """An answer's label, from its JSON."""
    return str(json.loads(place)) if figure == ANSWER else place
