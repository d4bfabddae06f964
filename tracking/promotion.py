"""Promotion: a candidate becomes champion only when it counts better on photos that no trial has seen."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric
from numpy.typing import NDArray

from data.decode import decode
from data.errors import UserError
from data.manifest import Item, Manifest
from models.metrics import all_scores, commonest
from models.predictor import Predictor
from tracking.evaluation import evaluate
from tracking.gate import (
    Gate,
    Measure,
    Rule,
    judge_against,
    judge_classes,
    judge_limit,
    judge_packed,
    judge_served,
)
from tracking.model_card import write_model_card
from tracking.registry import CHALLENGER, CHAMPION, champion_of, describe, register, saved_model, test_folder
from tracking.scorecard import Scorecard, Scores, score, write_scorecard
from tracking.sender import user_name
from tracking.serving import predict, serve_model

SERVED = 32  # photos of the test split that the served model is asked, too
PACKED = (
    64  # photos of the validation split about which the registered model must say what the trained one said
)
SINGLES = 11  # photos sent one by one, for the latency
ANSWER_SECONDS = 120.0
BEFORE, DECISION = "champion.before", "decision"  # tags of a version


@dataclass(frozen=True)
class Decision:
    """What promotion found: scores on the test split (accuracy, rmse, mae, within_one, macro_f1; 95 % intervals of
    the candidate's), each rule's outcome, and whether the alias moved. `notes` say how the candidate was chosen.
    `version` is None for a dry run."""

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
    notes: list[str]
    at: str
    by: str


@dataclass(frozen=True)
class Candidate:
    """What wants to be champion: the model of a trial's run, from a sweep over these data.

    `validation` is what the trained model said about the validation split, [N, K] in the manifest's order; `origin`
    says how the sweep found it, in words for people, and `data` how its photos were chosen (for evaluations to come).
    """

    run_id: str
    predictor: Predictor
    manifest: Manifest
    metric: str  # the sweep's objective; its counterpart on the test split decides (loss decides by accuracy)
    sweep: str
    validation: NDArray[np.float32]
    notes: list[str] = field(default_factory=list)
    origin: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measure(self) -> Measure:
        return measure_of(self.metric)


def measure_of(metric: str) -> Measure:
    """What decides where a sweep's objective is `metric`; the loss stands for accuracy."""
    return "rmse" if metric.endswith("rmse") else "mae" if metric.endswith("mae") else "accuracy"


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
    guess = commonest(np.array([item.label for item in manifest.split("train")]))
    version = None
    with ExitStack() as stack:
        if dry_run:
            uri = str(stack.enter_context(saved_model(candidate.predictor)))
        else:
            # Only now: a champion that cannot be asked must not leave a version that nobody judged.
            known = {"sweep": candidate.sweep, "data.guess": str(guess)}
            known |= {"dataset.fingerprint": manifest.fingerprint, "data": json.dumps(dict(candidate.data))}
            version = register(tracking_uri, candidate.run_id, model_name, candidate.predictor, known).version
            uri = f"models:/{model_name}/{version}"
        packed = [item.path for item in manifest.split("validation")[:PACKED]]
        both = evaluate(uri, [*paths, *packed], tracking_uri)
        said, again = both.part(0, len(paths)), both.part(len(paths), len(both.counts))
        served, latency = _ask_served(uri, items, tracking_uri)
    card = score(said, actual, guess)

    # A champion is above the guess already; against the guess, only the objective counts.
    if before is None:
        always = np.full_like(actual, guess)
        rules = judge_against(
            said.counts, always, actual, candidate.measure, "the constant guess", strict=False
        )
    else:
        rules = judge_against(
            said.counts, before.counts, actual, candidate.measure, "the champion", strict=True
        )
    rules.append(judge_packed(again.probabilities, candidate.validation[:PACKED]))
    rules.append(judge_served(said.counts, said.probabilities, served, said.classes))
    if gate.class_floor is not None:
        rules.append(judge_classes(card.classes, gate.class_floor))
    if gate.max_latency_ms is not None:
        rules.append(judge_limit("latency", latency, gate.max_latency_ms, "ms for one photo"))
    if gate.max_megabytes is not None:
        rules.append(judge_limit("size", _megabytes(candidate.predictor), gate.max_megabytes, "MB"))
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
        candidate=card.scores,
        intervals=card.intervals,
        champion=None if before is None else all_scores(before.counts, actual),
        champion_version=None if champion is None else champion.version,
        guess={"guess": float(guess), **card.guess_scores},
        images=len(items),
        fingerprint=manifest.fingerprint,
        notes=candidate.notes,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=user_name(),
    )
    if version is not None:
        facts = {"model": f"{model_name} version {version}", "sweep": candidate.sweep}
        facts |= {"data": f"{manifest.source}, test split, fingerprint {manifest.fingerprint[:16]}"}
        notes = [*candidate.notes, *(f"{rule.name}: {_outcome(rule)}" for rule in rules)]
        ids = [item.id for item in items]
        write_scorecard(
            folder, card, said, actual, ids, lambda row: decode(items[row].path, 224), facts, notes
        )
        verdict = f"{'promoted' if decision.promoted else 'not promoted'}: {decision.reason}"
        text = write_model_card(
            model_name,
            version,
            candidate.predictor,
            manifest,
            card,
            verdict,
            candidate.origin,
            candidate.notes,
        )
        (folder / "model_card.md").write_text(text, encoding="utf-8")
        log_scorecard(tracking_uri, candidate.run_id, version, card, folder, "test", test_folder(version))
        state = "promoted" if decision.promoted else "waiting for approval" if earned else "refused"
        describe(tracking_uri, model_name, version, text)
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


def _megabytes(predictor: Predictor) -> float:
    sizes = [tensor.numel() * tensor.element_size() for tensor in predictor.state_dict().values()]
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


def log_scorecard(
    tracking_uri: str, run_id: str, version: str, card: Scorecard, folder: Path, name: str, place: str
) -> None:
    """An evaluation's files (at `place`) and scores (from `name`_accuracy on), in the model's run; a step of a metric
    is a version."""
    client = MlflowClient(tracking_uri)
    client.log_artifacts(run_id, str(folder), place)
    scores = {f"{name}_{key}": value for key, value in card.scores.items()}
    scores[f"{name}_calibration_error"] = card.calibration_error
    for count, row in card.classes.items():
        scores[f"{name}_accuracy_class_{count}"] = row["accuracy"]
    now = time.time_ns() // 1_000_000
    client.log_batch(run_id, [Metric(key, value, now, int(version)) for key, value in scores.items()])
