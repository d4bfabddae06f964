"""Wall clocks that somebody sets by an hour, forwards and back, under a sweep, MLflow, the gate and the model server.

Budgets and durations are as if nothing had happened, and nothing is lost.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from own_sweeps import METRICS, code_spec
from prometheus_client.parser import text_string_to_metric_families
from real_sweeps import (
    command,
    curves,
    kill_all,
    run_here,
    runs_of,
    spec_file,
    started_by,
    trials_of,
    wait_for_epochs,
)
from set_clock import HOUR, Clock

from binsweep.search.history.sweep_state import load_state
from binsweep.tracking.mlflow_server.embedded import tracking_server
from binsweep.tracking.processes import free_port
from binsweep.tracking.serving.model_server import predict

pytestmark = [pytest.mark.night, pytest.mark.quiet, pytest.mark.timeout(900)]

SECONDS = 36.0  # the budget
# Before the budget is over, an epoch and the end of a trial may still come; and Ray starts its workers within it.
SLACK = 6.0
STAY = """
import sys, time
from pathlib import Path
from binsweep.tracking.mlflow_server.embedded import tracking_server
with tracking_server(Path(sys.argv[1])) as uri:
    print(uri, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@contextlib.contextmanager
def mlflow_server(home: Path, env: dict[str, str]) -> Iterator[str]:
    """A server in processes of their own, with that environment."""
    words = [sys.executable, "-c", STAY, str(home)]
    with subprocess.Popen(
        words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(60)


def timed_spec(folder: Path, name: str) -> Path:
    budget = {"minutes": SECONDS / 60}
    return code_spec(folder, name, 500, params={"seconds": 0.3}, budget=budget)


def seconds_told(sweep: str, env: dict[str, str]) -> float:
    """How long the sweep has taken, by `status` under the same clock."""
    words = [sys.executable, "-m", "binsweep", "status", sweep, "--json"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout)["seconds"])


def assert_nothing_lost(server: str, home: Path, name: str, folder: Path) -> int:
    """All that the study has is in MLflow, once, and as an undisturbed sweep has it; returns the number of trials."""
    study = trials_of(home / "sweeps" / f"{name}-1" / "study.db")
    assert {trial.state.name for trial in study} <= {"COMPLETE", "PRUNED"}
    parent, runs = runs_of(server, name)
    assert parent.info.status == "FINISHED" and sorted(runs) == list(range(len(study)))
    found = curves(server, name, METRICS)
    for trial in study:
        assert [step for step, _ in found[trial.number, METRICS[0]]] == sorted(trial.intermediate_values)
    alone = code_spec(folder / "alone", f"{name}-alone", len(study), params={"seconds": 0.0})
    where = {"BINSWEEP_HOME": str(folder / "home-alone"), "MLFLOW_TRACKING_URI": server}
    assert run_here("sweep", alone, "--runner", "local", **where).returncode == 0
    undisturbed = curves(server, alone.stem, METRICS)
    assert all(points == undisturbed[key][: len(points)] for key, points in found.items())
    return len(study)


@pytest.mark.parametrize(
    ("who", "runner"), [("the sweep", "local"), ("MLflow", "local"), ("both", "ray")], ids=lambda one: one
)
def test_an_hour_forwards_and_back_takes_nothing_from_the_budget(
    who: str, runner: str, clock: Clock, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    name, home = "clocks", tmp_path / "home"
    real = {**os.environ, "BINSWEEP_HOME": str(home)}
    ours = real if who == "MLflow" else {**real, **clock.env}
    servers = real if who == "the sweep" else {**real, **clock.env}
    with mlflow_server(tmp_path / "mlflow", servers) as server:
        ours = {**ours, "MLFLOW_TRACKING_URI": server}
        process = started_by(command(timed_spec(tmp_path, name), runner), ours)
        began = time.monotonic()
        try:
            wait_for_epochs(home, name, 3)
            for ahead in (HOUR, -HOUR):
                clock.set(ahead)
                time.sleep(1.0)
                passed = time.monotonic() - began
                told = seconds_told(f"{name}-1", ours)
                assert passed - SLACK < told < time.monotonic() - began + SLACK, (ahead, told, passed)
            said = process.communicate(timeout=120)[1]
            took = time.monotonic() - began
        finally:
            process.kill()
        assert process.returncode == 0, said
        state = load_state(home / "sweeps" / f"{name}-1")
        assert "budget.minutes" in state["ended_by"]
        assert SECONDS - SLACK < state["seconds"] < SECONDS + SLACK and took > SECONDS - SLACK, (state, took)
        assert seconds_told(f"{name}-1", ours) == pytest.approx(state["seconds"], abs=SLACK)
        trials = assert_nothing_lost(server, home, name, tmp_path)
    figure(
        f"the clock of {who} set by +1 h and -2 h: {state['seconds']:.1f} of {SECONDS:g} s spent, "
        f"{trials} trials, nothing lost"
    )


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_a_clock_that_is_set_while_no_process_runs_spends_nothing(
    ahead: int, clock: Clock, server: str, tmp_path: Path
) -> None:
    name, home = f"between-{'ahead' if ahead > 0 else 'behind'}", tmp_path / "home"
    env = {**os.environ, **clock.env, "BINSWEEP_HOME": str(home), "MLFLOW_TRACKING_URI": server}
    spec = timed_spec(tmp_path, name)
    process = started_by(command(spec, "local"), env)
    began = time.monotonic()
    wait_for_epochs(home, name, 20)
    kill_all(process)
    before = time.monotonic() - began
    clock.set(ahead)
    done = subprocess.run(command(spec, "local"), env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0 and f"going on with {name}-1" in done.stderr, done.stderr
    state = load_state(home / "sweeps" / f"{name}-1")
    assert SECONDS - SLACK < state["seconds"] < SECONDS + SLACK + 1.0, (state["seconds"], before)
    assert_nothing_lost(server, home, name, tmp_path)


def test_the_gate_decides_the_same_while_its_clock_is_set(
    clock: Clock, bins: Path, server: str, tmp_path: Path
) -> None:
    name = "gated-clocks"
    where = {"BINSWEEP_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": server}
    spec = spec_file(tmp_path, bins, name, trials=2, register={"model": name, "finalists": 0})
    assert run_here("sweep", spec, "--runner", "local", **where).returncode == 0
    planned = json.loads(run_here("promote", name, "--dry-run", "--json", **where).stdout)
    words = [sys.executable, "-m", "binsweep", "promote", name, "--json"]
    env = {**os.environ, **where, **clock.env}
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ahead, began = HOUR, time.monotonic()
    while process.poll() is None:
        assert time.monotonic() - began < 400
        clock.set(ahead)
        ahead = -ahead
        time.sleep(2.0)
    told, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    decided = json.loads(told)
    assert decided["candidate"] == planned["candidate"] and decided["version"]
    verdicts = [{rule["name"]: rule["passed"] for rule in one["rules"]} for one in (planned, decided)]
    assert verdicts[0].items() <= verdicts[1].items(), verdicts
    assert MlflowClient(server).get_model_version(name, decided["version"]).tags


def metric(url: str, name: str) -> float:
    reply = requests.get(f"{url}/metrics", timeout=30)
    families = text_string_to_metric_families(reply.text)
    return sum(one.value for family in families for one in family.samples if one.name == name)


def test_a_server_answers_and_follows_the_champion_while_its_clock_is_set(
    clock: Clock, server: str, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment("clocked")
    with mlflow.start_run():
        made = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).parents[1] / "tracking" / "echo_model.py"),
            registered_model_name="clocked",
            pip_requirements=["mlflow"],
        )
    mlflow.register_model(made.model_uri, "clocked")
    client, port = MlflowClient(server), free_port()
    client.set_registered_model_alias("clocked", "champion", "1")
    words = [sys.executable, "-m", "binsweep", "serve", "clocked", "--follow", "--port", str(port)]
    env = {**os.environ, **clock.env, "BINSWEEP_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": server}
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = f"http://127.0.0.1:{port}"
            assert process.stdout.readline().strip() == f"serving clocked version 1 at {url}"
            for ahead, version in ((HOUR, "2"), (-HOUR, "1")):
                clock.set(ahead)
                assert predict(url, [b"abc"], timeout=30) == echoed(3)
                began = time.monotonic()
                client.set_registered_model_alias("clocked", "champion", version)
                assert process.stdout.readline().strip() == f"serving clocked version {version} at {url}"
                assert time.monotonic() - began < 60
                assert predict(url, [b"abcd"], timeout=30) == echoed(4)
                assert 0 < metric(url, "binsweep_request_seconds_sum") < 30
        finally:
            process.terminate()
            process.wait(60)


def echoed(length: int) -> list[dict[str, Any]]:
    return [{"count": length, "confidence": 0.5, "probabilities": {"1": 0.5}}]


def test_a_server_that_this_home_started_is_still_known_after_its_clock_was_set(
    clock: Clock, tmp_path: Path
) -> None:
    """Nobody starts a second one on its database, and the last who leaves ends it."""
    env = {**os.environ, **clock.env}
    with mlflow_server(tmp_path, env) as first:
        clock.set(HOUR)
        with mlflow_server(tmp_path, env) as second:
            assert second == first
        with tracking_server(tmp_path) as third:
            assert third == first
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{first}/health", timeout=5)
