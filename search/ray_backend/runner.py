"""The Ray runner: Ray Tune executes the trials, and the controller decides what to try and what to stop."""

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
import threading
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
from binsweep.data.python_process import PACKAGE, current_import_path, environment_variable
from binsweep.data.resource_limits import memory
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.resources import Node, ray_temp_folder
from binsweep.search.execution.steering import LOOK_SECONDS
from binsweep.search.execution.trial import Trainer
from binsweep.search.ray_backend.driver_files import open_driver_files
from binsweep.search.ray_backend.file_transfer import (
    DriverFiles,
    clean_up_nodes,
    copy_inputs,
)
from binsweep.search.ray_backend.worker import trainable

LIVENESS_CHECK_SECONDS = 5.0
MAX_CONNECT_SECONDS = 5.0
MAX_SILENT_SECONDS = 15.0  # of a cluster's head, after which that is said
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entrypoint of a submitted job
OBJECT_STORE_BYTES = 100 * 2**20  # small: banks are memory-mapped files and do not go through the store


class _ControllerSearcher(Searcher):
    """The searcher of Ray Tune: calls `Controller.next_task`. All state is in the study."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self._controller = controller
        self.numbers: dict[str, int] = {}
        # Ray's trials that were stopped. The sweep's trial may be paused, or already run again.
        self.stopped: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles it for a restore, which sweeps do not use

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        task = self._controller.next_task()
        if task is None:
            # Running trials may be paused and resumed later, and so may the sweep; after FINISHED, Ray does not ask
            # again.
            running = self._controller.is_paused or any(
                trial.state == "running" for trial in self._controller.trials.values()
            )
            return None if running else str(Searcher.FINISHED)
        self.numbers[trial_id] = task.number
        return {"task": task}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self.stopped:
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
        raise NotImplementedError("sweeps resume from the study, not from Ray's files")


class _ControllerScheduler(FIFOScheduler):
    """The scheduler of Ray Tune: calls `Controller.report`."""

    def __init__(self, controller: Controller, stopped: set[str]) -> None:
        super().__init__()
        self._controller, self._stopped = controller, stopped

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Leave the choice to Tune, which starts a new trial, on a free actor if there is one.

        The parent class returns the oldest trial whose actor is still starting. Tune would give it the actor that has
        just become free and discard the new one, so that short trials never run on all slots.
        """
        return None

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        metrics = {
            key.removeprefix("metrics/"): value for key, value in result.items() if key.startswith("metrics/")
        }
        go_on = self._controller.report(result["number"], result["epoch"], metrics)
        if not go_on:
            self._stopped.add(trial.trial_id)
        return str(FIFOScheduler.CONTINUE if go_on else FIFOScheduler.STOP)


class RayEndedError(RuntimeError):
    """Ray's processes died during the sweep."""


class _SteeringCheck(tune.Callback):
    """Looks for what people ask of the sweep, also while all workers are busy."""

    def __init__(self, controller: Controller) -> None:
        self._controller, self._next = controller, 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles it for a restore, which sweeps do not use

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK_SECONDS
            self._controller.steer()


class _RayLivenessCheck(tune.Callback):
    """Detects that Ray has died: Tune would wait for ever for workers."""

    def __init__(self) -> None:
        self._next = 0.0

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LIVENESS_CHECK_SECONDS
        if not any(node["Alive"] for node in ray.nodes()):
            raise RayEndedError("Ray has died; the same command goes on with the sweep")


@contextlib.contextmanager
def _temp_folder() -> Iterator[str]:
    """A temporary folder with a short name for Ray's files and as its processes' working directory."""
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir=ray_temp_folder(), ignore_cleanup_errors=True
    ) as folder:
        yield folder


def _init_ray(folder: str, **options: Any) -> None:
    """`ray.init`, without its SIGTERM handler, which ends the process at once with code 15.

    It is called in `folder`, because Ray's workers import modules first from the working directory of this call: a
    user's data.py there would be imported instead of other modules of that name. Raises UserError if this process uses
    Ray already, as a notebook may.
    """
    if ray.is_initialized():
        raise UserError(
            "Ray runs already in this process, and a sweep starts one of its own, or joins a cluster itself",
            "call ray.shutdown() first, or use the runner local",
        )
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.chdir(folder):
        ray.init(**options)
    if threading.current_thread() is threading.main_thread():  # in another thread, Ray sets none
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def start_ray(cores: int) -> Iterator[Node]:
    """A Ray of this process alone, on the loopback and closed to others by its token, ended on leaving; yields what it
    has."""
    # A token of this process alone: without one, Ray would write one into the person's home directory.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with (
        _temp_folder() as folder,
        _on_the_loopback(),
        environment_variable("PYTHONPATH", current_import_path()),
    ):
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
    """Let a Ray started in this block listen on 127.0.0.1 only, not on all addresses of this machine.

    Ray's setting is named after the systems where that is the default. Ray's processes read the variable; this
    process has read it already, when it imported Ray.
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
    """Join a running Ray cluster that this machine is a node of, as a driver; yields the resources of each node.

    The workers get this process's code. Ray finds the token itself (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH,
    ~/.ray/auth_token). Raises UserError if no such cluster answers.
    """
    if address.startswith("ray://"):
        raise UserError(
            f"--address {address}: sweeps do not run through Ray Client",
            "run it on a node of the cluster (auto, HOST:PORT), or use `binsweep submit`",
        )
    hint = "start a cluster with `ray start --head`, and run this on one of its nodes with its RAY_AUTH_TOKEN"
    _require_port(address, hint)
    # The workers of a job already have its code.
    code = {} if JOB_CONFIG_VARIABLE in os.environ else {"py_modules": [str(PACKAGE)]}
    with _temp_folder() as folder:
        try:
            _init_ray(folder, address=address, log_to_driver=False, logging_level="ERROR", runtime_env=code)
        except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
            raise UserError(f"--address {address}: {str(error).splitlines()[0]}", hint) from error
        try:
            with _watched_head(ray.get_runtime_context().gcs_address):
                yield [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _watched_head(address: str) -> Iterator[None]:
    """Say it when the head at an address does not answer for a while. If that lasts, Ray ends this process at once,
    from within its own code, and nothing can be said any more."""
    over = threading.Event()

    def watch() -> None:
        heard, said = time.monotonic(), False
        while not over.wait(LIVENESS_CHECK_SECONDS):
            if _is_reached(address):
                heard, said = time.monotonic(), False
            elif not said and time.monotonic() - heard > MAX_SILENT_SECONDS:
                said = True
                text = f"Ray's head at {address} does not answer: if that lasts for a minute, Ray ends this process"
                print(f"{text}; the same command goes on with the sweep", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, name="binsweep-head", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(2 * MAX_CONNECT_SECONDS)


def _is_reached(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host.strip("[]"), int(port)), MAX_CONNECT_SECONDS),
    ):
        return True
    return False


def _require_port(address: str, hint: str) -> None:
    """Raise UserError if nothing listens at the address; Ray would retry for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise UserError(f"--address {address}: neither auto nor HOST:PORT", hint)
    try:
        socket.create_connection((host, int(port)), timeout=MAX_CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error.strerror or error})", hint
        ) from error


def run_ray(
    controller: Controller,
    trainer: Trainer,
    home: Path,
    min_cpus: int,
    slots: int,
    on_cluster: bool = False,
) -> None:
    """Run trials on Ray, `slots` at a time, until the controller has no more. A failure ends only its own trial.

    `home` is the sweep's folder. With `on_cluster`, what the trials need is copied to each node with at
    least `min_cpus`, and the files of trials are copied back: the nodes need no shared disk.

    Nothing that Ray keeps is needed afterwards: the study, the run log and the trials' folders hold everything.
    """
    driver_files = open_driver_files(trainer, home, shared=on_cluster)
    if on_cluster and (others := copy_inputs(driver_files, min_cpus)):
        what = driver_files.what
        print(f"{what} copied to {others} other node{'s' * (others > 1)}", file=sys.stderr)
    with _temp_folder() as folder:
        _tune(controller, driver_files, slots, folder)
    if on_cluster:
        clean_up_nodes(driver_files)


def _resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    resources = config["task"].resources
    return tune.PlacementGroupFactory([dict(resources.each)] * resources.workers)


def _tune(controller: Controller, driver_files: DriverFiles, slots: int, folder: str) -> None:
    task = tune.with_resources(functools.partial(trainable, driver_files=driver_files), _resources)
    searcher = _ControllerSearcher(controller)
    tuner = tune.Tuner(
        task,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_ControllerScheduler(controller, searcher.stopped),
            num_samples=-1,
            # Without it, Tune starts actors one by one. More would suggest trials before earlier results are known.
            max_concurrent_trials=slots,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['task'].number:04d}",
            # A resumed trial is a new one to Ray.
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=folder,
            verbose=0,
            # It prints nothing then. In a notebook, Tune's default would clear the cell's output first.
            progress_reporter=tune.CLIReporter(),
            callbacks=[_RayLivenessCheck(), _SteeringCheck(controller)],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()
