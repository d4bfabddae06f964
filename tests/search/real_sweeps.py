"""Sweeps in real processes, and what must be left of them: helpers of the tests."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import psutil
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from binsweep.search.cli.main import main
from binsweep.search.history.sweep_state import load_state

EPOCHS = 24  # so that what is killed is killed within a trial
RAW: dict[str, Any] = {
    "data": {"image_size": 64},
    "model": {"backbone": "efficientnet_lite0", "batch_size": 8, "precision": "fp32"},
    "space": {"lr": {"low": 1e-4, "high": 0.03, "log": True}, "epochs": [EPOCHS]},
    "search": {"sampler": "random", "stopping": "none"},
}

SLOW = {**RAW["model"], "batch_size": 2}  # a trial takes seconds: what is to die, dies within one

EXACT = ("train_loss", "val_loss", "val_accuracy", "lr")


def is_worker(words: list[str]) -> bool:
    """Whether it is a trial's process, by the name that Ray gives it."""
    return words[0].startswith("ray::ImplicitFunc")


def spec_file(folder: Path, bins: Path, name: str, trials: int, **changes: Any) -> Path:
    raw = {**RAW, "name": name, "budget": {"trials": trials}, **changes}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**raw, "data": {**RAW["data"], "source": str(bins)}}))
    return file


def command(spec: Path, runner: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "binsweep", "sweep", str(spec), "--runner", runner, *more]


def environment(home: Path, server: str) -> dict[str, str]:
    return {**os.environ, "BINSWEEP_HOME": str(home), "MLFLOW_TRACKING_URI": server}


def run(
    spec: Path, runner: str, home: Path, server: str, *more: str, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(spec, runner, *more),
        env=environment(home, server),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_here(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line in this process: another one would take 9 s to import everything."""
    out, err, argv = io.StringIO(), io.StringIO(), ["binsweep", *map(str, arguments)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        mock.patch.dict(os.environ, env),
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            return subprocess.CompletedProcess(argv, int(end.code or 0), out.getvalue(), err.getvalue())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    raise AssertionError("main() ends by sys.exit")


def started(
    spec: Path, runner: str, home: Path, server: str, begin: str = "trial 0 starts"
) -> subprocess.Popen[str]:
    """A sweep that has begun its first trial, by the line that says so; `trial ` is any of them."""
    return started_by(command(spec, runner), environment(home, server), begin)


def started_by(
    words: Sequence[str], env: Mapping[str, str], begin: str = "trial 0 starts"
) -> subprocess.Popen[str]:
    """The process of a command whose sweep has begun its first trial, as for `started`."""
    process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        if line.startswith(begin):
            return process
        said += line
    raise AssertionError(f"no trial began: {said}")


def wait_for_epochs(home: Path, name: str, epochs: int, timeout: float = 120) -> None:
    """Until the study of the newest sweep holds so many epochs of all trials together."""
    deadline = time.monotonic() + timeout
    study = home / "sweeps" / f"{name}-1" / "study.db"
    while time.monotonic() < deadline:
        if sum(len(trial.intermediate_values) for trial in trials_of(study)) >= epochs:
            return
        time.sleep(0.05)
    raise AssertionError(f"{epochs} epochs were not reached")


def trials_of(study: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{study}"
    return optuna.load_study(study_name=study.parent.name, storage=storage).get_trials(deepcopy=False)


def kill_all(process: subprocess.Popen[str]) -> None:
    """The driver and everything that it started, at once."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in reversed(family):
        member.kill()
    process.communicate(timeout=30)


def runs_of(server: str, name: str) -> tuple[Run, dict[int, Run]]:
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    trials = {int(run.data.tags["optuna.trial"]): run for run in runs if run is not parent}
    assert len(trials) == len(runs) - 1, "a trial has two runs"
    return parent, trials


def curves(
    server: str, name: str, metrics: Sequence[str] = EXACT
) -> dict[tuple[int, str], list[tuple[int, float]]]:
    client = MlflowClient(server)
    found = {}
    for number, trial in runs_of(server, name)[1].items():
        for metric in metrics:
            history = client.get_metric_history(trial.info.run_id, metric)
            found[number, metric] = sorted((point.step, point.value) for point in history)
    return found


def assert_whole(
    server: str, home: Path, name: str, trials: int, epochs: int = EPOCHS, metrics: Sequence[str] = EXACT
) -> None:
    """Every trial once and ended, in the study and in MLflow; every epoch of every metric exactly once."""
    study = trials_of(home / "sweeps" / f"{name}-1" / "study.db")
    assert [trial.state.name for trial in study] == ["COMPLETE"] * trials
    parent, runs = runs_of(server, name)
    assert parent.info.status == "FINISHED" and sorted(runs) == list(range(trials))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for points in curves(server, name, metrics).values():
        assert [step for step, _ in points] == list(range(1, epochs + 1))
    assert load_state(home / "sweeps" / f"{name}-1")["status"] == "finished"
    assert not list((home / "sweeps").glob("*/trial-*/last.pt"))
    assert not list((home / "sweeps").glob("*/trial-*/checkpoint.tmp"))
