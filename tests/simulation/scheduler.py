"""One thread, a virtual clock, and a seeded choice of who goes on: what the threads and processes of a sweep run on.

Each thread of the simulated processes is a greenlet. It gives up its turn where a real one might be interrupted to
some effect: at each access to the disk, at each request to MLflow, at each wait. Time passes only here, so an hour of
waiting costs nothing.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet

START = 1_700_000_000.0  # of the virtual wall clock, seconds since 1970
MAX_STEPS = 400_000  # of one schedule: more would be a loop that waits for ever


class SimulatedCrash(BaseException):
    """The process that this code runs in has died: nothing that it does from now on has an effect."""


class Stuck(AssertionError):
    """Nothing can go on, or something never ends."""


class Process:
    """A simulated process: it lives until it ends or is killed."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid, self.dead = name, pid, False


class Task:
    """A thread of a simulated process. `result` and `error` are how it ended."""

    def __init__(self, scheduler: Scheduler, process: Process, name: str, run: Callable[[], Any]) -> None:
        self.process, self.name, self._run = process, name, run
        self.ready: Callable[[], bool] | None = None  # what it waits for; None: it only waits for its turn
        self.until = 0.0  # when it goes on at the latest
        self.done, self.result = False, None
        self.error: BaseException | None = None
        self.greenlet = greenlet(self._main, scheduler.hub)

    def _main(self, *_: Any) -> None:
        try:
            self.result = self._run()
        except BaseException as error:
            self.error = error
        self.done = True


class Scheduler:
    """Runs tasks until one of them has ended. `hop` is how often a task loses its turn at an effect."""

    def __init__(self, seed: int, hop: float, tick: float) -> None:
        self.dice, self.hop, self._tick = random.Random(seed), hop, tick
        self.now = 0.0  # seconds, also while the machine is off
        self.booted, self.skew = (
            0.0,
            0.0,
        )  # when the present process could begin; by how much the wall clock is wrong
        self.hub = getcurrent()
        self.tasks: list[Task] = []
        self._current: Task | None = None
        self.trace = 0  # a checksum of everything that happened, in its order
        self.events = 0

    @property
    def process(self) -> Process | None:
        """Whose turn it is; None outside of every simulated process."""
        return None if self._current is None else self._current.process

    @property
    def current(self) -> Task:
        assert self._current is not None, "an effect outside of every simulated process"
        return self._current

    def note(self, what: str) -> None:
        """Add an event to the trace."""
        self.events += 1
        who = self._current.name if self._current else "-"
        self.trace = zlib.crc32(f"{who} {what}".encode(), self.trace)

    def spawn(self, process: Process, name: str, run: Callable[[], Any]) -> Task:
        task = Task(self, process, name, run)
        self.tasks.append(task)
        return task

    def run(self, until: Task) -> None:
        """Run all tasks until one has ended; the others stay where they are."""
        steps = 0
        while not until.done:
            steps += 1
            if steps > MAX_STEPS:
                raise Stuck(f"after {steps:,} steps {until.name} has not ended")
            self._step()
            self.bury()

    def _step(self) -> None:
        self.tasks = [task for task in self.tasks if not task.done]
        able = [task for task in self.tasks if self._is_able(task)]
        if not able:
            waiting = min((task.until for task in self.tasks), default=float("inf"))
            if waiting == float("inf"):
                raise Stuck("all threads wait for ever: " + ", ".join(task.name for task in self.tasks))
            self.now = max(self.now, waiting)
            return
        self._switch(able[self.dice.randrange(len(able))] if len(able) > 1 else able[0])

    def _is_able(self, task: Task) -> bool:
        return task.ready is None or self.now >= task.until or task.ready()

    def _switch(self, task: Task) -> None:
        before, self._current = self._current, task
        try:
            task.greenlet.switch()
        finally:
            self._current = before

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Let others go on until something is so, or `timeout` seconds have passed; returns whether it is."""
        task = self.current
        if task.process.dead:
            raise SimulatedCrash
        task.ready, task.until = ready, float("inf") if timeout is None else self.now + max(0.0, timeout)
        if not ready():
            self.hub.switch()
        task.ready = None
        if task.process.dead:
            raise SimulatedCrash
        return ready()

    def sleep(self, seconds: float) -> None:
        self.wait(lambda: False, seconds)

    def may_hop(self) -> None:
        """Time passes, and perhaps another one gets the turn."""
        self.now += self._tick * self.dice.random()
        if self.hop and self.dice.random() < self.hop:
            self.hub.switch()
            if self.current.process.dead:
                raise SimulatedCrash

    def bury(self) -> None:
        """Unwind the threads of dead processes; whatever they do meanwhile has no effect. Called from the hub."""
        for task in [task for task in self.tasks if task.process.dead and not task.done]:
            if not task.greenlet:  # it has not begun
                task.done, task.error = True, SimulatedCrash()
                continue
            before, self._current = self._current, task
            for _ in range(100):
                if task.done:
                    break
                task.greenlet.throw(SimulatedCrash)
            self._current = before
            if not task.done:
                raise Stuck(f"{task.name} goes on although its process is dead")


class SimTime:
    """The module `time` of a simulated process."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def time(self) -> float:
        return START + self._scheduler.now + self._scheduler.skew

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def monotonic(self) -> float:
        return 100.0 + self._scheduler.now - self._scheduler.booted

    def monotonic_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    perf_counter = monotonic

    def thread_time(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self._scheduler.sleep(seconds)


class SimThreading:
    """The module `threading` of a simulated process, and of `concurrent.futures` what the product uses."""

    def __init__(self, scheduler: Scheduler) -> None:
        sim = scheduler

        class Event:
            def __init__(self) -> None:
                self._flag = False

            def is_set(self) -> bool:
                return self._flag

            def set(self) -> None:
                self._flag = True

            def clear(self) -> None:
                self._flag = False

            def wait(self, timeout: float | None = None) -> bool:
                return sim.wait(self.is_set, timeout)

        class Lock:
            def __init__(self) -> None:
                self._held = False

            def __enter__(self) -> None:
                sim.wait(lambda: not self._held)
                self._held = True

            def __exit__(self, *_: object) -> None:
                self._held = False

        class Condition(Lock):
            def __init__(self) -> None:
                super().__init__()
                self._turns = 0

            def notify_all(self) -> None:
                self._turns += 1

            def wait_for(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
                self._held = False
                end = None if timeout is None else sim.now + timeout
                while not (found := done()) and (end is None or sim.now < end):
                    seen = self._turns
                    sim.wait(lambda seen=seen: self._turns > seen, None if end is None else end - sim.now)  # type: ignore[misc]
                sim.wait(lambda: not self._held)
                self._held = True
                return found

        class Thread:
            def __init__(self, target: Callable[[], Any], name: str, daemon: bool = False) -> None:
                self._target, self._name, self._task = target, name, None

            def start(self) -> None:
                self._task = sim.spawn(sim.current.process, self._name, self._target)

            def join(self, timeout: float | None = None) -> None:
                assert self._task is not None
                sim.wait(lambda: self._task.done, timeout)

            def is_alive(self) -> bool:
                return self._task is not None and not self._task.done

        class Future:
            def __init__(self, call: Callable[[], Any]) -> None:
                self.call, self.task, self.cancelled = call, None, False

            def done(self) -> bool:
                return self.cancelled or (self.task is not None and self.task.done)

            def result(self) -> Any:
                sim.wait(self.done)
                if self.task is not None and self.task.error is not None:
                    raise self.task.error
                return None if self.task is None else self.task.result

        class ThreadPoolExecutor:
            def __init__(self, workers: int, name: str) -> None:
                self._name, self._futures, self._closed = name, [], False

            def submit(self, call: Callable[..., Any], *words: Any) -> Future:
                if self._closed:
                    raise RuntimeError("cannot schedule new futures after shutdown")
                before = self._futures[-1] if self._futures else None
                future = Future(lambda: call(*words))

                def run() -> Any:
                    if before is not None:
                        sim.wait(before.done)
                    return None if future.cancelled else future.call()

                self._futures.append(future)
                future.task = sim.spawn(sim.current.process, self._name, run)
                return future

            def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
                self._closed = True
                if cancel_futures:
                    for future in self._futures:
                        future.cancelled = future.cancelled or not future.task.greenlet
                if wait:
                    for future in self._futures:
                        sim.wait(lambda future=future: future.task.done)  # type: ignore[misc]

        def wait_all(futures: list[Future], timeout: float | None = None) -> None:
            sim.wait(lambda: all(future.done() for future in futures), timeout)

        self.Event, self.Lock, self.Condition, self.Thread = Event, Lock, Condition, Thread
        self.ThreadPoolExecutor, self.wait = ThreadPoolExecutor, wait_all
