"""A trial of the past: all about it, a spec of it alone, and the same training again."""

import json
import math
from pathlib import Path

import pytest
import yaml
from own_sweeps import TRAIN, code_spec
from real_sweeps import run_here, spec_file
from recorded_sweeps import random_sweep

from binsweep.data.errors import UserError
from binsweep.search.execution.controller import trial_seed
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.spec.parser import parse_spec
from binsweep.search.workflows.rerun import compare_curves, find_trial, spec_of_trial, trial_of


def test_the_spec_of_a_trial_trains_it_with_its_seed(tmp_path: Path) -> None:
    history = read_history(random_sweep(tmp_path / "a-1", 12))
    for trial in history.trials:
        spec = parse_spec(yaml.safe_load(yaml.safe_dump(spec_of_trial(history.spec, trial))))
        assert spec.name == f"recorded-trial-{trial.number}" and spec.budget.trials == 1
        assert {name: spec.space[name].values for name in spec.space} == {
            name: (value,) for name, value in trial.params.items()
        }
        was = history.spec.sections(trial.params, trial_seed(history.spec.search.seed, trial.number))
        assert spec.sections(trial.params, trial_seed(spec.search.seed, 0)) == was
    with pytest.raises(UserError, match="no trial 12"):
        trial_of(history, 12)


@pytest.mark.parametrize(
    ("now", "verdict", "first"),
    [
        ({1: {"loss": 1.0, "score": math.nan}, 2: {"loss": 0.5}}, "equal", None),
        ({1: {"loss": 1.00001, "score": math.nan}, 2: {"loss": 0.5}}, "equal within rounding", None),
        ({1: {"loss": 1.0, "score": math.nan}, 2: {"loss": 0.6}}, "differs", 2),
        ({1: {"loss": 1.0, "score": 1.0}, 2: {"loss": 0.5}}, "differs", 1),
        ({1: {"loss": 1.0, "score": math.nan}}, "equal", None),
    ],
)
def test_curves_are_equal_or_differ_from_an_epoch_on(
    now: dict[int, dict[str, float]], verdict: str, first: int | None
) -> None:
    before = {1: {"loss": 1.0, "score": math.nan}, 2: {"loss": 0.5}, 3: {"loss": 0.4}}
    found = compare_curves("a-1", 0, "b-1", before, now, [])
    assert (found.verdict, found.first, found.epochs) == (verdict, first, len(now))


@pytest.mark.parametrize("place", ["a-1", "a-1/x", "a-1/-1", "/1x", "f" * 32])
def test_what_names_no_trial_is_said(tmp_path: Path, place: str) -> None:
    random_sweep(tmp_path / "sweeps" / "a-1", 1)
    with pytest.raises(UserError, match="names no trial"):
        find_trial(tmp_path, place)


def test_a_trial_of_own_code_is_the_same_again_unless_its_code_is_another(
    server: str, tmp_path: Path
) -> None:
    where = {"BINSWEEP_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": server}
    spec = code_spec(tmp_path / "code", "again", 2)
    assert run_here("sweep", spec, "--runner", "local", **where).returncode == 0
    shown = run_here("trial", "again", "1", **where).stdout
    assert shown.startswith("again-1, trial 1: completed after 12 of 12 epochs") and "begin (" in shown
    found = json.loads(run_here("trial", "again", "1", "--json", **where).stdout)
    assert len(found["metrics"]) == 12 and found["decisions"][-1]["what"] == "completed"
    done = run_here("rerun", "again/1", "--runner", "local", **where)
    assert done.returncode == 0, done.stderr
    assert "equal: every metric of every epoch is the same" in done.stdout

    file = tmp_path / "code" / "train.py"
    file.write_text(file.read_text().replace("0.9 *", "(0.9 if epoch < 5 else 0.8) *"))
    done = run_here("rerun", "again/1", "--runner", "local", "--json", **where)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["first"], found["epochs"]) == ("differs", 5, 12)
    assert any("train.py:train has changed since" in line for line in found["differences"])
    assert TRAIN.count("0.9 *") == 1


@pytest.mark.integration
def test_a_trial_over_photos_is_the_same_again(server: str, bins: Path, tmp_path: Path) -> None:
    where = {"BINSWEEP_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": server}
    spec = spec_file(tmp_path, bins, "photos-again", 2)
    small = ["--runner", "local", "--set", "space.epochs=[3]", "--set", "model.trainable=last_stage"]
    assert run_here("sweep", spec, *small, **where).returncode == 0
    done = run_here("rerun", "photos-again/1", "--runner", "local", **where)
    assert done.returncode == 0, done.stderr
    assert "3 epochs of both are compared" in done.stdout and "equal: every metric" in done.stdout
