"""The simulator: a virtual clock, a budget in epochs, and the command line that compares strategies."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from untimed import Untimed

from binsweep.search.spec.space import Choice
from binsweep.search.strategy.base import Decision, Outcome, Strategy, Suggestion, Verdict
from binsweep.search.strategy.factory import StrategyOptions, open_strategy
from binsweep.search.strategy.simulator import SyntheticTask, simulate

ROOT = Path(__file__).resolve().parents[2]


class Fixed(Untimed):
    """Suggests the given trials in turn and judges every epoch by a given table."""

    def __init__(self, suggestions: list[Suggestion], verdicts: Mapping[tuple[int, int], Decision]) -> None:
        self.suggestions, self.verdicts = suggestions, verdicts
        self.observed: list[tuple[int, int]] = []
        self.finished: list[tuple[int, str]] = []

    def suggest(self) -> Suggestion | None:
        return self.suggestions.pop(0) if self.suggestions else None

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        self.observed.append((number, epoch))
        return Verdict(self.verdicts.get((number, epoch), Decision.CONTINUE), "")

    def finish(self, number: int, outcome: Outcome) -> None:
        self.finished.append((number, outcome.state))


class Known:
    """Trial `t` gets the value t + epoch/10; arm "slow" takes three times as long."""

    space: Mapping[str, Any] = {"arm": Choice(("slow", "fast"))}
    max_epochs = 3
    goal = "maximize"

    def curve(self, params: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        pace = 3.0 if params["arm"] == "slow" else 1.0
        return [params["t"] + epoch / 10 for epoch in (1, 2, 3)], [pace * epoch for epoch in (1, 2, 3)]


def trial(number: int, arm: str = "fast", epochs_done: int = 0) -> Suggestion:
    return Suggestion(number, {"t": number, "arm": arm}, "", epochs_done)


def test_two_workers_finish_epochs_in_the_order_of_the_clock() -> None:
    strategy = Fixed([trial(0, "slow"), trial(1), trial(2)], {})
    steps = simulate(strategy, Known(), workers=2, epochs=7)  # type: ignore[arg-type]
    assert strategy.observed == [(1, 1), (1, 2), (0, 1), (1, 3), (2, 1), (2, 2), (0, 2)]
    assert [step.seconds for step in steps] == [1, 2, 3, 3, 4, 5, 6]
    assert [step.best for step in steps] == [1.1, 1.2, 1.2, 1.3, 2.1, 2.2, 2.2]
    assert steps[-1].number == 2
    assert strategy.finished[0] == (1, "completed")
    assert {(0, "stopped"), (2, "stopped")} <= set(strategy.finished), "what still ran was ended"


def test_a_paused_trial_goes_on_after_its_last_epoch() -> None:
    verdicts = {(0, 1): Decision.PAUSE, (1, 2): Decision.STOP}
    strategy = Fixed([trial(0), trial(1), trial(0, epochs_done=1)], verdicts)
    simulate(strategy, Known(), workers=1, epochs=99)  # type: ignore[arg-type]
    assert strategy.observed == [(0, 1), (1, 1), (1, 2), (0, 2), (0, 3)], "no epoch is trained twice"
    assert strategy.finished[:2] == [(1, "stopped"), (0, "completed")]


def run(seed: int, workers: int) -> tuple[Any, Strategy]:
    task = SyntheticTask(seed)
    options = StrategyOptions(task.space, task.goal, task.max_epochs, "tpe", "asha")
    strategy = open_strategy(None, "s", options)
    return simulate(strategy, task, workers, epochs=200), strategy


def test_a_simulation_repeats_and_leaves_nothing_running() -> None:
    for workers in (1, 4):
        steps, strategy = run(1, workers)
        assert steps == run(1, workers)[0]
        assert [step.epochs for step in steps] == list(range(1, 201))
        records = strategy.trials()  # type: ignore[attr-defined]
        assert {record.state for record in records if record.values} == {"completed", "stopped"}
        in_flight = [record for record in records if not record.values]
        assert {record.state for record in in_flight} <= {"failed"}, "no value, nothing to learn from"
        assert len(in_flight) <= workers
        assert sum(len(record.values) for record in records) == 200


def test_workers_share_the_clock() -> None:
    assert run(1, 4)[0][-1].seconds < 0.5 * run(1, 1)[0][-1].seconds


def test_the_costs_of_the_synthetic_family_spread_as_far_as_asked() -> None:
    cheap = {"lr": 0.01, "batch_size": 512, "weight_decay": 0.01, "dropout": 0.1, "backbone": "narrow"}
    dear = {**cheap, "batch_size": 16, "backbone": "wide"}
    (values, seconds), (_, most) = (
        SyntheticTask(3, cost_ratio=100).curve(params) for params in (cheap, dear)
    )
    assert [seconds[0], most[0]] == [pytest.approx(1.0), pytest.approx(100.0)]
    assert values == SyntheticTask(3).curve(cheap)[0], "costs change no value"


@pytest.mark.integration
def test_the_command_line_tells_the_time_to_the_best_configurations(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "search.py", "--strategies", "random,random+asha"]
    command += ["--seeds", "2", "--budgets", "4", "--clock", "seconds", "--cost-ratio", "100", "--top", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = next(line for line in done.stdout.splitlines() if line.startswith("| random |") and "%" in line)
    assert "| 6 | 100% |" in first, "all of three instances times two seeds got to the better half"
    assert "| 1.00 (1.00 to 1.00) |" in first, "the first strategy is what the others are compared with"


def test_the_command_line_compares_strategies(tmp_path: Path) -> None:
    (tmp_path / "instances.txt").write_text("0\n1\n")
    out = tmp_path / "out.json"
    command = [sys.executable, ROOT / "benchmarks" / "search.py", "--instances", tmp_path / "instances.txt"]
    command += ["--strategies", "random,random+asha", "--seeds", "2", "--budgets", "2,4", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("random+asha") == 1
    rows = json.loads(out.read_text())
    assert len(rows) == 2 * 2 * 2 * 2
    assert set(rows[0]) == {"strategy", "workers", "budget", "instance", "seed", "regret"}
    assert all(row["regret"] >= 0 for row in rows)
    early, late = ([row["regret"] for row in rows if row["budget"] == b] for b in (2, 4))
    assert sum(late) <= sum(early)
    assert json.loads((tmp_path / "out.traces.json").read_text())[0]["trace"][0][0] == 1
