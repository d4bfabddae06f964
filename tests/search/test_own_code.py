"""Sweeps of own code from the command to MLflow, on both runners: what goes wrong in one trial, kills, and going on."""

import random
import subprocess
import textwrap
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from own_sweeps import EPOCHS, METRICS, TRAIN, code_spec
from real_sweeps import (
    assert_whole,
    curves,
    is_worker,
    kill_all,
    run,
    run_here,
    runs_of,
    started,
    trials_of,
    wait_for_epochs,
)

RUNNERS = ["local", pytest.param("ray", marks=pytest.mark.integration)]

FAULTS = """
    import os, signal, subprocess, sys, time
    from pathlib import Path
    from helper import plot


    def train(trial):
        fault = trial.params["fault"]
        print("trial", trial.number, "has", fault, Path(trial.params["files"]["table"]).read_text())
        for epoch in trial.epochs():
            score = epoch * trial.params["step"]
            if epoch == 2:
                if fault == "exception":
                    raise ValueError("two")
                if fault == "exit":
                    sys.exit("two")
                if fault == "nan":
                    score = float("nan")
                if fault == "process":
                    os._exit(4)
                if fault == "wrong":
                    trial.report({"accuracy": 1})
                if fault == "killed" and not Path("killed").exists():
                    Path("killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            trial.report({"score": score, "val_size": 2.0}, save=lambda folder: (folder / "model").write_text("it"))
        trial.artifact(plot())
"""
# The end of each fault: the state of its trial, its epochs, and why it ended.
ENDS = {
    "none": ("completed", 3, "trained to its end"),
    "exception": ("failed", 1, "ValueError: two (train.py, line 14)"),
    "exit": ("failed", 1, "SystemExit: it called sys.exit('two')"),
    "nan": ("failed", 2, "score is nan"),
    "process": ("failed", 1, "its process ended with exit code 4"),
    "wrong": ("failed", 1, "objective.metric is score, which is missing (train.py, line 22)"),
    "killed": ("completed", 3, "trained to its end"),
}
GRID = {
    "params": {"files": {"table": "./table.csv"}, "size": 3},
    "space": {"fault": list(ENDS), "step": {"values": [0.5], "when": {"fault": ["none", "killed"]}}},
}


def go(spec: Path, home: Path, server: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run_here("sweep", spec, *more, BINSWEEP_HOME=str(home), MLFLOW_TRACKING_URI=server)


def faulty(folder: Path, name: str) -> Path:
    """A sweep in which each trial has another fault."""
    code = FAULTS.replace('trial.params["step"]', 'trial.params.get("step", 0.25)')
    spec = code_spec(
        folder,
        name,
        None,
        code,
        **GRID,
        fidelity={"epochs": 3},
        objective={"metric": "score", "goal": "maximize"},
        search={"sampler": "grid", "stopping": "none"},
    )
    (folder / "table.csv").write_text("1,2\n")
    text = "def plot():\n    open('plot.svg', 'w').write('<svg/>')\n    return 'plot.svg'\n"
    (folder / "helper.py").write_text(text)
    return spec


def files_of(client: MlflowClient, run: Run, folder: str = "") -> set[str]:
    found = set()
    for item in client.list_artifacts(run.info.run_id, folder or None):
        found |= files_of(client, run, item.path) if item.is_dir else {item.path}
    return found


@pytest.mark.parametrize("runner", RUNNERS)
def test_each_fault_ends_its_trial_only_and_all_is_recorded(runner: str, server: str, tmp_path: Path) -> None:
    home, name = tmp_path / "home", f"faults-{runner}"
    done = go(faulty(tmp_path / "code", name), home, server, "--runner", runner)
    assert done.returncode == 0, done.stderr
    parent, trials = runs_of(server, name)
    assert len(trials) == len(ENDS) and parent.info.status == "FINISHED"
    by_fault = {run.data.params["fault"]: run for run in trials.values()}
    for fault, (state, epochs, reason) in ENDS.items():
        one = by_fault[fault]
        assert one.data.tags["state"] == state, (fault, one.data.tags["ended_because"])
        assert reason in one.data.tags["ended_because"], fault
        points = MlflowClient(server).get_metric_history(one.info.run_id, "score")
        assert [point.step for point in points] == list(range(1, epochs + 1)), fault
        assert one.info.status == ("FINISHED" if state == "completed" else "FAILED")
    _assert_recorded(server, parent, by_fault)
    lost = "its process was ended by SIGKILL" if runner == "local" else "its worker died"
    assert by_fault["killed"].data.tags["halted_because"] == lost
    page = (home / "sweeps" / f"{name}-1" / "report.html").read_text()
    assert "ValueError: two (train.py, line 14)" in page and "sys.exit" in page


def _assert_recorded(server: str, parent: Run, by_fault: dict[str, Run]) -> None:
    """What MLflow has of a sweep and its trials."""
    client, good = MlflowClient(server), by_fault["none"]
    assert {"code/train.py", "code/helper.py", "spec.yaml", "leaderboard.csv", "report.html"} <= files_of(
        client, parent
    )
    assert not any("table.csv" in file for file in files_of(client, parent)), (
        "a file of the params is no code"
    )
    params = good.data.params
    assert params["size"] == "3" and params["step"] == "0.5" and params["epochs"] == "3"
    assert "step" not in by_fault["exit"].data.params and "seed" in params
    assert good.data.metrics["best_epoch"] == 3 and good.data.metrics["best_val_size"] == 2.0
    assert good.data.tags["code.fingerprint"] == parent.data.tags["code.fingerprint"]
    files = files_of(client, good)
    assert {"output.txt", "artifacts/plot.svg", "health.csv"} <= files, files
    with_model = [file for file in files if file.endswith("/model")]
    assert len(with_model) == 1, files
    output = Path(client.download_artifacts(good.info.run_id, "output.txt")).read_text()
    assert output.endswith("has none 1,2\n\n") and output.count("trial") == 1
    assert "error.txt" in files_of(client, by_fault["exception"])
    error = Path(client.download_artifacts(by_fault["exception"].info.run_id, "error.txt")).read_text()
    assert error.startswith(ENDS["exception"][2]) and "Traceback" in error


@pytest.mark.parametrize(
    ("runner", "kills"),
    [
        pytest.param("local", 1, marks=pytest.mark.integration),
        pytest.param("local", 4, marks=pytest.mark.night),
        pytest.param("ray", 3, marks=pytest.mark.integration),
    ],
)
def test_a_sweep_that_is_killed_ends_as_if_undisturbed(
    runner: str, kills: int, server: str, tmp_path: Path
) -> None:
    """The whole tree of processes dies at moments drawn from a seed."""
    dice = random.Random(f"own code, {runner}")
    home, name = tmp_path / "home", f"own-killed-{runner}-{kills}"
    spec = code_spec(tmp_path / "code", name, 4, params={"seconds": 0.05})
    for _ in range(kills):
        epochs = sum(len(t.intermediate_values) for t in _study(home, name))
        process = started(spec, runner, home, server, "trial " if epochs else "trial 0 starts")
        wait_for_epochs(home, name, epochs + dice.randint(3, 40 // kills))
        kill_all(process)
    epochs = sum(len(trial.intermediate_values) for trial in _study(home, name))
    assert epochs < 4 * EPOCHS, "it was killed before its end"
    done = run(spec, runner, home, server)
    assert done.returncode == 0, done.stderr
    assert_whole(server, home, name, 4, EPOCHS, METRICS)
    whole = code_spec(tmp_path / "code", f"{name}-not", 4, params={"seconds": 0.05})
    assert go(whole, home, server, "--runner", "local").returncode == 0
    assert curves(server, name, METRICS) == curves(server, f"{name}-not", METRICS)


def _study(home: Path, name: str) -> list[object]:
    file = home / "sweeps" / f"{name}-1" / "study.db"
    return list(trials_of(file)) if file.exists() else []


@pytest.mark.integration
@pytest.mark.parametrize("victim", ["worker", "training"])
def test_a_lost_process_costs_no_epoch(victim: str, server: str, tmp_path: Path) -> None:
    """The worker of Ray, or the process in it that trains."""
    home, name = tmp_path / "home", f"own-lost-{victim}"
    spec = code_spec(tmp_path / "code", name, 2, params={"seconds": 0.1})
    process = started(spec, "ray", home, server)
    wait_for_epochs(home, name, 3)
    family = psutil.Process(process.pid).children(recursive=True)
    hosts = [one for one in family if "binsweep.search.own_code.host" in one.cmdline()]
    workers = [one for one in family if one.cmdline() and is_worker(one.cmdline())]
    for one in workers if victim == "worker" else hosts:
        one.kill()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "its worker died" in errors and "goes on after epoch" in errors
    psutil.wait_procs(hosts, timeout=10)
    assert not any(one.is_running() for one in hosts), "they end with their worker"
    assert_whole(server, home, name, 2, EPOCHS, METRICS)


def test_a_finished_sweep_is_extended_and_another_one_begins_with_its_results(
    server: str, tmp_path: Path
) -> None:
    home, folder = tmp_path / "home", tmp_path / "code"
    spec = code_spec(folder, "own-first", 3, params={"size": 1})
    assert go(spec, home, server, "--runner", "local").returncode == 0
    longer = go(spec, home, server, "--runner", "local", "--resume", "--set", "budget.trials=5")
    assert longer.returncode == 0, longer.stderr
    assert_whole(server, home, "own-first", 5, EPOCHS, METRICS)

    def forked(name: str, *more: str) -> str:
        words = ["--warm-start", "own-first-1", "--set", f"name={name}", "--set", "budget.trials=1"]
        done = go(spec, home, server, "--runner", "local", *words, *more)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "5 results of own-first-1 are known" in forked("own-forked")
    assert len(trials_of(home / "sweeps" / "own-forked-1" / "study.db")) == 6
    assert "say only where to look first: size 1" in forked("own-bigger", "--set", "params.size=2")
    (folder / "train.py").write_text(textwrap.dedent(TRAIN) + "\n# changed\n")
    assert "other code or data" in forked("own-changed")
    refused = go(spec, home, server, "--runner", "local", "--resume", "--set", "budget.trials=9")
    assert refused.returncode == 2 and "train.py:train has changed since" in refused.stderr, refused.stderr


EDITED = """
    import os, signal
    from pathlib import Path


    def train(trial):
        if trial.number == 0:
            Path(trial.params["file"]).write_text("raise SystemExit('the edited file was imported')")
        if not Path("killed").exists():  # so that a new process imports the code
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        for epoch in trial.epochs():
            trial.report({"val_score": epoch, "val_loss": 1})
"""


def test_editing_a_training_file_does_not_change_a_running_sweep(server: str, tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "code"
    spec = code_spec(folder, "own-edited", 2, EDITED, params={"file": str(folder / "train.py")})
    done = go(spec, home, server, "--runner", "local")
    assert done.returncode == 0, done.stderr
    assert_whole(server, home, "own-edited", 2, EPOCHS, METRICS)
    assert (folder / "train.py").read_text().startswith("raise SystemExit")
    again = go(spec, home, server, "--runner", "local")
    assert again.returncode == 2 and "train.py cannot be imported: SystemExit" in again.stderr
    assert str(folder / "train.py") in again.stderr and "Traceback" not in again.stderr


def test_a_sweep_whose_code_hangs_ends_though_only_its_time_is_limited(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("binsweep.search.execution.sweep_clock.MIN_OVERTIME_SECONDS", 1.0)
    monkeypatch.setattr("binsweep.search.own_code.host_process.MAX_UNWIND_SECONDS", 0.5)
    code = """
        import time
        def train(trial):
            time.sleep(3600)
    """
    spec = code_spec(tmp_path / "code", "own-hangs", None, code, budget={"minutes": 0.05})
    done = go(spec, tmp_path / "home", server, "--runner", "local")
    expected = "TimeoutError: budget.minutes: 0.05 are long over, and an epoch has not ended"
    assert done.returncode == 1 and f"no trial of own-hangs-1 has a result: {expected}" in done.stderr
    parent, trials = runs_of(server, "own-hangs")
    assert [run.data.tags["ended_because"] for run in trials.values()] == [expected]
    assert parent.data.tags["ended_by"] == "budget.minutes: 0.05 are over"


def test_trials_are_paused_and_go_on_from_their_checkpoints(server: str, tmp_path: Path) -> None:
    """Freeze-thaw: by `assert` in its code, no trial skips or repeats an epoch."""
    home, name = tmp_path / "home", "own-paused"
    spec = code_spec(tmp_path / "code", name, 12, search={"sampler": "auto", "stopping": "auto"})
    done = go(spec, home, server, "--runner", "local", "--set", "budget.epochs=70")
    assert done.returncode == 0, done.stderr
    assert "goes on after epoch" in done.stderr and "failed" not in done.stderr, done.stderr
    for (number, metric), points in curves(server, name, METRICS).items():
        assert [step for step, _ in points] == list(range(1, len(points) + 1)), (number, metric)
