"""The controller over a real study: lost workers, errors, a full disk, pauses, and what a later process takes up."""

import contextlib
import gc
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from untimed import Untimed

import binsweep.search.execution.controller
import binsweep.search.execution.photo_trial
from binsweep.models.health_rules import RULES, HealthFinding, HealthRule
from binsweep.models.levels import Level
from binsweep.models.settings import Settings
from binsweep.models.train import Report, TrainOptions, train
from binsweep.models.training_state import TrainingState
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.health import keep_findings, write_table
from binsweep.search.execution.interrupts import acknowledge_interrupt, interrupt
from binsweep.search.execution.photo_trial import BEST, LAST, run_attempts, run_trial
from binsweep.search.execution.trial import ERROR, ONE_CORE, TrialTask
from binsweep.search.execution.trial_record import TrialRecord
from binsweep.search.spec.parser import parse_spec
from binsweep.search.strategy.base import Decision, Outcome, Record, Strategy, Suggestion, Verdict
from binsweep.search.strategy.factory import StrategyOptions, open_strategy

RAW: dict[str, Any] = {
    "name": "small",
    "data": {"source": "somewhere", "image_size": 64},
    "model": {"backbone": "efficientnet_lite0", "batch_size": 8},
    "space": {"lr": {"low": 1e-4, "high": 0.03, "log": True}, "epochs": [4]},
    "search": {"sampler": "random", "stopping": "none"},
    "budget": {"trials": 4},
}
GOOD = {"train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5}


def opened(folder: Path, health: Mapping[str, str] | None = None, **budget: Any) -> Controller:
    """As a new process finds it."""
    spec = parse_spec({**RAW, "budget": {**RAW["budget"], **budget}, "health": dict(health or {})})
    options = StrategyOptions(spec.space, spec.goal, 4, "random", "none")
    strategy = open_strategy(folder / "study.db", "s", options)
    controller = Controller(spec, strategy, folder, lambda settings: ONE_CORE)
    controller.restore(strategy.trials())
    return controller


class Told:
    """A listener that remembers the epochs."""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, int]] = []

    def trial_started(self, trial: TrialRecord) -> None: ...
    def health_found(self, trial: TrialRecord, found: Sequence[HealthFinding]) -> None: ...
    def trial_suspended(self, trial: TrialRecord, reason: str) -> None: ...
    def trial_ended(self, trial: TrialRecord) -> None: ...
    def epoch_done(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None:
        self.epochs.append((trial.number, epoch))


def started(controller: Controller) -> TrialTask:
    task = controller.next_task()
    assert task is not None
    return task


def test_a_lost_worker_costs_no_trial_unless_it_happens_again_and_again(tmp_path: Path) -> None:
    controller = opened(tmp_path)
    task = started(controller)
    controller.report(task.number, 1, GOOD)
    for _ in range(2):
        controller.lost(task.number, "its worker died")
        assert controller.trials[0].state == "waiting"
        again = started(controller)
        assert (again.number, again.known) == (task.number, 1)
    controller.report(task.number, 2, GOOD)  # it got on: the count begins anew
    for _ in range(2):
        controller.lost(task.number, "its worker died")
        started(controller)
    controller.lost(task.number, "its worker died")
    assert controller.trials[0].state == "failed"
    assert controller.trials[0].reason == "its worker died, 3 times after epoch 2 (out of memory?)"
    assert started(controller).number == 1


def test_what_a_lost_worker_still_says_is_left_to_the_next_one(tmp_path: Path) -> None:
    controller, told = opened(tmp_path), Told()
    controller.listeners.append(told)
    number = started(controller).number
    assert controller.report(number, 1, GOOD)
    controller.lost(number, "its worker died")
    assert not controller.report(number, 2, GOOD)
    assert (controller.trials[number].epochs_done, told.epochs) == (1, [(number, 1)])
    assert started(controller).known == 1
    assert controller.report(number, 2, GOOD) and told.epochs == [(number, 1), (number, 2)]


@pytest.mark.parametrize("moment", ["observe", "epoch_done"])
def test_an_epoch_is_told_and_judged_or_neither_when_an_interrupt_comes(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, told = opened(tmp_path), Told()
    controller.listeners.append(told)
    number = started(controller).number
    place = controller._strategy if moment == "observe" else told
    whole = getattr(place, moment)

    def interrupted(*words: Any) -> Any:
        interrupt()
        return whole(*words)

    monkeypatch.setattr(place, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        controller.report(number, 1, GOOD)
    acknowledge_interrupt()
    assert told.epochs == [(number, 1)]
    (record,) = controller._strategy.trials()
    assert list(record.values) == [1]


def test_an_interrupt_that_a_library_lost_is_raised_again(tmp_path: Path) -> None:
    controller = opened(tmp_path)
    number = started(controller).number
    with contextlib.suppress(KeyboardInterrupt):  # as in a destructor, or in a callback from C
        interrupt()
    with pytest.raises(KeyboardInterrupt):
        controller.report(number, 1, GOOD)
    assert controller.trials[number].epochs_done == 0
    acknowledge_interrupt()
    assert controller.report(number, 1, GOOD)


def test_an_epoch_that_was_told_and_not_judged_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, told = opened(tmp_path), Told()
    controller.listeners.append(told)
    number = started(controller).number

    def killed(*words: Any) -> Any:
        raise SystemError("as when the process dies here")

    monkeypatch.setattr(controller._strategy, "observe", killed)
    with pytest.raises(SystemError):
        controller.report(number, 1, GOOD)
    after = opened(tmp_path)
    after.listeners.append(told)
    assert started(after).known == 0
    after.report(number, 1, GOOD)
    assert told.epochs == [(number, 1), (number, 1)]  # the run log takes it once


def test_three_errors_of_one_kind_in_a_row_halt_the_sweep(tmp_path: Path) -> None:
    controller = opened(tmp_path, trials=20)
    for error in ("ValueError: a", "KeyError: b", "ValueError: c", "ValueError: d"):
        controller.finish(started(controller).number, error)
    task = started(controller)
    controller.report(task.number, 1, GOOD)
    controller.finish(task.number)  # one that works: the others were their own fault
    for error in ("ValueError: e", "ValueError: f"):
        controller.finish(started(controller).number, error)
    assert not controller.suspended
    controller.finish(started(controller).number, "ValueError: g")
    assert controller.next_task() is None
    assert controller.suspended and "ValueError: g" in controller.ended_by


def test_timeouts_and_diverged_trials_halt_nothing(tmp_path: Path) -> None:
    controller = opened(tmp_path, trials=20)
    for _ in range(4):
        controller.finish(started(controller).number, "TimeoutError: budget.trial_minutes")
        assert not controller.report(started(controller).number, 1, {**GOOD, "train_loss": float("nan")})
    assert started(controller).number == 8 and not controller.suspended


def test_a_full_disk_begins_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = opened(tmp_path)
    monkeypatch.setattr("binsweep.search.execution.faults.MIN_FREE_BYTES", 2**62)
    assert controller.next_task() is None
    assert (
        controller.suspended
        and controller.ended_by.startswith("disk: ")
        and str(tmp_path) in controller.ended_by
    )


def test_a_later_process_takes_everything_up(tmp_path: Path) -> None:
    first = opened(tmp_path)
    for _ in range(3):
        started(first)
    first.report(0, 1, {**GOOD, "val_rmse": 1.5})
    first.finish(0)
    first.report(1, 1, {**GOOD, "val_accuracy": 0.7})
    first.report(1, 2, {**GOOD, "val_accuracy": 0.6})
    history = [{**GOOD, "val_accuracy": 0.7, "val_rmse": 1.2}, {**GOOD, "val_accuracy": 0.6}]
    folder = first.trials[1].folder
    folder.mkdir(exist_ok=True)
    TrainingState(2, history, {}, {}, {}, []).save(folder / LAST)

    second = opened(tmp_path)
    ended, running = second.trials[0], second.trials[1]
    assert (ended.state, ended.value, ended.reason) == ("completed", 0.5, "trained to its end")
    assert ended.metrics["val_rmse"] == 1.5 and ended.ended == first.trials[0].ended
    assert (running.state, running.value, running.epoch, running.epochs_done) == ("waiting", 0.7, 1, 2)
    assert running.metrics["val_rmse"] == 1.2
    assert running.settings == first.trials[1].settings
    assert [started(second).number for _ in range(3)] == [1, 2, 3]  # those that ran, before the new one
    assert second.next_task() is None
    assert [trial.number for trial in second.leaderboard()] == [1, 0]
    second.close()
    assert {trial.state for trial in second.trials.values()} == {"completed", "stopped", "failed"}


def test_a_later_process_counts_the_epoch_that_diverged(tmp_path: Path) -> None:
    first = opened(tmp_path, epochs=3)
    started(first)
    assert first.report(0, 1, GOOD)
    assert not first.report(0, 2, {**GOOD, "val_accuracy": math.nan})
    second = opened(tmp_path, epochs=3)
    assert second.trials[0].epochs_done == second.epochs == first.epochs == 2
    started(second)
    assert not second.report(1, 1, GOOD)
    assert second.ended_by == "budget.epochs: all 3 were trained"


def test_a_value_that_an_earlier_process_has_reached_is_the_target(tmp_path: Path) -> None:
    first = opened(tmp_path)
    started(first)
    reached = {**GOOD, "val_accuracy": 0.8}
    first.report(0, 1, reached)
    first.report(0, 2, GOOD)  # killed here, the trial goes on
    second = opened(tmp_path, target=0.7)
    second.repeat([(0, 1, reached), (0, 2, GOOD)])
    assert second.next_task() is None
    assert second.ended_by == "budget.target: val_accuracy reached 0.8"


def test_values_and_ends_count_in_the_order_of_the_run_log(tmp_path: Path) -> None:
    """Not in that of a clock, which may have been wrong."""
    first = opened(tmp_path)
    values = [{**GOOD, "val_accuracy": value} for value in (0.3, 0.2, 0.6)]
    for number, metrics in enumerate(values):
        started(first)
        first.report(number, 1, metrics)
        first.finish(number)
    logged = [entry for number in range(3) for entry in ((number, 1, values[number]), (number, 0, {}))]
    best_last, best_first = opened(tmp_path, no_improvement=2), opened(tmp_path, no_improvement=2)
    best_last.repeat(logged)
    best_first.repeat([*logged[4:], *logged[:4], *logged[:2]])  # an end that was logged twice is one
    assert best_last.next_task() is not None
    assert best_first.next_task() is None and best_first.ended_by.startswith("budget.no_improvement: 2")


def test_what_a_power_cut_took_of_a_resumed_trial_is_taken_in(tmp_path: Path) -> None:
    """The study has lost that the trial went on after its pauses, the run log has not."""

    def opened_auto() -> Controller:
        spec = parse_spec({**RAW, "space": {**RAW["space"], "epochs": [9]}})
        strategy = open_strategy(
            tmp_path / "study.db", "s", StrategyOptions(spec.space, spec.goal, 9, "random")
        )
        controller = Controller(spec, strategy, tmp_path, lambda settings: ONE_CORE)
        controller.restore(strategy.trials())
        return controller

    first = opened_auto()
    for number in (0, 1):
        started(first)
        assert not first.report(number, 1, GOOD) and first.trials[number].state == "paused"
    second = opened_auto()
    epochs = [{**GOOD, "val_accuracy": 0.5 + epoch / 100} for epoch in range(1, 5)]
    second.repeat([(0, 1, GOOD), (1, 1, GOOD), *((1, epoch, epochs[epoch - 1]) for epoch in (2, 3, 4))])
    assert [trial.state for trial in second.trials.values()] == ["paused", "waiting"]
    assert second.trials[1].epochs_done == 4 and second.epochs == 5
    third = opened_auto()
    assert [trial.epochs_done for trial in third.trials.values()] == [1, 4]
    assert third.trials[1].value == 0.54
    assert started(third).number == 1


@dataclass
class Pausing(Untimed):
    """A strategy that pauses its one trial at epoch 2 and takes it up again."""

    told: list[tuple[Any, ...]]

    def suggest(self, begin: bool = True) -> Suggestion | None:
        return Suggestion(0, {"lr": 0.01, "epochs": 4}, "why not", 2 if self.told else 0)

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        self.told.append((number, epoch))
        return Verdict(Decision.PAUSE if epoch == 2 else Decision.CONTINUE, "others first")

    def finish(self, number: int, outcome: Outcome) -> None:
        self.told.append((number, outcome.state))


def test_a_paused_trial_keeps_its_checkpoint_and_goes_on(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []
    strategy: Strategy = Pausing(told)
    controller = Controller(parse_spec(RAW), strategy, tmp_path, lambda settings: ONE_CORE)
    task = started(controller)
    task.folder.mkdir()
    (task.folder / LAST).write_bytes(b"state")
    assert controller.report(0, 1, GOOD) and not controller.report(0, 2, GOOD)
    controller.finish(0)  # its worker is free: that ends nothing
    assert controller.trials[0].state == "paused" and (task.folder / LAST).exists()
    assert started(controller).known == 2 and len(controller.trials) == 1
    assert controller.report(0, 3, GOOD)
    controller.finish(0)
    assert told == [(0, 1), (0, 2), (0, 3), (0, "completed")]
    assert not (task.folder / LAST).exists()


def record(number: int, state: Any) -> Record:
    return Record(number, state, {"lr": 0.01, "epochs": 4}, 0.5, 1, {1: 0.5})


def test_what_is_still_paused_at_the_end_is_stopped(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []
    controller = Controller(parse_spec(RAW), Pausing(told), tmp_path, lambda settings: ONE_CORE)
    controller.restore([record(0, "paused"), record(1, "completed")])
    controller.ended_by = "budget.trials: all"
    controller.close()
    assert told == [(0, "stopped")] and "budget.trials" in controller.trials[0].reason


@pytest.fixture
def task(tmp_path: Path, trial_data: TrialData) -> TrialTask:
    settings = parse_spec(RAW).trial_settings({"lr": 0.01, "epochs": 3}, seed=0)
    return TrialTask(
        0, (Level(settings, trial_data.image_size),), tmp_path / "trial", "val_accuracy", "maximize", 1
    )


FULL = torch.OutOfMemoryError("CUDA out of memory")


def give_memory_for(enough: int, monkeypatch: pytest.MonkeyPatch, error: Exception = FULL) -> None:
    """The memory suffices for batches cut into `enough` parts."""

    def limited(settings: Settings, data: TrialData, report: Report, options: TrainOptions) -> None:
        if options.micro_batches < enough:
            raise error
        train(settings, data, report, options)

    monkeypatch.setattr(binsweep.search.execution.photo_trial, "train", limited)


def test_out_of_memory_trains_in_smaller_parts(
    task: TrialTask, trial_data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_memory_for(4, monkeypatch)
    sent: list[dict[str, float]] = []
    run_trial(task, trial_data, lambda epoch, metrics: sent.append(metrics) is None)
    assert len(sent) == 3 and {metrics["micro_batches"] for metrics in sent} == {4.0}
    give_memory_for(1024, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        run_trial(task, trial_data, lambda epoch, metrics: True)
    assert (task.folder / ERROR).read_text().startswith("OutOfMemoryError: CUDA out of memory")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        # What one H100 said when pinned memory was asked for: an error of no class of its own.
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
    ids=["python", "cpu", "pinned", "cublas", "cudnn"],
)
def test_whoever_is_out_of_memory_the_batch_is_cut(
    error: Exception, task: TrialTask, trial_data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_memory_for(2, monkeypatch, error)
    sent: list[dict[str, float]] = []
    run_trial(task, trial_data, lambda epoch, metrics: bool(sent.append(metrics)))
    assert [metrics["micro_batches"] for metrics in sent] == [2.0] and not (task.folder / ERROR).exists()


def test_another_error_is_not_tried_again(
    task: TrialTask, trial_data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_memory_for(2, monkeypatch, torch.AcceleratorError("CUDA error: device-side assert triggered"))
    with pytest.raises(torch.AcceleratorError, match="assert"):
        run_trial(task, trial_data, lambda epoch, metrics: True)
    assert "device-side assert" in (task.folder / ERROR).read_text()


class Node:
    """Refers to itself, as a trial's objects do to one another: it stays until it is collected."""

    def __init__(self) -> None:
        self.itself = self


def test_out_of_memory_the_failed_attempt_is_gone_before_the_next_one(
    task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[bool] = []
    left: list[weakref.ref[Node]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(left[-1]() is None))

    def train_in(parts: int) -> None:
        assert all(failed() is None for failed in left), "its memory is still in use"
        held = Node()
        left.append(weakref.ref(held))
        if parts < 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    gc.disable()
    try:
        run_attempts(task, train_in)
    finally:
        gc.enable()
    assert given_back == [True, True, True], "also when the trial is over"


def test_a_trial_that_lasts_too_long_ends_behind_an_epoch(task: TrialTask, trial_data: TrialData) -> None:
    late = TrialTask(**{**vars(task), "minutes": 1e-9})
    sent: list[int] = []
    with pytest.raises(TimeoutError, match=r"budget\.trial_minutes"):
        run_trial(late, trial_data, lambda epoch, metrics: sent.append(epoch) is None)
    assert sent == [1] and (task.folder / BEST).exists()


def test_a_trial_sends_what_was_not_known_and_goes_on(task: TrialTask, trial_data: TrialData) -> None:
    whole: list[dict[str, float]] = []
    run_trial(task, trial_data, lambda epoch, metrics: whole.append(metrics) is None)
    (task.folder / LAST).unlink()
    (task.folder / BEST).unlink()

    class Killed(Exception):
        """The driver dies with the second epoch's report on its way."""

    def two(epoch: int, metrics: dict[str, float]) -> bool:
        if epoch == 2:
            raise Killed
        return True

    with pytest.raises(Killed):
        run_trial(task, trial_data, two)
    sent: dict[int, dict[str, float]] = {}
    run_trial(TrialTask(**{**vars(task), "known": 1}), trial_data, lambda e, m: sent.update({e: m}) is None)
    assert list(sent) == [2, 3]
    for epoch in sent:
        assert sent[epoch]["val_loss"] == whole[epoch - 1]["val_loss"]
        assert sent[epoch]["train_loss"] == whole[epoch - 1]["train_loss"]


class Heard:
    """A listener that remembers what rules saw, and how trials ended."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def trial_started(self, trial: TrialRecord) -> None: ...
    def epoch_done(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None: ...
    def trial_suspended(self, trial: TrialRecord, reason: str) -> None: ...
    def trial_ended(self, trial: TrialRecord) -> None: ...

    def health_found(self, trial: TrialRecord, found: Sequence[HealthFinding]) -> None:
        self.found += [(trial.number, finding.rule) for finding in found]


def test_what_a_rule_sees_is_told_once_and_stops_where_the_spec_says_so(tmp_path: Path) -> None:
    controller = opened(tmp_path, health={"overfit": "stop"})
    controller.listeners.append(heard := Heard())
    task = started(controller)
    keep_findings(task.folder, [HealthFinding("confusion", 1, "three for four")])
    assert controller.report(task.number, 1, GOOD)
    keep_findings(
        task.folder, [HealthFinding("overfit", 2, "a wide gap"), HealthFinding("confusion", 2, "again")]
    )
    assert not controller.report(task.number, 2, {**GOOD, "val_loss": 2.0})
    assert heard.found == [(0, "confusion"), (0, "overfit")]
    trial = controller.trials[0]
    assert (trial.state, trial.reason) == ("stopped", "health.overfit: a wide gap")
    again = opened(tmp_path, health={"overfit": "stop"})  # the study has the reason too
    assert again.trials[0].reason == "health.overfit: a wide gap"
    table = write_table(task.folder, {"overfit": HealthRule("stop")}).read_text().splitlines()
    assert "health.overfit,2,a wide gap,stop" in table and "health.confusion,1,three for four,note" in table
    assert len(table) == 1 + len(RULES)


def test_trials_that_learn_alike_are_noted(tmp_path: Path) -> None:
    controller = opened(tmp_path)
    controller.listeners.append(heard := Heard())
    for number in range(2):
        assert controller.report(started(controller).number, 1, GOOD)
        assert controller.report(number, 2, {**GOOD, "val_loss": 1.0 + number})
    assert heard.found == [(1, "similar_across_runs")]
