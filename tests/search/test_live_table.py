"""The live table is drawn by a thread of its own while the sweep goes on."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from binsweep.search.execution.budget import ResourceUsage
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.trial import ONE_CORE
from binsweep.search.execution.trial_record import TrialRecord
from binsweep.search.recording.live_table import LiveTable, leaderboard_table
from binsweep.search.spec.parser import parse_spec
from binsweep.search.terminal.format import format_duration

RAW: dict[str, Any] = {
    "name": "small",
    "data": {"source": "somewhere"},
    "space": {"lr": {"low": 1e-4, "high": 0.03, "log": True}},
    "budget": {"trials": 40, "minutes": 5.0, "epochs": 100},
}


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    controller = Controller(parse_spec(RAW), None, tmp_path, lambda settings: ONE_CORE)  # type: ignore[arg-type]
    for number in range(3):
        trial = controller._add(number, {"lr": 0.01}, "")
        trial.value = 0.1 * number
    return controller


def test_a_trial_that_begins_while_the_table_is_drawn_does_not_break_it(controller: Controller) -> None:
    """At each look at a trial's state another trial begins, as it does when the threads take turns there."""

    class Growing(TrialRecord):
        @property
        def state(self) -> str:  # type: ignore[override]
            number = len(controller.trials)
            if number < 60:
                controller.trials[number] = controller.trials[0]
            return "running"

        @state.setter
        def state(self, value: str) -> None: ...

    controller.trials[3] = Growing(**vars(controller.trials[2]) | {"number": 3})
    live_table = LiveTable(parse_spec(RAW), controller)
    Console(quiet=True).print(live_table._screen())
    assert live_table._left() is not None and len(controller.trials) > 10


@pytest.mark.parametrize(
    ("budget", "begun", "left"),
    [
        ({"trials": 40}, "3/40 trials", None),  # none has ended
        ({"minutes": 5.0}, "3 trials", 200),
        ({"minutes": 5.0, "gpu_hours": 1.0}, "3 trials", 100),  # half of the GPU time was spent in 100 s
        ({"minutes": 5.0, "money": 4.0}, "3 trials", 33.3),  # of which a GPU hour costs 6
        ({}, "3 trials", None),
    ],
)
def test_the_time_left_is_that_of_the_limit_that_is_used_up_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, Any], begun: str, left: float | None
) -> None:
    raw = {**RAW, "space": {"lr": [0.01, 0.02]}, "search": {"sampler": "grid"}, "budget": budget}
    spec = parse_spec({**raw, "resources": {"gpu_hour_price": 6.0}})
    before = ResourceUsage(seconds=100, gpu_seconds=1800)
    now = time.monotonic()
    monkeypatch.setattr("binsweep.search.execution.budget.time.monotonic", lambda: now)
    controller = Controller(spec, None, tmp_path, lambda settings: ONE_CORE, spent=before)  # type: ignore[arg-type]
    for number in range(3):
        controller._add(number, {"lr": 0.01}, "").state = "running"
    live_table = LiveTable(spec, controller)
    assert live_table._left() == (None if left is None else pytest.approx(left, rel=0.01))
    assert live_table._summary().startswith(f"{begun} | 3 running")
    assert ("time left unknown" in live_table._summary()) == (left is None)


def test_a_warning_that_comes_while_the_table_is_drawn_does_not_break_it(controller: Controller) -> None:
    live_table = LiveTable(parse_spec(RAW), controller)

    class Growing(Counter[str]):
        def __iter__(self) -> Any:
            for rule in super().__iter__():
                self[f"rule {len(self)}"] += len(self) < 9
                yield rule

    live_table._warned = Growing({"overfit": 2})
    assert "overfit in 2" in live_table._summary()


@pytest.mark.parametrize(
    ("budget", "says"), [({"minutes": 5.0}, True), ({"minutes": 5.0, "trials": 40}, False)]
)
def test_how_many_trainings_fit_is_said_where_time_alone_ends_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: dict[str, Any], says: bool
) -> None:
    spec = parse_spec({**RAW, "budget": budget})
    controller = Controller(spec, None, tmp_path, lambda settings: ONE_CORE)  # type: ignore[arg-type]
    controller.training_seconds = lambda number=None: 30.0  # type: ignore[method-assign]
    trial = controller._add(0, {"lr": 0.01}, "")
    live_table = LiveTable(spec, controller)
    live_table.epoch_done(trial, 1, {})
    live_table.epoch_done(trial, 2, {})
    told = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "measured: about 10 trainings of 30 s" in line
    ]
    assert len(told) == says
    assert ("trainings" in live_table._summary()) == says


def test_a_duration_is_never_zero_unless_nothing_took_time() -> None:
    texts = [format_duration(seconds) for seconds in (0.0, 0.04, 0.6, 59.7, 200, 7900)]
    assert texts == ["0 s", "under a second", "1 s", "1 min 00 s", "3 min 20 s", "2 h 11 min"]


def test_the_leaderboard_has_the_level_of_each_trial_and_the_metric_once(tmp_path: Path) -> None:
    levels = {"image_size": [112, 224], "trainable": ["head", "all"], "epochs": [3, 2]}
    spec = parse_spec({**RAW, "fidelity": levels, "objective": {"metric": "val_rmse"}})
    controller = Controller(spec, None, tmp_path, lambda settings: ONE_CORE)  # type: ignore[arg-type]
    trials = [controller._add(number, {"lr": 0.01}, "") for number in range(3)]
    for trial, epochs in zip(trials, (0, 3, 4), strict=True):
        trial.epochs_done = epochs
    table = leaderboard_table(trials, spec, "")
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert list(columns) == ["#", "trial", "val_rmse", "trained", "level", "state", "lr"]
    assert columns["level"] == ["head at 112 px", "head at 112 px", "all at 224 px"]
    plain = leaderboard_table(trials, parse_spec(RAW), "")
    assert [column.header for column in plain.columns][2:4] == ["val_accuracy", "val_rmse"]
