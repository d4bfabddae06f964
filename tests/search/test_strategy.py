"""Conformance: what every strategy keeps to, over every sampler and stopping rule, on a real SQLite file."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from binsweep.data.errors import UserError
from binsweep.search.spec.space import Choice, Dimension, Range, SearchSpace
from binsweep.search.strategy.base import Decision, Outcome, Suggestion
from binsweep.search.strategy.earlier_sweeps import FirstGuesses, InitialPoint
from binsweep.search.strategy.factory import StrategyOptions, open_strategy
from binsweep.search.strategy.freeze_thaw import MIN_FULL_TRIALS, SKIP_RUNGS_FROM
from binsweep.search.strategy.optuna_strategy import OptunaStrategy
from binsweep.search.strategy.study_storage import StudyStorage
from binsweep.search.strategy.trial_pool import ETA

EPOCHS = 9
SPACE: dict[str, Dimension] = {
    "backbone": Choice(("small", "large")),
    "lr": Range(0.1, 0.4, step=0.1),
    "epochs": Range(5, EPOCHS),
    "depth": Range(1, 3, when=(("backbone", ("large",)),)),
}
SAMPLERS = ["tpe", "random", "grid", "cmaes", "auto"]
STOPPINGS = ["asha", "median", "none", "auto"]
every_strategy = pytest.mark.parametrize(
    ("sampler", "stopping"),
    # Each sampler with `auto`, each stopping rule with `random`; the others at night.
    [
        *(
            pytest.param(
                sampler,
                stopping,
                marks=() if stopping == "auto" or sampler == "random" else pytest.mark.night,
            )
            for sampler in SAMPLERS
            for stopping in STOPPINGS
        ),
        ("gp", "auto"),  # one of its four suffices: a Gaussian process of Optuna's takes seconds
    ],
)


def opened(home: Path, sampler: Any = "random", stopping: Any = "none", **changes: Any) -> OptunaStrategy:
    settings: dict[str, Any] = {"space": SPACE, "goal": "maximize", "max_epochs": EPOCHS} | changes
    settings["space"] = SearchSpace(settings["space"])
    options = StrategyOptions(sampler=sampler, stopping=stopping, **settings)
    return open_strategy(home / "deep" / "study.db", "s", options)


def stored(home: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials as another process would read them from the file."""
    url = f"sqlite:///{home / 'deep' / 'study.db'}"
    return optuna.load_study(study_name="s", storage=url).trials


def value_of(params: dict[str, Any], epoch: int) -> float:
    return epoch * (1.0 if params["backbone"] == "large" else 0.5) - (params["lr"] - 0.2) ** 2


def run_trial(strategy: OptunaStrategy, suggestion: Suggestion) -> list[Decision]:
    decisions = []
    for epoch in range(suggestion.epochs_done + 1, suggestion.params["epochs"] + 1):
        verdict = strategy.observe(suggestion.number, epoch, value_of(suggestion.params, epoch))
        decisions.append(verdict.decision)
        if verdict.decision is Decision.PAUSE:
            return decisions
        if verdict.decision is Decision.STOP:
            break
    strategy.finish(suggestion.number, Outcome("completed"))
    return decisions


def run_sweep(strategy: OptunaStrategy, trials: int) -> list[dict[str, Any]]:
    seen = []
    for _ in range(trials):
        suggestion = strategy.suggest()
        assert suggestion is not None
        run_trial(strategy, suggestion)
        seen.append(suggestion.params)
    return seen


def end_sweep(strategy: OptunaStrategy) -> None:
    for record in strategy.trials():
        strategy.finish(record.number, Outcome("stopped", "the sweep is over"))


@every_strategy
def test_suggestions_lie_in_the_space_and_say_why(tmp_path: Path, sampler: str, stopping: str) -> None:
    strategy = opened(tmp_path, sampler, stopping)
    begun = 0
    while begun < 12:
        suggestion = strategy.suggest()
        assert suggestion is not None
        if suggestion.epochs_done == 0:
            assert suggestion.number == begun
            begun += 1
        assert suggestion.reason
        assert suggestion.params["backbone"] in ("small", "large")
        assert ("depth" in suggestion.params) == (suggestion.params["backbone"] == "large")
        assert suggestion.params.get("depth", 1) in (1, 2, 3)
        assert round(suggestion.params["lr"], 9) in (0.1, 0.2, 0.3, 0.4)
        assert suggestion.params["epochs"] in range(5, EPOCHS + 1)
        run_trial(strategy, suggestion)
    assert [t.user_attrs["suggested_because"] for t in stored(tmp_path)] == [
        record.suggested_because for record in strategy.trials()
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_repeats_the_same_sweep(tmp_path: Path, sampler: str) -> None:
    first = run_sweep(opened(tmp_path / "a", sampler, "asha", seed=3), 13)
    assert first == run_sweep(opened(tmp_path / "b", sampler, "asha", seed=3), 13)
    assert first[:3] != run_sweep(opened(tmp_path / "c", sampler, "asha", seed=4), 3)


@every_strategy
def test_a_reopened_sweep_goes_on_as_if_never_closed(tmp_path: Path, sampler: str, stopping: str) -> None:
    whole = run_sweep(opened(tmp_path / "a", sampler, stopping), 13)
    first = run_sweep(opened(tmp_path / "b", sampler, stopping), 7)
    reopened = opened(tmp_path / "b", sampler, stopping)
    assert first + run_sweep(reopened, 6) == whole
    assert reopened.trials() == opened(tmp_path / "b", sampler, stopping).trials()


@every_strategy
def test_every_end_reaches_the_study_with_its_reason(tmp_path: Path, sampler: str, stopping: str) -> None:
    strategy = opened(tmp_path, sampler, stopping)
    run_sweep(strategy, 18)
    end_sweep(strategy)
    trials = stored(tmp_path)
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert (TrialState.PRUNED in {t.state for t in trials}) == (stopping != "none")
    for trial in trials:
        assert trial.user_attrs["ended_because"]
        last = max(trial.intermediate_values)
        assert sorted(trial.intermediate_values) == list(range(1, last + 1))
        if trial.state is TrialState.PRUNED:
            assert last < trial.params["epochs"], "a stop at the last epoch saves nothing"
        else:
            assert last == trial.params["epochs"]
            assert trial.value == max(trial.intermediate_values.values())
            assert trial.intermediate_values[trial.user_attrs["best_epoch"]] == trial.value


@pytest.mark.parametrize(("goal", "best_epoch"), [("maximize", 2), ("minimize", 3)])
def test_a_completed_trial_is_worth_its_best_epoch(tmp_path: Path, goal: str, best_epoch: int) -> None:
    strategy = opened(tmp_path, goal=goal)
    suggestion = strategy.suggest()
    assert suggestion is not None
    for epoch, value in enumerate([0.5, 0.9, 0.1, 0.9, 0.1], start=1):
        strategy.observe(suggestion.number, epoch, value)
    strategy.finish(suggestion.number, Outcome("completed"))
    value = {2: 0.9, 3: 0.1}[best_epoch]
    trial = stored(tmp_path)[0]
    assert (trial.state, trial.value, trial.user_attrs["best_epoch"]) == (
        TrialState.COMPLETE,
        value,
        best_epoch,
    )
    assert strategy.best() == (0, value, suggestion.params)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@every_strategy
def test_a_broken_value_stops_and_fails_the_trial(
    tmp_path: Path, sampler: str, stopping: str, value: float
) -> None:
    strategy = opened(tmp_path, sampler, stopping)
    suggestion = strategy.suggest()
    assert suggestion is not None
    before = {} if stopping == "auto" else {1: 0.5}  # auto would pause it at its first epoch
    for epoch in before:
        strategy.observe(0, epoch, before[epoch])
    verdict = strategy.observe(0, len(before) + 1, value)
    assert (verdict.decision, verdict.reason) == (Decision.STOP, f"value is {value}")
    strategy.finish(0, Outcome("stopped", "told to"))
    trial = stored(tmp_path)[0]
    assert trial.state is TrialState.FAIL
    assert trial.user_attrs["ended_because"] == f"value is {value}"
    assert trial.intermediate_values == before
    assert strategy.best() is None


@pytest.mark.parametrize("sampler", ["tpe", "auto"])
def test_what_breaks_a_limit_is_remembered_and_no_longer_proposed(tmp_path: Path, sampler: str) -> None:
    ranges: dict[str, Dimension] = {name: Range(0.0, 1.0) for name in "xyz"}
    space = ranges | {"backbone": Choice(("small", "large"))}
    strategy = opened(tmp_path, sampler, "none", space=space)
    late = []
    for turn in range(40):
        suggestion = strategy.suggest()
        assert suggestion is not None
        large = suggestion.params["backbone"] == "large"  # the better one, if it were not too slow
        strategy.observe(suggestion.number, 1, 2.0 if large else suggestion.params["x"])
        if large:
            strategy.finish(suggestion.number, Outcome("stopped", "too slow", violation=0.5))
            continue
        for epoch in range(2, EPOCHS + 1):
            strategy.observe(suggestion.number, epoch, suggestion.params["x"])
        strategy.finish(suggestion.number, Outcome("completed"))
        late.append(turn)
    assert len([turn for turn in late if turn >= 20]) > 12, "by chance 10 of 20"
    again = opened(tmp_path, sampler, "none", space=space)
    assert again.trials() == strategy.trials()
    infeasible = [record for record in again.trials() if not record.feasible]
    assert infeasible and {record.state for record in infeasible} == {"stopped"}
    best = again.best()
    assert best is not None and best[2]["backbone"] == "small"


def fronts(path: Path | None, noted: bool) -> OptunaStrategy:
    """A sweep in which the large network is better and costs more; with `noted`, the strategy knows of costs."""
    space: dict[str, Dimension] = {"x": Range(0.0, 1.0), "backbone": Choice(("small", "large"))}
    strategy = open_strategy(path, "s", StrategyOptions(SearchSpace(space), "maximize", EPOCHS))
    while (suggestion := strategy.suggest(begin=len(strategy.trials()) < 40)) is not None:
        large = suggestion.params["backbone"] == "large"
        for epoch in range(suggestion.epochs_done + 1, EPOCHS + 1):
            if noted:
                strategy.note_cost(suggestion.number, 9.0 if large else 1.0)
            value = epoch / EPOCHS + large - 3 * abs(suggestion.params["x"] - (0.2 if large else 0.8))
            if strategy.observe(suggestion.number, epoch, value).decision is Decision.PAUSE:
                break
        else:
            strategy.finish(suggestion.number, Outcome("completed"))
    return strategy


def test_where_costs_are_known_the_whole_front_is_searched_and_trained_to_its_end(tmp_path: Path) -> None:
    def small(strategy: OptunaStrategy) -> list[Any]:
        return [record for record in strategy.trials() if record.params["backbone"] == "small"]

    without, strategy = small(fronts(None, noted=False)), fronts(tmp_path / "study.db", noted=True)
    assert len(small(strategy)) > len(without), "the value alone leads to the large ones"
    best = max(small(strategy), key=lambda record: record.value)
    assert best.state == "completed" and best.value > 0.9
    costs = [
        trial.user_attrs["cost"]
        for trial in optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'study.db'}").trials
    ]
    assert set(costs) == {1.0, 9.0}


@pytest.mark.parametrize("state", ["completed", "stopped", "failed"])
def test_a_trial_without_a_value_fails(tmp_path: Path, state: Any) -> None:
    strategy = opened(tmp_path)
    strategy.suggest()
    strategy.finish(0, Outcome(state))
    assert [record.state for record in strategy.trials()] == ["failed"]
    assert strategy.trials()[0].ended_because


def test_repeated_late_and_unknown_reports_change_nothing(tmp_path: Path) -> None:
    strategy = opened(tmp_path)
    suggestion = strategy.suggest()
    assert suggestion is not None
    strategy.observe(0, 2, 0.5)
    for epoch in (2, 1, 0, -1, suggestion.params["epochs"] + 1):
        assert strategy.observe(0, epoch, 0.9).decision is Decision.CONTINUE
    assert strategy.observe(7, 1, 0.5).decision is Decision.STOP
    strategy.finish(7, Outcome("completed"))
    strategy.finish(0, Outcome("completed"))
    strategy.finish(0, Outcome("failed", "twice"))
    assert strategy.observe(0, 3, 0.9).decision is Decision.STOP
    assert [(t.value, t.intermediate_values) for t in stored(tmp_path)] == [(0.5, {2: 0.5})]


def test_a_runner_may_stop_a_trial_for_its_own_reason(tmp_path: Path) -> None:
    strategy = opened(tmp_path)
    strategy.suggest()
    strategy.observe(0, 1, 0.5)
    strategy.finish(0, Outcome("stopped", "the sweep's time was over"))
    trial = stored(tmp_path)[0]
    assert (trial.state, trial.user_attrs["ended_because"]) == (
        TrialState.PRUNED,
        "the sweep's time was over",
    )


def test_leftovers_of_a_dead_process_go_on(tmp_path: Path) -> None:
    dead = opened(tmp_path)
    for _ in range(2):
        dead.suggest()
    dead.observe(1, 1, 0.5)
    assert [t.state for t in stored(tmp_path)] == [TrialState.RUNNING] * 2
    strategy = opened(tmp_path)
    assert [record.state for record in strategy.trials()] == ["running"] * 2
    strategy.observe(1, 1, 0.9)  # known already
    strategy.observe(1, 2, 0.6)
    strategy.finish(1, Outcome("completed"))
    assert stored(tmp_path)[1].intermediate_values == {1: 0.5, 2: 0.6}
    assert [t.state for t in stored(tmp_path)] == [TrialState.RUNNING, TrialState.COMPLETE]
    suggestion = strategy.suggest()
    assert suggestion is not None
    assert suggestion.number == 2


def run_workers(strategy: OptunaStrategy, events: int) -> list[tuple[int, int]]:
    """Two workers in turn; what each was given: (trial, epochs done)."""
    given: list[tuple[int, int]] = []
    for _ in range(events):
        suggestion = strategy.suggest()
        assert suggestion is not None
        given.append((suggestion.number, suggestion.epochs_done))
        run_trial(strategy, suggestion)
    return given


def test_auto_goes_on_with_paused_trials_and_remembers_them_when_reopened(tmp_path: Path) -> None:
    # 70 events are more than the four trainings' worth of epochs after which the model plans.
    whole = run_workers(opened(tmp_path / "a", "auto", "auto"), 70)
    first = opened(tmp_path / "b", "auto", "auto")
    given = run_workers(first, 55)
    reopened = opened(tmp_path / "b", "auto", "auto")
    assert [r.state for r in reopened.trials()] == [r.state for r in first.trials()]
    assert given + run_workers(reopened, 15) == whole
    assert any(done for _, done in whole) and any(done == 0 for _, done in whole[55:])
    records = reopened.trials()
    assert {"paused", "completed"} <= {record.state for record in records}
    for record in records:
        assert sorted(record.values) == list(range(1, len(record.values) + 1)), (
            "no epoch twice, none left out"
        )
    end_sweep(reopened)
    assert {t.state for t in stored(tmp_path / "b")} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_a_trial_that_had_gone_on_when_its_process_died_runs_still(tmp_path: Path) -> None:
    strategy = opened(tmp_path, "random", "auto")
    for _ in range(3):  # three are paused at their first rung, so one may go on
        suggestion = strategy.suggest()
        assert suggestion is not None and suggestion.epochs_done == 0
        for epoch in range(1, EPOCHS):
            if strategy.observe(suggestion.number, epoch, 0.1).decision is Decision.PAUSE:
                break
    again = strategy.suggest()
    assert again is not None and again.epochs_done > 0
    states = [record.state for record in opened(tmp_path, "random", "auto").trials()]
    assert states.pop(again.number) == "running"
    assert states == ["paused", "paused"]


@pytest.mark.parametrize("sampler", ["random", "auto", "tpe"])
def test_where_no_trial_may_begin_the_leading_one_is_trained_to_its_end(tmp_path: Path, sampler: str) -> None:
    strategy = opened(tmp_path, sampler, "auto")
    for _ in range(9):
        suggestion = strategy.suggest()
        assert suggestion is not None
        run_trial(strategy, suggestion)
    begun = len(strategy.trials())
    while (suggestion := strategy.suggest(begin=False)) is not None:
        assert suggestion.epochs_done > 0
        run_trial(strategy, suggestion)
    records = strategy.trials()
    assert len(records) == begun
    best = strategy.best()
    assert best is not None and records[best[0]].state == "completed"
    assert "paused" in {record.state for record in records}, "not every trial earns its whole training"


@pytest.mark.parametrize("sampler", ["random", "auto", "tpe", "gp"])
def test_what_an_earlier_sweep_found_counts_but_is_no_trial_of_this_one(tmp_path: Path, sampler: str) -> None:
    space: dict[str, Dimension] = {"x": Range(0.0, 1.0)}
    first = opened(tmp_path / "a", "random", "none", space=space)
    for _ in range(20):
        suggestion = first.suggest()
        assert suggestion is not None
        for epoch in range(1, EPOCHS + 1):
            first.observe(suggestion.number, epoch, -abs(suggestion.params["x"] - 0.7))
        first.finish(suggestion.number, Outcome("completed"))
    second = opened(tmp_path / "b", sampler, "none", space=space)
    results = [("a", record) for record in first.trials()]
    points = [InitialPoint({"x": 0.25}), InitialPoint({"x": 0.75}, "one of the best of b")]
    second.warm_start(FirstGuesses(points, results))
    assert second.trials() == [] and second.best() is None
    told = [second.suggest(), second.suggest()]
    assert [suggestion and suggestion.params["x"] for suggestion in told] == [0.25, 0.75]
    reasons = ["initial point 1 of 2", "initial point 2 of 2: one of the best of b"]
    assert [suggestion and suggestion.reason for suggestion in told] == reasons
    again = opened(tmp_path / "b", sampler, "none", space=space)
    again.warm_start(FirstGuesses([], results))  # known already
    assert [record.number for record in again.trials()] == [20, 21]
    third = again.suggest()
    assert third is not None and third.number == 22
    if sampler in ("auto", "tpe", "gp"):
        assert abs(third.params["x"] - 0.7) < 0.2, "a model that has seen 20 trials knows where to look"


def test_several_workers_get_different_configurations(tmp_path: Path) -> None:
    strategy = opened(tmp_path, "auto", "none", space={"x": Range(0.0, 1.0)})
    for _ in range(8):
        suggestion = strategy.suggest()
        assert suggestion is not None
        for epoch in range(1, EPOCHS + 1):
            verdict = strategy.observe(suggestion.number, epoch, -abs(suggestion.params["x"] - 0.7))
            assert verdict.decision is Decision.CONTINUE, "nothing stops or pauses"
        strategy.finish(suggestion.number, Outcome("completed"))
    together = [strategy.suggest() for _ in range(8)]
    points = sorted(suggestion.params["x"] for suggestion in together if suggestion)
    assert min(b - a for a, b in itertools.pairwise(points)) > 0.02


def test_a_grid_tries_every_point_once_and_ends(tmp_path: Path) -> None:
    space = {"a": Choice(("x", "y")), "b": Range(1, 3)}
    strategy = opened(tmp_path, "grid", space=space)
    points = []
    while (suggestion := strategy.suggest()) is not None:
        points.append((suggestion.params["a"], suggestion.params["b"]))
        state = "failed" if len(points) == 2 else "completed"  # a failed point is not tried again
        strategy.finish(suggestion.number, Outcome(state))  # type: ignore[arg-type]
    assert sorted(points) == [("x", 1), ("x", 2), ("x", 3), ("y", 1), ("y", 2), ("y", 3)]


def test_a_grid_has_one_point_for_what_differs_only_in_what_is_not_searched_there(tmp_path: Path) -> None:
    space = {"a": Choice(("x", "y")), "b": Range(1, 3, when=(("a", ("y",)),))}
    strategy = opened(tmp_path, "grid", space=space)
    points = []
    while (suggestion := strategy.suggest()) is not None:
        points.append(tuple(suggestion.params.values()))
        strategy.finish(suggestion.number, Outcome("completed"))
    assert sorted(points) == [("x",), ("y", 1), ("y", 2), ("y", 3)]


def test_a_reopened_grid_goes_on_where_it_was(tmp_path: Path) -> None:
    space = {"a": Choice(("x", "y"))}
    first = opened(tmp_path, "grid", space=space).suggest()
    strategy = opened(tmp_path, "grid", space=space)
    second, third = strategy.suggest(), strategy.suggest()
    assert first and second and third is None
    assert {first.params["a"], second.params["a"]} == {"x", "y"}


def test_a_grid_without_end_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"space\.lr"):
        opened(tmp_path, "grid", space={"lr": Range(0.1, 0.2)})
    with pytest.raises(UserError, match="100,000 points"):
        opened(tmp_path, "grid", space={"n": Range(0, 10**12)})


def test_another_goal_or_space_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).suggest()
    with pytest.raises(UserError, match="maximize, but got minimize"):
        opened(tmp_path, goal="minimize")
    with pytest.raises(UserError, match=r"space\.lr"):
        opened(tmp_path, space=SPACE | {"lr": Range(0.1, 0.5, step=0.1)})


def test_a_file_that_is_no_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "study.db").write_text("not a database" * 100)
    with pytest.raises(UserError, match=r"study\.db") as caught:
        opened(tmp_path)
    assert "--new" in caught.value.hint  # a sweep without its study would mix two histories


def picks(strategy: OptunaStrategy, trials: int) -> list[dict[str, Any]]:
    """What a strategy tries where one arm is good and x is best at 0.7."""
    picked = []
    for _ in range(trials):
        suggestion = strategy.suggest()
        assert suggestion is not None
        value = {"good": 1.0, "bad": 0.5, "worse": 0.0}[suggestion.params["arm"]]
        strategy.observe(suggestion.number, 1, value - abs(suggestion.params["x"] - 0.7))
        strategy.finish(suggestion.number, Outcome("completed"))
        picked.append(suggestion.params)
    return picked


def test_auto_finds_the_best_choice_and_the_best_of_a_range(tmp_path: Path) -> None:
    space = {"x": Range(0.0, 1.0), "arm": Choice(("good", "bad", "worse"))}
    strategy = opened(tmp_path, "auto", "none", space=space, max_epochs=1)
    picked = picks(strategy, 25)
    assert sum(p["arm"] == "good" for p in picked[5:]) > 10, "by chance a third of 20"
    best = strategy.best()
    assert best is not None and best[1] > 0.97


def test_cmaes_moves_to_where_the_good_values_are(tmp_path: Path) -> None:
    space = {"x": Range(0.0, 1.0), "y": Range(0.0, 1.0), "arm": Choice(("good",))}
    late = picks(opened(tmp_path, "cmaes", space=space, max_epochs=1), 70)[50:]
    assert sum(abs(p["x"] - 0.7) < 0.2 for p in late) > 15, "by chance 8 of 20"


def test_later_trials_go_straight_to_a_trainings_end_also_when_reopened(tmp_path: Path) -> None:
    space: dict[str, Dimension] = {"x": Range(0.0, 1.0), "y": Range(0.0, 1.0)}

    def value(params: dict[str, Any], epoch: int) -> float:
        return epoch - 9 * abs(params["x"] - 0.7)

    strategy = opened(tmp_path, "auto", "auto", space=space)
    trained, full, late, resumed = 0, 0, [], 0
    for turn in range(90):
        suggestion = strategy.suggest()
        assert suggestion is not None
        if trained >= SKIP_RUNGS_FROM * EPOCHS and full >= MIN_FULL_TRIALS:
            resumed += suggestion.epochs_done > 0
            late.append(suggestion.number)
        for epoch in range(suggestion.epochs_done + 1, EPOCHS + 1):
            if turn % 16 == 0 and epoch == suggestion.epochs_done + 2:
                strategy = opened(tmp_path, "auto", "auto", space=space)  # in the midst of a trial
            verdict = strategy.observe(suggestion.number, epoch, value(suggestion.params, epoch))
            trained += 1
            if verdict.decision is Decision.PAUSE:
                break
        else:
            full += 1
            strategy.finish(suggestion.number, Outcome("completed"))
    straight = [record for record in strategy.trials() if "of its final value" in record.suggested_because]
    assert {record.number for record in straight} <= set(late)
    # Where its model would try a configuration again, a paused trial may go on instead.
    assert len(straight) > 0.7 * len(late) and resumed < 0.3 * len(late) and len(late) > 15
    waiting = [record for record in straight if record.state != "completed"]
    assert waiting and all((record.state, record.epoch) == ("paused", EPOCHS // ETA) for record in waiting)
    farther = np.median([abs(record.params["x"] - 0.7) for record in waiting])
    assert farther > np.median([abs(r.params["x"] - 0.7) for r in straight if r not in waiting])
    assert sum(abs(record.params["x"] - 0.7) < 0.1 for record in straight) > len(straight) / 2


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_models_learn_where_the_good_values_are(tmp_path: Path, sampler: str) -> None:
    space = {"x": Range(0.0, 1.0), "arm": Choice(("good", "bad", "worse"))}
    strategy = opened(tmp_path, sampler, space=space, max_epochs=1)
    picked = picks(strategy, 50)
    late = picked[25:]
    assert sum(p["arm"] == "good" for p in late) > 15
    assert sum(abs(p["x"] - 0.7) < 0.2 for p in late) > 15


def test_no_trial_is_stopped_at_its_own_last_epoch(tmp_path: Path) -> None:
    strategy = opened(tmp_path, stopping="median", space={"x": Range(0.0, 1.0)}, max_epochs=2)
    for number in range(6):
        strategy.suggest()
        strategy.observe(number, 1, 1.0)
        assert strategy.observe(number, 2, 1.0).decision is Decision.CONTINUE
    strategy.suggest()
    assert strategy.observe(6, 2, 0.0).decision is Decision.CONTINUE


def test_stored_values_are_optunas_own(tmp_path: Path) -> None:
    """They are written past Optuna's ORM, and read by it: also what is not finite, and a value that is replaced."""
    storage = StudyStorage(tmp_path / "deep" / "study.db", "s", "maximize")
    for _ in range(2):
        storage.add_point({}, {}, {})
    values = {1: 0.5, 2: math.inf, 3: -math.inf, 4: 1e-300, 7: 2.0}
    for epoch, value in {**values, 1: 9.0}.items():
        storage.report(1, epoch, value)
    storage.report(1, 1, values[1])
    storage.report(0, 1, math.nan)
    first, second = stored(tmp_path)
    assert second.intermediate_values == values == storage.trials()[1].intermediate_values
    assert math.isnan(first.intermediate_values[1])

    storage.close(1, TrialState.COMPLETE, 2.0, {})
    with pytest.raises(UpdateFinishedTrialError):
        storage.report(1, 8, 3.0)
    assert stored(tmp_path)[1].intermediate_values == values
