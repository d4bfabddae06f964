"""Evaluate a registered model on photos with known counts: its own test split, or another source."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from binsweep.data.decode import decode
from binsweep.data.errors import UserError
from binsweep.data.labels import Label, kind_of, of_kind, sorted_labels
from binsweep.data.manifest import Item, Manifest, load_manifest
from binsweep.data.source_checks import format_skipped
from binsweep.data.split import Split, SplitName
from binsweep.models.labelling import labelling_of
from binsweep.models.metrics import Labels, commonest
from binsweep.search.terminal.progress import ProgressBar
from binsweep.tracking.evaluation.predictions import Predictions, evaluate
from binsweep.tracking.evaluation.report import log_scorecard, write_scorecard
from binsweep.tracking.evaluation.scorecard import Scorecard, score
from binsweep.tracking.promotion.gate import no_better_than_guess
from binsweep.tracking.registry.photo_splits import SEEN, judged_by, load_judged, seen_by, seen_contents
from binsweep.tracking.serving.model_server import photo_version


@dataclass(frozen=True)
class Evaluation:
    """A scorecard with `facts` about its photos, the folder with the report, and `notes` that qualify the scores."""

    card: Scorecard
    facts: dict[str, str]
    folder: Path
    notes: list[str]


@dataclass(frozen=True)
class _Selection:
    """The photos to evaluate on, a description of them, and a short label for files and metrics."""

    items: tuple[Item, ...]
    description: str
    label: str


@dataclass(frozen=True)
class _Scored:
    """The scored photos: those that the model could read."""

    card: Scorecard
    items: list[Item]
    predictions: Predictions
    actual: Labels
    notes: list[str]


def evaluate_source(
    model_uri: str,
    source: str,
    home: Path,
    tracking_uri: str,
    split: SplitName | None = None,
    classes: Sequence[Label] | None = None,
    out: Path | None = None,
    with_seen: bool = False,
) -> Evaluation:
    """Evaluate a model on photos of `source`; writes the report into `out` and into the run of a registered model.

    Without `split`, the model's own data (the same fingerprint) are evaluated on their test split, and other sources
    on all photos. `classes` defaults to the classes that the model knows. Photos that the model was trained on or
    chosen by are left out, unless `with_seen` or `split` asks for them. Raises UserError for a model or a source that
    cannot be read, and if no photo is left.
    """
    version = photo_version(model_uri, tracking_uri)
    tags = {} if version is None else version.tags
    manifest = _read_photos(source, home, tags, split, classes)
    own = manifest.fingerprint == judged_by(tags)
    seen = None if version is None else seen_by(tracking_uri, version, None if own else home)
    if seen is None and own:  # an older version stored no list; the same data give the same one
        seen = seen_contents(manifest)
    selection = _select(manifest, split or ("test" if own else None), own, seen, with_seen)
    name = f"{version.name} version {version.version}" if version is not None else model_uri
    facts = {"model": name, "photos": selection.description, "fingerprint": manifest.fingerprint[:16]}
    scored = _score(model_uri, tracking_uri, selection.items, tags)
    notes = list(scored.notes)
    if manifest.skipped:
        skipped = format_skipped(manifest.skipped, 3)
        notes.insert(0, f"{len(manifest.skipped):,} files are left out: {skipped}.")
    folder = out or home / "evaluations" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}-{selection.label}"
    _write(folder, scored, facts, notes)
    if version is not None and version.run_id:
        label = selection.label
        place = f"evaluation/version-{version.version}/{label}"
        metric = f"evaluation_{label}"
        log_scorecard(tracking_uri, version.run_id, version.version, scored.card, folder, metric, place)
    return Evaluation(scored.card, facts, folder, notes)


def _read_photos(
    source: str, home: Path, tags: dict[str, str], split: SplitName | None, classes: Sequence[Label] | None
) -> Manifest:
    """Read the source with the classes and the kind of splits that the model was judged by.

    Raises UserError if one of the requested `classes`, or the `split`, has no photo.
    """
    judged: dict[str, Any] = json.loads(tags.get("data") or "{}")
    known = judged.get("classes")
    kind = kind_of(known) if known else None
    division = Split(**judged["split"]) if "split" in judged else Split()
    if split is None and division.by == "folder":  # other sources need no folders for splits
        division = replace(division, by="id")
    with ProgressBar("reading the data") as progress:
        manifest = load_manifest(
            source,
            classes or known,
            division,
            home,
            progress,
            labels=kind,
            train_also=None if classes else judged.get("train_also"),
            allow_untrainable=True,
        )
    present = {item.label for item in manifest.items}
    asked = of_kind(classes or (), manifest.kind)
    if absent := [str(label) for label in asked if label not in present]:
        raise UserError(
            f"--classes: no readable image of class {', '.join(absent)} in {manifest.source}",
            f"of the requested classes, it has {', '.join(map(str, sorted_labels(present)))}",
        )
    if split is not None and not manifest.split(split):
        raise UserError(
            f"--split {split}: none of the {len(manifest.items)} photos of {manifest.source} falls into {split}, "
            f"split like the model's data (by {division.by})",
            "omit --split to evaluate on all photos that the model has not seen",
        )
    return manifest


def _score(model_uri: str, tracking_uri: str, photos: Sequence[Item], tags: dict[str, str]) -> _Scored:
    predictions = evaluate(model_uri, [item.path for item in photos], tracking_uri)
    items = [item for item, error in zip(photos, predictions.errors, strict=True) if not error]
    notes = []
    if len(items) < len(photos):
        reason = next(error for error in predictions.errors if error)
        notes.append(f"{len(photos) - len(items)} photos are left out that it cannot read ({reason}).")
    predictions = predictions.take(predictions.answered)
    actual = np.array([item.label for item in items])
    guess = commonest(actual)
    if "data.guess" in tags:
        guess = tags["data.guess"] if kind_of(predictions.classes) == "names" else int(tags["data.guess"])
    if weak := no_better_than_guess(predictions.labels, guess, actual):
        notes.append(f"It is {weak}.")
    return _Scored(score(predictions, actual, guess), items, predictions, actual, notes)


def _write(folder: Path, scored: _Scored, facts: dict[str, str], notes: list[str]) -> None:
    def picture(row: int) -> Any:
        return decode(scored.items[row].path, 224)

    ids = [item.id for item in scored.items]
    write_scorecard(folder, scored.card, scored.predictions, scored.actual, ids, picture, facts, notes)


def _select(
    manifest: Manifest, split: SplitName | None, own: bool, seen: frozenset[str] | None, with_seen: bool
) -> _Selection:
    """The photos to evaluate on. `seen` holds the contents that the model was trained on or chosen by, if known."""
    items = manifest.items if split is None else manifest.split(split)
    known = () if seen is None else tuple(item for item in items if item.sha256 in seen)
    requested = with_seen or (own and split in SEEN)
    labels = labelling_of(manifest.classes).describe(", ".join(map(str, manifest.classes)))
    scope = f"all photos of {labels} in" if split is None else f"the {split} split of"
    photos = f"{scope} {manifest.source}"
    label = f"{split or 'all'}-{manifest.fingerprint[:8]}"
    if known and requested:
        text = f"it was trained on or chosen by {len(known)} of these {len(items)} photos: not new to it"
        return _Selection(items, f"{photos}; {text}", label if split in SEEN else f"{label}-with-seen")
    new = tuple(item for item in items if seen is None or item.sha256 not in seen)
    if known and not new:
        raise UserError(
            f"the model was trained on or chosen by each of these {len(items)} photos: {photos}",
            "choose other photos, or add --seen to evaluate on them anyway",
        )
    if seen is None:
        return _Selection(items, f"{photos}; which photos the model learned from is not known", label)
    text = f"{photos}, which {'no trial has seen' if own else 'it was not trained on or chosen by'}"
    if known:
        others = f"the other {len(known)}, which it was trained on or chosen by, are left out"
        text = f"of {len(items)} photos, {photos}; {others}"
    return _Selection(new, text, label)


def require_own_test_split(tags: dict[str, str], name: str, home: Path) -> tuple[Item, ...]:
    """The photos that a registered version was judged by; UserError if they are no longer available."""
    judged = json.loads(tags.get("data") or "{}")
    if not judged:
        raise UserError(f"{name} does not record which data it was judged by", "promote a sweep again")
    with ProgressBar("reading the data") as progress:
        manifest = load_judged(judged, home, progress)
    if manifest.fingerprint != judged_by(tags):
        raise UserError(
            f"{judged['source']} has changed since {name} was judged by it",
            "restore the data, or promote a sweep again",
        )
    return manifest.split("test")
