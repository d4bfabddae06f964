"""The controller over a scripted strategy: which budget ended the sweep, and trials that are paused and go on."""

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from untimed import Untimed

from binsweep.search.execution.budget import BudgetTracker, ResourceUsage
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.resources import TrialResources
from binsweep.search.execution.trial import ONE_CORE
from binsweep.search.recording.decision_log import DECISIONS, DecisionLog
from binsweep.search.spec.objective import pareto_front
from binsweep.search.spec.parser import parse_spec
from binsweep.search.strategy.base import Decision, Outcome, Suggestion, Verdict

SPEC: dict[str, Any] = {
    "name": "bins",
    "data": {"source": "./bins"},
    "model": {"epochs": 3},
    "space": {"lr": [0.1, 0.2]},
    "budget": {"trials": 9},
}


class Scripted(Untimed):
    """Suggests the given trials in turn; pauses at the given (trial, epoch)."""

    def __init__(self, suggestions: list[Suggestion], pauses: set[tuple[int, int]]) -> None:
        self.suggestions, self.pauses = suggestions, pauses
        self.finished: list[tuple[int, str]] = []
        self.violations: list[float] = []
        self.costs: list[tuple[int, float]] = []

    def suggest(self, begin: bool = True) -> Suggestion | None:
        may = self.suggestions and (begin or self.suggestions[0].epochs_done)
        return self.suggestions.pop(0) if may else None

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        pause = (number, epoch) in self.pauses
        return Verdict(Decision.PAUSE if pause else Decision.CONTINUE, "scripted")

    def note_cost(self, number: int, cost: float) -> None:
        self.costs.append((number, cost))

    def finish(self, number: int, outcome: Outcome) -> None:
        self.finished.append((number, outcome.state))
        self.violations.append(outcome.violation)


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

    def health_found(self, trial: Any, found: Any) -> None: ...

    def trial_suspended(self, trial: Any, reason: str) -> None:
        pass

    def trial_ended(self, trial: Any) -> None:
        self.ended.append(trial.number)


def started(
    folder: Path, suggestions: list[Suggestion], pauses: set[tuple[int, int]] | None = None, **budget: Any
) -> tuple[Controller, Scripted, Heard]:
    raw = copy.deepcopy(SPEC)
    raw["budget"] |= budget
    strategy, heard = Scripted(suggestions, pauses or set()), Heard()
    controller = Controller(parse_spec(raw), strategy, folder, lambda settings: ONE_CORE)
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
    # One that is told again counts once; the run log hears of it again, as a power cut may have taken it from there.
    assert heard.epochs == [(0, 1), (1, 1), (0, 1), (0, 2), (0, 3)]


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


def test_the_best_trial_is_stopped_and_nothing_begins_once_the_others_have_ended(tmp_path: Path) -> None:
    controller, _, _ = started(tmp_path, fresh(4), no_improvement=2)
    for _ in range(3):
        controller.next_task()
    controller.report(0, 1, metrics(0.5))
    for number in (1, 2):
        controller.report(number, 1, metrics(0.1))
        controller.finish(number)
    assert not controller.report(0, 2, metrics(0.4))
    assert controller.trials[0].reason.startswith("the sweep was over (budget.no_improvement: 2 ")
    assert controller.next_task() is None


def test_a_broken_value_is_no_improvement(tmp_path: Path) -> None:
    controller, _, _ = started(tmp_path, fresh(1), target=0.5)
    controller.next_task()
    assert controller.report(0, 1, metrics(0.9, loss=math.nan))
    assert controller.ended_by == ""


def test_gpu_hours_count_the_time_on_workers_by_the_share_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("binsweep.search.execution.budget.time.monotonic", lambda: now)
    raw = copy.deepcopy(SPEC) | {"budget": {"trials": 9, "gpu_hours": 1.0}}
    strategy = Scripted([*fresh(2), Suggestion(0, {"lr": 0.1}, "", 1)], {(0, 1)})
    half = TrialResources({"CPU": 1.0, "GPU": 0.5})
    controller = Controller(
        parse_spec(raw), strategy, tmp_path, lambda settings: half, spent=ResourceUsage(gpu_seconds=600)
    )
    controller.next_task()
    now += 1000
    assert not controller.report(0, 1, metrics(0.5)), "paused"
    now += 50_000  # nothing runs, nothing is spent
    controller.next_task()
    controller.next_task()
    now += 1000
    assert controller.report(1, 1, metrics(0.5))
    assert controller.spent.gpu_seconds == 600 + 0.5 * (1000 + 2 * 1000)
    now += 2000
    assert not controller.report(0, 2, metrics(0.5))
    assert controller.ended_by == "budget.gpu_hours: 1 are spent"
    assert controller.next_task() is None


def test_money_is_spent_by_the_prices_also_by_earlier_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("binsweep.search.execution.budget.time.monotonic", lambda: now)
    prices = {"cpu_hour_price": 1.0, "gpu_hour_price": 6.0}
    raw = copy.deepcopy(SPEC) | {"budget": {"money": 12}, "resources": prices}
    trial = TrialResources({"CPU": 2.0, "GPU": 0.5})  # 5 an hour
    before = ResourceUsage(cpu_seconds=3600, gpu_seconds=3600)  # 7
    controller = Controller(
        parse_spec(raw), Scripted(fresh(3), set()), tmp_path, lambda settings: trial, spent=before
    )
    assert controller.next_task() is not None
    now += 3500
    assert controller.report(0, 1, metrics(0.5)) and controller.ended_by == ""
    now += 100
    assert not controller.report(0, 2, metrics(0.5))
    assert controller.ended_by == "budget.money: 12 are spent"
    assert controller.next_task() is None


WHOLE, HALF = TrialResources({"CPU": 2.0, "GPU": 1.0}), TrialResources({"CPU": 2.0, "GPU": 0.5})


@pytest.mark.parametrize(
    ("budget", "spent", "running", "left"),
    [
        ({"trials": 9, "epochs": 5, "target": 0.9}, (0, 0, 0), [WHOLE], None),
        ({"minutes": 5.0}, (60, 0, 0), [], 240),
        ({"minutes": 5.0}, (301, 0, 0), [WHOLE], -1),
        ({"gpu_hours": 1.0}, (0, 0, 600), [WHOLE], 3000),
        ({"gpu_hours": 1.0}, (0, 0, 600), [WHOLE, HALF], 2000),
        ({"gpu_hours": 1.0}, (0, 0, 600), [HALF], 6000),
        ({"gpu_hours": 1.0}, (0, 0, 600), [ONE_CORE], None),
        ({"gpu_hours": 1.0}, (0, 0, 3600), [], 0),  # spent, whatever runs
        ({"money": 4.0}, (0, 3600, 0), [ONE_CORE], 3 * 3600),  # 1 an hour
        ({"money": 4.0}, (0, 3600, 0), [WHOLE, HALF], 3 / 13 * 3600),
        ({"money": 4.0}, (0, 3600, 0), [], None),
        ({"money": 4.0}, (0, 0, 3600), [], 0),
        ({"minutes": 60.0, "gpu_hours": 1.0, "money": 100.0}, (0, 0, 1800), [WHOLE], 1800),
        ({"minutes": 20.0, "gpu_hours": 1.0, "money": 100.0}, (0, 0, 1800), [WHOLE], 1200),
        ({"minutes": 20.0, "gpu_hours": 1.0, "money": 4.0}, (0, 0, 1800), [WHOLE], 450),
    ],
)
def test_the_seconds_left_are_those_of_the_first_limit_that_time_spends(
    monkeypatch: pytest.MonkeyPatch,
    budget: dict[str, Any],
    spent: tuple[float, float, float],
    running: list[TrialResources],
    left: float | None,
) -> None:
    now = 1000.0
    monkeypatch.setattr("binsweep.search.execution.budget.time.monotonic", lambda: now)
    prices = {"cpu_hour_price": 1.0, "gpu_hour_price": 6.0}
    spec = parse_spec(copy.deepcopy(SPEC) | {"budget": budget, "resources": prices})
    tracker = BudgetTracker(spec, ResourceUsage(*spent))
    found = tracker.seconds_left(running)
    assert found == (None if left is None else pytest.approx(left))
    assert bool(tracker.exhausted(tracker.usage(running))) == (left is not None and left <= 0)
    if left is not None and left > 0:
        now += left / 3
        assert tracker.seconds_left(running) == pytest.approx(2 / 3 * left), "they have been running since"
        now += left
        assert tracker.seconds_left(running) == pytest.approx(-left / 3)
        assert tracker.exhausted(tracker.usage(running))


def test_without_a_limit_of_trials_another_may_always_begin(tmp_path: Path) -> None:
    raw = copy.deepcopy(SPEC) | {"budget": {"minutes": 60}}
    controller = Controller(parse_spec(raw), Scripted(fresh(30), set()), tmp_path, lambda settings: ONE_CORE)
    for _ in range(30):
        assert controller.next_task() is not None
    assert controller.next_task() is None
    assert controller.ended_by == "space: every configuration was tried"


def test_a_machine_that_sleeps_spends_no_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = copy.deepcopy(SPEC) | {"budget": {"trials": 9, "minutes": 5.0, "gpu_hours": 1.0}}
    whole = TrialResources({"CPU": 1.0, "GPU": 1.0})
    before = ResourceUsage(seconds=200, gpu_seconds=200)
    controller = Controller(
        parse_spec(raw), Scripted(fresh(9), set()), tmp_path, lambda settings: whole, spent=before
    )
    controller.next_task()
    controller.report(0, 1, metrics(0.5))
    awake, wall = time.monotonic(), time.time()
    monkeypatch.setattr("binsweep.search.execution.controller.time.time", lambda: wall + 8 * 3600)
    assert controller.report(0, 2, metrics(0.5)) and controller.ended_by == ""
    assert 200 <= controller.spent.seconds < 260 and 200 <= controller.spent.gpu_seconds < 260
    monkeypatch.setattr("binsweep.search.execution.budget.time.monotonic", lambda: awake + 101)
    assert not controller.report(0, 3, metrics(0.5)) or controller.next_task() is None
    assert controller.ended_by == "budget.minutes: 5 are over"
    assert controller.spent.seconds >= 301


def test_a_clock_that_is_set_back_changes_not_the_order_in_which_trials_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By it a later process counts how many trials ended without a better value."""
    raw = copy.deepcopy(SPEC) | {"budget": {"trials": 9}}
    controller = Controller(parse_spec(raw), Scripted(fresh(9), set()), tmp_path, lambda settings: ONE_CORE)
    wall = time.time()
    for number in range(3):
        controller.next_task()
        controller.report(number, 1, metrics(0.5))
        monkeypatch.setattr(time, "time", lambda number=number: wall - 3600 * number)
        controller.finish(number)
    ended = [controller.trials[number].ended for number in range(3)]
    assert ended == sorted(set(ended))  # type: ignore[type-var]


def test_a_large_trial_waits_for_room_and_none_begins_before_it(tmp_path: Path) -> None:
    def trial_resources(values: Mapping[str, Any]) -> TrialResources:
        return TrialResources({"CPU": 1.0, "GPU": float(values["lr"] > 0.1)})

    def fits(shares: Sequence[TrialResources]) -> bool:
        return (
            sum(resources.cpus for resources in shares) <= 2
            and sum(resources.gpus for resources in shares) <= 1
        )

    suggestions = [Suggestion(number, {"lr": lr}, "why") for number, lr in enumerate([0.2, 0.2, 0.1])]
    strategy, heard = Scripted(suggestions, set()), Heard()
    controller = Controller(parse_spec(SPEC), strategy, tmp_path, trial_resources, fits)
    controller.listeners.append(heard)
    assert controller.next_task() is not None
    assert controller.next_task() is None and controller.trials[1].state == "waiting"
    assert controller.next_task() is None and 2 not in controller.trials and controller.ended_by == ""
    controller.report(0, 1, metrics(0.5))
    controller.finish(0)
    task = controller.next_task()
    assert task is not None and task.number == 1 and task.resources.gpus == 1
    third = controller.next_task()
    assert third is not None and third.number == 2 and controller.trials[1].resumed == ""


def limited(tmp_path: Path, count: int, **objective: Any) -> tuple[Controller, Any]:
    strategy = Scripted(fresh(count), set())
    spec = parse_spec(copy.deepcopy(SPEC) | {"objective": objective})
    return Controller(spec, strategy, tmp_path, lambda settings: ONE_CORE), strategy  # type: ignore[arg-type]


def test_what_breaks_a_limit_is_stopped_at_its_first_epoch_and_is_no_candidate(tmp_path: Path) -> None:
    controller, strategy = limited(tmp_path, 2, max_latency_ms=20.0, max_megabytes=50.0)
    task = controller.next_task()
    assert task is not None and task.costs
    assert not controller.report(0, 1, metrics(0.9) | {"latency_ms": 30.0, "megabytes": 5.0})
    assert controller.trials[0].reason == "objective.max_latency_ms: 30 is above 20"
    controller.next_task()
    assert controller.report(1, 1, metrics(0.1) | {"latency_ms": 20.0, "megabytes": 50.0})
    assert [trial.number for trial in controller.leaderboard()] == [1]
    assert strategy.finished == [(0, "stopped")]
    assert strategy.violations == [0.5]


def test_the_front_holds_what_no_other_trial_beats_in_both(tmp_path: Path) -> None:
    controller, strategy = limited(tmp_path, 5, cost_objective="megabytes")
    for number, (value, size) in enumerate([(0.5, 9.0), (0.4, 9.0), (0.6, 20.0), (0.3, 2.0), (0.3, 2.0)]):
        controller.next_task()
        controller.report(number, 1, metrics(value) | {"latency_ms": 1.0, "megabytes": size})
    front = pareto_front(controller.leaderboard(), lambda trial: trial.metrics.get("megabytes"))
    assert [trial.number for trial in front] == [2, 0, 3]
    assert strategy.costs == [(0, 9.0), (1, 9.0), (2, 20.0), (3, 2.0), (4, 2.0)]


def test_the_decision_log_says_why_for_every_turn_of_a_trial(tmp_path: Path) -> None:
    suggestions = [Suggestion(0, {"lr": 0.1}, "first"), Suggestion(0, {"lr": 0.1}, "rank 1 of 3", 1)]
    controller, _, _ = started(tmp_path, suggestions, {(0, 1)})
    controller.listeners.append(DecisionLog(tmp_path))
    controller.next_task()
    controller.report(0, 1, metrics(0.5))
    controller.next_task()
    controller.lost(0, "its worker died")
    controller.next_task()
    for epoch in (2, 3):
        controller.report(0, epoch, metrics(0.5))
    controller.finish(0)
    lines = [json.loads(line) for line in (tmp_path / DECISIONS).read_text().splitlines()]
    assert [(line["trial"], line["epoch"], line["what"], line["reason"]) for line in lines] == [
        (0, 0, "begin", "first"),
        (0, 1, "pause", "scripted"),
        (0, 1, "go on", "rank 1 of 3"),
        (0, 1, "wait", "its worker died"),
        (0, 1, "go on", "its training was cut short"),
        (0, 3, "completed", "trained to its end"),
    ]
