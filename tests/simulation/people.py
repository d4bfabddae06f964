"""People who steer the sweep while bad things happen to it, by the product's own code."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binsweep.data.errors import UserError
from binsweep.search.history.decisions import read_decisions
from binsweep.search.steering.inbox import read_answers
from binsweep.search.steering.request import Kind, Request
from binsweep.search.steering.state import state_after
from binsweep.search.strategy.base import Record
from binsweep.search.workflows.steer import steer

from .scheduler import Process, SimTime, Task

if TYPE_CHECKING:
    from .world import World

KINDS: tuple[Kind, ...] = ("enqueue", "stop-trial", "pin", "budget", "narrow", "pause")
WAIT_SECONDS = 5.0  # for an answer
LOOK_SECONDS = 20.0  # after which somebody finds a sweep paused


class People:
    """Their commands, each in a process of its own. `kept` are the requests that a command has said to be kept."""

    def __init__(self, world: World) -> None:
        self._world, self._dice = world, random.Random(f"people {world.plan.seed}")
        self.kept: list[Request] = []
        self.tasks: list[Task] = []

    def ask(self, size: float) -> None:
        """Somebody asks something of the sweep."""
        kind = KINDS[int(len(KINDS) * abs(size)) % len(KINDS)]
        if kind in ("enqueue", "narrow") and self._world.plan.sampler == "grid":
            kind = "stop-trial"
        values: dict[str, Any] = {}
        if kind == "enqueue":
            values = {"lr": 10 ** -self._dice.uniform(0.1, 3.9)}
        elif kind == "narrow":
            values = {"lr": [1e-3, 10 ** -self._dice.uniform(0.1, 2.0)]}
        elif kind == "budget":
            values = {"trials": self._dice.choice(["+1", "-1"])}
        trial = self._dice.randrange(self._world.plan.trials) if kind in ("stop-trial", "pin") else None
        if (folder := self._folder()) is not None:
            self.tasks.append(self._command(lambda: self._steer(folder, kind, trial, values)))

    def look(self) -> None:
        """Somebody lets a paused sweep go on."""

        def resume() -> None:
            while True:
                self._world.scheduler.sleep(LOOK_SECONDS)
                folder = self._folder()
                if folder is not None and state_after(read_answers(folder)).paused:
                    self._steer(folder, "resume", None, {})

        self._command(resume)

    def _folder(self) -> Path | None:
        return next((file.parent for file in (self._world.home / "sweeps").glob("*/sweep.json")), None)

    def _command(self, run: Callable[[], None]) -> Task:
        process = Process("person", self._world.new_pid())
        self._world.processes.append(process)
        return self._world.scheduler.spawn(process, "person", run)

    def _steer(self, folder: Path, kind: Kind, trial: int | None, values: dict[str, Any]) -> None:
        clock = SimTime(self._world.scheduler)
        name = f"{clock.time_ns():020d}-{self._dice.getrandbits(32):08x}"
        request = Request(kind, trial, values, "ana@lab", clock.time(), name)
        with contextlib.suppress(UserError):  # refused, or the sweep has finished
            steer(folder, request, WAIT_SECONDS)
            self.kept.append(request)


def broken(world: World, folder: Path, records: list[Record]) -> Iterator[str]:
    """The promises about requests: each that was kept is answered once, and happens once."""
    answers = read_answers(folder)
    times = Counter(one.request.id for one in answers)
    for request in world.people.kept:
        if times[request.id] != 1:
            yield f"requests: {request} was answered {times[request.id]} times"
    logged = Counter(one["request"] for one in read_decisions(folder) if one["what"] == "request")
    for one in answers:
        # A configuration that no trial has begun with in the end was granted before.
        most = 2 if one.request.kind == "enqueue" and not one.granted else 1
        if not 1 <= logged.pop(one.request.id, 0) <= most:
            yield f"requests: {one.request} is not once in the decision log"
    if logged:
        yield f"requests: {sorted(logged)} are in the decision log and were not answered"
    begun = Counter(record.request for record in records if record.request)
    for one in answers:
        number = one.effect.get("trial") if one.granted and one.request.kind == "enqueue" else None
        wanted = 0 if number is None else 1
        if begun.pop(one.request.id, 0) != wanted or (wanted and records[number].request != one.request.id):
            yield f"requests: {one.request} is said to have begun trial {number}"
        if one.is_waiting:
            yield f"requests: {one.request} still waits"
    if begun:
        yield f"requests: trials have begun for {sorted(begun)}, which were not answered"
