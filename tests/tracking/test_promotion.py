"""Who is judged on which photos, and what is left of a promotion that ends early or meets another one."""

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from front import front
from mlflow import MlflowClient
from PIL import Image

from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.split import Split
from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.network import CountingModel, CountingModelConfig
from binsweep.models.predictor import Predictor
from binsweep.tracking.evaluation.predictions import Predictions, evaluate
from binsweep.tracking.evaluation.scorecard import score
from binsweep.tracking.promotion import lock
from binsweep.tracking.promotion.candidate import Candidate
from binsweep.tracking.promotion.evidence import ChampionEvidence, Evidence, count_decisions
from binsweep.tracking.promotion.gate import PromotionCriteria
from binsweep.tracking.promotion.judge import PromotionDecision, judge
from binsweep.tracking.promotion.lock import promotion_lock
from binsweep.tracking.promotion.promote import promote
from binsweep.tracking.promotion.rollback import rollback
from binsweep.tracking.registry.photo_splits import (
    digest_of,
    new_test_photos,
    seen_by,
    seen_contents,
    store_photos,
)
from binsweep.tracking.registry.registration import register
from binsweep.tracking.registry.versions import versions_of

CLASSES = (0, 1, 2)


def predictor(classes: tuple[int, ...] = CLASSES) -> Predictor:
    """A counter with random weights."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES["mobilenet_v2"]
    config = CountingModelConfig("mobilenet_v2", "classify", classes, 64, architecture.mean, architecture.std)
    return Predictor([CountingModel(config)]).eval()


def new_run(server: str, name: str) -> str:
    client = MlflowClient(server)
    found = client.get_experiment_by_name(name)
    run = client.create_run(found.experiment_id if found else client.create_experiment(name))
    return str(run.info.run_id)


def data_of(manifest: Manifest, split: Split) -> dict[str, object]:
    parts = dataclasses.asdict(split)
    return {
        "source": manifest.source,
        "classes": manifest.classes,
        "split": parts,
        "fingerprint": manifest.fingerprint,
    }


def candidate_of(server: str, name: str, manifest: Manifest, split: Split | None = None) -> Candidate:
    validation = np.full((len(manifest.split("validation")), 3), 1 / 3, np.float32)
    return Candidate(
        new_run(server, name),
        predictor(),
        manifest,
        "val_accuracy",
        "sweep-1",
        validation,
        data=data_of(manifest, split or Split()),
    )


def predictions_of(counts: np.ndarray, classes: tuple[int, ...] = CLASSES) -> Predictions:
    table = (counts[:, None] == np.array(classes)).astype(float)
    return Predictions(classes, table, counts, ("",) * len(counts))


def evidence_of(
    manifest: Manifest, actual: np.ndarray, predictions: Predictions, decision_number: int = 1
) -> Evidence:
    """Evidence about one photo a count, from a model that is served and registered as it should be."""
    (first,) = predictions.take(slice(1)).probabilities
    served = [
        {
            "count": int(predictions.labels[0]),
            "probabilities": dict(zip(map(str, predictions.classes), first, strict=True)),
        }
    ]
    return Evidence(
        items=[dataclasses.replace(manifest.items[0], id=str(row)) for row in range(len(actual))],
        actual=actual,
        guess=1,
        predictions=predictions,
        card=score(predictions, actual, 1),
        validation=np.zeros((1, 3)),
        served=served,
        latency_ms=1.0,
        decision_number=decision_number,
    )


def judged(
    manifest: Manifest,
    champion_right: float = 0.4,
    shared: int | None = None,
    champion_classes: tuple[int, ...] = CLASSES,
    candidate_classes: tuple[int, ...] = CLASSES,
    gate: PromotionCriteria | None = None,
    approved: bool = False,
    right: float = 1.0,
    decided: int = 1,
) -> PromotionDecision:
    """What is decided about 300 photos: candidate and champion (none where it is never right) right in given shares."""
    many = 300
    actual = np.resize(np.array([c for c in candidate_classes if c in (0, 1, 2, 3)]), many)
    dice = np.random.default_rng(0)

    def counts(share: float) -> np.ndarray:
        return np.where(dice.random(many) < share, actual, (actual + 1) % 3)

    evidence = evidence_of(manifest, actual, predictions_of(counts(right), candidate_classes), decided)
    if champion_right:
        rows = np.arange(many) < (many if shared is None else shared)
        theirs = predictions_of(counts(champion_right), champion_classes)
        champion = ChampionEvidence("7", theirs, rows, ["version 7 was trained on some"])
        evidence = dataclasses.replace(evidence, champion=champion)
    run = Candidate("run", predictor(), manifest, "val_accuracy", "s-1", np.zeros((1, 3), np.float32))
    return judge(run, gate or PromotionCriteria(), evidence, approved, "8")


def test_a_champion_is_compared_on_the_photos_that_are_new_to_both(manifest: Manifest) -> None:
    decision = judged(manifest, shared=120)
    assert decision.promoted and decision.images == 300 and decision.compared == 120
    assert "version 7 was trained on some" in decision.notes
    assert "120 photos" not in decision.reason and decision.champion is not None
    few = judged(manifest, shared=29)
    assert not few.promoted and "29 of 300 test photos are new to both" in few.reason
    none = judged(manifest, shared=0)
    assert not none.promoted and none.champion is None and "0 of 300 test photos" in none.reason


def test_a_candidate_that_knows_fewer_counts_needs_a_persons_word(manifest: Manifest) -> None:
    narrow = judged(manifest, champion_classes=(0, 1, 2, 3, 4, 5), candidate_classes=(1, 2))
    assert not narrow.promoted and "it cannot predict 0, 3, 4, 5, which the champion can" in narrow.reason
    assert [rule.name for rule in narrow.rules if not rule.passed] == ["approval"]
    wanted = judged(manifest, champion_classes=(0, 1, 2, 3), candidate_classes=(1, 2), approved=True)
    assert wanted.promoted


def test_a_candidate_that_knows_more_counts_must_not_unlearn_the_others(manifest: Manifest) -> None:
    wide = judged(manifest, champion_classes=(1, 2), champion_right=0.5)
    (rule,) = [rule for rule in wide.rules if rule.name == "not worse on the counts that both know"]
    assert wide.promoted and rule.passed and "cannot predict 0" in rule.text and "200 photos" in rule.text
    worse = judged(manifest, champion_classes=(1, 2), champion_right=0.9, right=0.7)
    assert not worse.promoted
    assert "not worse on the counts that both know" in [r.name for r in worse.rules if not r.passed]


def test_what_is_no_better_than_the_guess_is_said_and_can_be_refused(manifest: Manifest) -> None:
    """A third right, the others far off: the accuracy beats the guess, the RMSE does not."""
    actual = np.resize(np.array([1, 1, 2, 4, 0]), 300)
    counts = np.where(np.arange(300) % 10 < 7, actual, 9)
    evidence = evidence_of(manifest, actual, predictions_of(counts, (0, 1, 2, 4, 9)))
    run = Candidate("run", predictor(), manifest, "val_accuracy", "s-1", np.zeros((1, 3), np.float32))
    decision = judge(run, PromotionCriteria(), evidence, False, "1")
    assert decision.promoted and "test accuracy 0.7000 beats" in decision.reason
    assert "no better than always answering 1" in decision.warning and "rmse" in decision.warning
    assert "accuracy" not in decision.warning and decision.warning in decision.reason
    refused = judge(run, PromotionCriteria(beats_guess=["accuracy", "rmse"]), evidence, False, "1")
    assert not refused.promoted
    assert [rule.name for rule in refused.rules if not rule.passed] == ["beats the guess in rmse"]
    assert [rule.name for rule in refused.rules].count("better than the constant guess") == 1
    good = judged(manifest, champion_right=0.0)
    assert good.promoted and good.warning == ""


def test_how_often_a_test_split_decided_is_said_and_corrected_for(manifest: Manifest) -> None:
    first = judged(manifest, right=0.55, champion_right=0.45)
    assert first.promoted and "decision 1 by this test split" in first.notes
    tenth = judged(manifest, right=0.55, champion_right=0.45, decided=10)
    assert tenth.promoted and tenth.decided == 10
    (note,) = [note for note in tenth.notes if note.startswith("decision 10 by this test split")]
    assert "40%" in note and "bonferroni" in note
    corrected = judged(
        manifest, right=0.55, champion_right=0.45, decided=10, gate=PromotionCriteria(correction="bonferroni")
    )
    assert not corrected.promoted and "0.00045 required" in corrected.reason


@pytest.fixture
def copied(bins: Path, tmp_path: Path) -> Path:
    place = tmp_path / "copied"
    shutil.copytree(bins, place)
    return place


def test_copies_of_training_photos_are_no_test_photos(manifest: Manifest) -> None:
    assert new_test_photos(manifest) == manifest.split("test")
    train, (first, *others) = manifest.split("train"), manifest.split("test")
    copy = dataclasses.replace(first, sha256=train[0].sha256)
    rest = tuple(item for item in manifest.items if item.split != "test")
    leaking = dataclasses.replace(manifest, items=(*rest, copy, *others))
    assert new_test_photos(leaking) == tuple(others)
    with pytest.raises(UserError, match="also in train or validation"):
        new_test_photos(dataclasses.replace(manifest, items=(*rest, copy)))
    assert digest_of(manifest.split("test")) != digest_of(leaking.split("test"))


def test_a_version_keeps_what_it_has_seen_and_an_older_one_is_known_by_its_data(
    copied: Path, server: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    manifest = load_manifest(str(copied), None, Split(), home)
    candidate = candidate_of(server, "seen", manifest)
    tags = {"dataset.fingerprint": manifest.fingerprint}
    unknown = register(server, candidate.run_id, "seen", candidate.predictor, tags)
    assert seen_by(server, unknown, home) is None
    tags["data"] = json.dumps(dict(candidate.data))
    older = register(server, candidate.run_id, "seen", candidate.predictor, tags)
    wanted = seen_contents(manifest)
    assert len(wanted) == len(manifest.split("train")) + len(manifest.split("validation"))
    assert seen_by(server, older, home) == wanted and seen_by(server, older, None) is None
    store_photos(server, older, manifest)
    shutil.rmtree(copied)
    assert seen_by(server, older, home) == wanted
    assert seen_by(server, unknown, home) is None

    # Decisions are counted by test split: one by another split, one that waits, and one that nobody judged do not.
    client = MlflowClient(server)
    digest = digest_of(manifest.split("test"))
    assert count_decisions(server, "seen", candidate) == 0
    client.set_model_version_tag("seen", unknown.version, "decision", "refused")
    assert count_decisions(server, "seen", candidate) == 1  # by its fingerprint
    client.set_model_version_tag("seen", older.version, "test.split", digest)
    client.set_model_version_tag("seen", older.version, "decision", "not judged")
    assert count_decisions(server, "seen", candidate) == 1
    client.set_model_version_tag("seen", older.version, "decision", "refused")
    client.set_model_version_tag("seen", older.version, "test.decisions", "4")
    assert count_decisions(server, "seen", candidate) == 4  # two of them were deleted
    client.set_model_version_tag("seen", older.version, "decision", "waiting for approval")
    assert count_decisions(server, "seen", candidate) == 1
    assert len(versions_of(server, "seen")) == 2 and versions_of(server, "nobody's") == []
    assert versions_of(server, """both ' and " """) == []


def test_a_candidate_that_cannot_be_evaluated_leaves_a_version_that_says_so(
    copied: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    home = tmp_path / "home"
    manifest = load_manifest(str(copied), None, Split(), home)
    lost = manifest.split("test")[1]
    lost.path.unlink()
    with pytest.raises(UserError, match=f"no prediction for 1 of .*{lost.id}: no such file"):
        promote(
            server,
            "unjudged",
            candidate_of(server, "unjudged", manifest),
            PromotionCriteria(),
            tmp_path / "test",
            home=home,
        )
    (version,) = versions_of(server, "unjudged")
    assert version.tags["decision"] == "not judged" and lost.id in version.tags["decision.reason"]
    assert not MlflowClient(server).get_registered_model("unjudged").aliases


def test_a_photo_above_the_one_limit_is_left_out_at_the_start(
    copied: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder of training took 200 MB, the server 20 MB: such a photo trained, and promote ended by TypeError."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    big = sorted((copied / "bin-images").iterdir())[0]
    noise = np.random.default_rng(0).integers(0, 256, (2700, 2700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(big.with_suffix(".png"), compress_level=0)
    big.unlink()
    big = big.with_suffix(".png")
    assert big.stat().st_size > 20_000_000
    manifest = load_manifest(str(copied), None, Split(), tmp_path / "home")
    (skipped,) = manifest.skipped
    assert skipped.id == big.stem and "more than the 20,000,000 that are allowed" in skipped.reason

    # A model of before is asked all the same about what it can read.
    run = new_run(server, "limits")
    register(server, run, "limits", predictor(), {})
    small = manifest.items[0].path
    found = evaluate("models:/limits/1", [big, small, tmp_path / "none.jpg"], server)
    assert [bool(error) for error in found.errors] == [True, False, True]
    assert "20,000,000" in found.errors[0] and found.labels[1] in CLASSES and found.labels[0] == -1
    assert found.answered.tolist() == [False, True, False]
    assert np.isnan(found.probabilities[0]).all() and found.probabilities[1].sum() == pytest.approx(1)


def test_a_rollback_to_a_deleted_version_is_refused(server: str) -> None:
    client = MlflowClient(server)
    run = new_run(server, "with-a-gap")
    for tags in ({}, {"champion.before": "1"}):
        register(server, run, "with-a-gap", predictor(), tags)
    client.set_registered_model_alias("with-a-gap", "champion", "2")
    client.delete_model_version("with-a-gap", "1")
    with pytest.raises(UserError, match="version 1 of 'with-a-gap', which version 2 followed, was deleted"):
        rollback(server, "with-a-gap", "x")
    assert client.get_model_version_by_alias("with-a-gap", "champion").version == "2"


def test_a_rollback_waits_for_a_promotion_of_the_same_home(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, home = MlflowClient(server), tmp_path / "home"
    run = new_run(server, "taking-turns")
    for tags in ({}, {"champion.before": "1"}):
        register(server, run, "taking-turns", predictor(), tags)
    client.set_registered_model_alias("taking-turns", "champion", "2")
    monkeypatch.setattr(lock, "LOCK_TIMEOUT_SECONDS", 0.2)
    with promotion_lock(home), pytest.raises(UserError, match="another promotion or rollback is in progress"):
        rollback(server, "taking-turns", "x", home)
    assert client.get_model_version_by_alias("taking-turns", "champion").version == "2"

    # A promotion that held the lock has moved the alias: the rollback returns from the new champion.
    register(server, run, "taking-turns", predictor(), {"champion.before": "2"})
    monkeypatch.setattr(lock, "LOCK_TIMEOUT_SECONDS", 60.0)
    with ThreadPoolExecutor(1) as pool:
        with promotion_lock(home):
            rolled_back = pool.submit(rollback, server, "taking-turns", "x", home)
            client.set_registered_model_alias("taking-turns", "champion", "3")
            with pytest.raises(TimeoutError):
                rolled_back.result(0.5)
        assert rolled_back.result(60) == ("3", "2")
    assert client.get_model_version_by_alias("taking-turns", "champion").version == "2"


def test_a_proxy_that_takes_no_large_files_is_named_and_nothing_is_registered(
    server: str, tmp_path: Path
) -> None:
    with front(server, "small", tmp_path) as (address, _), pytest.raises(UserError, match="413") as mistake:
        register(address, new_run(server, "small"), "small-files", predictor(), {})
    assert "client_max_body_size" in mistake.value.hint and not versions_of(server, "small-files")
