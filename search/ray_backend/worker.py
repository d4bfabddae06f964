"""One trial in a Ray worker. Every worker loads these imports: no more than a trial needs."""

from __future__ import annotations

import binsweep.search.ray_backend.environment  # noqa: F401 (before Ray)

# isort: split
import os
import threading
from typing import Any

from ray import tune

from binsweep.search.execution.trial import TrialTask, hide_gpus, leave_error
from binsweep.search.ray_backend.file_transfer import DriverFiles, Upload

GRACE_SECONDS = 30.0  # after the time limit, in which an epoch may still end and be reported


def trainable(config: dict[str, Any], driver_files: DriverFiles) -> None:
    """The trainable of Ray Tune: train `config["task"]` and report every epoch."""
    hide_gpus(config["task"].resources)
    with driver_files.at_hand(config["task"]) as (task, upload):

        def send(epoch: int, metrics: dict[str, float]) -> bool:
            upload()  # before the epoch is reported, its files must be on the driver's disk
            # If the scheduler stops the trial, Ray ends this thread inside report().
            tune.report({"number": task.number, "epoch": epoch, "metrics": metrics})
            return True

        timer = _deadline_timer(task, upload)
        if task.minutes is not None and not driver_files.in_own_process:
            timer.start()
        try:
            if task.resources.workers > 1:
                from binsweep.search.ray_backend.worker_group import run_in_group  # slow to import

                run_in_group(task, driver_files, send)
            else:
                driver_files.trainer().train(task, send)
            upload()  # what own code has written after its last epoch
        except Exception:
            upload()  # the error file
            raise
        finally:
            timer.cancel()


def _deadline_timer(task: TrialTask, upload: Upload) -> threading.Timer:
    """A timer that ends this worker if an epoch does not end: inside an epoch, a trial cannot be stopped otherwise."""
    reason = f"TimeoutError: budget.trial_minutes: {task.minutes} are over, and the epoch did not end"

    def give_up() -> None:
        leave_error(task.folder, reason, "")
        upload()
        os._exit(1)

    seconds = threading.TIMEOUT_MAX if task.minutes is None else 60 * task.minutes + GRACE_SECONDS
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    return timer
