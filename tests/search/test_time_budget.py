"""A sweep with a budget of minutes: real controller and strategy over a virtual clock and workers."""

import copy
import heapq
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binsweep.models.levels import level_ends
from binsweep.models.settings import Settings
from binsweep.models.training_work import INFLUENCE
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.resources import TrialResources
from binsweep.search.execution.trial import ONE_CORE, TrialTask
from binsweep.search.execution.trial_record import TrialRecord
from binsweep.search.spec.parser import parse_spec
from binsweep.search.strategy.factory import StrategyOptions, open_strategy
from binsweep.search.workflows.strategy_options import strategy_options

SPEC: dict[str, Any] = {
    "name": "bins",
    "data": {"source": "./bins"},
    "space": {
        "trainable": ["head", "last_stage", "all"],
        "lr": {"low": 1.0e-4, "high": 1.0e-1, "log": True},
        "batch_size": {"low": 16, "high": 256, "log": True},
    },
    "model": {"epochs": 9},
    "budget": {"minutes": 60},
}
START_SECONDS = 4.0


class Clock:
    """Stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5000.0
        for module in ("budget", "controller"):
            monkeypatch.setattr(f"binsweep.search.execution.{module}.time.monotonic", lambda: self.now)


class Sweep:
    """Workers that take the time of each configuration, with some noise."""

    def __init__(self, raw: dict[str, Any], folder: Path, clock: Clock, path: Path | None = None) -> None:
        self.spec, self.clock = parse_spec(raw), clock
        search = self.spec.search
        options = StrategyOptions(
            self.spec.space,
            self.spec.goal,
            self.spec.max_epochs,
            search.sampler,
            search.stopping,
            search.seed,
            sections=self.spec.level_epochs,
            influence=INFLUENCE,
        )
        self.strategy = open_strategy(path, "bins", options)
        self.controller = Controller(self.spec, self.strategy, folder, lambda settings: ONE_CORE)
        self.controller.restore(self.strategy.trials())
        self.rng = np.random.default_rng(search.seed)
        self.begun: list[float] = []

    def level(self, task: TrialTask, epoch: int) -> tuple[Settings, int]:
        """The settings of the section that an epoch is in, and its number in it."""
        *earlier, last = task.sections
        for level in earlier:
            if epoch <= level.settings.epochs:
                return level.settings, epoch
            epoch -= level.settings.epochs
        return last.settings, epoch

    def level_of(self, trial: TrialRecord) -> str:
        """What a trial was training in its last epoch."""
        ends = level_ends(trial.levels)
        place = next(i for i, end in enumerate(ends) if trial.epochs_done <= end)
        return trial.levels[place].settings.trainable

    def epoch_seconds(self, task: TrialTask, epoch: int) -> float:
        settings, _ = self.level(task, epoch)
        part = {"head": 0.5, "last_stage": 12.0, "all": 60.0}[settings.trainable]
        return part * (16 / settings.batch_size) ** 0.2 * math.exp(0.05 * self.rng.normal())

    def value(self, task: TrialTask, epoch: int) -> float:
        settings, epoch = self.level(task, epoch)
        part = {"head": 0.3, "last_stage": 0.36, "all": 0.42}[settings.trainable]
        away = abs(math.log10(task.sections[-1].settings.lr) + 2.5)
        return part - 0.05 * away - 0.1 / epoch

    def run(self, workers: int, until: float = math.inf) -> float:
        """The seconds until the sweep was over."""
        started, free, order = self.clock.now, workers, 0
        events: list[tuple[float, int, int, TrialTask]] = []
        while True:
            while free and (task := self.controller.next_task()) is not None:
                free, order = free - 1, order + 1
                self.begun.append(self.clock.now - started)
                end = self.clock.now + START_SECONDS + self.epoch_seconds(task, task.known + 1)
                heapq.heappush(events, (end, order, task.known + 1, task))
            if not events or events[0][0] - started > until:
                return self.clock.now - started
            self.clock.now, _, epoch, task = heapq.heappop(events)
            value, number = self.value(task, epoch), task.number
            metrics = {"val_accuracy": value, "val_loss": 1.0, "train_loss": 1.0}
            if not self.controller.report(number, epoch, metrics):
                free += 1
            elif epoch == self.controller.trials[number].last_epoch:
                self.controller.finish(number)
                free += 1
            else:
                order += 1
                end = self.clock.now + self.epoch_seconds(task, epoch + 1)
                heapq.heappush(events, (end, order, epoch + 1, task))


@pytest.mark.parametrize(
    ("sampler", "stopping", "workers"),
    [
        ("auto", "auto", 2),
        ("auto", "none", 1),
        ("random", "auto", 1),
        ("random", "asha", 2),
        ("tpe", "none", 2),
        ("random", "none", 4),
    ],
)
def test_a_sweep_ends_with_its_time_and_every_training_that_counts_with_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, stopping: str, workers: int
) -> None:
    """An epoch takes 0.3 to 60 s, a training 3 to 540 s; the budget are 60 minutes, and no number of trials."""
    raw = copy.deepcopy(SPEC) | {"search": {"sampler": sampler, "stopping": stopping}}
    sweep = Sweep(raw, tmp_path, Clock(monkeypatch))
    seconds = sweep.run(workers)
    controller = sweep.controller
    assert seconds == pytest.approx(3600, rel=0.05), controller.ended_by
    assert "budget.minutes" in controller.ended_by
    cut = [trial for trial in controller.trials.values() if "sweep was over" in trial.reason]
    assert not cut, "a training was cut in the middle of its schedule"
    leader = controller.leaderboard()[0]
    assert leader.state == "completed"
    short = [trial for trial in controller.trials.values() if trial.settings.epochs < 4]
    assert len(short) <= (workers + 1 if sampler == "auto" else len(controller.trials) / 10)


def test_a_length_that_is_searched_is_chosen_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = copy.deepcopy(SPEC) | {"search": {"stopping": "none"}}
    raw["space"] |= {"epochs": {"low": 4, "high": 30}}
    del raw["model"]
    sweep = Sweep(raw, tmp_path, Clock(monkeypatch))
    assert sweep.run(2) == pytest.approx(3600, rel=0.05)
    for trial in sweep.controller.trials.values():
        assert trial.params["epochs"] == trial.planned_epochs
        assert trial.last_epoch in (trial.planned_epochs, trial.epochs_done)


@pytest.mark.integration
def test_time_is_kept_for_the_promotion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(copy.deepcopy(SPEC), tmp_path, Clock(monkeypatch))
    sweep.controller.reserve = lambda controller: 900.0
    assert sweep.run(2) == pytest.approx(2700, rel=0.05)
    sweep.controller.next_task()
    assert "for the promotion" in sweep.controller.ended_by or "in time" in sweep.controller.ended_by


def test_a_trial_that_turns_out_slow_is_shortened_and_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, with nothing known before: its first epoch shows that only a part of its training fits."""
    raw = copy.deepcopy(SPEC) | {"budget": {"minutes": 5}, "search": {"stopping": "none"}}
    raw["space"]["trainable"] = ["all"]
    raw["space"]["batch_size"] = [16]
    sweep = Sweep(raw, tmp_path, Clock(monkeypatch))
    assert sweep.run(1) == pytest.approx(300, rel=0.2)
    trial = sweep.controller.trials[0]
    assert trial.state == "completed" and 3 <= trial.last_epoch < 9
    assert trial.planned_epochs == 9 and "shortened from 9" in trial.resumed
    record = sweep.strategy.trials()[0]
    assert record.last_epoch == trial.last_epoch


def test_a_budget_of_less_than_a_training_has_trainings_of_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine epochs of a minute in five minutes: what was tried before says so, and no learning rate stays high."""
    raw = copy.deepcopy(SPEC) | {"budget": {"minutes": 5}, "search": {"stopping": "none"}}
    raw["space"] |= {"trainable": ["all"], "batch_size": [16, 32]}
    sweep = Sweep(raw, tmp_path, Clock(monkeypatch))
    sweep.strategy.assume_seconds({"trainable": "all", "batch_size": 16, "lr": 0.01}, 60.0)
    assert sweep.run(2) == pytest.approx(300, rel=0.25)
    trials = sweep.controller.trials.values()
    assert len(trials) == 2, "what is left after them is too little for another one"
    for trial in trials:
        assert trial.state == "completed" and trial.last_epoch in (4, 5), trial.reason


def test_a_resumed_sweep_keeps_the_clock_the_costs_and_the_shortened_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    raw = copy.deepcopy(SPEC) | {"search": {"seed": 3}}
    first = Sweep(raw, tmp_path, clock, tmp_path / "study.db")
    first.run(2, until=3000)
    known = first.strategy.training_seconds()
    second = Sweep(raw, tmp_path, clock, tmp_path / "study.db")
    assert second.strategy.training_seconds() == pytest.approx(known)
    for number, trial in first.controller.trials.items():
        assert second.controller.trials[number].last_epoch == trial.last_epoch


def test_cheap_trials_come_first_where_costs_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an hour, whole backbones alone would be seven trainings."""
    sweep = Sweep(copy.deepcopy(SPEC), tmp_path, Clock(monkeypatch))
    sweep.run(1)
    trained = [trial.settings.trainable for trial in sweep.controller.trials.values()]
    assert len(trained) > 20 and trained.count("all") >= 2


def test_gpus_are_a_clock_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = copy.deepcopy(SPEC) | {"budget": {"gpu_hours": 1.0}, "resources": {"gpu_hour_price": 3.0}}
    sweep = Sweep(raw, tmp_path, Clock(monkeypatch))
    half = TrialResources({"CPU": 1.0, "GPU": 0.5})
    sweep.controller._trial_resources = lambda settings: half
    assert sweep.run(2) == pytest.approx(3600, rel=0.05)
    assert "budget.gpu_hours" in sweep.controller.ended_by


LADDER = {
    **{key: value for key, value in SPEC.items() if key not in ("space", "model")},
    "space": {name: value for name, value in SPEC["space"].items() if name not in ("trainable", "epochs")},
    "fidelity": {"trainable": ["head", "last_stage", "all"], "epochs": [10, 4, 5]},
}


@pytest.mark.timeout(900)  # eight workers begin hundreds of trials
@pytest.mark.parametrize(
    ("sampler", "stopping", "workers"),
    [
        pytest.param("auto", "auto", 2, marks=pytest.mark.integration),
        pytest.param("auto", "auto", 8, marks=pytest.mark.night),
        pytest.param("tpe", "auto", 2, marks=pytest.mark.night),
        ("random", "none", 2),
        ("tpe", "asha", 1),
    ],
)
def test_trainings_in_sections_end_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, stopping: str, workers: int
) -> None:
    raw = copy.deepcopy(LADDER) | {"search": {"sampler": sampler, "stopping": stopping}}
    sweep = Sweep(raw, tmp_path, Clock(monkeypatch))
    assert sweep.run(workers) == pytest.approx(3600, rel=0.05), sweep.controller.ended_by
    trials = sweep.controller.trials.values()
    cut = [trial for trial in trials if "the sweep was over" in trial.reason]
    assert not cut, [(trial.epochs_done, trial.last_epoch, trial.reason, trial.params) for trial in cut]
    leader = sweep.controller.leaderboard()[0]
    assert leader.state == "completed" and leader.epochs_done > 14, "it was trained through all sections"
    if stopping == "auto":
        reached = [sum(trial.epochs_done >= end for trial in trials) for end in (10, 14, 19)]
        assert reached[0] > 1.5 * reached[1] > 1.5 * reached[2], f"more are tried cheaply: {reached}"


@pytest.mark.integration
def test_a_resumed_sweep_keeps_the_times_of_each_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, raw = Clock(monkeypatch), copy.deepcopy(LADDER) | {"search": {"seed": 3}}
    first = Sweep(raw, tmp_path, clock, tmp_path / "study.db")
    first.run(2, until=3000)
    second = Sweep(raw, tmp_path, clock, tmp_path / "study.db")
    assert second.strategy.training_seconds() == pytest.approx(first.strategy.training_seconds())
    for number, trial in first.controller.trials.items():
        assert second.controller.trials[number].last_epoch == trial.last_epoch
        ours, theirs = (sweep.strategy.training_seconds(number, 12) for sweep in (first, second))
        assert ours == pytest.approx(theirs, rel=0.1)


GRID = {"lr": [1e-3, 1e-2, 1e-1], "batch_size": [16, 64]}


@pytest.mark.parametrize("base", [SPEC, LADDER], ids=["one level", "levels"])
@pytest.mark.parametrize("stopping", ["auto", "none"])
def test_a_grid_is_gone_through_and_what_is_left_of_the_time_is_for_its_paused_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: dict[str, Any], stopping: str
) -> None:
    """All trainings of the grid take 32 to 59 minutes."""
    raw = copy.deepcopy(base) | {"search": {"sampler": "grid", "stopping": stopping}}
    raw["space"] |= GRID
    raw["budget"] = {"minutes": 100}
    sweep = Sweep(raw, tmp_path, Clock(monkeypatch))
    sweep.run(1)
    trials = sweep.controller.trials.values()
    assert len(trials) == (6 if base is LADDER else 18)
    assert {trial.state for trial in trials} == {"completed"}
    assert sweep.controller.ended_by == "space: every configuration was tried"


def test_a_grid_with_too_little_time_ends_with_the_time_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = copy.deepcopy(SPEC) | {"search": {"sampler": "grid"}, "budget": {"minutes": 40}}
    raw["space"] |= GRID
    sweep = Sweep(raw, tmp_path, Clock(monkeypatch))
    assert sweep.run(1) == pytest.approx(2400, rel=0.05)
    states = [trial.state for trial in sweep.controller.trials.values()]
    assert len(states) == 18 and "paused" in states, "all of them were tried, and some wait"
    assert sweep.controller.ended_by.startswith("budget.minutes: 40")


class GuessedSweep(Sweep):
    """On few photos a head's epoch is mostly overhead: by the first guess, one of the whole network takes 15 times as
    long as it does."""

    def __init__(self, raw: dict[str, Any], folder: Path, clock: Clock) -> None:
        super().__init__(raw, folder, clock)
        self.strategy = open_strategy(None, "bins", strategy_options(self.spec))
        self.controller = Controller(self.spec, self.strategy, folder, lambda settings: ONE_CORE)

    def epoch_seconds(self, task: TrialTask, epoch: int) -> float:
        settings, _ = self.level(task, epoch)
        return {"head": 0.3, "last_stage": 2.0, "all": 6.0}[settings.trainable]


@pytest.mark.parametrize("base", [SPEC, LADDER], ids=["one level", "levels"])
@pytest.mark.parametrize(
    ("sampler", "stopping"), [("auto", "auto"), ("grid", "auto"), ("random", "none"), ("grid", "none")]
)
def test_a_mere_guess_of_what_nobody_has_tried_does_not_end_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: dict[str, Any], sampler: str, stopping: str
) -> None:
    raw = copy.deepcopy(base) | {"search": {"sampler": sampler, "stopping": stopping}}
    raw["budget"] = {"minutes": 4}
    if sampler == "grid":
        raw["space"] |= GRID
    sweep = GuessedSweep(raw, tmp_path, Clock(monkeypatch))
    seconds, controller = sweep.run(1), sweep.controller
    assert seconds == pytest.approx(240, rel=0.25), controller.ended_by
    assert len(controller.trials) > 4
    trained = {sweep.level_of(trial) for trial in controller.trials.values()}
    assert "all" in trained, "the last level was reached"
