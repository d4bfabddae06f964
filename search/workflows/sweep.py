"""A sweep from its prepared data to its leaderboard."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from binsweep.data.resource_limits import cores
from binsweep.search.execution.budget import ResourceUsage
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.interrupts import acknowledge_interrupt
from binsweep.search.execution.local_runner import run_local
from binsweep.search.execution.photo_trial import PhotoTrainer
from binsweep.search.execution.resources import Node, TrialResources, check_resources, fits, trial_resources
from binsweep.search.execution.trial import is_disk_full
from binsweep.search.execution.trial_record import ENDED, TrialRecord
from binsweep.search.history.run_log_reader import read_progress, resources_spent
from binsweep.search.history.sweep_state import Status, save_state
from binsweep.search.recording.decision_log import DecisionLog
from binsweep.search.recording.live_table import LiveTable
from binsweep.search.recording.recorder import Recorder
from binsweep.search.spec.sweep_spec import PhotoSpec, SweepSpec
from binsweep.search.strategy.earlier_sweeps import FirstGuesses
from binsweep.search.strategy.factory import open_strategy
from binsweep.search.strategy.optuna_strategy import OptunaStrategy
from binsweep.search.workflows.finalists import promotion_seconds
from binsweep.search.workflows.first_guesses import initial_points
from binsweep.search.workflows.first_steps import try_first_steps
from binsweep.search.workflows.preflight import Runner
from binsweep.search.workflows.prepare import PreparedSweep
from binsweep.search.workflows.strategy_options import strategy_options
from binsweep.tracking.runlog.run_log import RunLog

MAX_STALLED_SECONDS = (
    60.0  # without progress of the tracking server, after which `binsweep sync` sends the rest
)
MAX_FLUSH_SECONDS = 8.0  # an interrupted sweep should end within 15 s


@dataclass(frozen=True)
class SweepResult:
    """How a sweep went. A `suspended` sweep was given up for the reason in `ended_by` and can be resumed; `unsent`
    counts the records that the tracking server does not have yet."""

    id: str
    folder: Path
    leaderboard: list[TrialRecord]
    failed: list[TrialRecord]
    ended_by: str
    suspended: bool
    unsent: int


def run_sweep(
    prepared: PreparedSweep,
    runner: Runner,
    tracking_uri: str,
    unfinished: Path | None = None,
    warm_start: FirstGuesses | None = None,
    trace: bool = False,
    cluster: Sequence[Node] | None = None,
    then_promote: bool = False,
) -> SweepResult:
    """Run a prepared sweep, or resume the one in the folder `unfinished`; results go to MLflow and to its folder.

    A new sweep may use a `warm_start`. `trace` turns on torch.profiler for a few steps of each trial. On a `cluster`
    that this process has joined, the trials spread over its nodes, which need not share a disk with this one. With
    `then_promote`, time is left in `budget.minutes` for the promotion.

    On KeyboardInterrupt, or when the runner itself fails, the sweep is left so that it can be resumed. Raises
    UserError if another process runs it.
    """
    spec = prepared.spec
    with ExitStack() as stack:
        nodes: list[Node] = []
        if runner == "ray":
            from binsweep.search.ray_backend.runner import start_ray  # Ray takes seconds to import

            nodes = list(cluster or [stack.enter_context(start_ray(cores()))])
        slots = check_resources(spec.resources, nodes, "Ray") if nodes else 1
        spent = ResourceUsage() if unfinished is None else resources_spent(unfinished)
        folder = unfinished or new_folder(prepared.home, spec.name)
        runlog = RunLog(folder / "spool", tracking_uri, spec.name)  # first: it refuses a second process
        strategy = _open_strategy(spec, folder, warm_start)
        strategy.sync_first(runlog.sync)
        controller = _controller(spec, strategy, folder, nodes, spent, trace)
        if then_promote and spec.budget.minutes is not None and isinstance(spec, PhotoSpec):
            controller.reserve = functools.partial(promotion_seconds, spec)
        sweep = _OpenSweep(prepared, folder, runlog, controller, slots)
        interrupted = False
        try:
            if cluster is None:  # whose nodes may be faster or slower than this machine
                _try_first_steps(prepared, controller, strategy, slots)
            with LiveTable(spec, controller, slots):
                sweep.run_trials(runner, on_cluster=cluster is not None)
            sweep.record_end()
        except BaseException as error:
            interrupted = True
            acknowledge_interrupt()
            sweep.record_interruption(error)
            if not is_disk_full(error):
                raise
        finally:
            unsent = sweep.close(interrupted)
    failed = [trial for trial in controller.trials.values() if trial.state == "failed"]
    return SweepResult(
        folder.name,
        folder,
        controller.leaderboard(),
        failed,
        controller.ended_by,
        controller.suspended,
        unsent,
    )


def new_folder(home: Path, name: str) -> Path:
    """Create the folder of the next sweep of this name, atomically: home/sweeps/NAME-1, NAME-2, ..."""
    for number in itertools.count(1):
        folder = home / "sweeps" / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def _open_strategy(spec: SweepSpec, folder: Path, warm_start: FirstGuesses | None) -> OptunaStrategy:
    strategy = open_strategy(folder / "study.db", folder.name, strategy_options(spec))
    known, points = warm_start or FirstGuesses(), initial_points(spec)
    if warm_start is not None and spec.search.initial_points is None:
        points = []  # what earlier sweeps found is better than what is recommended for any data
    strategy.warm_start(replace(known, points=[*points, *known.points]))
    return strategy


def _try_first_steps(
    prepared: PreparedSweep, controller: Controller, strategy: OptunaStrategy, slots: int
) -> None:
    """Find out how long an epoch takes, where time is a limit and nothing was measured yet."""
    spec, trainer, left = prepared.spec, prepared.trainer, controller.seconds_left()
    if left is None or left <= 0 or controller.training_seconds() is not None:
        return
    if isinstance(spec, PhotoSpec) and isinstance(trainer, PhotoTrainer):
        try_first_steps(spec, trainer.data, strategy, left, slots)


def _controller(
    spec: SweepSpec,
    strategy: OptunaStrategy,
    folder: Path,
    nodes: list[Node],
    spent: ResourceUsage,
    trace: bool,
) -> Controller:
    """The controller with the trials of earlier processes. Without `nodes`, trials run in this process."""
    this_process = TrialResources(
        {"CPU": float(torch.get_num_threads()), "GPU": float(torch.cuda.is_available())}
    )

    def resources_of(values: Mapping[str, Any]) -> TrialResources:
        return trial_resources(spec.resources.of(values), nodes) if nodes else this_process

    # Where all trials get the same resources, the number of slots limits them.
    fit_together = functools.partial(fits, nodes=nodes) if nodes and spec.resources.overrides else None
    controller = Controller(spec, strategy, folder, resources_of, fit_together, spent, trace)
    controller.restore(strategy.trials())
    return controller


class _OpenSweep:
    """A sweep that this process runs: it has the run log, and writes the state and the records."""

    def __init__(
        self, prepared: PreparedSweep, folder: Path, runlog: RunLog, controller: Controller, slots: int
    ) -> None:
        self._prepared, self._folder, self._runlog = prepared, folder, runlog
        self._controller, self._slots = controller, slots
        self._save_state("running")
        self._recorder = Recorder(
            runlog, prepared.spec, folder.name, prepared.records, folder, controller, slots
        )
        self._recorder.sweep_started()
        decisions = DecisionLog(folder)
        decisions.catch_up(controller.answers, controller.trials.values())
        controller.listeners += [self._recorder, decisions]
        controller.repeat(read_progress(folder))
        if who := controller.paused_by:
            print(
                f"{folder.name} is paused by {who}: `binsweep resume {folder.name}` lets it go on",
                file=sys.stderr,
            )

    def run_trials(self, runner: Runner, on_cluster: bool) -> None:
        """Run trials until the controller has no more."""
        controller, trainer = self._controller, self._prepared.trainer
        if runner == "local":
            run_local(controller, trainer)
            return
        from binsweep.search.ray_backend.runner import run_ray

        min_cpus = min(kind.cpus_per_trial for kind in self._prepared.spec.resources.kinds().values())
        run_ray(controller, trainer, self._folder, min_cpus, self._slots, on_cluster)

    def record_end(self) -> None:
        """Record that the runner has no more trials: the sweep is finished or suspended."""
        if self._controller.suspended:
            self._recorder.sweep_interrupted(self._controller.ended_by, "FAILED")
        else:
            self._controller.close()
            self._recorder.sweep_ended("FINISHED")

    def record_interruption(self, error: BaseException) -> None:
        """Record what ended the runner, so that the sweep can be resumed. A full disk suspends it."""
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
        if disk_full := is_disk_full(error):
            reason = f"disk: {self._folder} is on a full disk: free some space to continue"
            self._controller.suspend(reason)
        with contextlib.suppress(OSError) if disk_full else contextlib.nullcontext():
            self._recorder.sweep_interrupted(reason, "KILLED" if interrupted else "FAILED")

    def close(self, interrupted: bool) -> int:
        """Send what can be sent, save the state, and close the run log; returns the number of unsent records."""
        controller = self._controller
        unsent = _send_records(self._runlog, interrupted)
        finished = bool(controller.ended_by) and not (controller.suspended or interrupted)
        finished = finished and all(trial.state in ENDED for trial in controller.trials.values())
        if finished:
            controller.close()  # refuses what was asked for meanwhile: sending may take minutes
        with contextlib.suppress(OSError) if controller.suspended else contextlib.nullcontext():
            self._save_state("finished" if finished else "unfinished")
        if finished:
            self._recorder.prune()
        self._runlog.close(0.0)
        if unsent:
            where = f"they are kept in {self._folder / 'spool'}, and `binsweep sync` sends them"
            print(f"{unsent} records did not reach the tracking server: {where}", file=sys.stderr)
        return unsent

    def _save_state(self, status: Status) -> None:
        spec, fingerprint = self._prepared.spec, self._prepared.fingerprint
        save_state(self._folder, spec, fingerprint, self._controller, self._runlog, status)


def _send_records(runlog: RunLog, interrupted: bool) -> int:
    """Wait until the tracking server has all records; returns the number of unsent ones.

    A server that was unavailable may have missed many: unless interrupted, wait as long as it accepts records.
    """
    unsent = runlog.flush(MAX_FLUSH_SECONDS)
    if interrupted or not unsent:
        return unsent
    print(f"sending {unsent:,} records to MLflow that it has missed", file=sys.stderr)
    return runlog.drain(MAX_STALLED_SECONDS)
