"""Promotion of a model from own code: it becomes champion only if it predicts better on the same test rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from binsweep.data.errors import UserError
from binsweep.tracking.evaluation.scorecard import Scores
from binsweep.tracking.promotion.gate import PromotionCriteria, RuleResult
from binsweep.tracking.promotion.judge import PromotionDecision, describe_decision_number
from binsweep.tracking.promotion.paired_tests import significance_level
from binsweep.tracking.promotion.publish import move_alias, record_not_judged, store_decision
from binsweep.tracking.promotion.table import (
    MIN_COMPARED_ROWS,
    PredictionTable,
    as_numbers,
    constant_guess,
    interval,
    judge_answers,
    judge_better,
    measure_for,
    score,
)
from binsweep.tracking.promotion.version_tags import (
    DECISION,
    NOT_JUDGED,
    REASON,
    TEST_DECISIONS,
    TEST_SPLIT,
    timestamp,
)
from binsweep.tracking.registry.registration import uploads
from binsweep.tracking.registry.versions import (
    CODE_FINGERPRINT,
    champion_of,
    describe,
    stored_predictions,
    test_folder,
    versions_of,
)
from binsweep.tracking.runlog.sender import user_name
from binsweep.tracking.serving.model_server import ask_any, serve_model

N_SERVED_ROWS = 32  # test rows that are also sent to a server of the model
ANSWER_SECONDS = 120.0
OWN_CODE = "own_code"  # the folder of a version's run with its code, its checkpoint and its params
UNIT = "rows"


@dataclass(frozen=True)
class CodeCandidate:
    """The model of a finalist, saved in `model`; `own_code` is the folder that can predict with it again.

    `predict_again(folder)` returns the test table of another version, from its own code folder.
    """

    run_id: str
    sweep: str
    metric: str
    fingerprint: str
    test: PredictionTable
    validation: PredictionTable
    model: Path
    own_code: Path
    predict_again: Callable[[Path], PredictionTable]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ChampionTable:
    """The champion's predictions of the rows that it and the candidate both have."""

    version: str
    table: PredictionTable
    notes: list[str]


def promote_code(
    tracking_uri: str,
    model_name: str,
    candidate: CodeCandidate,
    gate: PromotionCriteria,
    approved: bool = False,
    dry_run: bool = False,
    home: Path | None = None,
) -> PromotionDecision:
    """Register the candidate as a new version, and make it champion if it passes every rule of the gate.

    Like `promote` for photos: a refused candidate gets the alias `challenger`, a `dry_run` registers nothing. The
    champion predicts the candidate's test rows anew, with its own code.
    """
    current = champion_of(tracking_uri, model_name)
    champion = _champion_table(tracking_uri, current, candidate)
    served = _judge_served(candidate, tracking_uri)
    number = _count_decisions(tracking_uri, model_name, candidate) + 1
    if dry_run:
        return judge_code(candidate, gate, champion, served, approved, None, number)
    version = str(_register(tracking_uri, model_name, candidate).version)
    try:
        while True:
            decision = judge_code(candidate, gate, champion, served, approved, version, number)
            _publish(tracking_uri, model_name, candidate, decision)
            if move_alias(tracking_uri, model_name, decision, home):
                return decision
            current = champion_of(tracking_uri, model_name)
            champion = _champion_table(tracking_uri, current, candidate)
    except BaseException as error:
        record_not_judged(tracking_uri, model_name, version, error)
        raise


def judge_code(
    candidate: CodeCandidate,
    gate: PromotionCriteria,
    champion: ChampionTable | None,
    served: RuleResult,
    approved: bool,
    version: str | None,
    number: int,
) -> PromotionDecision:
    """Apply every rule of the gate, from the tables alone; `version` is None for a dry run."""
    test, measure = candidate.test, measure_for(candidate.metric, candidate.test)
    alpha = significance_level(gate.correction, number)
    guess = constant_guess(measure, candidate.validation)
    mine, truth, constant = as_numbers(measure, test.prediction, test.truth, [guess] * len(test.ids))
    champion_scores: Scores | None = None
    compared = 0
    if champion is None:
        rules = [judge_better(measure, mine, constant, truth, "the constant guess", alpha)]
    else:
        compared = len(champion.table.ids)
        rules = [_judge_champion(candidate, champion, alpha)]
        if compared:
            theirs, their_truth = as_numbers(measure, champion.table.prediction, champion.table.truth)
            champion_scores = {measure: score(measure, theirs, their_truth)}
    rules.append(served)
    if gate.approval:
        text = "given" if approved else f"`binsweep promote {candidate.sweep} --approve` gives it"
        rules.append(RuleResult("approval", approved, text))
    failed = [rule for rule in rules if not rule.passed]
    notes = [
        *candidate.notes,
        describe_decision_number(number, gate, alpha),
        f"the constant guess is {guess}, by the validation rows",
    ]
    return PromotionDecision(
        version=version,
        promoted=not failed and version is not None,
        reason="; ".join(rule.text for rule in failed) if failed else rules[0].text,
        rules=rules,
        candidate={measure: score(measure, mine, truth)},
        intervals={measure: interval(measure, mine, truth)},
        champion=champion_scores,
        champion_version=None if champion is None else champion.version,
        guess={measure: score(measure, constant, truth)},
        images=len(test.ids),
        fingerprint=candidate.fingerprint,
        notes=notes if champion is None else notes + champion.notes,
        at=timestamp(),
        by=user_name(),
        compared=compared,
        decided=number,
        unit=UNIT,
    )


def _judge_champion(candidate: CodeCandidate, champion: ChampionTable, alpha: float) -> RuleResult:
    measure, table = measure_for(candidate.metric, candidate.test), champion.table
    required = min(MIN_COMPARED_ROWS, len(candidate.test.ids))
    if len(table.ids) < required:
        text = f"cannot be compared: {len(table.ids)} rows are in both test splits, at least {required} are needed"
        return RuleResult("better than the champion", False, text)
    own = candidate.test.take(table.ids)
    differ = sum(str(one) != str(other) for one, other in zip(own.truth, table.truth, strict=True))
    if differ:
        text = f"cannot be compared: the truth of {differ} of {len(table.ids)} rows is another one for the champion"
        return RuleResult("better than the champion", False, text)
    mine, theirs, truth = as_numbers(measure, own.prediction, table.prediction, own.truth)
    return judge_better(measure, mine, theirs, truth, "the champion", alpha)


def _champion_table(
    tracking_uri: str, champion: ModelVersion | None, candidate: CodeCandidate
) -> ChampionTable | None:
    """The champion's predictions, by its own code from its run. Raises UserError if it cannot predict any more."""
    if champion is None:
        return None
    name = f"version {champion.version}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = MlflowClient(tracking_uri).download_artifacts(champion.run_id or "", OWN_CODE, folder)
        except (MlflowException, OSError) as error:
            hint = "choose another register.model for this sweep"
            raise UserError(f"{name} of {champion.name} is no model of own code: {error}", hint) from error
        table = candidate.predict_again(Path(found))
    known = set(candidate.test.ids)
    shared = [one for one in table.ids if one in known]
    notes = []
    if len(shared) < len(known):
        notes.append(f"{name} has {len(shared)} of the {len(known)} test rows: the two are compared on these")
    return ChampionTable(str(champion.version), table.take(shared), notes)


def _judge_served(candidate: CodeCandidate, tracking_uri: str) -> RuleResult:
    """Serve the saved model, and send it the first test rows."""
    with serve_model(str(candidate.model), tracking_uri) as server:
        return judge_served_rows(server.url, candidate.test)


def judge_served_rows(url: str, test: PredictionTable) -> RuleResult:
    """Send a server the first rows of a table; whether its answers are the predictions."""
    if test.inputs is None:
        text = "it starts and answers /ping; predict gives no column `input`, so no answer was compared"
        return RuleResult("served as evaluated", True, text)
    sent = test.inputs[:N_SERVED_ROWS]
    answers = ask_rows(url, sent)
    if len(answers) != len(sent):
        text = f"{len(answers)} answers to {len(sent)} rows"
        return RuleResult("served as evaluated", False, text)
    return judge_answers(test, answers)


def ask_rows(url: str, rows: Sequence[Any]) -> list[Any]:
    """A server's predictions for rows of the column `input`, in one request. Raises what `ask_any` raises."""
    records = all(isinstance(one, Mapping) for one in rows)
    return ask_any(url, {"dataframe_records" if records else "inputs": list(rows)}, ANSWER_SECONDS)


def served_rows(tracking_uri: str, version: ModelVersion) -> PredictionTable:
    """The rows that the gate has sent to the server of a version, as they are stored with it.

    Raises UserError if none are stored.
    """
    stored = stored_predictions(tracking_uri, version)
    if "input" not in stored:
        name = f"{version.name} version {version.version}"
        what = f"{name} has no test row that its server could be asked about"
        raise UserError(what, "let `predict` give a column `input`, and promote its sweep again")
    sent = stored[stored["input"].notna()]
    return PredictionTable(
        tuple(sent["id"]),
        tuple(sent["true"].tolist()),
        tuple(sent["predicted"].tolist()),
        tuple(json.loads(one) for one in sent["input"]),
    )


def _count_decisions(tracking_uri: str, model_name: str, candidate: CodeCandidate) -> int:
    tags = [version.tags for version in versions_of(tracking_uri, model_name)]
    same = [one for one in tags if one.get(TEST_SPLIT) == candidate.test.digest and TEST_DECISIONS in one]
    return max([len(same), *(int(one[TEST_DECISIONS]) for one in same)])


def _register(tracking_uri: str, model_name: str, candidate: CodeCandidate) -> ModelVersion:
    """Log the model, and what predicts with it again, to the candidate's run, and make it a version."""
    client = MlflowClient(tracking_uri)
    with uploads(tracking_uri):
        client.log_artifacts(candidate.run_id, str(candidate.model), "model")
        client.log_artifacts(candidate.run_id, str(candidate.own_code), OWN_CODE)
    try:
        client.create_registered_model(
            model_name, description=f"From own training code, sweep {candidate.sweep}."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {
        "sweep": candidate.sweep,
        CODE_FINGERPRINT: candidate.fingerprint,
        TEST_SPLIT: candidate.test.digest,
        # These two stay if this process is killed.
        DECISION: NOT_JUDGED,
        REASON: f"its promotion began {timestamp()} and has not ended",
    }
    source = f"{client.get_run(candidate.run_id).info.artifact_uri}/model"
    return client.create_model_version(model_name, source, candidate.run_id, tags)


def _publish(
    tracking_uri: str, model_name: str, candidate: CodeCandidate, decision: PromotionDecision
) -> None:
    """Store the test predictions, a description and the decision with the version."""
    assert decision.version is not None
    client, test = MlflowClient(tracking_uri), candidate.test
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.parquet"
        columns: dict[str, Sequence[Any]] = {"id": test.ids, "true": test.truth, "predicted": test.prediction}
        table = pd.DataFrame({name: list(map(_storable, column)) for name, column in columns.items()})
        if test.probabilities is not None:
            table["probabilities"] = [json.dumps(value) for value in test.probabilities]
        if test.inputs is not None:
            sent = [json.dumps(value) for value in test.inputs[:N_SERVED_ROWS]]
            table["input"] = sent + [None] * (len(test.ids) - len(sent))
        table.to_parquet(file)
        client.log_artifact(candidate.run_id, str(file), test_folder(decision.version))
    verdict = f"{'promoted' if decision.promoted else 'not promoted'}: {decision.reason}"
    lines = [
        f"# {model_name}, version {decision.version}",
        f"From own code, sweep {candidate.sweep}.",
        verdict,
    ]
    lines += [
        f"- {rule.name}: {'passed' if rule.passed else 'failed'}: {rule.text}" for rule in decision.rules
    ]
    describe(tracking_uri, model_name, decision.version, "\n\n".join([*lines, *decision.notes]))
    store_decision(tracking_uri, candidate.run_id, model_name, decision.version, decision)


def _storable(value: Any) -> Any:
    return value if isinstance(value, int | float | bool | np.number) else str(value)
