"""Promotion: a candidate becomes champion only when it counts better on photos that no trial has seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric

from data.decode import decode
from data.manifest import Manifest
from models.metrics import constant_guess, count_metrics, per_class
from models.network import Counter
from tracking.evaluation import Predictions, evaluate
from tracking.figures import write_evaluation
from tracking.registry import CHALLENGER, CHAMPION, champion_of, register

Scores = dict[str, float]


@dataclass(frozen=True)
class Decision:
    """What promotion found: scores on the test split (accuracy, rmse, mae), and whether the alias moved."""

    version: str
    promoted: bool
    reason: str
    candidate: Scores
    champion: Scores | None
    champion_version: str | None
    guess: Scores
    images: int


def promote(
    tracking_uri: str,
    run_id: str,
    model_name: str,
    counter: Counter,
    manifest: Manifest,
    metric: str,
    folder: Path,
    sweep_id: str,
) -> Decision:
    """Register `counter` as a new version and make it champion if it beats the present one.

    Candidate and champion are evaluated now, each in its own process, on the same test split; without a
    champion, the bar is the constant guess. `metric` is the sweep's objective, of which the counterpart on the
    test split decides (loss decides by accuracy). A tie leaves the champion where it is.
    """
    items = manifest.split("test")
    actual = np.array([item.label for item in items])
    fingerprint = {"dataset.fingerprint": manifest.fingerprint, "sweep": sweep_id}
    champion = champion_of(tracking_uri, model_name)
    paths = [item.path for item in items]
    champion_scores = None
    if champion is not None:
        other = evaluate(f"models:/{model_name}/{champion.version}", paths, tracking_uri)
        champion_scores = count_metrics(other.counts, actual)
    # Registered only now: a champion that cannot be asked must not leave a version that nobody judged.
    version = register(tracking_uri, run_id, model_name, counter, fingerprint).version
    said = evaluate(f"models:/{model_name}/{version}", paths, tracking_uri)
    candidate_scores = count_metrics(said.counts, actual)
    guess = constant_guess(np.array([item.label for item in manifest.split("train")]), actual)

    measure: Literal["accuracy", "rmse", "mae"] = "accuracy"
    for name in ("rmse", "mae"):
        if metric.endswith(name):
            measure = name
    bar, whose = (
        (guess, "the constant guess") if champion_scores is None else (champion_scores, "the champion")
    )
    sign = 1 if measure == "accuracy" else -1
    promoted = sign * (candidate_scores[measure] - bar[measure]) > 0
    verb = "beats" if promoted else "does not beat"
    reason = f"test {measure} {candidate_scores[measure]:.4f} {verb} {whose}'s {bar[measure]:.4f}"

    decision = Decision(
        version=version,
        promoted=promoted,
        reason=reason,
        candidate=candidate_scores,
        champion=champion_scores,
        champion_version=champion.version if champion is not None else None,
        guess=guess,
        images=len(items),
    )
    _log_evaluation(tracking_uri, run_id, said, manifest, folder)
    _record(tracking_uri, run_id, model_name, decision)
    return decision


def _record(tracking_uri: str, run_id: str, model_name: str, decision: Decision) -> None:
    """Store the decision and its figures on the version and its run, then move the alias."""
    client = MlflowClient(tracking_uri)
    tags = {f"test.{key}": f"{value:.4f}" for key, value in decision.candidate.items()}
    tags |= {"decision": "promoted" if decision.promoted else "refused", "decision.reason": decision.reason}
    for key, value in tags.items():
        client.set_model_version_tag(model_name, decision.version, key, value)
    for name, score in decision.candidate.items():
        client.log_metric(run_id, f"test_{name}", score)
    alias = CHAMPION if decision.promoted else CHALLENGER
    client.set_registered_model_alias(model_name, alias, decision.version)


def _log_evaluation(
    tracking_uri: str, run_id: str, said: Predictions, manifest: Manifest, folder: Path
) -> None:
    items = manifest.split("test")
    actual = np.array([item.label for item in items])
    title = f"test: accuracy {np.mean(said.counts == actual):.1%}"
    ids = [item.id for item in items]
    write_evaluation(
        folder, said.probabilities, actual, said.classes, ids, lambda row: decode(items[row].path, 224), title
    )
    client = MlflowClient(tracking_uri)
    client.log_artifacts(run_id, str(folder), "test")
    table = per_class(said.counts, actual, said.classes)
    now = int(client.get_run(run_id).info.end_time or 0)
    metrics = [Metric(f"test_accuracy_class_{c}", row["accuracy"], now, 0) for c, row in table.items()]
    client.log_batch(run_id, metrics)
