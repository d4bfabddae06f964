"""A registered model against photos with known counts: its own test split, or any other source."""

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
from binsweep.data.manifest import Item, Manifest, format_skipped, load_manifest
from binsweep.data.split import Split, SplitName
from binsweep.models.metrics import commonest
from binsweep.search.recording.live_table import Step
from binsweep.tracking.evaluation.predictions import evaluate
from binsweep.tracking.evaluation.report import log_scorecard, write_scorecard
from binsweep.tracking.evaluation.scorecard import Scorecard, score
from binsweep.tracking.promotion.gate import no_better_than_guess
from binsweep.tracking.registry.photo_splits import SEEN, judged_by, seen_by, seen_contents
from binsweep.tracking.registry.versions import find_version
from binsweep.tracking.serving.model_server import require_model


@dataclass(frozen=True)
class Evaluation:
    """A scorecard, about which photos it is, the folder with all its files, and `notes` on what it is worth."""

    card: Scorecard
    facts: dict[str, str]
    folder: Path
    notes: list[str]


@dataclass(frozen=True)
class _Chosen:
    """The photos that are asked about, what they are in words, and a short name for them in files and metrics."""

    items: tuple[Item, ...]
    words: str
    label: str


def evaluate_source(
    model_uri: str,
    source: str,
    home: Path,
    tracking_uri: str,
    split: SplitName | None = None,
    classes: Sequence[int] | None = None,
    out: Path | None = None,
    with_seen: bool = False,
) -> Evaluation:
    """Ask a model about photos of `source` and write the scorecard into `out`, and into the run of a registered one.

    Of the very data that it learned from (by fingerprint), the test split is asked; of any other source, every
    photo of the classes that it knows, however few and of however few classes they are. `split` and `classes` say
    otherwise. Photos by whose content it was trained
    or chosen are left out, unless `with_seen`, or `split`, asks for them. Raises UserError for a model or a source
    that cannot be had, and where no photo is left.
    """
    require_model(model_uri, tracking_uri)
    version = find_version(model_uri, tracking_uri)
    tags = {} if version is None else version.tags
    photos: dict[str, Any] = json.loads(tags.get("data") or "{}")
    division = Split(**photos["split"]) if "split" in photos else Split()
    if split is None and division.by == "folder":  # other sources need no folders for splits
        division = replace(division, by="id")
    asked = classes or photos.get("classes")
    with Step("reading the data") as step:
        manifest = load_manifest(source, asked, division, home, step, allow_untrainable=True)
    _check_asked(manifest, classes or (), split, division)
    own = manifest.fingerprint == judged_by(tags)
    seen = None if version is None else seen_by(tracking_uri, version, None if own else home)
    if seen is None and own:  # an older version, which kept nothing; but the same data say the same
        seen = seen_contents(manifest.items)
    chosen = _choose(manifest, split or ("test" if own else None), own, seen, with_seen)
    name = f"{version.name} version {version.version}" if version is not None else model_uri
    facts = {"model": name, "photos": chosen.words, "fingerprint": manifest.fingerprint[:16]}

    said = evaluate(model_uri, [item.path for item in chosen.items], tracking_uri)
    items = [item for item, error in zip(chosen.items, said.errors, strict=True) if not error]
    notes = []
    if manifest.skipped:
        notes.append(f"{len(manifest.skipped):,} files are left out: {format_skipped(manifest.skipped, 3)}.")
    if len(items) < len(chosen.items):
        why = next(error for error in said.errors if error)
        notes.append(f"{len(chosen.items) - len(items)} photos are left out, which it cannot read ({why}).")
    said = said.take(said.answered)
    actual = np.array([item.label for item in items])
    guess = int(tags["data.guess"]) if "data.guess" in tags else commonest(actual)
    card = score(said, actual, guess)
    if weak := no_better_than_guess(said.counts, guess, actual):
        notes.append(f"It is {weak}.")
    folder = out or home / "evaluations" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}-{chosen.label}"

    def picture(row: int) -> Any:
        return decode(items[row].path, 224)

    write_scorecard(folder, card, said, actual, [item.id for item in items], picture, facts, notes)
    if version is not None and version.run_id:
        place = f"evaluation/version-{version.version}/{chosen.label}"
        log_scorecard(
            tracking_uri, version.run_id, version.version, card, folder, f"evaluation_{chosen.label}", place
        )
    return Evaluation(card, facts, folder, notes)


def _check_asked(
    manifest: Manifest, classes: Sequence[int], split: SplitName | None, division: Split
) -> None:
    """UserError where a class that somebody named, or the split, has no photo."""
    present = {item.label for item in manifest.items}
    if absent := [str(label) for label in classes if label not in present]:
        raise UserError(
            f"--classes: no readable image of class {', '.join(absent)} in {manifest.source}",
            f"of those asked for, there are {', '.join(map(str, sorted(present)))}",
        )
    if split is not None and not manifest.split(split):
        raise UserError(
            f"--split {split}: none of the {len(manifest.items)} photos of {manifest.source} falls into {split}, "
            f"divided as the model's data were (by {division.by})",
            "leave --split out: every photo that the model has not seen is asked, then",
        )


def _choose(
    manifest: Manifest, which: SplitName | None, own: bool, seen: frozenset[str] | None, with_seen: bool
) -> _Chosen:
    """The photos to ask about, where `seen` are the contents by which the model was trained or chosen, if known."""
    items = manifest.items if which is None else manifest.split(which)
    known = () if seen is None else tuple(item for item in items if item.sha256 in seen)
    asked_for = with_seen or (own and which in SEEN)
    counts = ", ".join(map(str, manifest.classes))
    every = f"all photos of {counts} items in" if which is None else f"the {which} split of"
    what = f"{every} {manifest.source}"
    label = f"{which or 'all'}-{manifest.fingerprint[:8]}"
    if known and asked_for:
        words = (
            f"{what}; it was trained on or chosen by {len(known)} of these {len(items)} photos: not new to it"
        )
        return _Chosen(items, words, label if which in SEEN else f"{label}-with-seen")
    new = tuple(item for item in items if seen is None or item.sha256 not in seen)
    if known and not new:
        raise UserError(
            f"the model was trained on or chosen by each of these {len(items)} photos: {what}",
            "other photos; or --seen, which asks about them all the same",
        )
    if seen is None:
        return _Chosen(items, f"{what}; which photos the model learned from is not known", label)
    words = f"{what}, which {'no trial has seen' if own else 'it was not trained on or chosen by'}"
    if known:
        words = f"{len(new)} of {len(items)} photos, {what}: it was trained on or chosen by the other {len(known)}"
    return _Chosen(new, words, label)


def require_own_test_split(tags: dict[str, str], name: str, home: Path) -> tuple[Item, ...]:
    """The photos by which a registered version was judged; UserError where they cannot be had any more."""
    photos = json.loads(tags.get("data") or "{}")
    if not photos:
        raise UserError(f"{name} does not say which data it was judged by", "promote a sweep anew")
    with Step("reading the data") as step:
        manifest = load_manifest(photos["source"], photos["classes"], Split(**photos["split"]), home, step)
    if manifest.fingerprint != judged_by(tags):
        raise UserError(
            f"{photos['source']} has changed since {name} was judged by it",
            "bring the data back as they were, or promote anew",
        )
    return manifest.split("test")
