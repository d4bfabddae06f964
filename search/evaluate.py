"""A registered model against photos with known counts: its own test split, or any other source."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.decode import decode
from data.errors import UserError
from data.manifest import Item, Manifest, load_manifest
from data.split import Split, SplitName
from models.metrics import commonest
from search.board import Step
from tracking.evaluation import evaluate
from tracking.promotion import log_scorecard
from tracking.registry import find_version
from tracking.scorecard import Scorecard, score, write_scorecard
from tracking.serving import require_model


@dataclass(frozen=True)
class Evaluation:
    """A scorecard, about which photos it is, and the folder with all its files."""

    card: Scorecard
    facts: dict[str, str]
    folder: Path


def evaluate_source(
    model_uri: str,
    source: str,
    home: Path,
    tracking_uri: str,
    split: SplitName | None = None,
    classes: Sequence[int] | None = None,
    out: Path | None = None,
) -> Evaluation:
    """Ask a model about photos of `source` and write the scorecard into `out`, and into the run of a registered one.

    Of the very data that it learned from (by fingerprint), the test split is asked; of any other source, every
    photo of the classes that it knows. `split` and `classes` say otherwise. Raises UserError for a model or a
    source that cannot be had.
    """
    require_model(model_uri, tracking_uri)
    version = find_version(model_uri, tracking_uri)
    tags = {} if version is None else version.tags
    photos: dict[str, Any] = json.loads(tags.get("data") or "{}")
    division = Split(**photos["split"]) if "split" in photos else Split()
    with Step("reading the data") as step:
        manifest = load_manifest(source, classes or photos.get("classes"), division, home, step)
    own = manifest.fingerprint == _judged_by(tags, photos)
    which = split or ("test" if own else None)
    items = manifest.items if which is None else manifest.split(which)
    name = f"{version.name} version {version.version}" if version is not None else model_uri
    facts = {"model": name, "photos": _words(manifest, which, own), "fingerprint": manifest.fingerprint[:16]}

    said = evaluate(model_uri, [item.path for item in items], tracking_uri)
    actual = np.array([item.label for item in items])
    card = score(said, actual, int(tags["data.guess"]) if "data.guess" in tags else commonest(actual))
    label = f"{which or 'all'}-{manifest.fingerprint[:8]}"
    folder = out or home / "evaluations" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}-{label}"

    def picture(row: int) -> Any:
        item: Item = items[row]
        return decode(item.path, 224)

    write_scorecard(folder, card, said, actual, [item.id for item in items], picture, facts)
    if version is not None and version.run_id:
        place = f"evaluation/version-{version.version}/{label}"
        log_scorecard(
            tracking_uri, version.run_id, version.version, card, folder, f"evaluation_{label}", place
        )
    return Evaluation(card, facts, folder)


def _words(manifest: Manifest, which: SplitName | None, own: bool) -> str:
    if which is None:
        return f"all of {manifest.source}, not the data it was trained and chosen on"
    role = {
        "test": "which no trial has seen",
        "validation": "by which it was chosen",
        "train": "which it learned from",
    }
    told = role[which] if own else "of other data than its own"
    return f"the {which} split of {manifest.source}, {told}"


def _judged_by(tags: dict[str, str], photos: dict[str, Any]) -> str | None:
    """The fingerprint of the data that a version was judged by; older versions have it in a tag of its own alone."""
    return photos.get("fingerprint", tags.get("dataset.fingerprint"))


def require_own_test_split(tags: dict[str, str], name: str, home: Path) -> tuple[Item, ...]:
    """The photos by which a registered version was judged; UserError where they cannot be had any more."""
    photos = json.loads(tags.get("data") or "{}")
    if not photos:
        raise UserError(f"{name} does not say which data it was judged by", "promote a sweep anew")
    with Step("reading the data") as step:
        manifest = load_manifest(photos["source"], photos["classes"], Split(**photos["split"]), home, step)
    if manifest.fingerprint != _judged_by(tags, photos):
        raise UserError(
            f"{photos['source']} has changed since {name} was judged by it",
            "bring the data back as they were, or promote anew",
        )
    return manifest.split("test")
