"""The figures of a version's validation photos, which what it sees later is compared with; kept in its run.

Validation and not training photos: the network is as sure of new photos of the same kind as of these, and surer of
those that it was trained on.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from binsweep.data.decode import ImageError, read
from binsweep.data.labels import Label
from binsweep.data.resource_limits import cores
from binsweep.tracking.monitoring.figures import ANSWER, CONFIDENCE, FIGURES, PhotoStats, measure_photo
from binsweep.tracking.monitoring.store import Counts

if TYPE_CHECKING:
    from binsweep.data.manifest import Item  # its packages are not in the model server's container

FOLDER = "watch"  # in the model's run; one file for each version, because a run may become several versions
MAX_REFERENCE_PHOTOS = 2000  # more would make the comparison little sharper, and each is read and decoded


@dataclass(frozen=True)
class Reference:
    """How often each bin of each figure comes among `photos` validation photos; answers by the label as JSON."""

    photos: int
    counts: Counts


def reference_items(validation: Sequence[Item]) -> list[int]:
    """The rows of the validation photos that a reference is made of: all, or a random choice by their contents."""
    order = sorted(range(len(validation)), key=lambda row: validation[row].sha256)
    return sorted(order[:MAX_REFERENCE_PHOTOS])


def build_reference(items: Sequence[Item], answers: Sequence[tuple[Label, float]]) -> Reference:
    """Measure photos that the model has answered with (label, confidence). Photos that cannot be read any more are
    left out."""
    with ThreadPoolExecutor(cores()) as pool:
        measured = list(pool.map(_measure, (item.path for item in items)))
    counts: Counts = defaultdict(lambda: defaultdict(int))
    photos = 0
    for found, (label, confidence) in zip(measured, answers, strict=True):
        if found is None:
            continue
        photos += 1
        size, stats = found
        for name, value in {**asdict(stats), "bytes": size, CONFIDENCE: confidence}.items():
            counts[name][str(FIGURES[name].bin_of(value))] += 1
        counts[ANSWER][json.dumps(label)] += 1
    return Reference(photos, {figure: dict(bins) for figure, bins in counts.items()})


def _measure(path: Path) -> tuple[int, PhotoStats] | None:
    try:
        content = read(path)
        return len(content), measure_photo(content)
    except ImageError:
        return None


def store_reference(tracking_uri: str, version: ModelVersion, reference: Reference) -> None:
    """Store the reference of a version in its run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / _file_name(version)
        file.write_text(json.dumps(asdict(reference)))
        MlflowClient(tracking_uri).log_artifact(version.run_id or "", str(file), FOLDER)


def load_reference(tracking_uri: str, version: ModelVersion) -> Reference | None:
    """The reference of a version; None if it has none, as those that were registered before there were any.

    Raises MlflowException or OSError if MLflow does not answer.
    """
    client = MlflowClient(tracking_uri)
    try:
        stored = {Path(file.path).name for file in client.list_artifacts(version.run_id or "", FOLDER)}
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None  # the version has no run, or it was deleted
    if _file_name(version) not in stored:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = client.download_artifacts(version.run_id or "", f"{FOLDER}/{_file_name(version)}", folder)
        raw: dict[str, Any] = json.loads(Path(file).read_text())
    return Reference(raw["photos"], raw["counts"])


def _file_name(version: ModelVersion) -> str:
    return f"version-{version.version}.json"
