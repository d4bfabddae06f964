"""The examples run as they are, with smaller budgets."""

import json
from pathlib import Path

import pytest
from real_sweeps import run_here, runs_of

from binsweep.search.spec.parser import load_spec
from binsweep.search.workflows.preflight import check_before_start
from binsweep.tracking.registry.versions import champion_of

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", sorted(folder.name for folder in EXAMPLES.iterdir() if folder.is_dir()))
def test_an_example_learns(name: str, server: str, tmp_path: Path) -> None:
    spec = EXAMPLES / name / "sweep.yaml"
    loaded = load_spec(spec)
    assert loaded.budget.trials == 20
    check_before_start(loaded, runner="local")
    where = {"BINSWEEP_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": server}
    small = ["--runner", "local", "--set", "budget.trials=3", "--set", "search.sampler=random"]
    small += ["--set", "fidelity.epochs=4"]
    done = run_here("sweep", spec, *small, **where)
    assert done.returncode == 0, done.stderr
    parent, trials = runs_of(server, loaded.name)
    assert parent.info.status == "FINISHED" and len(trials) == 3
    assert {run.info.status for run in trials.values()} == {"FINISHED"}
    best = max(run.data.metrics["best_val_accuracy"] for run in trials.values())
    assert best > 0.5, "chance is 0.1"


@pytest.mark.integration
def test_a_model_of_own_code_is_champion_and_its_equal_is_not(server: str, tmp_path: Path) -> None:
    where = {"BINSWEEP_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": server}
    small = ["--runner", "local", "--set", "name=promoted-digits", "--set", "budget.trials=2", "--json"]
    small += ["--set", "fidelity.epochs=3", "--set", "register.finalists=1", "--set", "register.seeds=1"]
    done = run_here("sweep", EXAMPLES / "sklearn_digits" / "sweep.yaml", *small, "--promote", **where)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)["promotion"]
    assert first["promoted"] and first["version"] == "1" and first["unit"] == "rows"
    assert first["candidate"]["accuracy"] > 0.5 > first["guess"]["accuracy"]
    rules = {rule["name"]: rule for rule in first["rules"]}
    assert rules["served as evaluated"]["text"] == "32 rows: all answers equal"
    check = run_here("serve", "promoted-digits", "--check", **where)
    assert check.returncode == 0, check.stderr
    assert "version 1: agrees" in check.stdout and "one row over HTTP: p50" in check.stdout
    for command in (
        ("evaluate", "promoted-digits", EXAMPLES),
        ("export", "promoted-digits", "--format", "onnx"),
    ):
        refused = run_here(*command, **where)
        assert refused.returncode == 2 and "is a model of own training code, not of photos" in refused.stderr
    again = run_here("promote", "promoted-digits", "--json", **where)
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout)
    assert not second["promoted"] and second["champion_version"] == "1" and second["decided"] == 2
    assert second["champion"] == second["candidate"] and second["compared"] == second["images"]
    assert champion_of(server, "promoted-digits").version == first["version"]


def test_the_example_of_scikit_learn_is_as_short_as_is_said() -> None:
    text, _, _ = (EXAMPLES / "sklearn_digits" / "train.py").read_text().partition("def predict")
    assert len([line for line in text.splitlines() if line]) <= 25  # what trains, without what is promoted
