"""A sweep from its specification to its leaderboard, read top to bottom."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from binsweep.data.banks.pixels import open_pixel_bank
from binsweep.data.banks.store import bank_folder
from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, skipped_text
from binsweep.data.resource_limits import cores
from binsweep.models.pretrained import check_weights
from binsweep.models.settings import Settings
from binsweep.models.train import TrialData, build_banks
from binsweep.search.execution.controller import ENDED, Controller, ResourceUsage, TrialRecord
from binsweep.search.execution.interrupts import acknowledge_interrupt
from binsweep.search.execution.local_runner import run_local
from binsweep.search.execution.resources import (
    Node,
    check_resources,
    fits,
    ray_temp_folder,
    this_machine,
    trial_resources,
)
from binsweep.search.execution.trial import TrialResources, is_disk_full
from binsweep.search.history.sweep_history import spent_on
from binsweep.search.history.sweep_state import save_state
from binsweep.search.recording.decision_log import DecisionLog
from binsweep.search.recording.live_table import LiveTable, Step
from binsweep.search.recording.recorder import Recorder
from binsweep.search.spec.parser import SweepSpec
from binsweep.search.strategy import open_strategy
from binsweep.search.workflows.sweep_data import spec_manifest
from binsweep.search.workflows.warm_start import WarmStart
from binsweep.tracking.runlog.run_log import RunLog

Runner = Literal["ray", "local"]
STALLED_SECONDS = 60.0  # a tracking server that takes nothing for so long is left to `binsweep sync`
INTERRUPTED_SECONDS = 8.0  # who asked a sweep to leave wants it gone within 15 s


@dataclass(frozen=True)
class SweepResult:
    """How a sweep went; `halted`: it was given up for `ended_by`, and can go on; `unsent` is how many records the
    tracking server has not had yet."""

    id: str
    folder: Path
    leaderboard: list[TrialRecord]
    failed: list[TrialRecord]
    ended_by: str
    suspended: bool
    unsent: int


def check_before_start(
    spec: SweepSpec, cluster: Sequence[Node] | None = None, runner: Runner = "ray"
) -> None:
    """Everything that can be known to be wrong before any data is read; raises UserError.

    `cluster` is what each node of the cluster has that the sweep will run on; without it, it is this machine.
    """
    for path, kind in spec.resources.kinds().items():
        if runner == "local" and kind.workers_per_trial > 1:
            rule = f"{path}.workers_per_trial: {kind.workers_per_trial} asked, --runner local trains in one process"
            raise UserError(rule, "leave --runner out, or set it to 1")
    for backbone, weights in itertools.product(spec.values("backbone"), spec.values("weights")):
        check_weights(backbone, weights)
    if runner == "ray" and cluster is None:
        ray_temp_folder()
    nodes = [this_machine()] if cluster is None else cluster
    check_resources(spec.resources, nodes, "this machine" if cluster is None else "the largest node")
    gpus = [trial_resources(kind, nodes).gpus for kind in spec.resources.kinds().values()]
    if runner == "local":
        gpus = [float(torch.cuda.is_available())]
    if spec.budget.gpu_hours is not None and not any(gpus):
        rule = "budget.gpu_hours: no trial gets a GPU here, so that it would never be spent"
        raise UserError(rule, "give budget.minutes instead")


def prepare(spec: SweepSpec, home: Path) -> tuple[Manifest, TrialData]:
    """Read the data, check it against the spec, and build every bank that the trials will share."""
    with Step("reading the data") as step:
        manifest = spec_manifest(spec, home, step)
    if manifest.skipped:
        print(f"skipped {len(manifest.skipped):,} files: {skipped_text(manifest.skipped)}", file=sys.stderr)
    for gap in manifest.gaps():
        print(f"warning: {gap}", file=sys.stderr)
    largest, train = max(spec.values("batch_size")), len(manifest.split("train"))
    if largest > train:
        raise UserError(
            f"batch_size: up to {largest} asked, the train split has {train} images",
            f"set it to at most {train}",
        )
    data = open_data(spec, manifest, home)
    names = ("backbone", "weights", "trainable", "precision", "augment", "views")
    for values in itertools.product(*(spec.values(name) for name in names)):
        settings = replace(spec.settings, **dict(zip(names, values, strict=True)))
        with Step(f"features of {settings.backbone}") as step:
            build_banks(settings, data, step)
    return manifest, data


def open_data(spec: SweepSpec, manifest: Manifest, home: Path) -> TrialData:
    """The decoded splits from which trials learn."""
    with Step("decoding") as step:
        train, validation = (
            open_pixel_bank(manifest, name, spec.data.image_size, home, step)
            for name in ("train", "validation")
        )
    return TrialData(manifest.classes, spec.data.image_size, train, validation, bank_folder(home))


def new_folder(home: Path, name: str) -> Path:
    """A folder for the next sweep of this name: home/sweeps/NAME-1, NAME-2, ...; made atomically."""
    for number in itertools.count(1):
        folder = home / "sweeps" / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def _send_rest(runlog: RunLog, hurried: bool) -> int:
    """Wait for the tracking server to have everything; returns the records it has not.

    A server that was away has much to be told: who is not in a hurry waits for it as long as it takes some.
    """
    unsent = runlog.flush(INTERRUPTED_SECONDS)
    if hurried or not unsent:
        return unsent
    print(f"MLflow is told what it has missed: {unsent:,} records", file=sys.stderr)
    return runlog.drain(STALLED_SECONDS)


def run_sweep(
    spec: SweepSpec,
    manifest: Manifest,
    data: TrialData,
    home: Path,
    runner: Runner,
    tracking_uri: str,
    unfinished: Path | None = None,
    warm: WarmStart | None = None,
    trace: bool = False,
    cluster: Sequence[Node] | None = None,
) -> SweepResult:
    """Run a prepared sweep, or go on with the `unfinished` one in that folder, and leave everything in MLflow and
    in its folder under `home`. A new one knows what an `earlier` sweep does. `trace` lets torch.profiler look at a few
    steps of each trial. On a `cluster` that this process has joined, the trials spread over its nodes, which need
    not share a disk with this one.

    On KeyboardInterrupt, or when the runner itself fails, what runs is left so that it can go on. Raises
    UserError where another process has the sweep.
    """
    with ExitStack() as stack:
        slots, nodes = 1, list[Node]()
        if runner == "ray":
            from binsweep.search.ray_backend.runner import run_ray, start_ray  # Ray takes seconds to import

            nodes = list(cluster or [stack.enter_context(start_ray(cores()))])
            slots = check_resources(spec.resources, nodes, "Ray")
        spent = ResourceUsage() if unfinished is None else spent_on(unfinished)
        folder = unfinished or new_folder(home, spec.name)
        runlog = RunLog(folder / "spool", tracking_uri, spec.name)  # first: it refuses a second process
        strategy = open_strategy(
            folder / "study.db",
            folder.name,
            spec.space,
            spec.goal,
            sampler=spec.search.sampler,
            stopping=spec.search.stopping,
            seed=spec.search.seed,
            max_epochs=spec.max_epochs,
        )
        strategy.know(
            warm.sweep if warm else "",
            warm.records if warm else [],
            [*spec.search.points, *(warm.points if warm else [])],
        )

        alone = TrialResources(
            {"CPU": float(torch.get_num_threads()), "GPU": float(torch.cuda.is_available())}
        )

        def share(settings: Settings) -> TrialResources:
            return trial_resources(spec.resources.of(settings), nodes) if nodes else alone

        together = functools.partial(fits, nodes=nodes) if nodes and spec.resources.large else None
        controller = Controller(spec, strategy, folder, share, together, spent, trace)
        controller.restore(strategy.trials())
        save_state(folder, spec, manifest, controller, runlog, "running")
        recorder = Recorder(runlog, spec, folder.name, manifest, data, folder, controller, slots)
        recorder.sweep_started()
        hurried = False
        controller.listeners += [recorder, DecisionLog(folder)]
        try:
            with LiveTable(spec, controller):
                if runner == "ray":
                    least = min(kind.cpus_per_trial for kind in spec.resources.kinds().values())
                    run_ray(controller, data, folder, least, slots, cluster is not None)
                else:
                    run_local(controller, data)
            if controller.suspended:
                recorder.sweep_interrupted(controller.ended_by, "FAILED")
            else:
                controller.close()
                recorder.sweep_ended("FINISHED")
        except BaseException as error:
            acknowledge_interrupt()
            hurried, interrupted = True, isinstance(error, KeyboardInterrupt)
            why = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
            if full := is_disk_full(error):
                why = f"disk: no room is left at {folder}: free some to go on"
                controller.suspend(why)
            with contextlib.suppress(OSError) if full else contextlib.nullcontext():
                recorder.sweep_interrupted(why, "KILLED" if interrupted else "FAILED")
            if not full:
                raise
        finally:
            unsent = _send_rest(runlog, hurried)
            over = all(trial.state in ENDED for trial in controller.trials.values()) and bool(
                controller.ended_by
            )
            over = over and not controller.suspended and not hurried
            with contextlib.suppress(OSError) if controller.suspended else contextlib.nullcontext():
                save_state(folder, spec, manifest, controller, runlog, "finished" if over else "unfinished")
            if over:
                recorder.prune()
            runlog.close(0.0)
            if unsent:
                where = f"they wait in {folder / 'spool'}, and `binsweep sync` sends them"
                print(f"{unsent} records did not reach the tracking server: {where}", file=sys.stderr)
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
