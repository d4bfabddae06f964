"""The note that the monitor leaves in MLflow: tags of the version, and its page in the version's run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from binsweep.data.errors import UserError, first_line
from binsweep.tracking.monitoring.reference import FOLDER
from binsweep.tracking.monitoring.summary import Summary
from binsweep.tracking.registry.versions import versions_of

SHADOW = "shadow"  # a tag of the challenger's version
VERDICT, PHOTOS, ACCURACY, UNTIL = "monitor", "monitor.photos", "monitor.accuracy", "monitor.until"


def log_note(
    tracking_uri: str, version: ModelVersion, page: Path, verdict: str, summary: Summary, notes: list[str]
) -> None:
    """Set the version's tags and log the page to its run; if MLflow refuses, that becomes one of the `notes`."""
    tags = {VERDICT: verdict, PHOTOS: str(summary.answered), UNTIL: f"{summary.ended:.0f}"}
    if summary.live is not None:
        low, high = summary.live.intervals["accuracy"]
        accuracy = summary.live.scores["accuracy"]
        tags[ACCURACY] = f"{accuracy:.3f} ({low:.3f} to {high:.3f}) on {summary.live.photos} photos"
    client = MlflowClient(tracking_uri)
    try:
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.version, key, value[:5000])
        if version.run_id:
            client.log_artifact(version.run_id, str(page), f"{FOLDER}/version-{version.version}")
    except MlflowException as error:
        notes.append(f"MLflow did not take the note: {first_line(error)[:200]}")


def shadow_notes(tracking_uri: str, name: str, run_id: str) -> list[str]:
    """What versions of a run did in the shadow of a served version, for the record of another promotion of it."""
    return [
        f"as version {version.version}, {version.tags[SHADOW]}"
        for version in versions_of(tracking_uri, name)
        if version.run_id == run_id and SHADOW in version.tags
    ]


def log_shadow(tracking_uri: str, name: str, version: str, line: str, report: Mapping[str, Any]) -> None:
    """Set the tag of a version that was in the shadow, and log the report to its run.

    Raises UserError if MLflow refuses.
    """
    client = MlflowClient(tracking_uri)
    try:
        client.set_model_version_tag(name, version, SHADOW, line[:5000])
        if run_id := client.get_model_version(name, version).run_id:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"shadow-{version}.json"
                file.write_text(json.dumps(report, indent=1))
                client.log_artifact(run_id, str(file), f"{FOLDER}/version-{version}")
    except MlflowException as error:
        raise UserError(f"MLflow did not take the report: {first_line(error)[:200]}", "try again") from error
