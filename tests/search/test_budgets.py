"""The controller over a scripted strategy: which budget ended the sweep, and trials that are paused and go on."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from search.controller import Controller
from search.spec import parse_spec
from search.strategy import Decision, Outcome, Suggestion, Verdict

SPEC: dict[str, Any] = {
    "name": "bins",
    "data": {"source": "./bins"},
    "model": {"epochs": 3},
    "space": {"lr": [0.1, 0.2]},
    "budget": {"trials": 9},
}


class Scripted:
    """Suggests the given trials in turn; pauses at the given (trial, epoch)."""

    def __init__(self, suggestions: list[Suggestion], pauses: set[tuple[int, int]]) -> None:
        self.suggestions, self.pauses = suggestions, pauses
        self.finished: list[tuple[int, str]] = []

    def suggest(self, begin: bool = True) -> Suggestion | None:
        may = self.suggestions and (begin or self.suggestions[0].epochs_done)
        return self.suggestions.pop(0) if may else None

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        pause = (number, epoch) in self.pauses
        return Verdict(Decision.PAUSE if pause else Decision.CONTINUE, "scripted")

    def finish(self, number: int, outcome: Outcome) -> None:
        self.finished.append((number, outcome.state))


class Heard:
    """A listener that counts."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []
        self.epochs: list[tuple[int, int]] = []

    def trial_started(self, trial: Any) -> None:
        self.started.append(trial.number)

    def epoch_done(self, trial: Any, epoch: int, metrics: dict[str, float]) -> None:
        self.epochs.append((trial.number, epoch))

    def trial_halted(self, trial: Any, reason: str) -> None:
        pass

    def trial_ended(self, trial: Any) -> None:
        self.ended.append(trial.number)


def started(
    folder: Path, suggestions: list[Suggestion], pauses: set[tuple[int, int]] | None = None, **budget: Any
) -> tuple[Controller, Scripted, Heard]:
    raw = copy.deepcopy(SPEC)
    raw["budget"] |= budget
    strategy, heard = Scripted(suggestions, pauses or set()), Heard()
    controller = Controller(parse_spec(raw), strategy, folder, threads=1)
    controller.listeners.append(heard)
    return controller, strategy, heard


def metrics(value: float, loss: float = 1.0) -> dict[str, float]:
    return {"val_accuracy": value, "train_loss": loss, "val_loss": loss}


def fresh(count: int) -> list[Suggestion]:
    return [Suggestion(number, {"lr": 0.1}, "") for number in range(count)]


def test_a_paused_trial_frees_its_worker_and_goes_on_after_its_epoch(tmp_path: Path) -> None:
    again = Suggestion(0, {"lr": 0.1}, "", epochs_done=1)  # a trial tells its first epoch again
    controller, strategy, heard = started(tmp_path, [*fresh(2), again], {(0, 1), (1, 1)})
    tasks = [controller.next_task(), controller.next_task()]
    assert not controller.report(0, 1, metrics(0.5))
    assert not controller.report(1, 1, metrics(0.4))
    assert controller.trials[0].state == "paused" and strategy.finished == []
    controller.finish(0)  # a worker that is freed may say so: that ends nothing
    assert controller.trials[0].state == "paused" and strategy.finished == []
    task = controller.next_task()
    assert task is not None
    assert tasks[0] is not None and task.folder == tasks[0].folder, "its state is there"
    assert task.known == 1
    assert controller.report(0, 1, metrics(0.5))
    assert controller.report(0, 2, metrics(0.6))
    assert controller.report(0, 3, metrics(0.5))
    controller.finish(0)
    controller.close()
    assert strategy.finished == [(0, "completed"), (1, "stopped")]
    assert heard.started == [0, 1, 0]
    assert heard.ended == [0, 1]
    assert controller.epochs == 4
    assert heard.epochs == [(0, 1), (1, 1), (0, 2), (0, 3)], "an epoch told again is no epoch"


@pytest.mark.parametrize(
    ("budget", "values", "ended_by"),
    [
        ({"trials": 2}, [0.1] * 6, "budget.trials: all 2 were started"),
        ({"epochs": 4}, [0.1] * 4, "budget.epochs: all 4 were trained"),
        ({"target": 0.8}, [0.1, 0.2, 0.3, 0.4, 0.8], "budget.target: val_accuracy reached 0.8"),
        ({"no_improvement": 2}, [0.5] + [0.1] * 8, "budget.no_improvement: 2 trials ended without"),
        ({"epochs": 99, "target": 0.9}, [0.1] * 12, "space: every configuration was tried"),
    ],
)
def test_whichever_budget_is_spent_first_ends_the_sweep(
    tmp_path: Path, budget: dict[str, Any], values: list[float], ended_by: str
) -> None:
    controller, strategy, _ = started(tmp_path, fresh(4), **budget)
    told = iter(values)
    trained = 0
    while (task := controller.next_task()) is not None:
        for epoch in (1, 2, 3):
            trained += 1
            if not controller.report(task.number, epoch, metrics(next(told))):
                break
        controller.finish(task.number)
    assert controller.ended_by.startswith(ended_by)
    assert trained == len(values), "the budget ends trials in training too"
    assert len(strategy.finished) == len(controller.trials)


def test_no_improvement_counts_from_the_end_of_the_best_trial(tmp_path: Path) -> None:
    controller, _, _ = started(tmp_path, fresh(4), no_improvement=1)
    for value in (0.1, 0.2):
        assert controller.next_task() is not None
        number = len(controller.trials) - 1
        for epoch in (1, 2, 3):
            controller.report(number, epoch, metrics(value))
        controller.finish(number)
    assert controller.next_task() is not None, "each trial so far was better than all before"


def test_a_broken_value_is_no_improvement(tmp_path: Path) -> None:
    controller, _, _ = started(tmp_path, fresh(1), target=0.5)
    controller.next_task()
    assert controller.report(0, 1, metrics(0.9, loss=math.nan))
    assert controller.ended_by == ""
