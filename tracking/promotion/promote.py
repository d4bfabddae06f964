"""Promotion: a candidate becomes champion only when it counts better on photos that no trial has seen."""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from binsweep.data.decode import decode
from binsweep.data.errors import UserError
from binsweep.data.locks import locked
from binsweep.data.manifest import Item, Manifest
from binsweep.models.metrics import Counts, all_scores, commonest
from binsweep.models.predictor import Predictor
from binsweep.tracking.evaluation.model_card import write_model_card
from binsweep.tracking.evaluation.predictions import Predictions, evaluate, require_answers
from binsweep.tracking.evaluation.report import write_scorecard
from binsweep.tracking.evaluation.scorecard import Scorecard, Scores, score
from binsweep.tracking.promotion.gate import (
    ALPHA,
    FEWEST,
    Measure,
    PromotionCriteria,
    RuleResult,
    judge_against,
    judge_classes,
    judge_guess,
    judge_limit,
    judge_no_worse,
    judge_packed,
    judge_served,
    level,
    no_better_than_guess,
)
from binsweep.tracking.registry.photo_splits import (
    digest_of,
    judged_by,
    new_test_photos,
    seen_by,
    store_photos,
)
from binsweep.tracking.registry.versions import (
    CHALLENGER,
    CHAMPION,
    champion_of,
    describe,
    register,
    saved_model,
    test_folder,
    versions_of,
)
from binsweep.tracking.runlog.sender import user_name
from binsweep.tracking.serving.model_server import predict, serve_model

SERVED = 32  # photos of the test split that the served model is asked, too
PACKED = (
    64  # photos of the validation split about which the registered model must say what the trained one said
)
SINGLES = 11  # photos sent one by one, for the latency
ANSWER_SECONDS = 120.0
TURN_SECONDS = 60.0  # for another promotion of this home to move its alias
# Tags of a version: the champion that it followed; what was decided, and why; the test split that decided, and how
# many decisions of this model it had made by then.
BEFORE, DECISION, REASON = "champion.before", "decision", "decision.reason"
TEST, DECISIONS = "test.split", "test.decisions"
WAITING = "waiting for approval"


@dataclass(frozen=True)
class PromotionDecision:
    """What promotion found: scores on the test split (accuracy, rmse, mae, within_one, macro_f1; 95 % intervals of
    the candidate's), each rule's outcome, and whether the alias moved. `notes` say how the candidate was chosen and
    compared. `version` is None for a dry run.

    `champion` are the champion's scores on the `compared` photos that are new to both; None without a champion, and
    where no photo is. `decided` counts the decisions of the test split, this one included. `warning` says in which
    scores the candidate is no better than the guess; "" for none.
    """

    version: str | None
    promoted: bool
    reason: str
    rules: list[RuleResult]
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
    compared: int = 0
    decided: int = 1
    warning: str = ""


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


@dataclass(frozen=True)
class _Asked:
    """What was found out about the candidate, whoever is champion: its answers about the test photos, `latency` in
    milliseconds, and the outcome of the rules that need no champion. `decided` as in Decision."""

    items: Sequence[Item]
    actual: Counts
    guess: int
    said: Predictions
    card: Scorecard
    rules: list[RuleResult]
    decided: int


@dataclass(frozen=True)
class _Champion:
    """A champion's answers about the same photos; `shared` [N] says which of them the two are compared on: those that
    it has not seen and can read. `notes` say which are left out, and what is not known."""

    version: str
    said: Predictions
    shared: NDArray[np.bool_]
    notes: list[str]


def promote(
    tracking_uri: str,
    model_name: str,
    candidate: Candidate,
    gate: PromotionCriteria,
    folder: Path,
    approved: bool = False,
    dry_run: bool = False,
    home: Path | None = None,
) -> PromotionDecision:
    """Register the candidate as a new version and make it champion if it passes every rule of the gate.

    Candidate and champion are evaluated now, each in its own process, on the test photos that are new to both;
    without a champion, the bar is the constant guess. The candidate is served, too, and must answer as it was
    evaluated. If the alias has moved in the meantime, the candidate is judged against the new champion. One that is
    refused gets the alias `challenger`, and its reason. A `dry_run` registers nothing and moves nothing.

    In `home` the data of an older champion are looked for, which did not keep what it learned from.
    """
    items = new_test_photos(candidate.manifest)
    champion = _face(tracking_uri, model_name, champion_of(tracking_uri, model_name), items, home)
    if dry_run:
        with saved_model(candidate.predictor) as place:
            asked = _ask(tracking_uri, model_name, candidate, gate, items, str(place))
        return _decide(candidate, gate, asked, champion, approved, None)
    # Only now: a champion that cannot be asked must not leave a version that nobody judged.
    known = _known(candidate)
    registered = register(tracking_uri, candidate.run_id, model_name, candidate.predictor, known)
    version = str(registered.version)
    try:
        store_photos(tracking_uri, registered, candidate.manifest)
        uri = f"models:/{model_name}/{version}"
        asked = _ask(tracking_uri, model_name, candidate, gate, items, uri)
        while True:
            decision = _decide(candidate, gate, asked, champion, approved, version)
            _write(tracking_uri, model_name, candidate, asked, decision, folder)
            _note(tracking_uri, candidate.run_id, model_name, version, decision)
            # Somebody else's promotion, or a rollback, may have ended in these minutes. MLflow has no way to move an
            # alias only if nobody else did; who shares a home takes turns, others have the time of one request.
            with contextlib.ExitStack() as turn:
                if home is not None:
                    turn.enter_context(locked(home / "promotion.lock", TURN_SECONDS))
                now = champion_of(tracking_uri, model_name)
                if (now and str(now.version)) == (champion and champion.version):
                    alias = CHAMPION if decision.promoted else CHALLENGER
                    MlflowClient(tracking_uri).set_registered_model_alias(model_name, alias, version)
                    return decision
            champion = _face(tracking_uri, model_name, now, items, home)
    except BaseException as error:
        _give_up(tracking_uri, model_name, version, error)
        raise


def _known(candidate: Candidate) -> dict[str, str]:
    """What is known of a version before it was judged."""
    manifest = candidate.manifest
    return {
        "sweep": candidate.sweep,
        "data.guess": str(_guess(manifest)),
        "dataset.fingerprint": manifest.fingerprint,
        "data": json.dumps(dict(candidate.data)),
        TEST: digest_of(manifest.split("test")),
        # What stays if this process is killed.
        DECISION: "not judged",
        REASON: f"its promotion began {_now()} and has not ended",
    }


def _guess(manifest: Manifest) -> int:
    return commonest(np.array([item.label for item in manifest.split("train")]))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _face(
    tracking_uri: str,
    model_name: str,
    champion: ModelVersion | None,
    items: Sequence[Item],
    home: Path | None,
) -> _Champion | None:
    """Ask the champion about the candidate's test photos; which of them may be compared."""
    if champion is None:
        return None
    said = evaluate(f"models:/{model_name}/{champion.version}", [item.path for item in items], tracking_uri)
    name, many = f"version {champion.version}", len(items)
    shared, notes = said.answered, []
    if not shared.all():
        why = next(error for error in said.errors if error)
        notes.append(f"{name} cannot read {many - shared.sum()} of the {many} test photos ({why})")
    seen = seen_by(tracking_uri, champion, home)
    if seen is None:
        notes.append(
            f"it is not known which photos {name} learned from: if it saw some of these, the comparison favours it"
        )
    elif old := sum(item.sha256 in seen for item in items):
        shared &= np.array([item.sha256 not in seen for item in items])
        rest = (
            f"the two are compared on the {shared.sum()} that are new to both"
            if shared.any()
            else "none is left"
        )
        notes.append(
            f"{name} was trained or chosen on {old} of the {many} test photos ({_division(champion)}): {rest}"
        )
    return _Champion(str(champion.version), said, shared, notes)


def _division(version: ModelVersion) -> str:
    """How a version's data were divided, in a few words."""
    data = json.loads(version.tags.get("data") or "{}")
    split = data.get("split", {})
    return f"its data: {data.get('source', 'unknown')}, split by {split.get('by')}, seed {split.get('seed')}"


def _ask(
    tracking_uri: str,
    model_name: str,
    candidate: Candidate,
    gate: PromotionCriteria,
    items: Sequence[Item],
    uri: str,
) -> _Asked:
    """Evaluate and serve the candidate that lies at `uri`."""
    manifest = candidate.manifest
    packed = manifest.split("validation")[:PACKED]
    wanted = [*items, *packed]
    both = evaluate(uri, [item.path for item in wanted], tracking_uri)
    require_answers(both, [item.id for item in wanted], "the candidate")
    said, again = both.take(slice(len(items))), both.take(slice(len(items), None))
    served, latency = _ask_served(uri, items, tracking_uri)
    actual, guess = np.array([item.label for item in items]), _guess(manifest)
    card = score(said, actual, guess)
    rules = [judge_packed(again.probabilities, candidate.validation[:PACKED])]
    rules.append(judge_served(said.counts, said.probabilities, served, said.classes))
    if gate.min_class_accuracy is not None:
        rules.append(judge_classes(card.classes, gate.min_class_accuracy, said.classes))
    if gate.max_latency_ms is not None:
        rules.append(judge_limit("latency", latency, gate.max_latency_ms, "ms for one photo"))
    if gate.max_megabytes is not None:
        rules.append(judge_limit("size", _megabytes(candidate.predictor), gate.max_megabytes, "MB"))
    decided = _decisions(tracking_uri, model_name, candidate) + 1
    return _Asked(items, actual, guess, said, card, rules, decided)


def _decisions(tracking_uri: str, model_name: str, candidate: Candidate) -> int:
    """How often the candidate's test split has decided about a version of this model before.

    A version that waited for approval is decided about when it comes again with it. Older versions do not name
    their test split: those that were judged by the very same data count.
    """
    manifest = candidate.manifest
    digest = digest_of(manifest.split("test"))
    fingerprints = {manifest.fingerprint, manifest.whole} - {""}
    count = most = 0
    for version in versions_of(tracking_uri, model_name):
        tags = version.tags
        if tags.get(DECISION) == WAITING and version.run_id == candidate.run_id:
            continue
        if TEST not in tags:
            count += DECISION in tags and judged_by(tags) in fingerprints
        elif tags[TEST] == digest and DECISIONS in tags:
            count, most = count + 1, max(most, int(tags[DECISIONS]))
    return max(count, most)  # versions may have been deleted


def _decide(
    candidate: Candidate,
    gate: PromotionCriteria,
    asked: _Asked,
    champion: _Champion | None,
    approved: bool,
    version: str | None,
) -> PromotionDecision:
    """Judge what was found out; `version` is None for a dry run."""
    alpha = level(gate.correction, asked.decided)
    said, card, measure = asked.said, asked.card, candidate.measure
    notes = [*candidate.notes, _counted(asked.decided, gate, alpha)]
    if (left := len(candidate.manifest.split("test")) - len(asked.items)) > 0:
        notes.append(f"{left} more test photos are in train or validation too, byte for byte: left out")
    before = None
    if champion is None:
        # Only the objective decides; what else is no better than the guess is said.
        always = np.full_like(asked.actual, asked.guess)
        rules = judge_against(
            said.counts, always, asked.actual, measure, "the constant guess", strict=False, alpha=alpha
        )
    else:
        notes += champion.notes
        if champion.shared.any():
            before = all_scores(champion.said.counts[champion.shared], asked.actual[champion.shared])
        rules = _judge_champion(asked, champion, measure, alpha)
    wanted = [one for one in gate.beats_guess if champion is not None or one != measure]
    rules += judge_guess(said.counts, asked.guess, asked.actual, wanted)
    rules += asked.rules
    earned = all(rule.passed for rule in rules)
    rules += _approval(gate, approved, said.classes, champion)
    refused = [rule for rule in rules if not rule.passed]
    warning = no_better_than_guess(said.counts, asked.guess, asked.actual)
    reason = "; ".join(rule.text for rule in refused) if refused else rules[0].text
    return PromotionDecision(
        version=version,
        promoted=not refused and version is not None,
        reason=f"{reason}; but it is {warning}" if warning and earned else reason,
        rules=rules,
        candidate=card.scores,
        intervals=card.intervals,
        champion=before,
        champion_version=None if champion is None else champion.version,
        guess={"guess": float(asked.guess), **card.guess_scores},
        images=len(asked.items),
        fingerprint=candidate.manifest.fingerprint,
        notes=notes,
        at=_now(),
        by=user_name(),
        compared=0 if champion is None else int(champion.shared.sum()),
        decided=asked.decided,
        warning=warning,
    )


def _judge_champion(asked: _Asked, champion: _Champion, measure: Measure, alpha: float) -> list[RuleResult]:
    """Whether the candidate is better than the champion on the photos that are new to both."""
    many, all_photos = int(champion.shared.sum()), len(asked.items)
    if many < min(FEWEST, all_photos):
        text = f"cannot be compared with the champion: {many} of {all_photos} test photos are new to both"
        text += f", and at least {min(FEWEST, all_photos)} are needed; divide the data as the champion's were"
        return [RuleResult("better than the champion", False, f"{text}, or choose another register.model")]
    said, other = asked.said.take(champion.shared), champion.said.take(champion.shared)
    actual = asked.actual[champion.shared]
    rules = judge_against(
        said.counts, other.counts, actual, measure, "the champion", strict=True, alpha=alpha
    )
    known = np.isin(actual, champion.said.classes)
    gained = sorted(set(said.classes) - set(champion.said.classes))
    if gained and known.any():
        # On what it cannot say the champion is always wrong: that must not hide that the candidate unlearned the rest.
        rule = judge_no_worse(
            said.counts[known],
            other.counts[known],
            actual[known],
            measure,
            "the champion",
            "not worse on the counts that both know",
        )
        text = f"{rule.text} ({known.sum()} photos; the champion can never say {_list(gained)})"
        rules.append(RuleResult(rule.name, rule.passed, text))
    return rules


def _approval(
    gate: PromotionCriteria, approved: bool, classes: Sequence[int], champion: _Champion | None
) -> list[RuleResult]:
    """A person's word, where the gate asks for it, or where the candidate knows fewer counts than the champion."""
    reasons = ["register.gate.approval asks for it"] if gate.approval else []
    lost = sorted(set(champion.said.classes) - set(classes)) if champion is not None else []
    if lost:
        reasons.append(f"it can never say {_list(lost)}, which the champion can")
    if not reasons:
        return []
    text = f"{'given' if approved else 'a person must say so: `binsweep promote SWEEP --approve`'}"
    if lost and not approved:
        text += ", or choose another register.model"
    return [RuleResult("approval", approved, f"{text} ({'; '.join(reasons)})")]


def _list(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def _counted(decided: int, gate: PromotionCriteria, alpha: float) -> str:
    """How often the test split has decided, and what that means for this decision."""
    text = f"decision {decided} by this test split"
    if gate.correction != "none":
        return f"{text}: p below {alpha:.2g} is wanted (register.gate.correction: {gate.correction})"
    if decided > 1:
        chance = 1 - (1 - ALPHA) ** decided
        text += (
            f": of {decided} candidates that are no better, one or more pass with a chance of {chance:.0%}"
        )
        text += "; register.gate.correction: bonferroni keeps it at 5 %"
    return text


def _write(
    tracking_uri: str,
    model_name: str,
    candidate: Candidate,
    asked: _Asked,
    decision: PromotionDecision,
    folder: Path,
) -> None:
    """The scorecard and the model card of a registered version, in its run and at its description."""
    manifest, items, card, version = candidate.manifest, asked.items, asked.card, decision.version
    assert version is not None
    facts = {"model": f"{model_name} version {version}", "sweep": candidate.sweep}
    facts |= {"data": f"{manifest.source}, test split, fingerprint {manifest.fingerprint[:16]}"}
    notes = [f"It is {decision.warning}."] if decision.warning else []
    notes += [*decision.notes, *(f"{rule.name}: {_outcome(rule)}" for rule in decision.rules)]
    ids = [item.id for item in items]
    write_scorecard(
        folder, card, asked.said, asked.actual, ids, lambda row: decode(items[row].path, 224), facts, notes
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
        decision.notes,
        decision.warning,
    )
    (folder / "model_card.md").write_text(text, encoding="utf-8")
    log_scorecard(tracking_uri, candidate.run_id, version, card, folder, "test", test_folder(version))
    describe(tracking_uri, model_name, version, text)


def _give_up(tracking_uri: str, model_name: str, version: str, error: BaseException) -> None:
    """Note on a version why nobody judged it; where that cannot be noted, it already says that nobody did."""
    what = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
    with contextlib.suppress(MlflowException):
        client = MlflowClient(tracking_uri)
        client.set_model_version_tag(model_name, version, DECISION, "not judged")
        client.set_model_version_tag(model_name, version, REASON, f"{_now()}: {what}"[:5000])


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
    try:
        client.get_model_version(model_name, before)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"version {before} of {model_name!r}, which version {champion.version} followed, was deleted",
            "set the alias `champion` in MLflow to the version that you want",
        ) from error
    how = f"{_now()} by {user_name()}: {reason}"
    client.set_registered_model_alias(model_name, CHAMPION, before)
    client.set_model_version_tag(model_name, champion.version, DECISION, "rolled back")
    client.set_model_version_tag(model_name, champion.version, REASON, how)
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


def _note(tracking_uri: str, run_id: str, model_name: str, version: str, decision: PromotionDecision) -> None:
    """Store the decision and its figures on the version and its run, in place of those of an earlier one."""
    client = MlflowClient(tracking_uri)
    waits = [rule.name for rule in decision.rules if not rule.passed] == ["approval"]
    state = "promoted" if decision.promoted else WAITING if waits else "refused"
    tags = {f"test.{key}": f"{value:.4f}" for key, value in decision.candidate.items()}
    tags |= {DECISION: state, REASON: decision.reason, DECISIONS: str(decision.decided)}
    tags |= {"decision.at": decision.at, "decision.by": decision.by}
    if decision.warning:
        tags["decision.warning"] = decision.warning
    tags |= {f"gate.{rule.name.replace(' ', '_')}": _outcome(rule) for rule in decision.rules}
    if decision.promoted and decision.champion_version is not None:
        tags[BEFORE] = decision.champion_version
    for key in client.get_model_version(model_name, version).tags:
        if key not in tags and (key == BEFORE or key.startswith("gate.")):
            client.delete_model_version_tag(model_name, version, key)
    for key, value in tags.items():
        client.set_model_version_tag(model_name, version, key, value)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"decision-{version}.json"
        file.write_text(json.dumps(asdict(decision), indent=1))
        client.log_artifact(run_id, str(file), "gate")


def _outcome(rule: RuleResult) -> str:
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
