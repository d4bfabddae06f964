"""The Python API: sweeps of own code and of photos, started, interrupted, resumed, promoted; the champion's answers."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from real_sweeps import run_here

import binsweep
from binsweep.search.api.session import session
from binsweep.search.execution.interrupts import uninterrupted
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.workflows.predict import predict_images

# The value depends on lr alone, so that the best trial is known; `pause` lets a test interrupt an epoch.
TRAIN = """
import time

def train(trial):
    for epoch in trial.epochs():
        time.sleep(trial.params["pause"])
        value = abs(trial.params["lr"] - 0.02) + 1 / epoch
        trial.report({"val_loss": value, "other": -value}, save=lambda folder: (folder / "w").write_text("w"))
"""
OWN: dict[str, Any] = {
    "name": "own",
    "params": {"pause": 0.0},
    "space": {"lr": [0.01, 0.02, 0.05]},
    "search": {"sampler": "grid", "stopping": "none"},
    "fidelity": {"epochs": 2},
    "objective": {"metric": "val_loss", "goal": "minimize"},
}
PHOTOS: dict[str, Any] = {
    "name": "photos",
    "data": {"image_size": 64},
    "model": {"weights": "none"},
    "space": {"lr": [0.01], "batch_size": [8], "epochs": [2]},
    "budget": {"trials": 1},
    "register": {"model": "api-counter", "finalists": 0, "engine": "torch"},
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A spec of own training code."""
    file = tmp_path_factory.mktemp("code") / "train.py"
    file.write_text(TRAIN)
    return {**OWN, "trainer": f"{file}:train"}


@pytest.fixture
def home(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, with the one MLflow server of all tests."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def ended(own: dict[str, Any], server: str, tmp_path_factory: pytest.TempPathFactory) -> binsweep.Sweep:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        return binsweep.sweep(own, home=tmp_path_factory.mktemp("home"), runner="local", name="ended")


def test_a_sweep_is_what_its_files_say(ended: binsweep.Sweep) -> None:
    assert ended.id == "ended-1" and ended.status == "finished" and "every configuration" in ended.ended_by
    board = ended.leaderboard
    assert list(board.columns) == ["trial", "val_loss", "epoch", "state", "lr"]
    assert list(board["lr"]) == [0.02, 0.01, 0.05] and board["val_loss"].is_monotonic_increasing
    trials = ended.trials
    assert list(trials.index) == [0, 1, 2] and set(trials["state"]) == {"completed"}
    assert {"suggested", "reason", "seconds", "epochs_done", "epochs_planned"} <= set(trials.columns)
    best = ended.best
    assert best.params == {"lr": 0.02} and best.value == 0.5 and best.epoch == 2
    assert best.metrics["other"] == -0.5 and best.checkpoint is not None
    assert (best.checkpoint / "w").read_text() == "w" and best.checkpoint.parent.parent == ended.folder
    history = ended.history
    assert list(history["epoch"]) == [1, 2] * 3 and list(history["trial"]) == [0, 0, 1, 1, 2, 2]
    assert (history["other"] == -history["val_loss"]).all()
    assert ended.spec["fidelity"] == {"epochs": 2} and ended.promotion is None


def test_a_notebook_shows_it_as_a_table(ended: binsweep.Sweep) -> None:
    page = ended._repr_html_()
    assert page.count("<tr") == 4 and "ended-1: finished" in page
    assert repr(ended).startswith("ended-1: finished") and "best: val_loss 0.500" in repr(ended)


def test_open_gives_the_same_sweep(ended: binsweep.Sweep, tmp_path: Path) -> None:
    home = ended.folder.parents[1]
    for name in ("ended", "ended-1"):
        again = binsweep.open(name, home=home)
        pd.testing.assert_frame_equal(again.trials, ended.trials)
    with pytest.raises(binsweep.UserError, match="sweeps here: ended-1"):
        binsweep.open("another", home)
    page = ended.report(tmp_path / "page.html")
    assert page == tmp_path / "page.html" and "ended-1" in page.read_text()
    assert ended.report() == ended.folder / "report.html"


def test_a_sweep_is_resumed_with_a_larger_budget(own: dict[str, Any], home: Path) -> None:
    search = {"sampler": "random", "stopping": "none"}
    first = binsweep.sweep(own, home=home, runner="local", search=search, budget={"trials": 1})
    assert len(first.trials) == 1
    more = first.resume(runner="local", budget={"trials": 2})
    assert more.id == first.id and list(more.trials["state"]) == ["completed"] * 2
    assert len(first.trials) == 2, "a sweep that was opened before does not notice"
    with pytest.raises(binsweep.UserError, match=r"begun with another fidelity\.epochs"):
        first.resume(runner="local", set={"fidelity.epochs": 5})
    other = binsweep.sweep(
        own, home=home, runner="local", name="warm", budget={"trials": 1}, warm_start=first
    )
    assert [int(number) for number in other.trials.index] == [2], (
        "the trials of the other sweep are not known"
    )


def test_mistakes_are_those_of_the_command_line(
    own: dict[str, Any], home: Path, tmp_path: Path, server: str
) -> None:
    spec = {**own, "search": {"sampler": "nobody"}, "objective": {"metric": "val_loss"}}
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    done = run_here("sweep", file, BINSWEEP_HOME=str(home), MLFLOW_TRACKING_URI=server)
    with pytest.raises(binsweep.UserError) as caught:
        binsweep.sweep(str(file), home=home)
    assert done.returncode == 2 and done.stderr == f"binsweep: {caught.value}\n"
    assert "2 mistakes" in str(caught.value)
    for options, part in (
        ({"runner": "slurm"}, "runner: must be ray or local"),
        ({"resume": True, "new": True}, "exclude one another"),
        ({"runner": "local", "address": "auto"}, "exclude one another"),
        ({"warm_start": "nobody"}, "no sweep 'nobody'"),
        ({"resume": True}, "no sweep 'own'"),
        ({"home": file}, "home: .* is not a folder"),
    ):
        with pytest.raises(binsweep.UserError, match=part):
            binsweep.sweep(own, **{"home": home, **options})
    assert not list(home.glob("sweeps/*")), "something was written"


def test_a_sweep_without_a_result_is_an_error_with_the_reason(
    own: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text("def train(trial):\n    raise ValueError('no such column')\n")
    with pytest.raises(binsweep.SweepError, match=r"no trial of own-1 has a result: .*no such column"):
        binsweep.sweep(own, home=home, runner="local", trainer=f"{tmp_path / 'bad.py'}:train")
    sweep = binsweep.open("own", home)
    assert set(sweep.trials["state"]) == {"failed"} and sweep.leaderboard.empty and sweep.history.empty
    with pytest.raises(binsweep.UserError, match="no trial of own-1 has a result"):
        _ = sweep.best
    assert "own-1" in sweep._repr_html_()


def test_a_script_that_trials_would_run_again_is_refused(
    own: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import binsweep\n{TRAIN}\nbinsweep.sweep({own!r})\n")
    with pytest.raises(binsweep.UserError, match="a trial, which imports its training code"):
        binsweep.sweep(own, home=home, runner="local", trainer=f"{script}:train")


@pytest.fixture
def interrupting(home: Path) -> Iterator[None]:
    """Ctrl-C as soon as a trial has reported its first epoch, once."""
    over = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not over.wait(0.05):
            if list(home.glob("sweeps/*/trial-*/history.jsonl")):
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    over.set()
    thread.join(10)


def test_an_interrupted_sweep_goes_on_by_the_same_call(
    own: dict[str, Any], home: Path, interrupting: None, capfd: pytest.CaptureFixture[str]
) -> None:
    handler, level = signal.getsignal(signal.SIGINT), logging.getLogger("optuna").level
    slow = {**own, "params": {"pause": 1.0}}
    with pytest.raises(KeyboardInterrupt):
        binsweep.sweep(slow, home=home, runner="local")
    assert "the same call goes on" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler and logging.getLogger("optuna").level == level
    sweep = binsweep.open("own", home)
    assert sweep.status == "unfinished" and len(sweep.trials) < 3
    again = binsweep.sweep(slow, home=home, runner="local")
    assert again.id == sweep.id == "own-1" and sweep.status == "finished"
    assert list(sweep.trials["state"]) == ["completed"] * 3
    assert not sweep.history.duplicated(["trial", "epoch"]).any() and len(sweep.history) == 6


def test_an_interrupt_waits_for_what_must_be_complete_and_ends_with_its_call() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), session():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            done.append("complete")
        done.append("too late")
    assert done == ["complete"]
    try:
        with uninterrupted():
            pass
    except KeyboardInterrupt:
        pytest.fail("the next call is interrupted by it")


def test_a_sweep_runs_in_another_thread(own: dict[str, Any], home: Path) -> None:
    found: list[Any] = []

    def run() -> None:
        found.append(binsweep.sweep(own, home=home, runner="local"))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(200)
    assert found and found[0].status == "finished"


@pytest.fixture(scope="module")
def promoted(
    bins: Path, server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[binsweep.Sweep, str]]:
    """A promoted sweep over photos, in a process that logs a run of its own all the while; and that run's id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        mlflow.set_tracking_uri(server)
        mlflow.set_experiment("of the notebook")
        with mlflow.start_run() as run:
            home = tmp_path_factory.mktemp("home")
            spec = {**PHOTOS, "data": {**PHOTOS["data"], "source": bins}}
            sweep = binsweep.sweep(spec, home=home, runner="local", promote=True)
            mlflow.log_metric("mine", 1.0)
            assert mlflow.get_tracking_uri() == server
        with mlflow.start_run():  # in the experiment that was chosen before
            mlflow.log_metric("mine", 2.0)
        yield sweep, run.info.run_id


@pytest.mark.timeout(600)
def test_a_promotion_leaves_the_callers_runs_alone(promoted: tuple[binsweep.Sweep, str], server: str) -> None:
    sweep, mine = promoted
    client = MlflowClient(server)
    version = client.get_model_version("api-counter", "1")
    assert sweep.promotion is not None and sweep.promotion.version == "1"
    assert version.run_id != mine
    run = client.get_run(mine)
    assert run.data.metrics == {"mine": 1.0} and run.info.status == "FINISHED"
    experiment = client.get_experiment_by_name("of the notebook")
    assert experiment is not None and run.info.experiment_id == experiment.experiment_id
    values = [run.data.metrics["mine"] for run in client.search_runs([experiment.experiment_id])]
    assert sorted(values) == [1.0, 2.0]


@pytest.mark.timeout(600)
def test_a_registered_model_answers_as_predict_does(
    promoted: tuple[binsweep.Sweep, str],
    bins: Path,
    tmp_path: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    photos = sorted((bins / "bin-images").iterdir())[:3]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    model = binsweep.load_model("api-counter/1", tmp_path)
    frame = model.predict([*photos, str(broken)])
    rows = predict_images(list(map(str, [*photos, broken])), None, "models:/api-counter/1", tmp_path)
    assert frame.to_dict("records")[:3] == [{"image": name, **row} for name, row in rows][:3]
    assert list(frame["model_version"][:3]) == ["1"] * 3 and list(frame["error"][:3]) == [""] * 3
    assert frame["error"][3] and pd.isna(frame["count"][3])
    assert len(model.predict(bins / "bin-images")) == 90, "a folder is one place"
    assert model.uri == binsweep.load_model("models:/api-counter/1", tmp_path).uri == "models:/api-counter/1"
    with pytest.raises(binsweep.UserError, match="no such file, or no photo in it"):
        model.predict(tmp_path / "nothing")
    with pytest.raises(binsweep.UserError, match="has no version '9'"):
        binsweep.load_model("api-counter/9", tmp_path)
    with pytest.raises(binsweep.UserError, match="'nobody' is not registered"):
        binsweep.load_model("nobody", tmp_path)


@pytest.mark.integration
def test_a_promotion_without_consequences(promoted: tuple[binsweep.Sweep, str], server: str) -> None:
    sweep, _ = promoted
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        decision = binsweep.open(sweep.id, sweep.folder.parents[1]).promote(dry_run=True)
    assert decision.version is None and not decision.promoted and decision.reason
    assert read_history(sweep.folder).leaders[0].number == sweep.best.trial
