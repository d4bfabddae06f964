"""Simulated bad days of a sweep: seeds, a crash at every effect, and mistakes that must be found.

What a seed means may change with this folder, so what was once found is kept as a schedule of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from tests.simulation.plan import Fault, Life, Plan, draw
from tests.simulation.planted import PLANTED
from tests.simulation.shrink import shrink
from tests.simulation.world import Outcome, run

ROOT = Path(__file__).parents[2]
FEW, MANY = 12, 2000
TINY = Plan(0, 2, 2, 0, "random", "none", 1.0, 1, {"trials": 2}, hop=0.1)


def crashed(kind: str, at: int) -> Plan:
    return replace(TINY, lives=(Life((Fault(kind, at),)),))


def require(outcomes: list[Outcome]) -> None:
    broken = [outcome for outcome in outcomes if outcome.problems]
    lines = [f"{outcome.plan}\n" + "\n".join(outcome.problems[:5]) for outcome in broken]
    assert not broken, "\n".join(lines)


def test_some_bad_days_break_no_promise() -> None:
    require([run(draw(seed)) for seed in range(FEW)])


@pytest.mark.parametrize("kind", ["kill", "power"])
def test_a_crash_at_some_effects(kind: str) -> None:
    require([run(crashed(kind, at)) for at in range(5, 260, 60)])


@pytest.mark.parametrize(
    "seed", [1, 12, 19, 58, 118, 142, 794, 2060, 2066, 2108, 2165, 2194, 2300, 20024, 20164]
)
def test_what_a_seed_has_broken_holds(seed: int) -> None:
    """CHANGELOG.md says what it was; with the code before, these seeds still break it."""
    require([run(draw(seed))])


def test_what_an_error_of_the_disk_broke() -> None:
    """The run log could not take an epoch, and the trial had it nevertheless."""
    require([run(crashed("eio", at)) for at in range(110, 135, 5)])


@pytest.mark.parametrize("seed", [0, 2, 9, 13])
def test_what_late_reports_broke(seed: int) -> None:
    """A worker that was declared dead is heard while its trial waits, and another one says everything twice."""
    faults = (Fault("report after death", 1), Fault("report twice", 2), Fault("report after death", 3))
    stopping = ("auto", "asha")[seed % 2]
    plan = Plan(seed, 5, 4, 2 + seed % 2, "random", stopping, 1.0, 1, {"trials": 5}, lives=(Life(faults),))
    require([run(plan)])


@pytest.mark.parametrize("at", [215, 245])
def test_what_was_asked_while_the_last_records_were_sent_had_no_answer(at: int) -> None:
    faults = (Fault("mlflow down", 20, 0.5), Fault("asked", at, 0.55))
    require([run(replace(TINY, lives=(Life(faults),)))])


def test_a_seed_is_the_same_schedule_each_time() -> None:
    assert run(draw(5)).trace == run(draw(5)).trace


@pytest.mark.integration
def test_a_seed_is_the_same_schedule_in_any_process() -> None:
    """With other hashes of strings, too."""
    words = [sys.executable, "-m", "tests.simulation", "--seed", "5"]
    told = []
    for hashes in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert told[0] == told[1] and "trace" in told[0]


def test_a_failing_schedule_is_shrunk_to_what_it_needs() -> None:
    plan = draw(2)
    faults = (Fault("worker hangs", 2, 0.1), Fault("kill", 150), Fault("mlflow slow", 3, 0.2))
    plan = replace(
        plan, trials=4, epochs=3, workers=3, lives=(Life((Fault("eio", 90),)), Life(faults, skew=1.0))
    )

    def fails(candidate: Plan) -> Outcome:
        kills = [fault for fault in candidate.faults() if fault.kind == "kill" and fault.at >= 100]
        return Outcome(candidate, ["a trial is lost"] if kills and candidate.trials > 1 else [])

    found = shrink(plan, fails)
    assert [fault.kind for fault in found.faults()] == ["kill"] and len(found.lives) == 1
    assert (found.trials, found.epochs, found.workers, found.lives[0].faults[0].at) == (2, 1, 0, 100)


def _broken(seeds: range) -> list[str]:
    found = []
    for seed in seeds:
        outcome = run(draw(seed))
        if outcome.problems:
            found.append(f"python -m tests.simulation --seed {seed} --shrink: {outcome.problems[0]}")
    return found


@pytest.mark.night
@pytest.mark.timeout(3600)
def test_two_thousand_bad_days(figure: Callable[[str], None]) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = [line for lines in pool.map(_broken, _parts(MANY)) for line in lines]
    figure(f"{MANY:,} simulated bad days: {len(found)} broke a promise")
    assert not found, "\n".join(found)


def _parts(seeds: int, size: int = 50) -> list[range]:
    return [range(at, min(at + size, seeds)) for at in range(0, seeds, size)]


@pytest.mark.night
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["kill", "power", "interrupt"])
def test_a_crash_at_every_effect(kind: str, figure: Callable[[str], None]) -> None:
    at, reached = 0, True
    while reached:
        at += 1
        outcome = run(crashed(kind, at))
        require([outcome])
        reached = bool(outcome.crashes)
    figure(f"{kind} at each of the {at - 1} effects of a sweep of two trials: no promise broken")


@pytest.mark.night
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(mistake: str, figure: Callable[[str], None]) -> None:
    for seed in range(1000):
        outcome = run(draw(seed), PLANTED[mistake])
        if outcome.problems:
            figure(f"{mistake}: found by seed {seed}: {outcome.problems[0]}")
            return
    pytest.fail(f"{mistake} was not found by 1,000 seeds")
