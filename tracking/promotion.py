"""Promotion: a candidate becomes champion only when it counts better on photos that no trial has seen."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric

from data.decode import decode
from data.errors import UserError
from data.manifest import Item, Manifest
from models.metrics import constant_guess, count_metrics, per_class
from models.network import Counter
from tracking.evaluation import Predictions, evaluate
from tracking.figures import write_evaluation
from tracking.gate import (
    Gate,
    Measure,
    Rule,
    intervals,
    judge_against,
    judge_classes,
    judge_limit,
    judge_served,
)
from tracking.registry import CHALLENGER, CHAMPION, champion_of, register, saved_model
from tracking.sender import user_name
from tracking.serving import predict, serve_model

Scores = dict[str, float]
SERVED = 32  # photos of the test split that the served model is asked, too
SINGLES = 11  # photos sent one by one, for the latency
ANSWER_SECONDS = 120.0
BEFORE, DECISION = "champion.before", "decision"  # tags of a version


@dataclass(frozen=True)
class Decision:
    """What promotion found: scores on the test split (accuracy, rmse, mae; 95 % intervals of the candidate's),
    each rule's outcome, and whether the alias moved. `version` is None for a dry run."""

    version: str | None
    promoted: bool
    reason: str
    rules: list[Rule]
    candidate: Scores
    intervals: dict[str, tuple[float, float]]
    champion: Scores | None
    champion_version: str | None
    guess: Scores
    images: int
    fingerprint: str
    at: str
    by: str


@dataclass(frozen=True)
class Candidate:
    """What wants to be champion: the counter of a trial's run, from a sweep over these data."""

    run_id: str
    counter: Counter
    manifest: Manifest
    metric: str  # the sweep's objective; its counterpart on the test split decides (loss decides by accuracy)
    sweep: str

    @property
    def measure(self) -> Measure:
        return (
            "rmse" if self.metric.endswith("rmse") else "mae" if self.metric.endswith("mae") else "accuracy"
        )


def promote(
    tracking_uri: str,
    model_name: str,
    candidate: Candidate,
    gate: Gate,
    folder: Path,
    approved: bool = False,
    dry_run: bool = False,
) -> Decision:
    """Register the candidate as a new version and make it champion if it passes every rule of the gate.

    Candidate and champion are evaluated now, each in its own process, on the same test split; without a champion,
    the bar is the constant guess. The candidate is served, too, and must answer as it was evaluated. One that is
    refused gets the alias `challenger`, and its reason. A `dry_run` registers nothing and moves nothing.
    """
    manifest = candidate.manifest
    items = manifest.split("test")
    actual = np.array([item.label for item in items])
    paths = [item.path for item in items]
    champion = champion_of(tracking_uri, model_name)
    before = None
    if champion is not None:
        before = evaluate(f"models:/{model_name}/{champion.version}", paths, tracking_uri)
    version = None
    with ExitStack() as stack:
        if dry_run:
            uri = str(stack.enter_context(saved_model(candidate.counter)))
        else:
            # Only now: a champion that cannot be asked must not leave a version that nobody judged.
            tags = {"dataset.fingerprint": manifest.fingerprint, "sweep": candidate.sweep}
            version = register(tracking_uri, candidate.run_id, model_name, candidate.counter, tags).version
            uri = f"models:/{model_name}/{version}"
        said = evaluate(uri, paths, tracking_uri)
        served, latency = _ask_served(uri, items, tracking_uri)
    train = np.array([item.label for item in manifest.split("train")])
    guess = constant_guess(train, actual)
    always = np.full_like(actual, int(guess["guess"]))

    # A champion is above the guess already; against the guess, only the objective counts.
    if before is None:
        rules = judge_against(
            said.counts, always, actual, candidate.measure, "the constant guess", strict=False
        )
    else:
        rules = judge_against(
            said.counts, before.counts, actual, candidate.measure, "the champion", strict=True
        )
    rules.append(judge_served(said.counts, said.probabilities, served, said.classes))
    if gate.class_floor is not None:
        rules.append(judge_classes(per_class(said.counts, actual, said.classes), gate.class_floor))
    if gate.max_latency_ms is not None:
        rules.append(judge_limit("latency", latency, gate.max_latency_ms, "ms for one photo"))
    if gate.max_megabytes is not None:
        rules.append(judge_limit("size", _megabytes(candidate.counter), gate.max_megabytes, "MB"))
    earned = all(rule.passed for rule in rules)
    if gate.approval:
        text = "given" if approved else "a person must say so: `binsweep promote SWEEP --approve`"
        rules.append(Rule("approval", approved, text))
    refused = [rule for rule in rules if not rule.passed]
    decision = Decision(
        version=version,
        promoted=not refused and not dry_run,
        reason="; ".join(rule.text for rule in refused) if refused else rules[0].text,
        rules=rules,
        candidate=count_metrics(said.counts, actual),
        intervals=intervals(said.counts, actual),
        champion=None if before is None else count_metrics(before.counts, actual),
        champion_version=None if champion is None else champion.version,
        guess=guess,
        images=len(items),
        fingerprint=manifest.fingerprint,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=user_name(),
    )
    if version is not None:
        _log_evaluation(tracking_uri, candidate.run_id, version, said, manifest, folder)
        state = "promoted" if decision.promoted else "waiting for approval" if earned else "refused"
        _record(tracking_uri, candidate.run_id, model_name, version, decision, state)
    return decision


def rollback(tracking_uri: str, model_name: str, reason: str) -> tuple[str, str]:
    """Give the alias `champion` back to the one before; returns the versions (left, returned to).

    Raises UserError where there is no champion, or none before it. Both versions keep a record of it.
    """
    client = MlflowClient(tracking_uri)
    champion = champion_of(tracking_uri, model_name)
    if champion is None:
        raise UserError(f"model {model_name!r} has no champion", "`binsweep promote SWEEP` makes one")
    before = champion.tags.get(BEFORE)
    if before is None:
        raise UserError(
            f"version {champion.version} of {model_name!r} followed no other champion",
            "there is nothing to return to",
        )
    how = f"{datetime.now(UTC).isoformat(timespec='seconds')} by {user_name()}: {reason}"
    client.set_registered_model_alias(model_name, CHAMPION, before)
    client.set_model_version_tag(model_name, champion.version, DECISION, "rolled back")
    client.set_model_version_tag(model_name, champion.version, "decision.reason", how)
    client.set_model_version_tag(
        model_name, before, "champion.again", f"after version {champion.version}, {how}"
    )
    return champion.version, before


def _ask_served(uri: str, items: Sequence[Item], tracking_uri: str) -> tuple[list[dict[str, object]], float]:
    """What a server of the model says about the first photos, and its median milliseconds for one."""
    with serve_model(uri, tracking_uri) as served:
        photos = [item.path.read_bytes() for item in items[:SERVED]]
        rows = predict(served.url, photos, ANSWER_SECONDS)
        seconds = []
        for photo in photos[:SINGLES]:
            began = time.perf_counter()
            predict(served.url, [photo], ANSWER_SECONDS)
            seconds.append(time.perf_counter() - began)
    return rows, 1000 * statistics.median(seconds)


def _megabytes(counter: Counter) -> float:
    sizes = [tensor.numel() * tensor.element_size() for tensor in counter.state_dict().values()]
    return float(sum(sizes)) / 1e6


def _record(
    tracking_uri: str, run_id: str, model_name: str, version: str, decision: Decision, state: str
) -> None:
    """Store the decision and its figures on the version and its run, then move the alias."""
    client = MlflowClient(tracking_uri)
    tags = {f"test.{key}": f"{value:.4f}" for key, value in decision.candidate.items()}
    tags |= {DECISION: state, "decision.reason": decision.reason}
    tags |= {"decision.at": decision.at, "decision.by": decision.by}
    tags |= {f"gate.{rule.name.replace(' ', '_')}": _outcome(rule) for rule in decision.rules}
    if decision.promoted and decision.champion_version is not None:
        tags[BEFORE] = decision.champion_version
    for key, value in tags.items():
        client.set_model_version_tag(model_name, version, key, value)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"decision-{version}.json"
        file.write_text(json.dumps(asdict(decision), indent=1))
        client.log_artifact(run_id, str(file), "gate")
    client.set_registered_model_alias(model_name, CHAMPION if decision.promoted else CHALLENGER, version)


def _outcome(rule: Rule) -> str:
    return f"{'passed' if rule.passed else 'failed'}: {rule.text}"


def _log_evaluation(
    tracking_uri: str, run_id: str, version: str, said: Predictions, manifest: Manifest, folder: Path
) -> None:
    """The test split's figures and scores, in the candidate's run; a step of a metric is a version."""
    items = manifest.split("test")
    actual = np.array([item.label for item in items])
    title = f"test: accuracy {np.mean(said.counts == actual):.1%}"
    ids = [item.id for item in items]
    write_evaluation(
        folder, said.probabilities, actual, said.classes, ids, lambda row: decode(items[row].path, 224), title
    )
    client = MlflowClient(tracking_uri)
    client.log_artifacts(run_id, str(folder), "test")
    scores = {f"test_{name}": score for name, score in count_metrics(said.counts, actual).items()}
    for count, row in per_class(said.counts, actual, said.classes).items():
        scores[f"test_accuracy_class_{count}"] = row["accuracy"]
    now = time.time_ns() // 1_000_000
    client.log_batch(run_id, [Metric(name, score, now, int(version)) for name, score in scores.items()])
