"""An Optuna objective in a sweep, against the same objective in Optuna itself."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from binsweep import Trial, from_optuna
from binsweep.search.own_code.trial import ReportError, TrialEnded, TrialStart
from binsweep.search.spec.space_parser import parse_space


class Sweep:
    """A sweep's side of one trial: what is reported, and after which epoch it ends."""

    def __init__(self, folder: Path, params: dict[str, Any], epochs: int = 5, until: int = 99) -> None:
        self.reported: list[tuple[int, dict[str, float]]] = []
        (folder / "work").mkdir()
        self.folder, self.until = folder, until
        start = TrialStart(4, params, 7, "loss", 1, epochs, folder, None, 1, 0.0)
        self.trial = Trial(start, self._send)

    def _send(self, epoch: int, metrics: dict[str, float], saved: bool) -> bool:
        self.reported.append((epoch, metrics))
        return epoch < self.until

    def run(self, objective: Any) -> list[tuple[int, dict[str, float]]]:
        from_optuna(objective)(self.trial)
        return self.reported


def objective(trial: Any) -> float:
    x = trial.suggest_float("x", -1.0, 1.0)
    n = trial.suggest_int("n", 2, 8, step=2)
    if trial.suggest_categorical("kind", ["linear", "square"]) == "square":
        x = x**2
    loss = 0.0
    for step in range(5):
        loss = n * x / (step + 1)
        trial.report(loss, step)
        if trial.should_prune():
            raise optuna.TrialPruned()
    trial.set_user_attr("steps", 5)
    assert trial.params == {"x": trial.params["x"], "n": n, "kind": trial.params["kind"]}
    return loss


PARAMS = {"x": 0.5, "n": 4, "kind": "square", "another": 1}


def test_an_objective_reports_what_it_does_in_optuna(tmp_path: Path) -> None:
    reported = Sweep(tmp_path, PARAMS).run(objective)
    study = optuna.create_study()
    study.enqueue_trial({name: PARAMS[name] for name in ("x", "n", "kind")})
    study.optimize(objective, n_trials=1)
    expected = study.trials[0].intermediate_values
    assert {epoch - 1: metrics["loss"] for epoch, metrics in reported} == expected
    assert (tmp_path / "artifacts" / "user_attrs.json").read_text() == '{\n "steps": 5\n}'


def test_a_pruned_objective_ends_quietly(tmp_path: Path) -> None:
    assert [epoch for epoch, _ in Sweep(tmp_path, PARAMS, until=2).run(objective)] == [1, 2]


def test_an_objective_that_does_not_ask_ends_at_its_next_report(tmp_path: Path) -> None:
    def deaf(trial: Any) -> float:
        for step in range(5):
            trial.report(1.0, step)
        raise AssertionError("it has ended")

    sweep = Sweep(tmp_path, {}, until=2)
    with pytest.raises(TrialEnded):  # which the process of own code takes for the end
        sweep.run(deaf)
    assert len(sweep.reported) == 2


def test_an_objective_that_reports_nothing_gives_its_value(tmp_path: Path) -> None:
    assert Sweep(tmp_path, {}).run(lambda trial: trial.number / 2) == [(1, {"loss": 2.0})]


def test_steps_may_begin_at_one_be_left_out_and_come_twice(tmp_path: Path) -> None:
    def sparse(trial: Any) -> float:
        for step in (1, 3, 3, 5):
            trial.report(step, step)
            assert not trial.should_prune()
        return 0.0

    assert [epoch for epoch, _ in Sweep(tmp_path, {}).run(sparse)] == [1, 3, 5]


SUGGESTIONS = {
    "lr: {low: 1.0e-05, high: 0.1, log: true}": lambda t: t.suggest_float("lr", 1e-5, 1e-1, log=True),
    "momentum: {low: 0.0, high: 1.0, step: 0.25}": lambda t: t.suggest_float("momentum", 0, 1, step=0.25),
    "layers: {low: 1, high: 4}": lambda t: t.suggest_int("layers", 1, 4),
    "width: {low: 32, high: 128, step: 32}": lambda t: t.suggest_int("width", 32, 128, step=32),
    "batch: {low: 8, high: 64, log: true}": lambda t: t.suggest_int("batch", 8, 64, log=True),
    'optimizer: [sgd, "no", "two words", 3, 0.5, true]': lambda t: t.suggest_categorical(
        "optimizer", ["sgd", "no", "two words", 3, 0.5, True]
    ),
}


@pytest.mark.parametrize("line", SUGGESTIONS)
def test_a_name_that_the_space_lacks_is_answered_with_its_line(line: str, tmp_path: Path) -> None:
    suggest = SUGGESTIONS[line]
    with pytest.raises(ReportError, match="which the spec lacks: add to space:") as caught:
        Sweep(tmp_path, {}).run(suggest)
    assert str(caught.value).endswith(f":  {line}")
    # A spec takes the line, and all of its values are what the objective asks for.
    space, problems = parse_space(yaml.safe_load(line))
    assert not problems
    ((name, dimension),) = space.items()
    values = getattr(dimension, "values", None) or [dimension.low, dimension.high]
    for number, value in enumerate(values):
        folder = tmp_path / str(number)
        folder.mkdir()
        suggested: list[Any] = []
        Sweep(folder, {name: value}).run(lambda trial: suggested.append(suggest(trial)) or 1.0)  # noqa: B023
        assert suggested == [value]


@pytest.mark.parametrize(
    ("params", "suggest", "message"),
    [
        ({"lr": 0.5}, lambda t: t.suggest_float("lr", 1e-5, 1e-1, log=True), "lr is 0.5 by the spec"),
        ({"lr": "high"}, lambda t: t.suggest_float("lr", 0.0, 1.0), "lr is 'high' by the spec"),
        ({"m": 0.3}, lambda t: t.suggest_float("m", 0, 1, step=0.25), "m is 0.3 by the spec"),
        ({"n": 2.0}, lambda t: t.suggest_int("n", 1, 4), "n is 2.0 by the spec"),
        (
            {"n": 3},
            lambda t: t.suggest_int("n", 2, 8, step=2),
            "write into space:  n: {low: 2, high: 8, step: 2}",
        ),
        ({"k": "c"}, lambda t: t.suggest_categorical("k", ["a", "b"]), r"write into space:  k: \[a, b\]"),
        ({}, lambda t: t.suggest_categorical("k", [None, "b"]), "None cannot be a choice in a spec"),
        ({}, lambda t: t.suggest_categorical("k", [(1, 2)]), r"\(1, 2\) cannot be a choice in a spec"),
        (
            {},
            lambda t: (1.0, 2.0),
            r"the objective returned \(1.0, 2.0\) \(tuple\), not the number that is loss",
        ),
        ({}, lambda t: None, r"the objective returned None"),
    ],
)
def test_what_does_not_fit_is_one_message(
    params: dict[str, Any], suggest: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ReportError, match=message):
        Sweep(tmp_path, params).run(suggest)


def test_what_only_a_study_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match=r"trial.study: of an Optuna trial, a sweep has suggest_float"):
        Sweep(tmp_path, {}).run(lambda trial: trial.study.best_value)


def test_pruning_before_a_report_is_a_failure(tmp_path: Path) -> None:
    def impatient(trial: Any) -> float:
        raise optuna.TrialPruned

    with pytest.raises(ReportError, match=r"before trial\.report"):
        Sweep(tmp_path, {}).run(impatient)


def test_an_error_of_an_objective_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Sweep(tmp_path, {}).run(lambda trial: 1 / 0)
