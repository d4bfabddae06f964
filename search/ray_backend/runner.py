"""The Ray runner: Ray Tune executes the trials; what to try and what to stop is the controller's to say."""

from __future__ import annotations

import binsweep.search.ray_backend.environment  # noqa: F401 (before Ray)

# isort: split
import contextlib
import functools
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants
from ray.exceptions import AuthenticationError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from binsweep.data.errors import UserError
from binsweep.data.python_process import PACKAGE, environment_variable, same_path
from binsweep.data.resource_limits import memory
from binsweep.models.train import TrialData
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.resources import Node, ray_temp_folder
from binsweep.search.ray_backend.file_transfer import DriverFiles, bring_banks, open_driver_files, tidy_nodes
from binsweep.search.ray_backend.worker import trainable

WATCH_SECONDS = 5.0
CONNECT_SECONDS = 5.0
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entrypoint of a submitted job
OBJECT_STORE_BYTES = 100 * 2**20  # banks are memory-mapped files; next to nothing goes through the store


class _Suggestions(Searcher):
    """Ray's door to `Controller.next_task`. It has no state of its own: the study is the truth."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self._controller = controller
        self.numbers: dict[str, int] = {}
        # Ray's trials that were told to stop. The sweep's trial may be paused by then, or even run again.
        self.told: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its doors for a restore that a sweep never asks for

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        task = self._controller.next_task()
        if task is None:
            # What runs now may be paused soon, and go on later: Ray would not ask again.
            running = any(trial.state == "running" for trial in self._controller.trials.values())
            return None if running else str(Searcher.FINISHED)
        self.numbers[trial_id] = task.number
        return {"task": task}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self.told:
            return
        number = self.numbers[trial_id]
        message = self._controller.error_of(number) if error else ""
        if error and not message:
            self._controller.lost(number, "its worker died")
        else:
            self._controller.finish(number, message)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its study, not from Ray's files")


class _Verdicts(FIFOScheduler):
    """Ray's door to `Controller.report`."""

    def __init__(self, controller: Controller, told: set[str]) -> None:
        super().__init__()
        self._controller, self._told = controller, told

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Nothing of our own: Tune starts what is new, on a free actor if there is one.

        The parent names the oldest trial whose actor is still starting. Tune then gives it the actor that has just
        become free and throws the new one away, so that short trials would never run on all slots.
        """
        return None

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        metrics = {
            key.removeprefix("metrics/"): value for key, value in result.items() if key.startswith("metrics/")
        }
        go_on = self._controller.report(result["number"], result["epoch"], metrics)
        if not go_on:
            self._told.add(trial.trial_id)
        return str(FIFOScheduler.CONTINUE if go_on else FIFOScheduler.STOP)


class RayEndedError(RuntimeError):
    """Ray's own processes died under the sweep."""


class _Watch(tune.Callback):
    """Notices that Ray has died: Tune would wait for ever for workers that cannot come."""

    def __init__(self) -> None:
        self._next = 0.0

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + WATCH_SECONDS
        if not any(node["Alive"] for node in ray.nodes()):
            raise RayEndedError("Ray has died; the same command goes on with the sweep")


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """A folder for what Ray writes and for its processes to work in, with a short name; removed on leaving."""
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir=ray_temp_folder(), ignore_cleanup_errors=True
    ) as folder:
        yield folder


def _init_ray(folder: str, **options: Any) -> None:
    """`ray.init`, without its own answer to SIGTERM: it would end this process at once, by code 15.

    It is called in `folder`, because Ray lets its workers look for modules first in the folder where it was called: a
    person's own data.py there would be taken for ours.
    """
    ours = signal.getsignal(signal.SIGTERM)
    with contextlib.chdir(folder):
        ray.init(**options)
    signal.signal(signal.SIGTERM, ours)


@contextlib.contextmanager
def start_ray(cores: int) -> Iterator[Node]:
    """A Ray of this process alone, on the loopback and closed to others by its token, ended on leaving; yields what it
    has."""
    # A token of this process alone: without one, Ray would write one into the person's home directory.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with _own_folder() as folder, _on_the_loopback(), environment_variable("PYTHONPATH", same_path()):
        _init_ray(
            folder,
            address="local",
            num_cpus=cores,
            # Ray looks at the outermost control group alone.
            _memory=max(0, memory().free - OBJECT_STORE_BYTES),
            _temp_dir=folder,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=OBJECT_STORE_BYTES,
        )
        try:
            yield dict(ray.cluster_resources())
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _on_the_loopback() -> Iterator[None]:
    """Let the Ray that starts in this block listen on 127.0.0.1, not on all of this machine's addresses.

    Ray's setting is named after the systems on which that is the default. The processes that Ray starts read it; we
    come too late for that, because it is read when Ray is imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with environment_variable(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0"):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def join_ray(address: str) -> Iterator[list[Node]]:
    """Be a driver of a running Ray cluster of which this machine is a node; yields what each of its nodes has.

    The workers get this process's code. The cluster's token is looked for where Ray does (RAY_AUTH_TOKEN,
    RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token). Raises UserError where no such cluster answers.
    """
    if address.startswith("ray://"):
        raise UserError(
            f"--address {address}: a sweep does not run through Ray Client",
            "run it on a node of the cluster (auto, HOST:PORT), or send it there by `binsweep submit`",
        )
    hint = (
        "a cluster is started by `ray start --head`, and joined from one of its nodes with its RAY_AUTH_TOKEN"
    )
    _require_port(address, hint)
    # A job's workers have its code already.
    code = {} if IN_A_JOB in os.environ else {"py_modules": [str(PACKAGE)]}
    with _own_folder() as folder:
        try:
            _init_ray(folder, address=address, log_to_driver=False, logging_level="ERROR", runtime_env=code)
        except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
            raise UserError(f"--address {address}: {str(error).splitlines()[0]}", hint) from error
        try:
            yield [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        finally:
            ray.shutdown()


def _require_port(address: str, hint: str) -> None:
    """Tell at once what Ray would try for minutes: that nothing listens there."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise UserError(f"--address {address}: neither auto nor HOST:PORT", hint)
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error.strerror or error})", hint
        ) from error


def run_ray(
    controller: Controller,
    data: TrialData,
    home: Path,
    cpus: int,
    slots: int,
    cluster: bool = False,
) -> None:
    """Run trials on Ray, `slots` at a time, until the controller has no more; a failure ends one trial alone.

    `home` is the sweep's folder. On a `cluster` the banks are brought to each node with at least `cpus`, and what
    trials leave comes back, so that no disk need be shared.

    Ray keeps nothing that is needed afterwards: the study, the run log and the trials' folders are the truth.
    """
    driver_files = open_driver_files(data, home, shared=cluster)
    if cluster and (others := bring_banks(driver_files, cpus)):
        print(f"banks brought to {others} other node{'s' * (others > 1)}", file=sys.stderr)
    with _own_folder() as folder:
        _tune(controller, driver_files, slots, folder)
    if cluster:
        tidy_nodes(driver_files)


def _resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    resources = config["task"].resources
    return tune.PlacementGroupFactory([dict(resources.each)] * resources.workers)


def _tune(controller: Controller, driver_files: DriverFiles, slots: int, folder: str) -> None:
    task = tune.with_resources(functools.partial(trainable, driver_files=driver_files), _resources)
    suggestions = _Suggestions(controller)
    tuner = tune.Tuner(
        task,
        tune_config=tune.TuneConfig(
            search_alg=suggestions,
            scheduler=_Verdicts(controller, suggestions.told),
            num_samples=-1,
            # Without it Tune starts one actor after the other. A trial suggested too early would know less.
            max_concurrent_trials=slots,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['task'].number:04d}",
            # A trial that goes on is another one to Ray.
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=folder,
            verbose=0,
            callbacks=[_Watch()],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()
