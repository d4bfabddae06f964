"""Workers that train by a formula: the curve of a configuration depends on all of its past, and costs no time."""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binsweep.search.execution.controller import Controller
from binsweep.search.execution.steering import LOOK_SECONDS
from binsweep.search.execution.trial import Trainer, TrialTask, is_disk_full
from binsweep.search.own_code.host_process import CodeError, TrialEnd
from binsweep.search.own_code.trial import Trial, TrialStart

from .scheduler import Process, SimulatedCrash, Task

if TYPE_CHECKING:
    from .world import World


def first_state() -> dict[str, Any]:
    return {"epoch": 0, "past": ""}


def next_state(state: Mapping[str, Any], params: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One epoch of training: what it leaves depends on everything before it."""
    epoch = state["epoch"] + 1
    text = f"{state['past']} {params['lr']!r} {seed} {epoch}"
    return {"epoch": epoch, "past": hashlib.sha256(text.encode()).hexdigest()[:16]}


def metrics_of(state: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, float]:
    noise = int(state["past"][:8], 16) / 2**32
    score = (1 - abs(math.log10(params["lr"]) + 2) / 4) * (1 - math.exp(-state["epoch"] / 2)) + 0.02 * noise
    return {"val_score": score, "val_loss": 1 / (1 + score)}


def curve(params: Mapping[str, Any], seed: int, epochs: int) -> list[dict[str, float]]:
    """The metrics of each epoch of an undisturbed training."""
    state, found = first_state(), []
    for _ in range(epochs):
        state = next_state(state, params, seed)
        found.append(metrics_of(state, params))
    return found


class _Passed(BaseException):
    """An error of the process that drives the trial, on its way through the trial's code."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class SimHost:
    """In place of the process that runs own code; everything around it is the product's."""

    def __init__(self, world: World) -> None:
        self._world = world

    def train(
        self, start: TrialStart, report: Callable[..., bool], deadline: float | None = None, late: str = ""
    ) -> TrialEnd:
        def send(epoch: int, metrics: dict[str, float], saved: bool) -> bool:
            try:
                return report(epoch, metrics, saved, [])
            except BaseException as error:
                raise _Passed(error) from None

        passed: BaseException | None = None
        try:
            self._run(Trial(start, send), start, deadline, late)
        except _Passed as found:
            passed = found.error
        except TimeoutError:
            raise
        except Exception as error:
            if is_disk_full(error):
                raise
            raise CodeError(f"{type(error).__name__}: {error}", "") from error
        if passed is not None:
            raise passed
        return TrialEnd([])

    def _run(self, trial: Trial, start: TrialStart, deadline: float | None, late: str) -> None:
        world, plan = self._world, self._world.plan
        saved = trial.checkpoint()
        state = json.loads((saved / "state.json").read_text()) if saved else first_state()
        for epoch in trial.epochs():
            if state["epoch"] != epoch - 1:
                raise AssertionError(f"epoch {epoch} follows {state['epoch']}")
            world.compute(plan.epoch_seconds, deadline, late)
            state = next_state(state, trial.params, trial.seed)
            metrics = metrics_of(state, trial.params)
            how, when = plan.bad.get(start.number, ("", 0))
            if epoch == when and how == "raises":
                raise ValueError("a mistake in the code")
            if epoch == when and how == "diverges":
                metrics["val_score"] = math.nan
            save = None
            if plan.saves_every and epoch % plan.saves_every == 0:
                save = lambda folder, state=state: (folder / "state.json").write_text(json.dumps(state))  # noqa: E731
            trial.report(metrics, save)


class _Worker:
    """A worker with its trial. Its messages reach the driver in their order."""

    def __init__(self, world: World, trainer: Trainer, task: TrialTask) -> None:
        self.number, self._world = task.number, world
        self.messages: deque[tuple[Any, ...]] = deque()
        self.answer: bool | None = None
        self.process = Process(f"worker-{task.number}", world.new_pid())
        world.processes.append(self.process)
        self.task: Task = world.scheduler.spawn(
            self.process, f"worker-{task.number}", lambda: trainer.train(task, self._send)
        )

    def _send(self, epoch: int, metrics: dict[str, float]) -> bool:
        self.answer = None
        self.messages.append((epoch, dict(metrics)))
        self._world.scheduler.wait(lambda: self.answer is not None)
        return bool(self.answer)

    @property
    def has_news(self) -> bool:
        return bool(self.messages) or self.task.done


def run_workers(world: World, controller: Controller, trainer: Trainer) -> None:
    """What the Ray runner does, with `plan.workers` simulated workers: the driver takes one message at a time.

    A worker that dies is declared dead; a report that it had sent may come afterwards.
    """
    scheduler, running = world.scheduler, dict[int, _Worker]()
    late: list[tuple[int, int, dict[str, float]]] = []

    def deliver_late() -> None:
        if late and scheduler.dice.random() < 0.4:
            number, epoch, metrics = late.pop(0)
            if (
                number not in running
            ):  # a runner knows its workers: what an earlier one says is not taken for this one's
                controller.report(number, epoch, metrics)

    while True:
        deliver_late()
        while len(running) < world.plan.workers and (task := controller.next_task()) is not None:
            running[task.number] = _Worker(world, trainer, task)
        if not running and not controller.is_paused:
            return
        scheduler.wait(lambda: any(worker.has_news for worker in running.values()), LOOK_SECONDS)
        controller.steer()
        deliver_late()
        able = [worker for worker in running.values() if worker.has_news]
        if not able:
            continue
        worker = able[scheduler.dice.randrange(len(able))]
        number = worker.number
        if worker.process.dead:
            late += [(number, *message) for message in worker.messages]
            del running[number]
            controller.lost(number, "its worker died")
        elif worker.messages:
            epoch, metrics = worker.messages.popleft()
            if world.happens("report after death", "report"):
                late.append((number, epoch, metrics))
                worker.process.dead = True
                del running[number]
                controller.lost(number, "its worker died")
                continue
            go_on = controller.report(number, epoch, metrics)
            if world.happens("report twice", None):
                controller.report(number, epoch, metrics)
            if not go_on:
                del running[number]
            worker.answer = go_on
        else:
            del running[number]
            error = worker.task.error
            if error is None:
                controller.finish(number)
            elif isinstance(error, SimulatedCrash):
                controller.lost(number, "its worker died")
            elif is_disk_full(error):
                controller.lost(number, f"the disk is full: {error}")
            elif reason := controller.error_of(number):
                controller.finish(number, reason)
            else:
                controller.lost(number, "its worker died")


def trial_folder(folder: Path, number: int) -> Path:
    return folder / f"trial-{number:04d}"
