"""One schedule, run: the product's own code in simulated processes, over a simulated disk and a simulated MLflow."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import binsweep.search.execution.code_trial as code_trial
import binsweep.search.execution.interrupts as interrupts
import binsweep.search.workflows.sweep as sweep_workflow
import binsweep.tracking.runlog.run_log as run_log
from binsweep.data.errors import UserError
from binsweep.search.execution.trial import is_disk_full
from binsweep.search.history.sweep_state import find_unfinished, load_state
from binsweep.search.own_code.snapshot import CodeSnapshot
from binsweep.search.recording.code_records import CodeRecords
from binsweep.search.spec.parser import parse_spec
from binsweep.search.workflows.prepare import PreparedSweep

from .disk import SimDisk, caller
from .fake_mlflow import FakeMlflow, unavailable
from .people import People
from .places import installed
from .plan import ALSO_COUNTED, COUNTED, CRASHES, Life, Plan
from .scheduler import Process, Scheduler, SimTime, SimulatedCrash, Stuck, Task

URI = "simulated"
EVENTS = COUNTED | ALSO_COUNTED
MAX_CALM_LIVES = 4  # in which a sweep must end once nothing goes wrong any more
FILE_EFFECTS = ("create", "write", "truncate", "fsync", "mkdir", "rename")
IO_ERROR = "simulated EIO"


@dataclass
class Outcome:
    """What came of a schedule. `trace` identifies the order of all effects, `points` where they came from."""

    plan: Plan
    problems: list[str] = field(default_factory=list)
    trace: int = 0
    points: set[str] = field(default_factory=set)
    crashes: set[str] = field(default_factory=set)
    injected: Counter[str] = field(default_factory=Counter)
    effects: int = 0
    lives: int = 0


class World:
    """Everything around the code of one sweep."""

    def __init__(self, plan: Plan, home: Path) -> None:
        self.plan, self.home = plan, home
        self.scheduler = Scheduler(plan.seed, plan.hop, plan.tick)
        self.disk = SimDisk(home, self.effect, lambda: self.scheduler.process)
        self.mlflow = FakeMlflow()
        self.outcome = Outcome(plan)
        self.processes: list[Process] = []
        self.main: Task | None = None
        self.intruders: list[Task] = []
        self.people = People(self)
        self._server = Process("mlflow", 1)
        self._pids = 100
        self._dice = random.Random(f"world {plan.seed}")
        self._start_life(Life())
        self._snapshots: list[Any] = [self.mlflow.copy()]
        self._keeps_snapshots = any(fault.kind == "mlflow rolled back" for fault in plan.faults())
        self._down_until, self._failing, self._full_until = 0.0, 0, 0
        self.awake = 0.0  # seconds in which processes of the sweep lived
        self.must_send_all = False  # MLflow has forgotten something, or made a run after it had ended
        self.spec = parse_spec(_raw(plan))
        code = CodeSnapshot("simulated.py", "train", "f" * 64, ())
        self.prepared = PreparedSweep(
            self.spec, home, code.fingerprint, code_trial.CodeTrainer(code, {}), CodeRecords(code)
        )

    # Faults

    def _start_life(self, life: Life) -> None:
        self._counts: Counter[str] = Counter()
        self._armed = list(life.faults)
        self.scheduler.skew = life.skew
        if life.skew:
            self.outcome.injected["clock wrong"] += 1

    def _due(self, kind: str) -> float | None:
        """The size of a fault whose moment has come; None if there is none."""
        if not self._armed:
            return None
        for fault in self._armed:
            if fault.kind == kind and self._counts[EVENTS.get(kind, "effect")] >= fault.at:
                self._armed.remove(fault)
                self.outcome.injected[kind] += 1
                self.scheduler.note(kind)
                return fault.size
        return None

    def happens(self, kind: str, counter: str | None) -> bool:
        """Count an event, and tell whether a fault happens at it."""
        if counter is not None:
            self._counts[counter] += 1
        return self._due(kind) is not None

    def new_pid(self) -> int:
        self._pids += 1
        return self._pids

    def effect(self, kind: str, name: str) -> None:
        """An effect on the disk or on MLflow is about to happen: it may be the last one, or fail."""
        scheduler = self.scheduler
        if scheduler.process is None:
            return
        process = scheduler.process
        if process.dead:
            raise SimulatedCrash
        scheduler.note(f"{kind} {name}")
        point = f"{kind} {name} {caller()}"
        self.outcome.points.add(point)
        self.outcome.effects += 1
        self._counts["effect"] += 1
        if self._armed:
            for crash in CRASHES:
                self._perhaps_crash(crash, point)
        if process.name.startswith("worker"):
            self._counts["worker"] += 1
            if self._due("worker dies") is not None:
                process.dead = True
                raise SimulatedCrash
        if process.name == "intruder" and name in ("sweep.json", "study.db") and self._is_locked():
            self._problem(f"a second process works on a sweep that is running: {point}")
        if (size := self._due("full")) is not None:
            self.disk.full, self._full_until = True, self._counts["effect"] + 1 + int(60 * size)
        elif self.disk.full and self._counts["effect"] >= self._full_until:
            self.disk.full = False
        if (size := self._due("clock jumps")) is not None:
            scheduler.skew += 3600 * size
        at_work = self.main is not None and process is self.main.process
        if at_work and (size := self._due("asked")) is not None:
            self.people.ask(size)
        if self._due("intruder") is not None and at_work:
            self._intrude()
        if kind in FILE_EFFECTS:
            self._counts["disk"] += 1
            if self._due("eio") is not None:
                raise OSError(5, IO_ERROR)
        if kind == "commit":
            self._counts["commit"] += 1
            if self._due("study eio") is not None:
                raise sqlite3.OperationalError(IO_ERROR)
        if kind != "commit":  # SQLite has a lock then, and others would wait for it
            scheduler.may_hop()

    def _perhaps_crash(self, kind: str, point: str) -> None:
        main = self.main
        if main is None or not any(
            fault.kind == kind and self._counts["effect"] >= fault.at for fault in self._armed
        ):
            return
        if kind == "interrupt" and self.scheduler.current is not main:
            return  # the signal reaches the main thread at its next effect
        self._due(kind)
        self.outcome.crashes.add(f"{kind} {point}")
        if kind == "interrupt":
            interrupts.interrupt()
            return
        self.power_cut = kind == "power"
        for process in self.processes:
            process.dead = True
        raise SimulatedCrash

    def _is_locked(self) -> bool:
        assert self.main is not None
        return any(
            path.endswith("runlog.lock") and owner is self.main.process
            for _, path, owner in self.disk.files.values()
        )

    def request(self, name: str, work: Callable[[], Any]) -> Any:
        """One request to MLflow."""
        self.effect("request", name)
        scheduler = self.scheduler
        self._counts["request"] += 1
        if self._keeps_snapshots and self._counts["request"] % 7 == 0:
            self._snapshots.append(self.mlflow.copy())
        if (size := self._due("mlflow rolled back")) is not None:
            self.mlflow.restore(self._snapshots[int(size * len(self._snapshots))])
            self.must_send_all = True
        if (size := self._due("mlflow down")) is not None:
            self._down_until = scheduler.now + 300 * size
        if (size := self._due("mlflow 500")) is not None:
            self._failing = 1 + int(5 * size)
        if (size := self._due("mlflow slow")) is not None:
            scheduler.sleep(120 * size)
        if scheduler.now < self._down_until:
            raise unavailable("connection refused")
        if self._failing:
            self._failing -= 1
            raise unavailable("500")
        if (size := self._due("mlflow answer lost, done later")) is not None:
            later, self.must_send_all = scheduler.now + 60 * size, True

            def do_later() -> None:
                scheduler.wait(lambda: False, later - scheduler.now)
                with contextlib.suppress(Exception):
                    work()

            scheduler.spawn(self._server, f"late {name}", do_later)
            raise unavailable("timed out")
        result = work()
        lost = self._due("mlflow answer lost") is not None
        self.effect("answer", name)
        if lost:
            raise unavailable("connection reset")
        return result

    def compute(self, seconds: float, deadline: float | None, late: str) -> None:
        """An epoch passes; the worker may hang in it."""
        self._counts["epoch"] += 1
        if (size := self._due("worker hangs")) is not None:
            seconds += 4000 * size
        now = SimTime(self.scheduler).monotonic()
        if deadline is not None and now + seconds > deadline:
            self.scheduler.sleep(deadline - now)
            raise TimeoutError(late)
        self.scheduler.sleep(seconds)

    # Processes

    def live(self, life: Life, folder: Path | None = None, asked: bool = False) -> Any:
        """One process of the sweep, from its command to its end; returns its result, None if it did not end well."""
        self._start_life(life)
        interrupts._busy, interrupts._asked = 0, False
        scheduler, self.power_cut = self.scheduler, False
        scheduler.booted = scheduler.now
        self.outcome.lives += 1
        process = Process("driver", 7 if self.plan.same_pid else self.new_pid())
        self.processes, self.intruders = [process], []
        self.main = scheduler.spawn(process, "driver", lambda: self._drive(asked))
        self.people.tasks = []
        if self.plan.is_steered:
            self.people.look()
        scheduler.run(self.main)
        for intruder in [*self.intruders, *self.people.tasks]:
            if not process.dead:
                scheduler.run(intruder)
            broke = intruder.error is not None and not isinstance(intruder.error, UserError | SimulatedCrash)
            if broke and not self._is_excused(intruder.error):
                self._problem(f"a second process broke: {_told(intruder.error)}")
        crashed = process.dead
        for one in self.processes:
            one.dead = True
        scheduler.bury()
        if self.power_cut:
            self.disk.cut_power(self._dice, self.processes)
        for one in self.processes:
            self.disk.let_go(one)
        self.disk.full = False
        main, self.main = self.main, None
        self.awake += scheduler.now - scheduler.booted
        scheduler.now += self._dice.choice([1.0, 60.0, 5000.0])
        error = main.error
        if any(isinstance(intruder.error, SimulatedCrash) for intruder in self.intruders):
            return None  # it had gone on with the sweep, which the first process had finished
        if error is None:
            return main.result
        if not (crashed or self._is_excused(error)):
            self._problem(f"the sweep ended with an error: {_told(error)}")
        return None

    def _drive(self, asked: bool) -> Any:
        unfinished = find_unfinished(self.home, self.spec, self.prepared.fingerprint, asked)
        return sweep_workflow.run_sweep(self.prepared, "local", URI, unfinished)

    def _intrude(self) -> None:
        """Somebody gives the same command while it runs."""
        folders = sorted((self.home / "sweeps").glob("*-1"))
        if not folders or not (folders[0] / "sweep.json").exists():
            return
        process = Process("intruder", self.new_pid())
        self.processes.append(process)
        run = lambda: sweep_workflow.run_sweep(self.prepared, "local", URI, folders[0])  # noqa: E731
        self.intruders.append(self.scheduler.spawn(process, "intruder", run))

    def _is_excused(self, error: BaseException) -> bool:
        """Whether an error is what the schedule asked for: an interruption, or a disk that fails."""
        if isinstance(error, KeyboardInterrupt):
            return self.outcome.injected["interrupt"] > 0
        if any(IO_ERROR in str(one) for one in _chain(error)):
            return True
        return self.outcome.injected["full"] > 0 and is_disk_full(error)

    def finished(self) -> Any:
        """The sweep, if its last process was killed after it had noted that it is finished."""
        for file in (self.home / "sweeps").glob("*/sweep.json"):
            if load_state(file.parent)["status"] == "finished":
                return SimpleNamespace(folder=file.parent, suspended=False, unsent=1)
        return None

    def finish_requests(self) -> None:
        """Let what MLflow still does of its own come to its end."""
        for task in [task for task in self.scheduler.tasks if task.process is self._server]:
            self.scheduler.run(task)

    def sync(self, folder: Path, everything: bool = False) -> int:
        """`binsweep sync`; returns the records that wait afterwards."""
        if everything:
            for file in (folder / "spool").glob("*.sent"):
                file.unlink()
        process = Process("sync", self.new_pid())
        self.processes = [process]
        task = self.scheduler.spawn(
            process, "sync", lambda: run_log.replay(folder / "spool", URI, self.spec.name, 600.0)
        )
        self.scheduler.run(task)
        process.dead = True
        self.scheduler.bury()
        self.disk.let_go(process)
        if task.error is not None:
            self._problem(f"sync ended with an error: {_told(task.error)}")
        return int(task.result or 0)

    def _problem(self, text: str) -> None:
        if text not in self.outcome.problems:
            self.outcome.problems.append(text)


def _raw(plan: Plan) -> dict[str, Any]:
    lr: Any = {"low": 1e-4, "high": 1.0, "log": True}
    if plan.sampler == "grid":
        lr = [10.0 ** -(number / 2) for number in range(plan.trials)]
    return {
        "name": "days",
        "trainer": "simulated.py:train",
        "space": {"lr": lr},
        "objective": {"metric": "val_score", "goal": "maximize"},
        "fidelity": {"epochs": plan.epochs},
        "search": {"sampler": plan.sampler, "stopping": plan.stopping, "seed": plan.seed % 1000},
        "budget": dict(plan.budget),
    }


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _told(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = [
        f"{Path(one.filename).name}:{one.lineno}" for one in frames if "site-packages" not in one.filename
    ]
    return f"{type(error).__name__}: {error} ({' > '.join(where[-8:])})"


def run(
    plan: Plan, planted: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
) -> Outcome:
    """Run a schedule and check every promise afterwards; `planted` puts a mistake into the product meanwhile."""
    from .promises import check_end, check_repeated

    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    top = Path(tempfile.mkdtemp(prefix="bad-days-", dir=place))
    world = World(plan, top / "home")
    world.home.mkdir()
    try:
        with installed(world):
            try:
                with planted():
                    _run(world, check_end, check_repeated)
            except Stuck as error:
                world._problem(f"stuck: {error}")
            except UserError as error:
                world._problem(f"nothing can be done with it: {error}")
            finally:
                for process in world.processes:
                    process.dead = True
                with contextlib.suppress(Stuck):
                    world.scheduler.bury()
                for process in world.processes:
                    world.disk.let_go(process)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    world.outcome.trace = world.scheduler.trace
    return world.outcome


def _run(world: World, check_end: Callable[..., None], check_repeated: Callable[..., None]) -> None:
    result = None
    for life in world.plan.lives:
        result = world.live(life) or world.finished()
        if result is not None and not result.suspended:
            break
    for _ in range(MAX_CALM_LIVES):
        if result is not None and not result.suspended:
            break
        result = world.live(Life()) or world.finished()
    else:
        world._problem("it does not end, although nothing goes wrong any more")
        return
    world.finish_requests()
    check_end(world, result)
    if not world.outcome.problems:
        check_repeated(world, result)


__all__ = ["Outcome", "World", "run"]
