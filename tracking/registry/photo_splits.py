"""The photos that a registered version was trained, chosen and judged on, by the content of their files.

A model may remember a photo that it has seen, whatever the file is called and wherever it lies now. Each version
therefore stores the sha256 of every photo of its data, and evaluations look there first.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from binsweep.data.errors import UserError
from binsweep.data.labels import kind_of
from binsweep.data.manifest import Item, Manifest, load_manifest
from binsweep.data.parallel import Progress
from binsweep.data.split import Split

# In the model's run; one file for each version, because a run may become several versions.
FOLDER = "photos"
SEEN = ("train", "validation")  # the splits for training and for choosing the model


def seen_contents(manifest: Manifest) -> frozenset[str]:
    """The sha256 of the photos on which a model of these data was trained or chosen."""
    return frozenset(item.sha256 for item in _all_photos(manifest) if item.split in SEEN)


def _all_photos(manifest: Manifest) -> tuple[Item, ...]:
    return (*manifest.items, *manifest.train_also)


def new_test_photos(manifest: Manifest) -> tuple[Item, ...]:
    """The test split without exact copies of train or validation photos. Raises UserError if none is left."""
    seen = seen_contents(manifest)
    items = tuple(item for item in manifest.split("test") if item.sha256 not in seen)
    if not items:
        raise UserError(
            f"every photo in the test split of {manifest.source} is also in train or validation, byte for byte",
            "remove the copies, or split with data.split.by: group, which keeps copies together",
        )
    return items


def digest_of(items: Sequence[Item]) -> str:
    """The digest of a test split: it depends on its photos and their labels, and on nothing else."""
    lines = sorted(f"{item.sha256} {item.label}\n" for item in items)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def store_photos(tracking_uri: str, version: ModelVersion, manifest: Manifest) -> None:
    """Store the sha256 and the split of every photo of a version's data in its run."""
    photos = _all_photos(manifest)
    table = {
        "sha256": [bytes.fromhex(item.sha256) for item in photos],
        "split": pd.Categorical([item.split for item in photos]),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / _file_name(version)
        pd.DataFrame(table).to_parquet(file, index=False)
        MlflowClient(tracking_uri).log_artifact(version.run_id or "", str(file), FOLDER)


def seen_by(tracking_uri: str, version: ModelVersion, home: Path | None) -> frozenset[str] | None:
    """The sha256 of the photos on which a version was trained or chosen; None if they are not known.

    For a version that was registered before they were stored, its data are read again if they are still on this
    machine with the same fingerprint. That needs a `home` for the caches; without one the photos are not known.
    """
    client = MlflowClient(tracking_uri)
    try:
        stored = {Path(file.path).name for file in client.list_artifacts(version.run_id or "", FOLDER)}
    except MlflowException as error:
        # The run was deleted, or this user may not read it.
        if error.error_code not in (
            "RESOURCE_DOES_NOT_EXIST",
            "INVALID_PARAMETER_VALUE",
            "PERMISSION_DENIED",
        ):
            raise
        stored = set()
    if _file_name(version) not in stored:
        return None if home is None else _read_again(version.tags, home)
    with tempfile.TemporaryDirectory() as folder:
        file = client.download_artifacts(version.run_id or "", f"{FOLDER}/{_file_name(version)}", folder)
        table = pd.read_parquet(file)
    rows = table["split"].isin(SEEN)
    return frozenset(content.hex() for content in table["sha256"][rows])


def judged_by(tags: Mapping[str, str]) -> str | None:
    """The fingerprint of the data on which a version was judged; the oldest versions have it only in its own tag."""
    data = json.loads(tags.get("data") or "{}")
    fingerprint: str | None = data.get("fingerprint", tags.get("dataset.fingerprint"))
    return fingerprint


def load_judged(data: Mapping[str, Any], home: Path, progress: Progress | None = None) -> Manifest:
    """Read the data that a version was judged by; `data` is the value of its tag `data`.

    Raises UserError like `load_manifest`.
    """
    return load_manifest(
        data["source"],
        data["classes"],
        Split(**data["split"]),
        home,
        progress,
        labels=kind_of(data["classes"]) if data["classes"] else None,
        train_also=data.get("train_also"),
    )


def _read_again(tags: Mapping[str, str], home: Path) -> frozenset[str] | None:
    data = json.loads(tags.get("data") or "{}")
    if not data or "://" in data["source"]:  # nothing is downloaded for this
        return None
    try:
        manifest = load_judged(data, home)
    except UserError:
        return None
    return seen_contents(manifest) if manifest.fingerprint == judged_by(tags) else None


def _file_name(version: ModelVersion) -> str:
    return f"version-{version.version}.parquet"
