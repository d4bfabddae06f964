"""Publishing a decision: the scorecard's files, the model card, and the tags of the version."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from binsweep.data.decode import decode
from binsweep.tracking.evaluation.model_card import ModelCard
from binsweep.tracking.evaluation.report import log_scorecard, write_scorecard
from binsweep.tracking.promotion.candidate import Candidate
from binsweep.tracking.promotion.evidence import Evidence
from binsweep.tracking.promotion.gate import RuleResult
from binsweep.tracking.promotion.judge import PromotionDecision
from binsweep.tracking.promotion.lock import promotion_lock
from binsweep.tracking.promotion.version_tags import (
    CHAMPION_BEFORE,
    DECISION,
    NOT_JUDGED,
    REASON,
    TEST_DECISIONS,
    TEST_SPLIT,
    WAITING,
    timestamp,
)
from binsweep.tracking.registry.photo_splits import digest_of
from binsweep.tracking.registry.versions import CHALLENGER, CHAMPION, champion_of, describe, test_folder


def initial_tags(candidate: Candidate) -> dict[str, str]:
    """The tags of a version before it is judged."""
    manifest = candidate.manifest
    return {
        "sweep": candidate.sweep,
        "data.guess": str(candidate.guess),
        "dataset.fingerprint": manifest.fingerprint,
        "data": json.dumps(dict(candidate.data)),
        TEST_SPLIT: digest_of(manifest.split("test")),
        # These two stay if this process is killed.
        DECISION: NOT_JUDGED,
        REASON: f"its promotion began {timestamp()} and has not ended",
    }


def publish(
    tracking_uri: str,
    model_name: str,
    candidate: Candidate,
    evidence: Evidence,
    decision: PromotionDecision,
    folder: Path,
) -> None:
    """Write the scorecard's files and the model card into `folder` and store them with the version and its run."""
    version = decision.version
    assert version is not None
    _write_scorecard(model_name, candidate, evidence, decision, folder)
    card = ModelCard(
        model=model_name,
        version=version,
        predictor=candidate.predictor,
        manifest=candidate.manifest,
        scorecard=evidence.card,
        verdict=f"{'promoted' if decision.promoted else 'not promoted'}: {decision.reason}",
        warning=decision.warning,
        origin=candidate.origin,
        notes=decision.notes,
    ).to_markdown()
    (folder / "model_card.md").write_text(card, encoding="utf-8")
    log_scorecard(
        tracking_uri, candidate.run_id, version, evidence.card, folder, "test", test_folder(version)
    )
    describe(tracking_uri, model_name, version, card)
    store_decision(tracking_uri, candidate.run_id, model_name, version, decision)


def _write_scorecard(
    model_name: str, candidate: Candidate, evidence: Evidence, decision: PromotionDecision, folder: Path
) -> None:
    manifest, items = candidate.manifest, evidence.items
    facts = {
        "model": f"{model_name} version {decision.version}",
        "sweep": candidate.sweep,
        "data": f"{manifest.source}, test split, fingerprint {manifest.fingerprint[:16]}",
    }
    notes = [f"It is {decision.warning}."] if decision.warning else []
    notes += [*decision.notes, *(f"{rule.name}: {_outcome(rule)}" for rule in decision.rules)]
    write_scorecard(
        folder,
        evidence.card,
        evidence.predictions,
        evidence.actual,
        [item.id for item in items],
        lambda row: decode(items[row].path, 224),
        facts,
        notes,
    )


def store_decision(
    tracking_uri: str, run_id: str, model_name: str, version: str, decision: PromotionDecision
) -> None:
    """Set the version's tags and log the decision's JSON file to its run, replacing those of an earlier decision."""
    client = MlflowClient(tracking_uri)
    waits = [rule.name for rule in decision.rules if not rule.passed] == ["approval"]
    state = "promoted" if decision.promoted else WAITING if waits else "refused"
    tags = {f"test.{key}": f"{value:.4f}" for key, value in decision.candidate.items()}
    tags |= {DECISION: state, REASON: decision.reason, TEST_DECISIONS: str(decision.decided)}
    tags |= {"decision.at": decision.at, "decision.by": decision.by}
    if decision.warning:
        tags["decision.warning"] = decision.warning
    tags |= {f"gate.{rule.name.replace(' ', '_')}": _outcome(rule) for rule in decision.rules}
    if decision.promoted and decision.champion_version is not None:
        tags[CHAMPION_BEFORE] = decision.champion_version
    for key in client.get_model_version(model_name, version).tags:
        if key not in tags and (key == CHAMPION_BEFORE or key.startswith("gate.")):
            client.delete_model_version_tag(model_name, version, key)
    for key, value in tags.items():
        client.set_model_version_tag(model_name, version, key, value)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"decision-{version}.json"
        file.write_text(json.dumps(asdict(decision), indent=1))
        client.log_artifact(run_id, str(file), "gate")


def move_alias(
    tracking_uri: str,
    model_name: str,
    decision: PromotionDecision,
    home: Path | None,
) -> bool:
    """Give a judged version its alias: `champion`, or `challenger` if it was refused.

    False, and nothing is moved, if the champion is no longer the one that it was judged against: another promotion or a
    rollback may have moved the alias during these minutes.
    """
    assert decision.version is not None
    with promotion_lock(home):
        current = champion_of(tracking_uri, model_name)
        if (None if current is None else str(current.version)) != decision.champion_version:
            return False
        alias = CHAMPION if decision.promoted else CHALLENGER
        MlflowClient(tracking_uri).set_registered_model_alias(model_name, alias, decision.version)
    return True


def record_not_judged(tracking_uri: str, model_name: str, version: str, error: BaseException) -> None:
    """Record on a version why it was not judged; without a connection its initial tags stay."""
    reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
    with contextlib.suppress(MlflowException):
        client = MlflowClient(tracking_uri)
        client.set_model_version_tag(model_name, version, DECISION, NOT_JUDGED)
        client.set_model_version_tag(model_name, version, REASON, f"{timestamp()}: {reason}"[:5000])


def _outcome(rule: RuleResult) -> str:
    return f"{'passed' if rule.passed else 'failed'}: {rule.text}"
