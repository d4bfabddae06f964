"""`binsweep serve --check`: compare a server's answers with the predictions by which the model was judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from binsweep.data.errors import UserError
from binsweep.search.terminal.progress import ProgressBar
from binsweep.search.workflows.evaluate import require_own_test_split
from binsweep.tracking.promotion.gate import RuleResult, judge_served
from binsweep.tracking.promotion.promote_code import ask_rows, judge_served_rows, served_rows
from binsweep.tracking.promotion.table import PredictionTable
from binsweep.tracking.registry.versions import is_own_code, stored_predictions
from binsweep.tracking.serving.model_server import (
    BATCH_PHOTOS,
    measure_latencies,
    predict,
    registered_version,
    serve_model,
)

N_LATENCY_PHOTOS = 100  # sent one by one, for the latency
MAX_ANSWER_SECONDS = 120.0
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class ServingCheck:
    """Whether the server agrees, and percentiles of the latency of one photo (or row) in milliseconds."""

    model: str
    rule: RuleResult
    milliseconds: dict[int, float]
    unit: str = "photo"


def check_serving(model_uri: str, home: Path, tracking_uri: str, port: int | None = None) -> ServingCheck:
    """Serve a registered model, send it its test split, compare with the stored predictions, and end the server.

    Raises UserError if the version, its predictions or its data are not available.
    """
    version = registered_version(model_uri, tracking_uri)
    name = f"{version.name} version {version.version}"
    if is_own_code(version):
        table = served_rows(tracking_uri, version)
        with serve_model(f"models:/{version.name}/{version.version}", tracking_uri, port) as served:
            return _check_own_code(name, served.url, table)
    items = require_own_test_split(version.tags, name, home)
    stored = stored_predictions(tracking_uri, version)
    # Test photos that are also in train or validation have no stored prediction.
    kept = set(stored["id"])
    items = tuple(item for item in items if item.id in kept)
    if list(stored["id"]) != [item.id for item in items]:
        raise UserError(f"the stored predictions of {name} are of other photos", "promote a sweep again")
    columns = [column for column in stored.columns if column not in ("id", "true", "predicted", "confidence")]
    named = isinstance(stored["predicted"].iloc[0], str)
    classes = tuple(column[1:] if named else int(column[1:]) for column in columns)
    rows = []
    with serve_model(f"models:/{version.name}/{version.version}", tracking_uri, port) as served:
        with ProgressBar("asking the server") as progress:
            for start in range(0, len(items), BATCH_PHOTOS):
                photos = [item.path.read_bytes() for item in items[start : start + BATCH_PHOTOS]]
                rows += predict(served.url, photos, MAX_ANSWER_SECONDS)
                progress(len(rows), len(items))
        singles = (item.path.read_bytes() for item in items[:N_LATENCY_PHOTOS])
        latencies = measure_latencies(lambda photo: predict(served.url, [photo], MAX_ANSWER_SECONDS), singles)
    rule = judge_served(stored["predicted"].to_numpy(), stored[columns].to_numpy(), rows, classes)
    return ServingCheck(name, rule, _milliseconds(latencies))


def _check_own_code(name: str, url: str, table: PredictionTable) -> ServingCheck:
    """Send a server of own training code the test rows that are stored with its version."""
    rule = judge_served_rows(url, table)
    latencies = measure_latencies(lambda row: ask_rows(url, [row]), table.inputs or ())
    return ServingCheck(name, rule, _milliseconds(latencies), "row")


def _milliseconds(latencies: Sequence[float]) -> dict[int, float]:
    return {p: 1000 * float(np.percentile(latencies, p)) for p in PERCENTILES}
