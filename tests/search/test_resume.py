"""Sweeps that are killed, interrupted and extended end as if nothing had happened: real processes, both runners."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from postgres import mlflow_on, postgres
from real_sweeps import (
    SLOW,
    assert_whole,
    command,
    curves,
    environment,
    is_worker,
    kill_all,
    run,
    run_here,
    runs_of,
    spec_file,
    started,
    trials_of,
    wait_for_epochs,
)

from binsweep.search.history.sweep_state import load_state
from binsweep.tracking.mlflow_server.embedded import tracking_server


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.integration)])
def test_a_killed_sweep_goes_on_by_the_same_command(
    runner: str, bins: Path, server: str, tmp_path: Path
) -> None:
    home, name = tmp_path / "home", f"killed-{runner}"
    spec = spec_file(tmp_path, bins, name, trials=3)
    process = started(spec, runner, home, server)
    wait_for_epochs(home, name, 5)
    kill_all(process)
    study = trials_of(home / "sweeps" / f"{name}-1" / "study.db")
    # Whether the kill landed within a trial, and not between two.
    within = any(trial.intermediate_values and not trial.state.is_finished() for trial in study)
    done = run(spec, runner, home, server)
    assert done.returncode == 0, done.stderr
    assert f"going on with {name}-1" in done.stderr
    assert ("goes on after epoch" in done.stderr) == within, done.stderr
    assert_whole(server, home, name, trials=3)

    undisturbed = spec_file(tmp_path, bins, f"whole-{runner}", trials=3)
    assert run(undisturbed, runner, home, server).returncode == 0
    assert curves(server, name) == curves(server, f"whole-{runner}")


def test_a_finished_sweep_is_extended_but_not_changed(
    bins: Path, server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home, name = tmp_path / "home", "extended"
    spec = spec_file(tmp_path, bins, name, trials=2)
    where = {"BINSWEEP_HOME": str(home), "MLFLOW_TRACKING_URI": server}

    def go(*more: str) -> subprocess.CompletedProcess[str]:
        return run_here("sweep", spec, "--runner", "local", *more, **where)

    assert go().returncode == 0
    longer = go("--resume", "--set", "budget.trials=4")
    assert longer.returncode == 0, longer.stderr
    assert runs_of(server, name)[0].data.tags["trials"] == "4" and "MLflow refuses" not in caplog.text
    assert_whole(server, home, name, trials=4)
    changed = go("--resume", "--set", "space.lr.high=0.02")
    assert changed.returncode == 2 and "space.lr" in changed.stderr and "Traceback" not in changed.stderr
    assert f"--warm-start {name}-1" in changed.stderr

    narrower = ["--warm-start", f"{name}-1", "--set", "space.lr.high=0.02", "--set", "budget.trials=1"]
    narrower += ["--set", "name=forked"]
    forked = go(*narrower)
    assert forked.returncode == 0 and f"results of {name}-1 are known" in forked.stderr
    study = trials_of(home / "sweeps" / "forked-1" / "study.db")
    prior = [trial for trial in study if "prior" in trial.user_attrs]
    assert prior and len(study) == len(prior) + 1
    assert all(trial.params["lr"] <= 0.02 for trial in study)
    assert_whole(server, home, name, trials=4)  # as it was
    other = ["--set", "model.batch_size=16", "--set", "budget.trials=1"]
    elsewhere = go("--warm-start", f"{name}-1", *other)
    assert elsewhere.returncode == 0 and "configurations of" in elsewhere.stderr
    tried = trials_of(home / "sweeps" / f"{name}-2" / "study.db")
    best = min(
        trials_of(home / "sweeps" / f"{name}-1" / "study.db"), key=lambda t: (-(t.value or 0.0), t.number)
    )
    assert [trial.params for trial in tried] == [best.params]


@pytest.mark.integration
def test_a_lost_worker_is_replaced(bins: Path, server: str, tmp_path: Path) -> None:
    home, name = tmp_path / "home", "worker"
    spec = spec_file(tmp_path, bins, name, trials=2, model=SLOW)
    process = started(spec, "ray", home, server)
    wait_for_epochs(home, name, 3)
    workers = [
        child for child in psutil.Process(process.pid).children(recursive=True) if _matches(child, is_worker)
    ]
    assert workers
    for worker in workers:  # one of them may still be starting: Ray itself would start it again
        worker.kill()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "its worker died" in errors and "goes on after epoch" in errors
    assert_whole(server, home, name, trials=2)


@pytest.mark.integration
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
@pytest.mark.parametrize("store", ["SQLite", "PostgreSQL"])
def test_two_sweeps_at_once_do_not_mix(store: str, bins: Path, tmp_path: Path) -> None:
    """One home, one MLflow store, two drivers: each ends with its own trials, as when it is alone."""
    home = tmp_path / "home"
    with contextlib.ExitStack() as stack:
        if store == "SQLite":
            server = stack.enter_context(tracking_server(home))
        else:
            server = stack.enter_context(mlflow_on(stack.enter_context(postgres()), tmp_path))
        processes = []
        for name in ("left", "right"):  # by the same runner: they begin at the same time
            words = command(spec_file(tmp_path, bins, name, trials=6, model=SLOW), "ray")
            processes.append(
                subprocess.Popen(words, env=environment(home, server), stderr=subprocess.PIPE, text=True)
            )
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
        for name in ("left", "right"):
            assert_whole(server, home, name, trials=6)
        parents = [runs_of(server, name)[0].info for name in ("left", "right")]
        assert max(run.start_time for run in parents) < min(run.end_time for run in parents)
        assert (
            run(spec_file(tmp_path, bins, "alone", trials=6, model=SLOW), "ray", home, server).returncode == 0
        )
        assert curves(server, "left") == curves(server, "right") == curves(server, "alone")


@pytest.mark.night
@pytest.mark.timeout(7200)
def test_many_kills_at_random_moments(bins: Path, tmp_path: Path, figure: Callable[[str], None]) -> None:
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
        kind = ""
        while len(done) < kills and process.poll() is None:
            time.sleep(dice.uniform(0.5, 6))
            kind = dice.choice(["driver", "worker", "server", "ray", "all"])
            if _kill(kind, process, home):
                done.append(kind)
            if kind in ("driver", "ray", "all"):
                break
        if kind in ("worker", "server"):  # the last one: the sweep would go on
            process.kill()
        process.communicate(timeout=120)
    trials = len(trials_of(home / "sweeps" / f"{name}-1" / "study.db"))
    enough = f"budget.trials={trials}"
    final = subprocess.run(
        command(spec, "ray", "--set", enough), env=env, capture_output=True, text=True, timeout=1800
    )
    assert final.returncode == 0, final.stderr

    whole = spec_file(tmp_path, bins, "undisturbed", trials=trials)
    with tracking_server(home) as uri:
        env["MLFLOW_TRACKING_URI"] = uri
        subprocess.run(command(whole, "ray"), env=env, check=True, capture_output=True, timeout=1800)
        assert_whole(uri, home, name, trials)
        assert curves(uri, name) == curves(uri, "undisturbed")
    tally = ", ".join(f"{kind} {times}" for kind, times in Counter(done).most_common())
    figure(
        f"{kills} kills ({tally}): {trials} of {trials} trials complete, every metric once, all curves as undisturbed"
    )


def _kill(kind: str, process: subprocess.Popen[str], home: Path) -> int:
    """Kill one kind of process of the sweep; returns how many kills that was."""
    family = [*psutil.Process(process.pid).children(recursive=True), *_server(home)]
    signs = {
        "worker": is_worker,
        "server": lambda words: words[1:4] == ["-m", "mlflow", "server"],
        "ray": lambda words: "gcs_server" in words[0],
    }
    if kind in signs:
        family = [member for member in family if _matches(member, signs[kind])][:1]
    elif kind == "driver":
        family = []
    victims = [*family, *([psutil.Process(process.pid)] if kind in ("driver", "all") else [])]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):  # it went with another one
            victim.kill()
    return int(bool(victims))


def _server(home: Path) -> list[psutil.Process]:
    """The embedded server, which is no child of the driver's: it outlives the one that started it."""
    try:
        return [psutil.Process(json.loads((home / "mlflow" / "server.json").read_text())["pid"])]
    except (OSError, ValueError, psutil.NoSuchProcess):  # not started yet, or ended before
        return []


def _matches(process: psutil.Process, sign: Any) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return bool(words) and bool(sign(words))


@pytest.mark.integration
@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_a_sweep_whose_ray_died_ends_and_goes_on(part: str, bins: Path, server: str, tmp_path: Path) -> None:
    home, name = tmp_path / "home", f"without-{part}"
    spec = spec_file(tmp_path, bins, name, trials=500)
    process = started(spec, "ray", home, server)
    wait_for_epochs(home, name, 3)
    (victim,) = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if _matches(child, lambda words: words[0].endswith(f"/{part}"))
    ]
    victim.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode not in (0, 2), errors
    if part == "raylet":  # without its head process, Ray ends the driver at once, by its own rules
        assert process.returncode == 1 and "the same command goes on" in errors, errors
    begun = len(runs_of(server, name)[1])
    done = run(spec, "ray", home, server, "--set", f"budget.trials={begun}")
    assert done.returncode == 0, done.stderr
    assert_whole(server, home, name, trials=begun)
