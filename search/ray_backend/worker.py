"""One trial inside a Ray worker. What is imported here, every worker loads: no more than a trial needs."""

from __future__ import annotations

import binsweep.search.ray_backend.environment  # noqa: F401 (before Ray)

# isort: split
import os
import threading
from typing import Any

from ray import tune

from binsweep.search.execution.trial import TrialTask, hide_gpus, leave_error, run_trial
from binsweep.search.ray_backend.file_transfer import DriverFiles, Push

GRACE_SECONDS = 30.0  # an epoch that ends in time is stopped behind it, with its checkpoint


def trainable(config: dict[str, Any], driver_files: DriverFiles) -> None:
    """Ray Tune's function: train `config["task"]`, report every epoch."""
    hide_gpus(config["task"].resources)
    with driver_files.at_hand(config["task"]) as (task, push):

        def send(epoch: int, metrics: dict[str, float]) -> bool:
            push()  # the epoch's files are on the driver's disk before it hears of the epoch
            # Ray ends the thread inside report() when the scheduler said stop: coming back means go on.
            tune.report({"number": task.number, "epoch": epoch, "metrics": metrics})
            return True

        alarm = _alarm(task, push)
        try:
            if task.resources.workers > 1:
                from binsweep.search.ray_backend.worker_group import (
                    run_in_group,  # what one that trains alone need not load
                )

                run_in_group(task, driver_files, send)
            else:
                run_trial(task, driver_files.data(), send)
        except Exception:
            push()  # the reason
            raise
        finally:
            alarm.cancel()


def _alarm(task: TrialTask, push: Push) -> threading.Timer:
    """Ends this worker when a trial hangs inside an epoch, where nobody could ask it to stop."""
    late = f"TimeoutError: budget.trial_minutes: {task.minutes} are over, and the epoch did not end"

    def give_up() -> None:
        leave_error(task.folder, late, "")
        push()
        os._exit(1)

    seconds = threading.TIMEOUT_MAX if task.minutes is None else 60 * task.minutes + GRACE_SECONDS
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    if task.minutes is not None:
        timer.start()
    return timer
