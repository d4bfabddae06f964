"""What a new sweep takes of earlier ones, what it does not, and why."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_sweeps import run_here

from binsweep.data.errors import UserError
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.strategy.base import Outcome
from binsweep.search.strategy.factory import StrategyOptions, open_strategy
from binsweep.search.workflows.warm_start import WarmStart, earlier_folders, make_warm_start, read_earlier

RAW: dict[str, Any] = {
    "name": "bins",
    "data": {"source": "."},
    "space": {"lr": {"low": 1e-4, "high": 0.1, "log": True}, "epochs": {"low": 2, "high": 4}},
    "budget": {"trials": 9},
}
LR = {"lr": RAW["space"]["lr"]}
HERE = "the data of today"


def spec_of(**sections: Any) -> SweepSpec:
    return parse_spec({**RAW, **sections})


def swept(home: Path, name: str, trials: int = 8, fingerprint: str = HERE, **sections: Any) -> str:
    """Leave the folder of an earlier sweep, whose trials are the better the nearer lr is to 0.01."""
    spec, folder = spec_of(name=name, **sections), home / "sweeps" / f"{name}-1"
    folder.mkdir(parents=True)
    state = {"id": folder.name, "status": "finished", "spec": spec.raw, "fingerprint": fingerprint}
    (folder / "sweep.json").write_text(json.dumps(state))
    sections = spec.level_epochs
    options = StrategyOptions(spec.space, spec.goal, spec.max_epochs, "random", "none", sections=sections)
    strategy = open_strategy(folder / "study.db", folder.name, options)
    for number in range(trials):
        suggestion = strategy.suggest()
        assert suggestion is not None
        last = suggestion.params.get("epochs", spec.settings.epochs)
        if spec.fidelity.epochs:  # the first half of the trials does not leave the first level
            last = spec.fidelity.epochs[0] if number < trials / 2 else sum(spec.fidelity.epochs)
        for epoch in range(1, last + 1):
            strategy.observe(
                number, epoch, spec.objective.sign * (epoch / 10 - abs(suggestion.params["lr"] - 0.01))
            )
        strategy.finish(number, Outcome("completed"))
    return folder.name


def warm(home: Path, *sweeps: str, **sections: Any) -> WarmStart:
    spec = spec_of(**sections)
    return make_warm_start(read_earlier(earlier_folders(home, sweeps), spec), spec, HERE)


def refusal(home: Path, *sweeps: str, **sections: Any) -> str:
    with pytest.raises(UserError) as refused:
        warm(home, *sweeps, **sections)
    return str(refused.value)


def test_results_on_the_same_data_count_and_others_are_a_prior(tmp_path: Path) -> None:
    same, other = swept(tmp_path, "same", 5), swept(tmp_path, "other", 6, fingerprint="older data")
    found = warm(tmp_path, same, other)
    assert [name for name, _ in found.guesses.results] == [same] * 5
    (prior,) = found.guesses.earlier
    assert (prior.sweep, len(prior.trials), prior.longest) == (other, 6, [4])
    assert not found.guesses.points, "what is known need not be tried"
    assert found.lines == [
        "5 results of same-1 are known",
        "6 trials of other-1 say only where to look first: other data",
    ]


def test_a_trial_of_other_levels_is_described_by_the_level_that_it_has_reached(tmp_path: Path) -> None:
    swept(tmp_path, "levels", 4, fidelity={"trainable": ["head", "all"], "epochs": [3, 2]}, space=LR)
    state = json.loads((tmp_path / "sweeps" / "levels-1" / "sweep.json").read_text())
    assert state["spec"]["fidelity"]["epochs"] == [3, 2]
    space = {**LR, "trainable": ["head", "all"]}
    (earlier,) = read_earlier(earlier_folders(tmp_path, ["levels"]), spec_of(space=space))
    assert [record.params["trainable"] for record, _ in earlier.fitting] == ["head", "head", "all", "all"]
    (same,) = read_earlier(earlier_folders(tmp_path, ["levels"]), parse_spec(state["spec"]))
    assert {settings["trainable"] for _, settings in same.fitting} == {"all"}, "the same climb"


def test_without_a_result_the_best_of_all_sweeps_are_tried_first(tmp_path: Path) -> None:
    names = [
        swept(tmp_path, name, fingerprint=f"data of {name}", search={"seed": seed})
        for seed, name in enumerate("ab")
    ]
    found = warm(tmp_path, *names)
    assert len(found.guesses.earlier) == 2 and not found.guesses.results
    assert [point.reason for point in found.guesses.points][:2] == [
        "one of the best of a-1",
        "one of the best of b-1",
    ]
    best = max(found.guesses.earlier[0].trials, key=lambda trial: trial.best)
    assert found.guesses.points[0].params == best.params
    assert f"the best {len(found.guesses.points)} configurations of a-1, b-1 are tried first" in found.lines


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"data": {"source": ".", "image_size": 96}}, "data.image_size 96"),
        ({"objective": {"metric": "val_loss"}}, "objective.metric val_loss"),
        ({"model": {"batch_size": 64}}, "batch_size 64"),
    ],
)
def test_values_measured_otherwise_do_not_count(
    tmp_path: Path, sections: dict[str, Any], reason: str
) -> None:
    found = warm(tmp_path, swept(tmp_path, "other", **sections))
    assert not found.guesses.results and len(found.guesses.earlier) == 1
    assert found.lines[0] == f"8 trials of other-1 say only where to look first: {reason}"
    trials = found.guesses.earlier[0].trials
    assert trials[0].best == max(trial.best for trial in trials) > 0, "larger is better, whatever the metric"


def test_a_partly_different_space_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    """Trials outside of a range are left out; a setting that the earlier sweep fixed has that value."""
    sweep = swept(tmp_path, "wide", 12, fingerprint="older data", model={"batch_size": 16})
    space = {
        "lr": {"low": 1e-3, "high": 0.1, "log": True},
        "batch_size": [16, 32],
        "epochs": {"low": 2, "high": 4},
    }
    found = warm(tmp_path, sweep, space=space)
    (prior,) = found.guesses.earlier
    assert 0 < len(prior.trials) < 12
    assert all(trial.params["lr"] >= 1e-3 and trial.params["batch_size"] == 16 for trial in prior.trials)
    assert f"{12 - len(prior.trials)} lie outside of the space" in found.lines[0]


def test_other_epochs_are_no_obstacle(tmp_path: Path) -> None:
    space = {"lr": {"low": 1e-4, "high": 0.1, "log": True}}
    sweep = swept(tmp_path, "short", space=space, model={"epochs": 3})
    found = warm(tmp_path, sweep, space=space, model={"epochs": 20})
    assert found.lines[0] == "8 trials of short-1 say only where to look first: epochs 3"
    assert {trial.ends[-1] for trial in found.guesses.earlier[0].trials} == {3}


def test_other_samplers_take_only_the_best_configurations(tmp_path: Path) -> None:
    found = warm(tmp_path, swept(tmp_path, "a", fingerprint="x"), search={"sampler": "tpe"})
    assert found.guesses.points and not found.guesses.earlier
    assert found.lines[-1] == "search.sampler: tpe takes nothing else from them; auto would"


def test_what_cannot_be_used_is_refused_with_its_reason(tmp_path: Path) -> None:
    good, empty = swept(tmp_path, "good"), swept(tmp_path, "empty", trials=0)
    far = swept(tmp_path, "far", space={"lr": [0.5, 0.7]})
    assert "no sweep 'missing'" in refusal(tmp_path, good, "missing")
    assert "good-1 is named 2 times" in refusal(tmp_path, good, "good")
    assert "no trial of empty-1 has a value yet" in refusal(tmp_path, good, empty)
    message = refusal(tmp_path, good, far)
    assert "far-1 has nothing in common with this sweep: all of its 8 trials lie outside" in message
    assert "space.lr (0." in message
    (tmp_path / "sweeps" / good / "study.db").unlink()
    assert "good-1 has no study.db" in refusal(tmp_path, good)
    assert not (tmp_path / "sweeps" / good / "study.db").exists()


def test_the_command_refuses_before_it_reads_any_data(tmp_path: Path) -> None:
    empty = swept(tmp_path, "empty", trials=0)
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump({**RAW, "data": {"source": "synthetic://?images=60"}}))
    done = run_here("sweep", file, "--warm-start", empty, BINSWEEP_HOME=str(tmp_path))
    assert (
        done.returncode == 2 and "empty-1 has a value yet" in done.stderr and "Traceback" not in done.stderr
    )
    assert not (tmp_path / "datasets").exists() and len(list((tmp_path / "sweeps").iterdir())) == 1
