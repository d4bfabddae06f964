"""The Ray runner: Ray Tune executes the trials; what to try and what to stop is the controller's to say."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Read when Ray is imported. Its own console output, loggers and phoning home give way to the sweep's.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# A token of this process alone: without one, Ray would write one into the person's home directory.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from models.train import TrialData
from search.controller import Controller
from search.trial import run_trial

OBJECT_STORE_BYTES = 100 * 2**20  # banks are memory-mapped files; next to nothing goes through the store


def _trainable(config: dict[str, Any], data: TrialData) -> None:
    def send(epoch: int, metrics: dict[str, float]) -> bool:
        # Ray ends the thread inside report() when the scheduler said stop: coming back means go on.
        tune.report({"number": config["task"].number, "epoch": epoch, "metrics": metrics})
        return True

    run_trial(config["task"], data, send)


class _Suggestions(Searcher):
    """Ray's door to `Controller.next_task`. It has no state of its own: the study is the truth."""

    def __init__(self, controller: Controller, slots: int) -> None:
        super().__init__()
        self._controller, self._slots = controller, slots
        self.numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its doors for a restore that a sweep never asks for

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        running = [trial for trial in self._controller.trials.values() if trial.state == "running"]
        if len(running) >= self._slots:  # suggested too early, it would know less than it could
            return None
        task = self._controller.next_task()
        if task is None:
            return str(Searcher.FINISHED)
        self.numbers[trial_id] = task.number
        return {"task": task}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self.numbers[trial_id]
        message = self._controller.error_of(number, "the worker died") if error else ""
        self._controller.finish(number, message)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its study, not from Ray's files")


class _Verdicts(FIFOScheduler):
    """Ray's door to `Controller.report`."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self._controller = controller

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        metrics = {
            key.removeprefix("metrics/"): value for key, value in result.items() if key.startswith("metrics/")
        }
        go_on = self._controller.report(result["number"], result["epoch"], metrics)
        return str(FIFOScheduler.CONTINUE if go_on else FIFOScheduler.STOP)


@contextlib.contextmanager
def start_ray(cores: int) -> Iterator[dict[str, float]]:
    """A Ray of this process alone, closed to others by its token, ended on leaving; yields what it has."""
    ray.init(
        address="local",
        num_cpus=cores,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=OBJECT_STORE_BYTES,
    )
    try:
        yield dict(ray.cluster_resources())
    finally:
        ray.shutdown()


def run_ray(
    controller: Controller, data: TrialData, per_trial: Mapping[str, float], slots: int, folder: Path
) -> None:
    """Run trials on Ray, `slots` at a time, until the controller has no more; a failure ends one trial alone."""
    trainable = tune.with_resources(
        functools.partial(_trainable, data=data),
        dict(per_trial),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_Suggestions(controller, slots),
            scheduler=_Verdicts(controller),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['task'].number:04d}",
            trial_dirname_creator=lambda trial: f"trial-{trial.config['task'].number:04d}",
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(folder.resolve()),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()
