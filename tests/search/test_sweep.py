"""Whole sweeps on small real parts: both runners, a real MLflow server, the registry and a served model."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from binsweep.data.errors import UserError
from binsweep.data.manifest import load_manifest
from binsweep.data.resource_limits import cores
from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.models.checkpoint import load_checkpoint, model_from_checkpoint
from binsweep.models.engines.choice import AUTO_ENGINE
from binsweep.models.network import CountingModel
from binsweep.models.predictor import Predictor
from binsweep.search.execution.health import read_findings
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_history import as_json
from binsweep.search.history.sweep_state import find_folder, load_state
from binsweep.search.report.sweep_report import describe
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.workflows.predict import predict_images
from binsweep.search.workflows.preflight import Runner, check_before_start
from binsweep.search.workflows.prepare import prepare
from binsweep.search.workflows.promote import promote_sweep
from binsweep.search.workflows.sweep import SweepResult, run_sweep
from binsweep.tracking.promotion.candidate import Candidate
from binsweep.tracking.promotion.gate import PromotionCriteria
from binsweep.tracking.promotion.judge import PromotionDecision
from binsweep.tracking.promotion.promote import promote
from binsweep.tracking.promotion.rollback import rollback
from binsweep.tracking.registry.versions import champion_of
from binsweep.tracking.serving.model_server import open_model, predict, serve_model

TRIALS = 5
RAW: dict[str, Any] = {
    "name": "small",
    "data": {"source": "", "image_size": 64},
    "space": {
        "backbone": ["efficientnet_lite0"],
        "lr": {"low": 1e-4, "high": 0.03, "log": True},
        "batch_size": [8, 16],
        "epochs": {"low": 3, "high": 9},
        "label_smoothing": {"low": 0.01, "high": 0.1, "when": {"batch_size": [16]}},
    },
    "objective": {"max_megabytes": 100.0, "cost_objective": "latency_ms"},
    "budget": {"trials": TRIALS},
    "register": {"model": "small-counter"},
}


def spec_of(bins: Path, **changes: Any) -> SweepSpec:
    raw = {**RAW, **changes}
    return parse_spec({**raw, "data": {**raw["data"], "source": str(bins)}})


def sweep(spec: SweepSpec, home: Path, runner: Runner, server: str) -> SweepResult:
    """What the command line does, with a server that runs already."""
    check_before_start(spec, runner=runner)
    return run_sweep(prepare(spec, home), runner, server)


@pytest.fixture(scope="module", params=["ray", "local"])
def swept(
    request: pytest.FixtureRequest, bins: Path, server: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SweepResult, Path, str]:
    """A finished sweep, its home, and its name, by each runner."""
    runner: Runner = request.param
    home = tmp_path_factory.mktemp(f"home-{runner}")
    name = f"small-{runner}"
    return sweep(spec_of(bins, name=name), home, runner, server), home, name


def children(server: str, name: str) -> tuple[Run, list[Run]]:
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(below) == len(runs) - 1
    trials = [run for run in below if run.data.tags["binsweep.kind"] == "trial"]
    return parent, sorted(trials, key=lambda run: int(run.data.tags["optuna.trial"]))


def test_every_trial_ends_and_the_study_agrees(swept: tuple[SweepResult, Path, str]) -> None:
    result, _, _ = swept
    assert "budget.trials" in result.ended_by and result.unsent == 0 and not result.failed
    study = optuna.load_study(study_name=result.id, storage=f"sqlite:///{result.folder}/study.db")
    assert len(study.trials) == TRIALS
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}
    best = result.leaderboard[0]
    assert best.value == max(trial.value or 0.0 for trial in result.leaderboard)
    for trial in study.trials:
        state = {"COMPLETE": "completed", "PRUNED": "stopped"}[trial.state.name]
        record = next(t for t in result.leaderboard if t.number == trial.number)
        assert record.state == state and record.epochs_done == len(trial.intermediate_values)


def test_the_report_lies_with_the_sweep_and_agrees_with_it(
    swept: tuple[SweepResult, Path, str], server: str, tmp_path: Path
) -> None:
    result, _, name = swept
    course = read_history(result.folder)
    assert course.status == "finished" and course.ended_by == result.ended_by
    found = [(t.number, t.value, t.epoch, t.epochs_done, t.state, t.params) for t in course.leaders]
    leaders = result.leaderboard
    assert found == [(t.number, t.value, t.epoch, t.epochs_done, t.state, t.params) for t in leaders]
    parent, _ = children(server, name)
    page = Path(MlflowClient(server).download_artifacts(parent.info.run_id, "report.html", str(tmp_path)))
    assert (
        f"trial {leaders[0].number} with val_accuracy" in page.read_text()
        and "it is running" not in page.read_text()
    )


def test_mlflow_holds_the_whole_story(swept: tuple[SweepResult, Path, str], server: str) -> None:
    result, _, name = swept
    parent, trials = children(server, name)
    assert parent.info.status == "FINISHED" and len(trials) == TRIALS
    client = MlflowClient(server)
    for run, record in zip(trials, sorted(result.leaderboard, key=lambda t: t.number), strict=True):
        assert run.info.status == "FINISHED"
        assert float(run.data.params["lr"]) == record.settings.lr
        assert {"backbone", "batch_size", "epochs", "weights", "trainable"} <= set(run.data.params)
        tags = run.data.tags
        assert tags["ended_because"] == record.reason and tags["suggested_because"] == record.suggested
        assert tags["state"] == record.state and tags["seed"] == str(record.settings.seed)
        assert {"dataset.fingerprint", "device", "version.torch", "arithmetic"} <= set(tags)
        history = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert [point.step for point in history] == list(range(1, record.epochs_done + 1))
        assert run.data.metrics["best_val_accuracy"] == record.value
        assert {"train_rmse", "val_mae", "val_accuracy_class_2", "images_per_second"} <= set(run.data.metrics)
        assert run.data.metrics["latency_ms"] > 0 and 5 < run.data.metrics["megabytes"] < 100
        assert (float(run.data.params["label_smoothing"]) > 0) == (run.data.params["batch_size"] == "16")
        assert run.inputs.dataset_inputs[0].dataset.digest == tags["dataset.fingerprint"][:32]
        files = {file.path for file in client.list_artifacts(run.info.run_id, "validation")}
        wanted = {
            "confusion_matrix.png",
            "confusion_matrix.csv",
            "per_class.csv",
            "mistakes.jpg",
            "predictions.csv",
        }
        assert files == {f"validation/{file}" for file in wanted}
        assert "health.csv" in {file.path for file in client.list_artifacts(run.info.run_id)}
        seen = {finding.name for finding in read_findings(record.folder)}
        assert {tag for tag in tags if tag.startswith(("health.", "profile."))} == seen
        assert [f.path for f in client.list_artifacts(run.info.run_id, "weights")] == ["weights/best.pt"]
    page = {file.path for file in client.list_artifacts(parent.info.run_id, "data")}
    assert page == {"data/report.html", "data/report.json"}
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"spec.yaml", "leaderboard.csv", "pareto.csv", "decisions.jsonl"} <= names
    decided = [json.loads(line) for line in (result.folder / "decisions.jsonl").read_text().splitlines()]
    assert all(line["reason"] for line in decided)
    ends = [line["trial"] for line in decided if line["what"] in ("completed", "stopped", "failed")]
    assert sorted(ends) == list(range(TRIALS)), "each trial ends once"
    best = client.get_metric_history(parent.info.run_id, "best_val_accuracy")
    values = [point.value for point in sorted(best, key=lambda point: point.step)]
    assert values == sorted(values) and values[-1] == result.leaderboard[0].value
    assert parent.data.metrics["best_val_accuracy"] == result.leaderboard[0].value


def all_children(server: str, name: str) -> list[Run]:
    """The runs below the sweep's, trials and finalists."""
    parent, _ = children(server, name)
    where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return list(MlflowClient(server).search_runs([parent.info.experiment_id], where))


def broken(counter: CountingModel, how: str) -> CountingModel:
    """A copy that was spoilt on its way to the registry."""
    if how == "wrong normalisation":
        config = dataclasses.replace(counter.config, mean=(0.1, 0.1, 0.1), std=(0.2, 0.2, 0.2))
        spoilt = CountingModel(config).eval()
        spoilt.load_state_dict(counter.state_dict())
        return spoilt
    spoilt = copy.deepcopy(counter)
    last = [module for module in spoilt.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.copy_(last.weight.roll(1, 0))
        last.bias.copy_(last.bias.roll(1, 0))
    return spoilt


@pytest.mark.integration  # each of its candidates is registered, evaluated and served
@pytest.mark.timeout(900)
def test_the_gate_refuses_what_is_broken_and_a_rollback_returns(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    bins = tmp_path / "bins"
    write_synthetic(bins, 240, 0, 64, [0, 1, 2])  # enough that whatever the seeds, a counter beats the guess
    spec = spec_of(bins, name="gated", budget={"trials": 2}, register={"model": "gated"})
    result = sweep(spec, tmp_path, "local", server)
    best = load_state(result.folder)["leaderboard"][0]
    checkpoint = load_checkpoint(result.folder / best["checkpoint"])
    counter = model_from_checkpoint(checkpoint)
    trained = checkpoint.log_probabilities.exp().numpy()
    manifest = load_manifest(spec.data.source, spec.data.classes, spec.split, tmp_path)
    client = MlflowClient(server)

    def judged(
        counter: CountingModel, gate: PromotionCriteria | None = None, approved: bool = False
    ) -> PromotionDecision:
        predictor = Predictor([counter])
        candidate = Candidate(best["run_id"], predictor, manifest, "val_accuracy", result.id, trained)
        return promote(server, "gated", candidate, gate or PromotionCriteria(), tmp_path / "test", approved)

    # Against the constant guess, then against a champion.
    shuffled = broken(counter, "labels shuffled")
    refused = judged(shuffled)
    assert not refused.promoted and "does not beat the constant guess" in refused.reason
    assert champion_of(server, "gated") is None
    first = judged(counter, PromotionCriteria(approval=True))
    assert not first.promoted and "--approve" in first.reason
    waiting = client.get_model_version("gated", first.version)
    assert waiting.tags["decision"] == "waiting for approval", first.reason
    first = judged(counter, PromotionCriteria(approval=True), approved=True)
    assert first.promoted and all(rule.passed for rule in first.rules)
    worse = CountingModel(
        counter.config
    ).eval()  # nobody trained it, and what it says is what it was registered with
    worse.backbone.load_state_dict(counter.backbone.state_dict())
    for how, spoilt in (
        ("labels shuffled", shuffled),
        ("wrong normalisation", broken(counter, "wrong normalisation")),
        ("worse than the champion", worse),
    ):
        refused = judged(spoilt)
        failed = {rule.name for rule in refused.rules if not rule.passed}
        assert not refused.promoted and "better than the champion" in failed, how
        assert "does not beat the champion's" in refused.reason and "registered as trained" in failed, how
        version = client.get_model_version("gated", refused.version)
        assert (
            version.tags["decision"] == "refused"
            and "failed" in version.tags["gate.better_than_the_champion"]
        )
        assert client.get_model_version_by_alias("gated", "challenger").version == refused.version
    gate = PromotionCriteria(min_class_accuracy=1.0, max_latency_ms=0.001, max_megabytes=0.001)
    failed = {rule.name for rule in judged(counter, gate).rules if not rule.passed}
    assert {"latency", "size"} <= failed
    files = [file.path for file in client.list_artifacts(best["run_id"], "gate")]
    assert f"gate/decision-{first.version}.json" in files

    with pytest.raises(UserError, match="followed no other champion"):
        rollback(server, "gated", "why not")
    client.set_model_version_tag("gated", refused.version, "champion.before", first.version)
    client.set_registered_model_alias("gated", "champion", refused.version)
    assert rollback(server, "gated", "it miscounts") == (refused.version, first.version)
    champion = champion_of(server, "gated")
    assert champion is not None and champion.version == first.version
    left = client.get_model_version("gated", refused.version)
    assert left.tags["decision"] == "rolled back" and "it miscounts" in left.tags["decision.reason"]


@pytest.mark.timeout(600)  # on a busy machine: it trains finalists and starts four servers
def test_promotion_serving_and_prediction(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    bins = tmp_path / "bins"
    write_synthetic(bins, 240, 0, 64, [0, 1, 2])  # enough that whatever the seeds, a counter beats the guess
    result = sweep(spec_of(bins, name="promoted", budget={"trials": 2}), tmp_path, "local", server)
    before = {run.info.run_id: run.info.end_time for run in children(server, "promoted")[1]}
    told = as_json(read_history(result.folder)), describe(result.folder)
    model, first = promote_sweep("promoted", tmp_path, server)
    assert (as_json(read_history(result.folder)), describe(result.folder)) == told
    assert {run.info.run_id: run.info.end_time for run in children(server, "promoted")[1]} == before
    assert first.promoted and first.champion is None
    champion = MlflowClient(server).get_model_version_by_alias(model, "champion")
    assert champion.version == first.version and champion.tags["decision"] == "promoted"
    assert "test accuracy" in champion.tags["decision.reason"]
    parent, _ = children(server, "promoted")
    link = f"- sweep: [{result.id}](#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id})"
    assert link in champion.description
    # The engine, and why, on the version, its card and in the decision.
    assert champion.tags["engine"] == AUTO_ENGINE != "torch"
    reason = champion.tags["engine.reason"]
    assert "photos differ by at most" in reason
    assert f"- {reason}\n" in champion.description and reason in first.notes

    # Each finalist was trained again, in a child run of the sweep, and a second promotion takes them as they are.
    kinds = [run.data.tags["binsweep.kind"] for run in all_children(server, "promoted")]
    assert sorted(kinds) == ["finalist"] * 4 + ["trial"] * 2
    seeds = {run.data.tags["seed"] for run in all_children(server, "promoted")}
    assert len(seeds) == 6
    stamps = {file: file.stat().st_mtime_ns for file in result.folder.glob("finalists/*/best.pt")}
    model, second = promote_sweep(result.id, tmp_path, server)
    assert stamps == {file: file.stat().st_mtime_ns for file in result.folder.glob("finalists/*/best.pt")}
    assert not second.promoted and second.champion is not None and "does not beat" in second.reason
    assert second.candidate == first.candidate
    client = MlflowClient(server)
    assert client.get_model_version_by_alias(model, "champion").version == first.version
    assert client.get_model_version_by_alias(model, "challenger").version == second.version

    # What would be refused, refused without a trace.
    versions = len(client.search_model_versions(f"name='{model}'"))
    model, third = promote_sweep(result.id, tmp_path, server, dry_run=True)
    assert third.version is None and not third.promoted and third.candidate == first.candidate
    assert len(client.search_model_versions(f"name='{model}'")) == versions

    images = [file.read_bytes() for file in sorted((bins / "bin-images").iterdir())[:5]]
    uri = f"models:/{model}@champion"
    here = open_model(uri, server)(images)
    with serve_model(uri, tracking_uri=server) as served:
        there = predict(served.url, images, timeout=60)
        mixed = predict(served.url, [images[0], b"not a photo"], timeout=60)
    for one, other in zip(here, there, strict=True):
        assert one["count"] == other["count"] and one["error"] == ""
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
        assert sum(other["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert mixed[0]["count"] == here[0]["count"] and mixed[1]["error"]
    assert isinstance(mixed[0]["count"], int) and mixed[1]["count"] is None
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a photo")
    good = sorted((bins / "bin-images").iterdir())[:33]
    with_bad = list(predict_images([*map(str, good), str(bad)], None, uri, tmp_path))
    assert [bool(row["error"]) for _, row in with_bad] == [False] * 33 + [True]


def test_data_that_changed_since_the_sweep_is_not_promoted_on(
    swept: tuple[SweepResult, Path, str], server: str, tmp_path: Path
) -> None:
    result, _, _ = swept
    state = json.loads((result.folder / "sweep.json").read_text())
    other = tmp_path / "sweeps" / "small-9"
    other.mkdir(parents=True)
    (other / "sweep.json").write_text(json.dumps({**state, "fingerprint": "0" * 64}))
    with pytest.raises(UserError, match="has changed since"):
        promote_sweep("small", tmp_path, server)


def test_a_seed_makes_the_local_runner_repeat_exactly(bins: Path, server: str, tmp_path: Path) -> None:
    def story(result: SweepResult) -> list[tuple[Any, ...]]:
        return [(t.number, t.params, t.value, t.epoch, t.state, t.epochs_done) for t in result.leaderboard]

    spec = spec_of(bins, name="repeat", budget={"trials": 3})
    first = sweep(spec, tmp_path, "local", server)
    second = sweep(spec, tmp_path, "local", server)
    assert story(first) == story(second) and first.id != second.id
    other = spec_of(bins, name="repeat", budget={"trials": 3}, search={"seed": 1})
    assert story(sweep(other, tmp_path, "local", server)) != story(first)


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.integration)])
def test_a_failing_trial_is_told_and_costs_nothing_else(
    runner: Runner, bins: Path, server: str, tmp_path: Path
) -> None:
    """lr 1000 with plain SGD on everything diverges to NaN; lr 0.001 does not."""
    name = f"diverge-{runner}"
    spec = spec_of(
        bins,
        name=name,
        model={"trainable": "all", "optimizer": "sgd", "schedule": "constant", "epochs": 3, "batch_size": 16},
        space={"lr": [0.001, 900.0], "backbone": ["efficientnet_lite0"]},
        search={"sampler": "grid", "stopping": "none"},
    )
    result = sweep(spec, tmp_path, runner, server)
    assert "space" in result.ended_by
    assert [t.settings.lr for t in result.leaderboard] == [0.001]
    assert [t.settings.lr for t in result.failed] == [900.0] and "nan" in result.failed[0].reason.lower()
    _, trials = children(server, name)
    assert sorted(run.info.status for run in trials) == ["FAILED", "FINISHED"]
    study = optuna.load_study(study_name=result.id, storage=f"sqlite:///{result.folder}/study.db")
    assert sorted(trial.state.name for trial in study.trials) == ["COMPLETE", "FAIL"]


@pytest.mark.integration
def test_large_trials_get_more_than_the_others(bins: Path, server: str, tmp_path: Path) -> None:
    """Two kinds of workers share two cores, where a large one has room only without a small one."""
    large: dict[str, Any] = {"when": {"batch_size": [16]}, "cpus_per_trial": min(2, cores())}
    spec = spec_of(
        bins,
        name="mixed",
        model={"backbone": "efficientnet_lite0", "epochs": 3},
        space={"batch_size": [8, 16]},
        resources={"overrides": large},
        search={"sampler": "grid", "stopping": "none"},
        budget={"trials": 2},
    )
    result = sweep(spec, tmp_path, "ray", server)
    assert not result.failed and len(result.leaderboard) == 2
    _, trials = children(server, "mixed")
    given = {(run.data.params["batch_size"], run.data.tags["cpus"], run.data.tags["gpus"]) for run in trials}
    assert given == {("8", "1", "0"), ("16", f"{large['cpus_per_trial']:g}", "0")}
    course = read_history(result.folder)
    stretches = [one for trial in course.trials for one in trial.intervals]
    assert {one.cpus for one in stretches} == {1.0, float(large["cpus_per_trial"])}
    assert course.cost["cpu_hours"] == sum((one.end - one.start) * one.cpus for one in stretches) / 3600


def test_a_budget_of_minutes_stops_running_trials(bins: Path, server: str, tmp_path: Path) -> None:
    spec = spec_of(bins, name="short", budget={"trials": 500, "minutes": 0.05}, search={"stopping": "none"})
    result = sweep(spec, tmp_path, "local", server)
    assert "budget.minutes" in result.ended_by and 0 < len(result.leaderboard) < 500


def test_mistakes_are_found_before_a_sweep_exists(bins: Path, server: str, tmp_path: Path) -> None:
    cases = [
        ({"space": {**RAW["space"], "batch_size": [8, 16, 4096]}}, "batch_size: up to 4096"),
        ({"resources": {"gpus_per_trial": 64}}, "resources.gpus_per_trial: 64 requested"),
        ({"model": {"weights": "/nowhere/weights.pth"}}, "model.weights: no file"),
        ({"data": {"classes": [1, 40], "image_size": 64}}, "40"),
    ]
    if not torch.cuda.is_available():
        cases.append(({"budget": {"gpu_hours": 1.0}}, "budget.gpu_hours: no trial gets a GPU"))
        unpaid = {"budget": {"money": 1.0}, "resources": {"gpu_hour_price": 3.0}}
        cases.append((unpaid, "budget.money: only GPUs have a price, and no trial gets one"))
    for changes, said in cases:
        with pytest.raises(UserError, match=said):
            sweep(spec_of(bins, **changes), tmp_path, "local", server)
    with pytest.raises(UserError, match="cpus_per_trial: 512 requested"):
        sweep(spec_of(bins, resources={"cpus_per_trial": 512}), tmp_path, "ray", server)
    crowd: dict[str, Any] = {
        "space": {"lr": [0.01], "batch_size": [4096]},
        "resources": {"workers_per_trial": 512},
    }
    with pytest.raises(UserError, match="workers_per_trial: 512 requested, "):
        sweep(spec_of(bins, **crowd), tmp_path, "ray", server)
    pair = {"workers_per_trial": 2}
    with pytest.raises(
        UserError, match="workers_per_trial: 2 requested, --runner local trains in one process"
    ):
        sweep(spec_of(bins, resources=pair), tmp_path, "local", server)
    assert not (tmp_path / "sweeps").exists()


def test_a_sweep_is_found_by_id_and_by_name(tmp_path: Path) -> None:
    for sweep in ("bins-2", "bins-10", "bins-of-9"):
        folder = tmp_path / "sweeps" / sweep
        folder.mkdir(parents=True)
        (folder / "sweep.json").write_text("{}")
    assert find_folder(tmp_path, "bins").name == "bins-10"
    assert find_folder(tmp_path, "bins-2").name == "bins-2"
    with pytest.raises(UserError, match="no sweep 'other'"):
        find_folder(tmp_path, "other")


def test_the_resolved_spec_is_kept_and_valid(swept: tuple[SweepResult, Path, str]) -> None:
    result, _, name = swept
    again = parse_spec(yaml.safe_load((result.folder / "spec.yaml").read_text()))
    assert again.name == name and again.raw == parse_spec(again.raw).raw
