"""Evidence for a promotion: the predictions of candidate and champion, served answers and latency."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities.model_registry import ModelVersion
from numpy.typing import NDArray

from binsweep.data.errors import UserError
from binsweep.data.labels import Label
from binsweep.data.manifest import Item
from binsweep.models.labelling import labelling_of
from binsweep.models.metrics import Labels
from binsweep.tracking.evaluation.predictions import Predictions, evaluate, require_answers
from binsweep.tracking.evaluation.scorecard import Scorecard, score
from binsweep.tracking.promotion.candidate import Candidate
from binsweep.tracking.promotion.version_tags import DECISION, TEST_DECISIONS, TEST_SPLIT, WAITING
from binsweep.tracking.registry.photo_splits import digest_of, judged_by, seen_by
from binsweep.tracking.registry.versions import versions_of
from binsweep.tracking.serving.model_server import measure_latencies, predict, serve_model

N_SERVED_PHOTOS = 32  # test photos that are also sent to a server of the model
N_VALIDATION_PHOTOS = 64  # on which the registered model must predict the same as the trained one
N_LATENCY_PHOTOS = 11  # sent one by one
PREDICT_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class ChampionEvidence:
    """The champion's predictions for the candidate's test photos.

    `compared` [N] marks the photos on which the two are compared: those that the champion can read and was neither
    trained nor chosen on. `notes` name the photos that are left out, and what is not known.
    """

    version: str
    predictions: Predictions
    compared: NDArray[np.bool_]
    notes: list[str]


@dataclass(frozen=True)
class Evidence:
    """What a decision about a candidate is based on.

    `items` are the N test photos, none of which is in train or validation, with their true labels `actual`.
    `validation` [M, K] holds the registered model's probabilities for the first validation photos, `served` a
    server's answers for the first test photos, and `latency_ms` its median time for one. This is the test split's
    `decision_number`-th decision about the model. `champion` is None if the model has none.
    """

    items: Sequence[Item]
    actual: Labels
    guess: Label
    predictions: Predictions
    card: Scorecard
    validation: NDArray[np.float64]
    served: Sequence[dict[str, Any]]
    latency_ms: float
    decision_number: int = 1
    champion: ChampionEvidence | None = None


def collect_evidence(
    tracking_uri: str,
    model_name: str,
    candidate: Candidate,
    items: Sequence[Item],
    model_uri: str,
    champion: ChampionEvidence | None,
) -> Evidence:
    """Evaluate and serve the candidate, which is stored at `model_uri`."""
    validation = candidate.manifest.split("validation")[:N_VALIDATION_PHOTOS]
    photos = [*items, *validation]
    predictions = evaluate(model_uri, [item.path for item in photos], tracking_uri)
    require_answers(predictions, [item.id for item in photos], "the candidate")
    on_test, on_validation = predictions.take(slice(len(items))), predictions.take(slice(len(items), None))
    served, latency_ms = query_server(model_uri, items, tracking_uri)
    actual = np.array([item.label for item in items])
    return Evidence(
        items=items,
        actual=actual,
        guess=candidate.guess,
        predictions=on_test,
        card=score(on_test, actual, candidate.guess),
        validation=on_validation.probabilities,
        served=served,
        latency_ms=latency_ms,
        decision_number=count_decisions(tracking_uri, model_name, candidate) + 1,
        champion=champion,
    )


def collect_champion_evidence(
    tracking_uri: str,
    model_name: str,
    champion: ModelVersion | None,
    items: Sequence[Item],
    home: Path | None,
) -> ChampionEvidence | None:
    """Evaluate the champion on the candidate's test photos, and find those that are new to it."""
    if champion is None:
        return None
    uri = f"models:/{model_name}/{champion.version}"
    predictions = evaluate(uri, [item.path for item in items], tracking_uri)
    theirs, mine = (labelling_of(labels).words for labels in (predictions.classes, [items[0].label]))
    if theirs != mine:
        raise UserError(
            f"the champion of {model_name}, version {champion.version}, answers with {theirs.answers}, and the "
            f"candidate with {mine.answers}: they cannot be compared",
            "set register.model to another name",
        )
    name, photos = f"version {champion.version}", len(items)
    compared, notes = predictions.answered, []
    if not compared.all():
        reason = next(error for error in predictions.errors if error)
        notes.append(f"{name} cannot read {photos - compared.sum()} of the {photos} test photos ({reason})")
    seen = seen_by(tracking_uri, champion, home)
    if seen is None:
        notes.append(
            f"the training photos of {name} are not known: if some of these are among them, the comparison favours it"
        )
    elif n_seen := sum(item.sha256 in seen for item in items):
        compared &= np.array([item.sha256 not in seen for item in items])
        rest = "none is left"
        if compared.any():
            rest = f"the two are compared on the {compared.sum()} that are new to both"
        data = _describe_data(champion)
        notes.append(f"{name} was trained or chosen on {n_seen} of the {photos} test photos ({data}): {rest}")
    return ChampionEvidence(str(champion.version), predictions, compared, notes)


def _describe_data(version: ModelVersion) -> str:
    """A version's source and split, in a few words."""
    data = json.loads(version.tags.get("data") or "{}")
    split = data.get("split", {})
    return f"its data: {data.get('source', 'unknown')}, split by {split.get('by')}, seed {split.get('seed')}"


def count_decisions(tracking_uri: str, model_name: str, candidate: Candidate) -> int:
    """How many decisions about versions of this model the candidate's test split has made before.

    A version that waits for approval does not count when its own run comes again. Older versions do not name their
    test split: those that were judged by data with the same fingerprint count.
    """
    manifest = candidate.manifest
    digest = digest_of(manifest.split("test"))
    fingerprints = {manifest.fingerprint, manifest.full_fingerprint} - {""}
    count = highest = 0
    for version in versions_of(tracking_uri, model_name):
        tags = version.tags
        if tags.get(DECISION) == WAITING and version.run_id == candidate.run_id:
            continue
        if TEST_SPLIT not in tags:
            count += DECISION in tags and judged_by(tags) in fingerprints
        elif tags[TEST_SPLIT] == digest and TEST_DECISIONS in tags:
            count, highest = count + 1, max(highest, int(tags[TEST_DECISIONS]))
    return max(count, highest)  # versions may have been deleted


def query_server(
    model_uri: str, items: Sequence[Item], tracking_uri: str
) -> tuple[list[dict[str, Any]], float]:
    """Serve the model and send it the first photos; returns its answers and its median milliseconds for one photo."""
    with serve_model(model_uri, tracking_uri) as served:
        photos = [item.path.read_bytes() for item in items[:N_SERVED_PHOTOS]]
        answers = predict(served.url, photos, PREDICT_TIMEOUT_SECONDS)
        seconds = measure_latencies(
            lambda photo: predict(served.url, [photo], PREDICT_TIMEOUT_SECONDS), photos[:N_LATENCY_PHOTOS]
        )
    return answers, 1000 * statistics.median(seconds)
