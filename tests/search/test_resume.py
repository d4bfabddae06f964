"""Sweeps that are killed, interrupted and extended end as if nothing had happened: real processes, both runners."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from search.state import load_state

EPOCHS = 12
RAW: dict[str, Any] = {
    "data": {"image_size": 64},
    "model": {"backbone": "efficientnet_lite0", "batch_size": 8, "precision": "fp32"},
    "space": {"lr": {"low": 1e-4, "high": 0.03, "log": True}, "epochs": [EPOCHS]},
    "search": {"sampler": "random", "stopping": "none"},
}

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
    return [sys.executable, "-m", "search.cli", "sweep", str(spec), "--runner", runner, *more]


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


def started(spec: Path, runner: str, home: Path, server: str) -> subprocess.Popen[str]:
    """A sweep that has begun its first trial."""
    process = subprocess.Popen(
        command(spec, runner), env=environment(home, server), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("trial 0 starts"):
            return process
    raise AssertionError("no trial began")


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


def curves(server: str, name: str) -> dict[tuple[int, str], list[tuple[int, float]]]:
    client = MlflowClient(server)
    found = {}
    for number, trial in runs_of(server, name)[1].items():
        for metric in EXACT:
            history = client.get_metric_history(trial.info.run_id, metric)
            found[number, metric] = sorted((point.step, point.value) for point in history)
    return found


def assert_whole(server: str, home: Path, name: str, trials: int) -> None:
    """Every trial once and ended, in the study and in MLflow; every epoch of every metric exactly once."""
    study = trials_of(home / "sweeps" / f"{name}-1" / "study.db")
    assert [trial.state.name for trial in study] == ["COMPLETE"] * trials
    parent, runs = runs_of(server, name)
    assert parent.info.status == "FINISHED" and sorted(runs) == list(range(trials))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for points in curves(server, name).values():
        assert [step for step, _ in points] == list(range(1, EPOCHS + 1))
    assert load_state(home / "sweeps" / f"{name}-1")["status"] == "finished"
    assert not list((home / "sweeps").glob("*/trial-*/last.pt"))


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_killed_sweep_goes_on_by_the_same_command(
    runner: str, bins: Path, server: str, tmp_path: Path
) -> None:
    home, name = tmp_path / "home", f"killed-{runner}"
    spec = spec_file(tmp_path, bins, name, trials=3)
    process = started(spec, runner, home, server)
    wait_for_epochs(home, name, 5)
    kill_all(process)
    done = run(spec, runner, home, server)
    assert done.returncode == 0, done.stderr
    assert f"going on with {name}-1" in done.stderr and "goes on after epoch" in done.stderr
    assert_whole(server, home, name, trials=3)

    undisturbed = spec_file(tmp_path, bins, f"whole-{runner}", trials=3)
    assert run(undisturbed, runner, home, server).returncode == 0
    assert curves(server, name) == curves(server, f"whole-{runner}")

    # Finished: the same command starts another sweep, --resume extends this one.
    longer = run(spec, runner, home, server, "--resume", "--set", "budget.trials=4")
    assert longer.returncode == 0, longer.stderr
    assert_whole(server, home, name, trials=4)
    changed = run(spec, runner, home, server, "--resume", "--set", "space.lr.high=0.02")
    assert changed.returncode == 2 and "space.lr" in changed.stderr and "--resume" in changed.stderr
    assert "Traceback" not in changed.stderr


def test_a_lost_worker_is_replaced(bins: Path, server: str, tmp_path: Path) -> None:
    home, name = tmp_path / "home", "worker"
    spec = spec_file(tmp_path, bins, name, trials=2)
    process = started(spec, "ray", home, server)
    wait_for_epochs(home, name, 3)
    workers = [
        child for child in psutil.Process(process.pid).children(recursive=True) if _matches(child, is_worker)
    ]
    assert workers
    workers[0].kill()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "its worker died" in errors and "goes on after epoch" in errors
    assert_whole(server, home, name, trials=2)


def test_an_interrupted_sweep_goes_on_and_is_not_taken_twice(bins: Path, server: str, tmp_path: Path) -> None:
    home, name = tmp_path / "home", "interrupted"
    spec = spec_file(tmp_path, bins, name, trials=500)
    process = started(spec, "local", home, server)
    wait_for_epochs(home, name, 2)
    taken = run(spec, "local", home, server, "--resume")
    assert taken.returncode == 2 and str(process.pid) in taken.stderr
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in errors
    parent, runs = runs_of(server, name)
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in runs.values()} <= {"KILLED", "FINISHED"}
    assert load_state(home / "sweeps" / f"{name}-1")["status"] == "unfinished"
    enough = f"budget.trials={len(runs) + 1}"
    assert run(spec, "local", home, server, "--set", enough).returncode == 0
    assert_whole(server, home, name, trials=len(runs) + 1)


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_many_kills_at_random_moments(bins: Path, tmp_path: Path) -> None:
    """BINSWEEP_KILLS (10) times the driver, a worker, MLflow, Ray or all at once die; the end is the same."""
    dice = random.Random(int(os.environ.get("BINSWEEP_SEED", "0")))
    kills = int(os.environ.get("BINSWEEP_KILLS", "10"))
    home, name = tmp_path / "home", "many"
    env = {**os.environ, "BINSWEEP_HOME": str(home)}
    env.pop("MLFLOW_TRACKING_URI", None)  # the embedded server, which may die too
    spec = spec_file(tmp_path, bins, name, trials=500)
    done: list[str] = []
    while len(done) < kills:
        process = subprocess.Popen(command(spec, "ray"), env=env, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("trial "):
                break
        while len(done) < kills and process.poll() is None:
            time.sleep(dice.uniform(0.5, 6))
            kind = dice.choice(["driver", "worker", "server", "ray", "all"])
            if _kill(kind, process):
                done.append(kind)
            if kind in ("driver", "ray", "all"):
                break
        process.communicate(timeout=120)
    trials = len(trials_of(home / "sweeps" / f"{name}-1" / "study.db"))
    enough = f"budget.trials={trials}"
    final = subprocess.run(
        command(spec, "ray", "--set", enough), env=env, capture_output=True, text=True, timeout=600
    )
    assert final.returncode == 0, final.stderr

    from tracking.server import tracking_server

    whole = spec_file(tmp_path, bins, "undisturbed", trials=trials)
    with tracking_server(home) as uri:
        env["MLFLOW_TRACKING_URI"] = uri
        subprocess.run(command(whole, "ray"), env=env, check=True, capture_output=True, timeout=600)
        assert_whole(uri, home, name, trials)
        assert curves(uri, name) == curves(uri, "undisturbed")
    print(f"{done}: {trials} of {trials} trials complete, every metric once, all curves as undisturbed")


def _kill(kind: str, process: subprocess.Popen[str]) -> int:
    """Kill one kind of process of the sweep; returns how many kills that was."""
    family = psutil.Process(process.pid).children(recursive=True)
    signs = {
        "worker": is_worker,
        "server": lambda words: "mlflow" in " ".join(words) and "server" in words,
        "ray": lambda words: "gcs_server" in words[0],
    }
    if kind in signs:
        family = [member for member in family if _matches(member, signs[kind])][:1]
    elif kind == "driver":
        family = []
    victims = [*family, *([psutil.Process(process.pid)] if kind in ("driver", "all") else [])]
    for victim in victims:
        victim.kill()
    return int(bool(victims))


def _matches(process: psutil.Process, sign: Any) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return bool(words) and bool(sign(words))


def test_a_sweep_whose_ray_died_ends_and_goes_on(bins: Path, server: str, tmp_path: Path) -> None:
    home, name = tmp_path / "home", "rayless"
    spec = spec_file(tmp_path, bins, name, trials=500)
    process = started(spec, "ray", home, server)
    wait_for_epochs(home, name, 3)
    (raylet,) = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if _matches(child, lambda words: words[0].endswith("/raylet"))
    ]
    raylet.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "the same command goes on" in errors, errors
    begun = len(runs_of(server, name)[1])
    done = run(spec, "ray", home, server, "--set", f"budget.trials={begun}")
    assert done.returncode == 0, done.stderr
    assert_whole(server, home, name, trials=begun)
