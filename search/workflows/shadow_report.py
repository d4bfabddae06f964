"""How often a challenger in the shadow of a served version differs from it, and where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from binsweep.data.errors import UserError
from binsweep.data.labels import Label, sorted_labels
from binsweep.search.workflows.monitor import open_store
from binsweep.tracking.monitoring.note import log_shadow
from binsweep.tracking.monitoring.shadow import SHADOW
from binsweep.tracking.monitoring.store import ShadowedPhoto
from binsweep.tracking.monitoring.truths import wilson_interval
from binsweep.tracking.promotion.paired_tests import mcnemar_test
from binsweep.tracking.serving.model_server import registered_version

MAX_PAIRS, MAX_PHOTOS = 10, 20
SURE, UNSURE = 0.9, 0.5  # of the served version; confidence is shown in three bands


@dataclass(frozen=True)
class Share:
    """How many of some photos are answered differently, with the 95 % interval of the share."""

    name: str
    photos: int
    differing: int
    low: float
    high: float


@dataclass(frozen=True)
class Judged:
    """Of the photos whose true label is known: those that only one of the two has right, and the one-sided p of
    McNemar's test that the challenger is right more often."""

    photos: int
    served_right: int
    challenger_right: int
    only_served: int
    only_challenger: int
    p: float


@dataclass(frozen=True)
class ShadowReport:
    """All photos, and the same by the served version's answer and by its confidence; `pairs` are the commonest
    differences as (served answer, challenger's answer, photos), `examples` the last ones."""

    model: str
    version: str
    challenger: str
    every: Share
    by_answer: list[Share]
    by_confidence: list[Share]
    pairs: list[tuple[Label, Label, int]]
    judged: Judged | None
    missed: int
    failed: int
    examples: list[dict[str, Any]]

    @property
    def line(self) -> str:
        """The result in one line, as a record of a promotion cites it."""
        every = self.every
        share = every.differing / every.photos
        text = (
            f"in the shadow of version {self.version} it answered {every.differing} of {every.photos} photos "
        )
        text += f"differently: {share:.1%} ({every.low:.1%} to {every.high:.1%})"
        if self.judged is not None:
            text += f"; of {self.judged.photos} photos with a true label it has {self.judged.challenger_right} right, "
            text += f"version {self.version} {self.judged.served_right} (McNemar p {self.judged.p:.3f})"
        return text


def report_shadow(
    model_uri: str, home: Path, tracking_uri: str, challenger: str | None = None
) -> ShadowReport:
    """Compare the answers of a served version and its challenger (default: the last one that was in its shadow).

    The result goes into MLflow, as the tag `shadow` of the challenger's version and as a file of its run. Raises
    UserError if no challenger was asked.
    """
    found = registered_version(model_uri, tracking_uri)
    name, version = found.name, str(found.version)
    store = open_store(home, name, version)
    asked = store.challengers(version)
    if not asked or (challenger is not None and challenger not in asked):
        which = "no version was" if challenger is None else f"version {challenger} was not"
        there = f"there were: {', '.join(asked)}" if asked else f"`binsweep serve {name} --shadow challenger`"
        raise UserError(f"{which} asked in the shadow of {name} version {version}", there)
    challenger = challenger or asked[0]
    both = store.shadowed(version, challenger)
    photos = [photo for photo, _ in both]
    totals = store.totals(version).get(SHADOW, {})
    report = ShadowReport(
        name,
        version,
        challenger,
        _share("all", photos),
        _groups(photos, lambda photo: json.loads(photo.answer)),
        _groups(photos, _band),
        _pairs(photos),
        _judged(both),
        totals.get("missed", (0, 0.0))[0],
        totals.get("failed", (0, 0.0))[0],
        [_example(photo) for photo in reversed(photos) if photo.answer != photo.other][:MAX_PHOTOS],
    )
    log_shadow(tracking_uri, name, challenger, report.line, {**asdict(report), "line": report.line})
    return report


def _share(name: str, photos: Iterable[ShadowedPhoto]) -> Share:
    differs = [photo.answer != photo.other for photo in photos]
    return Share(name, len(differs), sum(differs), *wilson_interval(sum(differs), len(differs)))


def _groups(photos: list[ShadowedPhoto], key: Callable[[ShadowedPhoto], Label]) -> list[Share]:
    names = sorted_labels({key(photo) for photo in photos})
    return [_share(str(name), (photo for photo in photos if key(photo) == name)) for name in names]


def _band(photo: ShadowedPhoto) -> str:
    """The band of the served version's confidence."""
    if photo.confidence >= SURE:
        return f"at least {SURE:.0%}"
    return f"{UNSURE:.0%} to {SURE:.0%}" if photo.confidence >= UNSURE else f"below {UNSURE:.0%}"


def _pairs(photos: list[ShadowedPhoto]) -> list[tuple[Label, Label, int]]:
    found = Counter((photo.answer, photo.other) for photo in photos if photo.answer != photo.other)
    return [
        (json.loads(mine), json.loads(theirs), times)
        for (mine, theirs), times in found.most_common(MAX_PAIRS)
    ]


def _judged(both: list[tuple[ShadowedPhoto, str | None]]) -> Judged | None:
    known = [(photo.answer, photo.other, truth) for photo, truth in both if truth is not None]
    if not known:
        return None
    served, other, truth = (np.array(column) for column in zip(*known, strict=True))
    p, won, lost = mcnemar_test(other, served, truth)
    return Judged(len(known), int(np.sum(served == truth)), int(np.sum(other == truth)), lost, won, p)


def _example(photo: ShadowedPhoto) -> dict[str, Any]:
    return {
        "sha256": photo.sha256.hex(),
        "served": json.loads(photo.answer),
        "challenger": json.loads(photo.other),
        "confidence": photo.confidence,
        "challenger_confidence": photo.other_confidence,
    }
