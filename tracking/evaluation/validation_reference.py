"""The reference of a version that was registered without one, made later from its data."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from binsweep.data.errors import UserError
from binsweep.data.parallel import Progress
from binsweep.tracking.evaluation.predictions import evaluate
from binsweep.tracking.monitoring.reference import (
    Reference,
    build_reference,
    reference_items,
    store_reference,
)
from binsweep.tracking.registry.photo_splits import judged_by, load_judged


def late_reference(
    tracking_uri: str, version: ModelVersion, home: Path, progress: Progress | None = None
) -> tuple[Reference | None, str]:
    """The figures of a version's validation photos, which are then stored with it; or None and the reason."""
    data = json.loads(version.tags.get("data") or "{}")
    if not data:
        return None, "the version does not record its data"
    try:
        manifest = load_judged(data, home, progress)
        if manifest.fingerprint != judged_by(version.tags):
            return None, f"{data['source']} has changed since the version was registered"
        validation = manifest.split("validation")
        items = [validation[row] for row in reference_items(validation)]
        uri = f"models:/{version.name}/{version.version}"
        predictions = evaluate(uri, [item.path for item in items], tracking_uri)
    except UserError as error:
        return None, error.message
    answered = predictions.answered
    kept = [item for item, there in zip(items, answered, strict=True) if there]
    predictions = predictions.take(answered)
    column = {label: place for place, label in enumerate(predictions.classes)}
    answers = [
        (label, float(row[column[label]]))
        for label, row in zip(predictions.labels.tolist(), predictions.probabilities, strict=True)
    ]
    reference = build_reference(kept, answers)
    store_reference(tracking_uri, version, reference)
    return reference, ""
