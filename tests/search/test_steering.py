"""What people ask of a sweep: refused with its reason, or happening once, whatever is killed, and recorded."""

import contextlib
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from own_sweeps import code_spec
from real_sweeps import kill_all, run_here, started, trials_of, wait_for_epochs

import binsweep.search.execution.steering
from binsweep.data.errors import UserError
from binsweep.search.api.sweeps import Sweep
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.trial import ONE_CORE, TrialTask
from binsweep.search.recording.decision_log import DECISIONS, DecisionLog
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.steering.inbox import REQUESTS, post, read_answers, waiting_requests
from binsweep.search.steering.judge import answer_all
from binsweep.search.steering.request import AnsweredRequest, Request
from binsweep.search.steering.state import state_after
from binsweep.search.strategy.base import Outcome
from binsweep.search.strategy.earlier_sweeps import FirstGuesses, InitialPoint
from binsweep.search.strategy.factory import StrategyOptions, open_strategy
from binsweep.search.workflows.steer import parse_configuration, parse_parts

WHO = "ana@host"
RAW: dict[str, Any] = {
    "name": "small",
    "trainer": "train.py:train",
    "space": {
        "lr": {"low": 1e-3, "high": 1.0, "log": True},
        "layers": {"low": 2, "high": 8, "step": 2},
        "optimizer": ["sgd", "adam", "lion"],
        "momentum": {"low": 0.0, "high": 0.9, "when": {"optimizer": ["sgd"]}},
    },
    "objective": {"metric": "score", "goal": "maximize"},
    "fidelity": {"epochs": 9},
    "search": {"sampler": "random", "stopping": "none"},
    "budget": {"trials": 6},
}
ADAM = {"lr": 0.1, "layers": 4, "optimizer": "adam"}


@dataclass(frozen=True)
class OneTrial:
    params: dict[str, Any]
    state: str
    epochs_done: int
    reason: str = ""


TRIALS = {0: OneTrial(ADAM, "running", 3), 1: OneTrial(ADAM, "completed", 9, "trained to its end")}


def spec_with(**changes: Any) -> SweepSpec:
    return parse_spec({**RAW, **changes})


def opened(folder: Path, sampler: str = "random", stopping: str = "none", **budget: Any) -> Controller:
    """As a new process finds it, with its decision log."""
    search = {"sampler": sampler, "stopping": stopping}
    spec = spec_with(search=search, budget=budget or RAW["budget"])
    strategy = open_strategy(folder / "study.db", "s", StrategyOptions(spec.space, spec.goal, 9, **search))  # type: ignore[arg-type]
    controller = Controller(spec, strategy, folder, lambda settings: ONE_CORE)
    controller.restore(strategy.trials())
    log = DecisionLog(folder)
    log.catch_up(controller.answers)
    controller.listeners.append(log)
    return controller


def next_task(controller: Controller) -> TrialTask:
    task = controller.next_task()
    assert task is not None, controller.ended_by
    return task


def asked(folder: Path, kind: Any, trial: int | None = None, **values: Any) -> Request:
    request = Request(kind, trial, values, who=WHO)
    post(folder, request)
    return request


def answer_to(folder: Path, request: Request) -> AnsweredRequest:
    (found,) = [one for one in read_answers(folder) if one.request.id == request.id]
    return found


def decisions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / DECISIONS).read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "trial", "values", "reason"),
    [
        ("enqueue", None, {**ADAM, "lrr": 1}, "lrr: is not searched by this sweep (did you mean 'lr'?)"),
        ("enqueue", None, {**ADAM, "lr": 2.0}, "lr: lies outside of the space, but got 2.0 (0.001 to 1)"),
        (
            "enqueue",
            None,
            {**ADAM, "layers": 3},
            "layers: lies outside of the space, but got 3 (2 to 8 in steps of 2)",
        ),
        ("enqueue", None, {**ADAM, "lr": "much"}, "lr: lies outside of the space, but got 'much'"),
        (
            "enqueue",
            None,
            {**ADAM, "momentum": 0.5},
            "momentum: is not searched here (only where optimizer is sgd)",
        ),
        ("enqueue", None, {"lr": 0.1}, "layers: is missing: a configuration has every searched value"),
        ("enqueue", 0, {"optimizer": "sgd"}, "momentum: is missing"),
        ("enqueue", 7, {}, "there is no trial 7"),
        ("stop-trial", 7, {}, "there is no trial 7"),
        ("stop-trial", 1, {}, "trial 1 has ended: completed (trained to its end)"),
        ("pin", 1, {}, "trial 1 has ended"),
        ("unpin", 0, {}, "trial 0 is not pinned"),
        ("unpin", 1, {}, "trial 1 has ended"),
        ("resume", None, {}, "the sweep is not paused"),
        ("budget", None, {"minuts": 3}, "budget.minuts: there is no such limit"),
        ("budget", None, {"minutes": "+3"}, "budget.minutes: there is no limit to change by +3"),
        ("budget", None, {"minutes": "many"}, "budget.minutes: many is no number"),
        ("budget", None, {"trials": 1.5}, "budget.trials: must be a whole number"),
        ("budget", None, {"trials": "-6"}, "budget.trials: must be at least 1, but got 0"),
        ("budget", None, {"money": 3}, "budget.money: nothing has a price"),
        ("budget", None, {}, "nothing to change was given"),
        ("narrow", None, {"lr": [1e-4, 0.1]}, "lr: would be wider than it is"),
        ("narrow", None, {"lr": [0.1, 0.01]}, "lr: begins above its end"),
        ("narrow", None, {"lr": [0.1]}, "lr: must be two ends"),
        ("narrow", None, {"layers": [5, 5]}, "layers: has no value there"),
        ("narrow", None, {"optimizer": ["sgd", "adagrad"]}, "optimizer: is none of its choices"),
        ("narrow", None, {"lrr": [1, 2]}, "lrr: is not searched"),
    ],
)
def test_what_breaks_the_rules_is_refused_with_its_reason(
    kind: Any, trial: int | None, values: dict[str, Any], reason: str
) -> None:
    (answered,) = answer_all(spec_with(), TRIALS, [], [Request(kind, trial, values)])
    assert not answered.granted and reason in answered.answer


def test_values_and_parts_from_the_command_line_have_the_types_of_the_space() -> None:
    space = spec_with().space
    found = parse_configuration(space, ["lr=1e-2", "layers=4", "optimizer=adam", "other=x"])
    assert found == {"lr": 0.01, "layers": 4, "optimizer": "adam", "other": "x"}
    parts = parse_parts(space, ["lr=1e-2..1", "optimizer=sgd,lion"])
    assert parts == {"lr": [0.01, 1.0], "optimizer": ["sgd", "lion"]}
    flags = spec_with(space={"flag": [True, False]}).space
    assert parse_configuration(flags, ["flag=true"]) == {"flag": True}
    with pytest.raises(UserError, match="lr: not of the form name=value"):
        parse_configuration(space, ["lr"])


def test_a_configuration_is_tried_next_and_one_like_a_trial_with_changes(tmp_path: Path) -> None:
    controller = opened(tmp_path)
    next_task(controller)
    first = asked(tmp_path, "enqueue", **ADAM)
    second = asked(tmp_path, "enqueue", 1, lr=0.25)
    task = next_task(controller)
    assert controller.trials[task.number].params == ADAM
    assert controller.trials[task.number].suggested == f"asked for by {WHO}"
    assert answer_to(tmp_path, first).answer == "trial 1 begins"
    assert not answer_to(tmp_path, second).granted, "trial 1 did not exist when it was asked for"
    asked(tmp_path, "enqueue", 1, lr=0.25)
    number = next_task(controller).number
    assert controller.trials[number].params == {**ADAM, "lr": 0.25}
    assert controller.trials[number].suggested == f"asked for by {WHO}, trial 1 with lr 0.25"
    assert not list((tmp_path / REQUESTS).iterdir())


def test_no_more_configurations_are_taken_than_the_budget_has_trials(tmp_path: Path) -> None:
    controller = opened(tmp_path, trials=2)
    next_task(controller)
    requests = [asked(tmp_path, "enqueue", **ADAM) for _ in range(2)]
    controller.steer()
    assert [answer_to(tmp_path, one).granted for one in requests] == [True, False]
    assert "1 of 2 have begun, and 1 that were asked for wait" in answer_to(tmp_path, requests[1]).answer
    asked(tmp_path, "budget", trials="+1")
    assert answer_to(tmp_path, _steered(controller, tmp_path, "enqueue", **ADAM)).granted


def _steered(
    controller: Controller, folder: Path, kind: Any, trial: int | None = None, **values: Any
) -> Request:
    request = asked(folder, kind, trial, **values)
    controller.steer()
    return request


def test_trials_are_stopped_after_their_epoch_or_at_once_where_they_wait(tmp_path: Path) -> None:
    controller = opened(tmp_path)
    running, lost = next_task(controller).number, next_task(controller).number
    for number in (running, lost):
        assert controller.report(number, 1, {"score": 1.0})
    controller.lost(lost, "its worker died")
    request = _steered(controller, tmp_path, "stop-trial", running)
    assert answer_to(tmp_path, request).answer == f"trial {running} stops after epoch 2"
    assert controller.trials[running].state == "running"
    _steered(controller, tmp_path, "stop-trial", lost)
    assert controller.trials[lost].state == "stopped"
    assert not controller.report(running, 2, {"score": 2.0})
    for number in (running, lost):
        assert controller.trials[number].reason == f"stopped by {WHO}"
    assert next_task(controller).number not in (running, lost)
    stops = [line for line in decisions(tmp_path) if line["what"] == "stopped"]
    assert [line["reason"] for line in stops] == [f"stopped by {WHO}"] * 2
    again = opened(tmp_path)
    assert {again.trials[n].state for n in (running, lost)} == {"stopped"}


def test_a_changed_budget_holds_also_after_a_kill_until_the_spec_says_something_else(tmp_path: Path) -> None:
    controller = opened(tmp_path, trials=2)
    for _ in range(2):
        next_task(controller)
    assert controller.next_task() is None and "all 2" in controller.ended_by
    _steered(controller, tmp_path, "budget", trials="+1")
    _steered(controller, tmp_path, "budget", trials="+1")
    assert opened(tmp_path, trials=2).budget.trials == 4
    assert opened(tmp_path, trials=3).budget.trials == 3
    next_task(controller)
    next_task(controller)
    assert controller.next_task() is None and controller.ended_by == "budget.trials: all 4 were started"


def test_time_that_is_given_later_also_moves_the_moment_at_which_an_epoch_is_taken_to_hang(
    tmp_path: Path,
) -> None:
    controller = opened(tmp_path, minutes=1)
    task = next_task(controller)
    assert task.seconds_left is not None and task.seconds_left < 600
    assert controller.report(task.number, 1, {"score": 1.0, "seconds": 0.01})
    _steered(controller, tmp_path, "budget", minutes="+60")
    assert not controller.report(task.number, 2, {"score": 1.0, "seconds": 0.01})
    again = next_task(controller)
    assert again.number == task.number and again.seconds_left is not None and again.seconds_left > 3600
    assert controller.report(task.number, 3, {"score": 1.0, "seconds": 0.01})


def test_a_paused_sweep_starts_nothing_and_its_time_stands_still(tmp_path: Path) -> None:
    controller = opened(tmp_path, minutes=60, trials=6)
    task = next_task(controller)
    request = _steered(controller, tmp_path, "pause")
    assert (
        answer_to(tmp_path, request).answer
        == "the sweep is paused when trial 0 will have ended the present epoch"
    )
    assert controller.next_task() is None and controller.is_paused and not controller.ended_by
    assert not controller.report(task.number, 1, {"score": 1.0})
    assert controller.trials[0].state == "waiting"
    before = controller.spent.seconds
    time.sleep(0.3)
    later = opened(tmp_path, minutes=60, trials=6)
    assert later.is_paused and later.next_task() is None, "also in another process"
    controller.steer()
    assert controller.spent.seconds - before < 0.1
    _steered(controller, tmp_path, "resume")
    again = next_task(controller)
    assert again.number == 0 and again.known == 1
    assert controller.trials[0].resumed == f"the sweep was paused by {WHO}"


@pytest.mark.parametrize(
    ("sampler", "stopping"), [("random", "auto"), ("auto", "auto"), ("random", "median")]
)
def test_a_pinned_trial_is_trained_to_its_end(sampler: str, stopping: str, tmp_path: Path) -> None:
    controller = opened(tmp_path, sampler, stopping, trials=8)

    def train(task: TrialTask, score: float) -> None:
        for epoch in range(task.known + 1, 10):
            if not controller.report(task.number, epoch, {"score": score * epoch}):
                return
        controller.finish(task.number)

    for _ in range(4):
        task = next_task(controller)
        train(task, 5.0)
    worst = next_task(controller).number
    while controller.trials[worst].epochs_done:  # it goes on with one that it has paused
        train(controller._dispatch(worst), 5.0)
        worst = next_task(controller).number
    if stopping == "auto":
        assert not controller.report(worst, 1, {"score": 0.1})
    request = _steered(controller, tmp_path, "pin", worst)
    assert f"trial {worst} is trained to its end" in answer_to(tmp_path, request).answer
    if stopping == "auto":
        assert next_task(controller).number == worst, "before all others"
    for epoch in range(controller.trials[worst].epochs_done + 1, 10):
        assert controller.report(worst, epoch, {"score": 0.1})
    controller.finish(worst)
    assert controller.trials[worst].state == "completed"


def test_the_strategy_decides_again_about_a_trial_that_is_unpinned(tmp_path: Path) -> None:
    controller = opened(tmp_path, "random", "auto", trials=8)
    number = next_task(controller).number
    _steered(controller, tmp_path, "pin", number)
    assert controller.report(number, 1, {"score": 0.1}), "a pinned one is not paused at its rung"
    request = _steered(controller, tmp_path, "unpin", number)
    assert answer_to(tmp_path, request).answer == f"the strategy decides about trial {number} again"
    for epoch in range(2, 9):
        if not controller.report(number, epoch, {"score": 0.1}):
            break
    assert controller.trials[number].state == "paused"


def test_a_pinned_trial_still_ends_with_a_value_that_is_no_number_and_with_the_budget(tmp_path: Path) -> None:
    controller = opened(tmp_path, epochs=3)
    first, second = next_task(controller).number, next_task(controller).number
    for number in (first, second):
        _steered(controller, tmp_path, "pin", number)
    assert not controller.report(first, 1, {"score": float("nan")})
    assert controller.report(second, 1, {"score": 1.0})
    assert not controller.report(second, 2, {"score": 1.0})
    assert "budget.epochs" in controller.trials[second].reason


@pytest.mark.parametrize(
    "sampler", ["auto", "tpe", pytest.param("gp", marks=pytest.mark.integration), "random", "grid"]
)
def test_after_narrowing_every_new_trial_is_in_what_is_left(sampler: str, tmp_path: Path) -> None:
    space = {
        **RAW["space"],
        "lr": [0.001, 0.01, 0.1, 1.0],
        "momentum": {"values": [0.1, 0.5], "when": {"optimizer": ["sgd"]}},
    }
    spec = spec_with(space=space if sampler == "grid" else RAW["space"])
    strategy = open_strategy(None, "s", StrategyOptions(spec.space, spec.goal, 9, sampler, "none"))  # type: ignore[arg-type]

    def tried() -> dict[str, Any] | None:
        if (found := strategy.suggest()) is None:
            return None
        for epoch in range(1, 10):
            score = epoch / 9 + found.params["layers"] / 100 - (math.log10(found.params["lr"]) + 1.5) ** 2
            strategy.observe(found.number, epoch, score)
        strategy.finish(found.number, Outcome("completed"))
        return found.params

    before = [params for _ in range(12) if (params := tried()) is not None]
    lr = [0.01, 0.1] if sampler == "grid" else [0.02, 0.05]
    request = Request("narrow", None, {"lr": lr, "optimizer": ["adam", "sgd"], "layers": [3, 6]})
    (answered,) = answer_all(spec, {}, [], [request])
    assert answered.granted and answered.effect["narrowed"]["layers"] == [4, 6]
    assert answered.effect["narrowed"]["optimizer"] == ["sgd", "adam"]
    state = state_after([answered])
    strategy.steer((), {}, state.space_of(spec.space))
    after = [params for _ in range(25) if (params := tried()) is not None]
    assert {one["optimizer"] for one in after} == {"sgd", "adam"} and {one["layers"] for one in after} == {
        4,
        6,
    }
    assert all(lr[0] <= one["lr"] <= lr[1] for one in after)
    assert all(("momentum" in one) == (one["optimizer"] == "sgd") for one in after)
    if sampler == "grid":
        inside = [one for one in before if state.space_of(spec.space).contains_all(one)]
        assert (
            len({tuple(sorted(one.items())) for one in [*inside, *after]}) == 12 == len(inside) + len(after)
        )
        assert strategy.is_used_up
    else:
        assert len(after) == 25 and len({one["lr"] for one in after}) > 15, "it does not pile up at the ends"
    assert not all(lr[0] <= one["lr"] <= lr[1] for one in before)


def test_initial_points_are_tried_next_to_what_people_ask_for_but_not_outside_of_what_is_left(
    tmp_path: Path,
) -> None:
    spec = spec_with()
    strategy = open_strategy(None, "s", StrategyOptions(spec.space, spec.goal, 9, "random", "none"))
    rates = (0.001, 0.5, 0.01, 0.02)
    strategy.warm_start(FirstGuesses(points=[InitialPoint({**ADAM, "lr": lr}) for lr in rates]))
    requests = [Request("enqueue", None, {**ADAM, "lr": 0.9}), Request("narrow", None, {"lr": [0.005, 0.1]})]
    answers = answer_all(spec, {}, [], requests)
    found = [strategy.suggest()]
    for known in (answers[:1], answers):
        state = state_after(known)
        strategy.steer(state.wishes, state.pins, state.space_of(spec.space))
        found.append(strategy.suggest())
    found.append(strategy.suggest())
    assert [one.params["lr"] for one in found if one is not None] == [0.001, 0.9, 0.01, 0.02]


class Killed(BaseException):
    """The process ends here."""


MOMENTS = ["write_answers", "withdraw", "request_answered", "create", "note_begun"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("after", [False, True])
def test_a_request_happens_once_wherever_its_process_is_killed(
    moment: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*args: Any, **kwargs: Any) -> Any:
            if after:
                call(*args, **kwargs)
            raise Killed

        return killed

    controller = opened(tmp_path)
    number = next_task(controller).number
    controller.report(number, 1, {"score": 1.0})
    requests = [
        asked(tmp_path, "enqueue", **ADAM),
        asked(tmp_path, "stop-trial", number),
        asked(tmp_path, "budget", trials="+1"),
    ]
    module = binsweep.search.execution.steering
    with monkeypatch.context() as patch:
        if moment in ("write_answers", "withdraw"):
            patch.setattr(module, moment, killing(getattr(module, moment)))
        elif moment == "request_answered":
            patch.setattr(DecisionLog, moment, killing(DecisionLog.request_answered))
        elif moment == "create":
            strategy: Any = controller._strategy
            patch.setattr(strategy._storage, "add_point", killing(strategy._storage.add_point))
        else:
            patch.setattr(controller._steering, moment, killing(controller._steering.note_begun))
        with pytest.raises(Killed):
            controller.next_task()
    again = opened(tmp_path)
    for _ in range(3):
        again.next_task()
    assert [trial.params == ADAM for trial in again.trials.values()].count(True) == 1
    assert again.trials[number].state == "stopped" and again.budget.trials == 7
    assert [answer_to(tmp_path, one).granted for one in requests] == [True] * 3
    assert answer_to(tmp_path, requests[0]).answer == "trial 1 begins"
    logged = [line["request"] for line in decisions(tmp_path) if line["what"] == "request"]
    assert logged == [one.id for one in requests]
    assert not list((tmp_path / REQUESTS).iterdir())


def test_a_request_is_taken_in_after_those_before_it_though_the_clock_was_set_back(tmp_path: Path) -> None:
    pause = Request("pause")
    hour = 3600 * 10**9
    late = Request("resume", id=f"{int(pause.id[:20]) - hour:020d}-0123abcd").after([pause])
    for request in (late, pause):
        post(tmp_path, request)
    assert waiting_requests(tmp_path) == [pause, late]
    assert late.after([]) is late


def test_what_comes_too_late_is_refused_when_the_sweep_ends(tmp_path: Path) -> None:
    controller = opened(tmp_path)
    next_task(controller)
    waiting = _steered(controller, tmp_path, "enqueue", **ADAM)
    late = asked(tmp_path, "pause")
    controller.ended_by = "budget.minutes: 1 are over"
    controller.close()
    for request in (waiting, late):
        answer = answer_to(tmp_path, request)
        assert not answer.granted and answer.answer == "the sweep has ended (budget.minutes: 1 are over)"
    assert not list((tmp_path / REQUESTS).iterdir())


def test_a_file_that_is_no_request_disturbs_nothing(tmp_path: Path) -> None:
    controller = opened(tmp_path)
    asked(tmp_path, "pause")
    for name, text in (("0.json", "{"), ("1.json", '{"kind": "pause"}'), ("note.txt", "")):
        (tmp_path / REQUESTS / name).write_text(text)
    controller.steer()
    assert controller.is_paused and len(controller.answers) == 1


CODE = {"params": {"seconds": 0.1}, "budget": {"trials": 3}}


@pytest.mark.parametrize(
    ("runner", "kills"),
    [
        pytest.param("local", 1, marks=pytest.mark.integration),
        pytest.param("local", 4, marks=pytest.mark.night),
        pytest.param("ray", 3, marks=pytest.mark.integration),
    ],
)
def test_requests_survive_kills_and_happen_once(runner: str, kills: int, server: str, tmp_path: Path) -> None:
    """Each kill is right after a request, so that it is taken in or not; another request finds no process."""
    dice = random.Random(f"steering, {runner}")
    home, name = tmp_path / "home", f"steered-{runner}-{kills}"
    spec = code_spec(tmp_path / "code", name, None, **CODE)
    folder, wanted = home / "sweeps" / f"{name}-1", []
    sweep = Sweep(folder)
    for kill in range(kills):
        process = started(spec, runner, home, server, "trial ")
        wait_for_epochs(home, name, 1 + 3 * kill)
        time.sleep(0.3 * dice.random())
        wanted.append(round(0.1 + 0.01 * len(wanted), 2))
        more = Request("budget", None, {"trials": "+2"})
        post(folder, more)
        post(folder, Request("enqueue", None, {"lr": wanted[-1]}))
        time.sleep(0.3 * dice.random())
        kill_all(process)
        wanted.append(round(0.1 + 0.01 * len(wanted), 2))
        answer = sweep.enqueue(lr=wanted[-1])
        assert not answer.happened and "does not run now; when it goes on: it begins" in str(answer)
    status = run_here("status", name, BINSWEEP_HOME=str(home))
    assert "no process has taken it in yet" in status.stdout
    done = run_here("sweep", spec, "--runner", runner, BINSWEEP_HOME=str(home), MLFLOW_TRACKING_URI=server)
    assert done.returncode == 0, done.stderr
    rates = [trial.params["lr"] for trial in trials_of(folder / "study.db")]
    assert [rates.count(rate) for rate in wanted] == [1] * len(wanted)
    assert len(rates) == 3 + 2 * kills
    logged = [line["request"] for line in decisions(folder) if line["what"] == "request"]
    assert len(logged) == len(set(logged)) == 3 * kills
    assert not list((folder / REQUESTS).iterdir())
    with pytest.raises(
        UserError, match=rf"{name}-1 has finished \(budget.trials: all {3 + 2 * kills} were started\)"
    ):
        sweep.pause()
    page = (folder / "report.html").read_text()
    assert "What people asked for" in page and f"enqueue lr={wanted[0]}" in page
    refused = run_here("enqueue", name, "lr=0.5", BINSWEEP_HOME=str(home))
    assert refused.returncode == 2 and "--resume" in refused.stderr


@pytest.fixture
def steered(server: str, tmp_path: Path) -> Iterator[Callable[[str], Sweep]]:
    """Starts a sweep in a process of its own, which is killed at the end if it still runs."""
    processes = []

    def start(runner: str) -> Sweep:
        home, name = tmp_path / "home", f"asked-{runner}"
        search = {"sampler": "auto", "stopping": "auto"}
        changes = {
            **CODE,
            "budget": {"trials": 8},
            "search": search,
            "resources": {"max_concurrent_trials": 2},
        }
        spec = code_spec(tmp_path / "code", name, None, **changes)
        process = started(spec, runner, home, server, "trial ")
        reader = threading.Thread(target=process.communicate, daemon=True)  # or the pipe would fill up
        reader.start()
        processes.append((process, reader))
        return Sweep(home / "sweeps" / f"{name}-1")

    yield start
    for process, reader in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in (
                *psutil.Process(process.pid).children(recursive=True),
                psutil.Process(process.pid),
            ):
                member.kill()
        reader.join(30)


@pytest.mark.integration
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_running_sweep_answers_every_request(runner: str, steered: Callable[[str], Sweep]) -> None:
    sweep = steered(runner)
    assert str(sweep.pause()).startswith("the sweep is paused")
    with pytest.raises(UserError, match="is paused already"):
        sweep.pause()
    deadline = time.monotonic() + 60
    while (sweep.trials.state == "running").any():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    epochs = len(sweep.history)
    time.sleep(3)
    assert len(sweep.history) == epochs and sweep.status == "running" and "paused by" in repr(sweep)
    assert "accepted" in str(sweep.enqueue(lr=0.5)), "it begins after the pause"
    assert "the sweep goes on" in str(sweep.unpause())
    assert sweep.enqueue(like=0, lr=0.25).text.endswith(("begins", "when a worker is free"))
    assert "to its end" in str(sweep.pin(int(sweep.trials.index[sweep.trials.state != "completed"][0])))
    assert sweep.narrow(lr=(0.01, 0.02)).happened
    assert str(sweep.change_budget(trials="+1")) == "budget.trials: 9 (was 8)"
    deadline = time.monotonic() + 120
    while sweep.status == "running":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert sweep.status == "finished" and len(sweep.trials) == 9
    rates = sweep.trials.lr
    assert (rates == 0.5).sum() == 1 and (rates == 0.25).sum() == 1
    assert "completed" in set(sweep.trials.state)
