"""Whatever the order of events, nothing is lost, counted twice or left running; on a real SQLite file."""

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from optuna.trial import TrialState

from binsweep.search.spec.space import Choice, Range, SearchSpace
from binsweep.search.strategy import freeze_thaw
from binsweep.search.strategy.asha import rung_epochs
from binsweep.search.strategy.base import Decision, Outcome
from binsweep.search.strategy.factory import StrategyOptions, open_strategy
from binsweep.search.strategy.optuna_strategy import OptunaStrategy

EPOCHS = 9
RUNGS = rung_epochs(1, 3, EPOCHS)
SPACE = SearchSpace(
    {
        "arm": Choice(("a", "b", "c")),
        "x": Range(1, 9),
        "y": Range(1, 2, when=(("arm", ("b", "c")),)),
        "epochs": Range(3, EPOCHS),
    }
)
VALUES = st.one_of(st.floats(-1, 1), st.sampled_from([math.nan, math.inf, -math.inf]))
TIMES = st.sampled_from([None, 0.0, 2.0])
STATES = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


class Sweeps(RuleBasedStateMachine):
    """Runners in every mood: they repeat, reorder, skip, break and die. `told` is what must be remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.params: list[dict[str, Any]] = []
        self.told: list[dict[int, float]] = []
        self.ends: list[int] = []  # the last epoch of each trial
        self.limited = False  # whether a time that is left was named
        self.running: set[int] = set()
        self.paused: set[int] = set()
        self.stopped: dict[int, int] = {}  # the epoch at which the trial was told to stop
        self.broken: set[int] = set()

    @initialize(
        sampler=st.sampled_from(["tpe", "random", "grid", "cmaes", "gp", "auto"]),
        stopping=st.sampled_from(["asha", "median", "none", "auto"]),
        goal=st.sampled_from(["maximize", "minimize"]),
    )
    def begin(self, **kind: Any) -> None:
        self.kind = kind
        self.strategy = self.opened()

    def opened(self) -> OptunaStrategy:
        path = self.home / "study.db"
        return open_strategy(path, "s", StrategyOptions(SPACE, max_epochs=EPOCHS, **self.kind))

    @precondition(lambda self: len(self.params) < 30)
    @rule(count=st.integers(1, 6))
    def suggest(self, count: int) -> None:
        for _ in range(count):
            suggestion = self.strategy.suggest()
            if suggestion is None:
                assert self.limited
                return
            assert suggestion.number not in self.running
            self.running.add(suggestion.number)
            if suggestion.number in self.paused:
                assert suggestion.epochs_done == max(self.told[suggestion.number]) > 0
                if suggestion.last_epoch is not None:
                    assert self.limited
                    assert suggestion.epochs_done < suggestion.last_epoch < self.ends[suggestion.number]
                    self.ends[suggestion.number] = suggestion.last_epoch
                assert suggestion.params == self.params[suggestion.number]
                self.paused.remove(suggestion.number)
                continue
            assert suggestion.number == len(self.params)
            assert suggestion.epochs_done == 0
            assert ("y" in suggestion.params) == (suggestion.params["arm"] in ("b", "c"))
            self.params.append(suggestion.params)
            self.told.append({})
            self.ends.append(suggestion.last_epoch or suggestion.params["epochs"])
            assert 0 < self.ends[-1] <= suggestion.params["epochs"]

    @rule(number=st.integers(0, 40), epoch=st.integers(-1, EPOCHS + 1), value=VALUES)
    def report_anything(self, number: int, epoch: int, value: float) -> None:
        self.report(number, epoch, value)

    @rule(values=st.lists(VALUES, min_size=1, max_size=8))
    def train_all(self, values: list[float]) -> None:
        """Each trial in turn reports its next epoch, and then the same again."""
        for i, number in enumerate(sorted(self.running)):
            epoch = max(self.told[number], default=0) + 1
            for _ in range(2):
                self.report(number, epoch, values[i % len(values)])

    def report(self, number: int, epoch: int, value: float) -> None:
        verdict = self.strategy.observe(number, epoch, value)
        assert verdict.reason
        if number not in self.running:
            assert verdict.decision is (Decision.PAUSE if number in self.paused else Decision.STOP)
            return
        if number in self.stopped:
            assert verdict.decision is Decision.STOP
            return
        told = self.told[number]
        if not max(told, default=0) < epoch <= self.ends[number]:
            assert verdict.decision is Decision.CONTINUE
            return
        if not math.isfinite(value):
            assert verdict.decision is Decision.STOP
            self.broken.add(number)
            self.stopped[number] = epoch
            return
        told[epoch] = value
        if verdict.decision is Decision.PAUSE:
            assert self.kind["stopping"] == "auto"
            assert epoch < self.ends[number]
            self.running.remove(number)
            self.paused.add(number)
        if verdict.decision is Decision.STOP:
            self.stopped[number] = epoch
            assert epoch < self.ends[number]
            assert self.kind["stopping"] not in ("none", "auto")
            assert self.kind["stopping"] != "asha" or epoch in RUNGS

    @rule(number=st.integers(0, 40), seconds=st.sampled_from([0.5, 1.0, 30.0, 0.0, math.nan]), start=TIMES)
    def time_an_epoch(self, number: int, seconds: float, start: float | None) -> None:
        self.strategy.note_seconds(number, seconds, start)

    @rule(seconds=st.sampled_from([-5.0, 0.0, 4.0, 100.0, 1e6]), whole=st.sampled_from([1.0, 200.0, 2e6]))
    def name_the_time_left(self, seconds: float, whole: float) -> None:
        self.strategy.note_time_left(seconds, whole)
        self.limited = True

    @rule(number=st.integers(0, 40))
    def shorten(self, number: int) -> None:
        if number in self.running and (done := max(self.told[number], default=0)) + 1 < self.ends[number]:
            self.strategy.end_at(number, done + 1)
            self.ends[number] = done + 1

    @rule(number=st.integers(0, 40), state=st.sampled_from(["completed", "stopped", "failed"]))
    def finish(self, number: int, state: Any) -> None:
        before = {record.number: record.state for record in self.strategy.trials()}
        self.strategy.finish(number, Outcome(state))
        after = {record.number: record.state for record in self.strategy.trials()}
        if number in self.running:
            if number in self.broken or state == "failed" or not self.told[number]:
                before[number] = "failed"
            else:
                before[number] = "stopped" if number in self.stopped else state
        if number in self.paused:  # it cannot have been trained to its end
            before[number] = "failed" if state == "failed" else "stopped"
            self.paused.remove(number)
        assert after == before
        self.running.discard(number)

    @rule()
    def die_and_come_back(self) -> None:
        remembered, typical = self.strategy.trials(), self.strategy.training_seconds()
        seconds = [self.strategy.training_seconds(number) for number in range(len(remembered))]
        self.strategy, self.limited = self.opened(), False
        assert self.strategy.training_seconds() == pytest.approx(typical)
        assert [self.strategy.training_seconds(number) for number in range(len(remembered))] == pytest.approx(
            seconds
        )
        for old, new in zip(remembered, self.strategy.trials(), strict=True):
            assert new.values == old.values
            assert new.state == old.state
            assert new.last_epoch == old.last_epoch
        for number in self.running:  # what was not written down is judged again at the next epoch
            self.stopped.pop(number, None)
            self.broken.discard(number)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if hasattr(self, "strategy"):
            records = self.strategy.trials()
            assert [record.params for record in records] == self.params
            assert [record.values for record in records] == [dict(sorted(told.items())) for told in self.told]
            assert {r.number for r in records if r.state == "running"} == self.running
            assert {r.number for r in records if r.state == "paused"} == self.paused

    def teardown(self) -> None:
        if hasattr(self, "strategy"):
            for number in sorted(self.running | self.paused):
                self.strategy.finish(number, Outcome("stopped", "the end"))
            self.check_file()
        shutil.rmtree(self.home)

    def check_file(self) -> None:
        """The file says what the strategy says: it, not the process, is the truth."""
        trials = optuna.load_study(study_name="s", storage=f"sqlite:///{self.home / 'study.db'}").trials
        records = self.strategy.trials()
        assert len(trials) == len(records)
        for trial, record in zip(trials, records, strict=True):
            assert trial.number == record.number
            assert trial.state is STATES[record.state]
            assert trial.params == record.params
            assert trial.intermediate_values == record.values
            assert trial.user_attrs["suggested_because"] == record.suggested_because
            assert trial.user_attrs["ended_because"] == record.ended_because != ""
            if record.state == "completed":
                assert trial.value == record.value


@pytest.fixture(autouse=True)
def every_phase_comes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few epochs suffice for `auto` to halve, to plan by its model, and to train straight to the end."""
    monkeypatch.setattr(freeze_thaw, "MODEL_FROM", 1.0)
    monkeypatch.setattr(freeze_thaw, "SKIP_RUNGS_FROM", 2.0)
    monkeypatch.setattr(freeze_thaw, "MIN_FULL_TRIALS", 1)


TestSweeps = Sweeps.TestCase
TestSweeps.settings = settings(
    max_examples=10, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
