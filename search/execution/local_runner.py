"""The in-process runner: one trial after the other, without Ray. For debugging; repeatable exactly by seed."""

from __future__ import annotations

import functools
import logging
import time

from binsweep.search.execution.controller import Controller
from binsweep.search.execution.steering import LOOK_SECONDS
from binsweep.search.execution.trial import LostWorkerError, Trainer, is_disk_full
from binsweep.search.own_code.host_process import close_hosts

log = logging.getLogger(__name__)


def run_local(controller: Controller, trainer: Trainer) -> None:
    """Run trials until the controller has no more. A failure ends only its own trial."""
    try:
        _run_trials(controller, trainer)
    finally:
        close_hosts()


def _run_trials(controller: Controller, trainer: Trainer) -> None:
    broken: list[BaseException] = []  # an error of the controller's

    def report(number: int, epoch: int, metrics: dict[str, float]) -> bool:
        try:
            return controller.report(number, epoch, metrics)
        except Exception as error:
            broken.append(error)
            raise

    while (task := controller.next_task()) is not None or controller.is_paused:
        if task is None:
            time.sleep(LOOK_SECONDS)
            continue
        number = task.number
        try:
            trainer.train(task, functools.partial(report, number))
        except LostWorkerError as error:
            controller.lost(number, str(error))
        except Exception as error:
            if error in broken:
                raise  # the trial is not to blame: the sweep ends, and can be resumed
            if is_disk_full(error):
                controller.lost(number, f"the disk is full: {error}".splitlines()[0])
                continue
            log.warning("trial %d failed: %s", number, error)
            controller.finish(number, controller.error_of(number) or f"{type(error).__name__}: {error}")
        else:
            controller.finish(number)
