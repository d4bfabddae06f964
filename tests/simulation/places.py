"""The places where the product meets the world, taken by the simulated one."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import sqlalchemy
from optuna.storages._rdb.storage import _VersionManager

import binsweep.search.execution.code_trial as code_trial
import binsweep.search.execution.faults as faults
import binsweep.search.recording.recorder as recorder
import binsweep.search.report.sweep_report  # noqa: F401 (the product imports it late, past the simulated clock)
import binsweep.search.strategy.study_storage as study_storage
import binsweep.search.workflows.sweep as sweep_workflow
import binsweep.tracking.runlog.sender as sender
import binsweep.tracking.runlog.spool as spool

from .fake_mlflow import FakeClient
from .kept import create_engine, migrations
from .scheduler import SimThreading, SimTime
from .workers import SimHost, run_workers

if TYPE_CHECKING:
    from .world import World


@contextlib.contextmanager
def installed(world: World) -> Iterator[None]:
    """Put the simulated clock, threads, disk, database and MLflow in the places of the real ones."""
    scheduler, disk = world.scheduler, world.disk
    clock, threads = SimTime(scheduler), SimThreading(scheduler)
    real_time, real_threading = sys.modules["time"], sys.modules["threading"]
    changes: list[tuple[Any, str, Any]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith(("binsweep.search.", "binsweep.tracking.runlog", "binsweep.data.locks")):
            if getattr(module, "time", None) is real_time:
                changes.append((module, "time", clock))
            if getattr(module, "threading", None) is real_threading:
                changes.append((module, "threading", threads))
    hexes = random.Random(f"uuid {world.plan.seed}")
    uuids = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{hexes.getrandbits(128):032x}"))
    free = SimpleNamespace(disk_usage=lambda folder: SimpleNamespace(free=0 if disk.full else 10**12))
    real_pid = os.getpid
    changes += [
        (recorder, "ThreadPoolExecutor", threads.ThreadPoolExecutor),
        (recorder, "wait", threads.wait),
        (recorder, "environment_tags", lambda: {"version.simulated": "1"}),
        (spool, "uuid", uuids),
        (study_storage, "sqlite3", SimpleNamespace(connect=disk.connect)),
        (sender, "MlflowClient", lambda uri: FakeClient(world.mlflow, world.request)),
        (faults, "shutil", free),
        (code_trial, "host_for", lambda *words: SimHost(world)),
        (_VersionManager, "_create_alembic_script", migrations),
        (sqlalchemy.engine, "create_engine", create_engine),
        (os, "getpid", lambda: process.pid if (process := scheduler.process) else real_pid()),
        (sys, "stderr", _Nothing()),
    ]
    if not world.plan.is_local:
        run = lambda controller, trainer: run_workers(world, controller, trainer)  # noqa: E731
        changes.append((sweep_workflow, "run_local", run))
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        with disk.mounted():
            yield
    finally:
        for module, name, value in reversed(before):
            setattr(module, name, value)
        logging.disable(disabled)


class _Nothing:
    """A stream that nobody reads."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False
