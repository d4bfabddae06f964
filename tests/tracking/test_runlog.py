import errno
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from small_sweep import NAMES, assert_complete, runs_of, value, write_sweep

import binsweep.tracking.runlog.delivery
from binsweep.data.errors import UserError
from binsweep.tracking.runlog.run_log import RunLog, replay
from binsweep.tracking.runlog.sender import KEY_TAG
from binsweep.tracking.runlog.spool import Spool


def test_everything_arrives_exactly_once(server: str, tmp_path: Path) -> None:
    client = MlflowClient(server)
    log = RunLog(tmp_path / "spool", server, "everything")
    (tmp_path / "figures" / "deep").mkdir(parents=True)
    (tmp_path / "figures" / "deep" / "one.txt").write_text("one")
    (tmp_path / "weights.bin").write_bytes(b"\0\1\2")
    log.start_run(
        "sweep", "bins \N{PACKAGE}", tags={"seed": "0"}, params={"trials": 3}, description="All *of* it."
    )
    for t in range(3):
        log.start_run(f"trial-{t}", f"trial {t}", parent="sweep", tags={"seed": str(t)})
        log.params(
            f"trial-{t}", {"lr": 0.1, "backbone": "resnet18", "note": "x" * 9000, "odd\0": "a\0\ud800b"}
        )
        log.dataset(f"trial-{t}", "abid", "f" * 36, "./datasets/abid", "training", {"images": 3972})
        for e in range(60):
            log.metrics(f"trial-{t}", e, {name: value(t, e, i) for i, name in enumerate(NAMES)})
        log.metrics(f"trial-{t}", 60, {"nan": math.nan, "inf": math.inf, "per class/5 ?": -math.inf})
        log.artifact(f"trial-{t}", tmp_path / "weights.bin", "best")
        log.artifact(f"trial-{t}", tmp_path / "figures")
        log.tags(f"trial-{t}", {"state": "begun"})
        log.tags(f"trial-{t}", {"state": "done"})
    for t, status in enumerate(["FINISHED", "FAILED", "KILLED"]):
        log.end_run(f"trial-{t}", status)
    run_id = log.run_id("trial-0", 30)
    assert log.close(60) == 0
    assert log.refused == []

    runs = runs_of(client, "everything")
    assert set(runs) == {"sweep", "trial-0", "trial-1", "trial-2"}
    sweep = runs["sweep"]
    assert sweep.info.run_name == "bins \N{PACKAGE}"
    assert sweep.info.status == "RUNNING"
    assert sweep.data.tags["mlflow.note.content"] == "All *of* it."
    assert sweep.data.params == {"trials": "3"}
    for t, status in enumerate(["FINISHED", "FAILED", "KILLED"]):
        run = runs[f"trial-{t}"]
        assert run.info.status == status
        assert run.info.end_time is not None and run.info.end_time >= run.info.start_time
        assert run.data.tags["state"] == "done"
        assert run.data.tags["seed"] == str(t)
        assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id
        assert run.data.params["note"] == "x" * 6000
        assert run.data.params["odd_"] == "a\N{REPLACEMENT CHARACTER}?b"
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("abid", "f" * 36)
        assert data.tags[0].value == "training"
        for i, name in enumerate(NAMES):
            history = client.get_metric_history(run.info.run_id, name)
            points = sorted((point.step, point.value) for point in history)
            assert points == [(e, value(t, e, i)) for e in range(60)]
        assert math.isnan(run.data.metrics["nan"])
        # The server stores infinities as the largest double.
        assert run.data.metrics["inf"] > 1e308
        assert run.data.metrics["per class/5 _"] < -1e308
        held = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert held == {"best", "deep"}
        assert [item.path for item in client.list_artifacts(run.info.run_id, "best")] == ["best/weights.bin"]
    assert runs["trial-0"].info.run_id == run_id


def test_a_replay_of_everything_changes_nothing(server: str, tmp_path: Path) -> None:
    client = MlflowClient(server)
    log = RunLog(tmp_path, server, "replayed")
    write_sweep(log, trials=2, epochs=5)
    log.tags("trial-0", {"state": "done"})
    log.metrics("trial-1", 9, {"nan": math.nan})
    assert log.close(60) == 0
    before = runs_of(client, "replayed")
    (sent,) = tmp_path.glob("*.sent")
    sent.unlink()  # as if nothing of it had been acknowledged
    assert replay(tmp_path, server, "replayed", 60) == 0
    assert_complete(client, "replayed", trials=2, epochs=5)
    after = runs_of(client, "replayed")
    for key, run in after.items():
        assert str(run.to_dictionary()) == str(before[key].to_dictionary())  # as text: a NaN equals itself
    assert len(client.get_metric_history(after["trial-1"].info.run_id, "nan")) == 1


def test_an_epoch_done_over_after_a_crash_leaves_no_second_point(server: str, tmp_path: Path) -> None:
    client = MlflowClient(server)
    for life in range(2):
        log = RunLog(tmp_path, server, "resumed")
        log.start_run("trial-0", "trial 0", params={"lr": 0.1})
        for e in range(life, life + 3):
            log.metrics("trial-0", e, {"loss": e + life / 100})
        log.metrics("trial-0", 2, {"loss": 99.0, "late": 1.0})
        log.end_run("trial-0", "KILLED" if life == 0 else "FINISHED")
        assert log.close(60) == 0
    run = runs_of(client, "resumed")["trial-0"]
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.01)]
    assert len(client.get_metric_history(run.info.run_id, "late")) == 1
    assert run.info.status == "FINISHED"


def test_a_resumed_run_is_running_again(server: str, tmp_path: Path) -> None:
    client = MlflowClient(server)
    for expected in ("KILLED", "RUNNING"):
        log = RunLog(tmp_path, server, "again")
        log.start_run("trial-0", f"life {expected}")
        if expected == "KILLED":
            log.end_run("trial-0", expected)
        assert log.close(60) == 0
        run = runs_of(client, "again")["trial-0"]
        assert (run.info.status, run.info.run_name) == (expected, f"life {expected}")


def test_one_bad_value_costs_no_other(server: str, tmp_path: Path) -> None:
    log = RunLog(tmp_path, server, "refused")
    log.start_run("trial-0", "trial 0", params={"lr": 0.1})
    assert log.flush(60) == 0
    log.params("trial-0", {"lr": 0.2, "epochs": 3})  # written once: the server refuses another value
    for e in range(10):
        log.metrics("trial-0", e, {"loss": 1.0})
    log.artifact("trial-0", tmp_path / "absent.bin")
    log.end_run("trial-0", "FINISHED")
    assert log.close(60) == 0
    assert len(log.refused) == 2
    assert "lr" in log.refused[0]
    assert "absent.bin" in log.refused[1]
    run = runs_of(MlflowClient(server), "refused")["trial-0"]
    assert run.data.params == {"lr": "0.1", "epochs": "3"}
    assert len(MlflowClient(server).get_metric_history(run.info.run_id, "loss")) == 10
    assert run.info.status == "FINISHED"


def test_a_deleted_run_stays_deleted_and_does_not_block_the_others(server: str, tmp_path: Path) -> None:
    client = MlflowClient(server)
    log = RunLog(tmp_path, server, "deleted")
    log.start_run("trial-0", "trial 0")
    client.delete_run(str(log.run_id("trial-0", 30)))
    for e in range(50):
        log.metrics("trial-0", e, {"loss": 1.0})
    log.start_run("trial-1", "trial 1")
    log.metrics("trial-1", 0, {"loss": 1.0})
    assert log.close(60) == 0
    assert len(log.refused) == 1  # refused as a whole, not value by value
    # Not even a next life undoes what somebody decided.
    log = RunLog(tmp_path, server, "deleted")
    log.start_run("trial-0", "trial 0")
    assert log.close(60) == 0
    assert set(runs_of(client, "deleted")) == {"trial-1"}


def test_a_double_left_by_a_lost_answer_is_removed(server: str, tmp_path: Path) -> None:
    client = MlflowClient(server)
    log = RunLog(tmp_path, server, "doubles")
    log.start_run("trial-0", "trial 0")
    run_id = log.run_id("trial-0", 30)
    log.metrics("trial-0", 0, {"loss": 1.0})
    assert log.flush(60) == 0
    # A creation that the client gave up on, but the server carried out.
    experiment = client.get_experiment_by_name("doubles")
    assert experiment is not None
    tags = {KEY_TAG: client.get_run(str(run_id)).data.tags[KEY_TAG]}
    client.create_run(experiment.experiment_id, start_time=1, tags=tags)
    log.end_run("trial-0", "FINISHED")
    assert log.close(60) == 0
    assert runs_of(client, "doubles")["trial-0"].info.run_id == run_id


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[3]]
import small_sweep
from binsweep.tracking.runlog.run_log import RunLog
log = RunLog(Path(sys.argv[1]), sys.argv[2], sys.argv[4])
log.start_run("sweep", "the sweep")
print("ready", flush=True)
small_sweep.write_sweep(log, trials=3, epochs=40, pause=0.05)
print("written", flush=True)
import time; time.sleep(60)
"""


@pytest.mark.parametrize("after", [0.0, 0.7, 1.6])
def test_a_killed_process_is_replayed_and_gone_on_with(after: float, server: str, tmp_path: Path) -> None:
    experiment = f"killed after {after}"
    here = str(Path(__file__).parent)
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), server, here, experiment], stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(after)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        child.stdout.close()
    assert replay(tmp_path, server, experiment, 60) == 0
    # The next life writes the whole sweep again; what is known already is not doubled.
    log = RunLog(tmp_path, server, experiment)
    write_sweep(log, trials=3, epochs=40)
    assert log.close(60) == 0
    assert_complete(MlflowClient(server), experiment, trials=3, epochs=40)


def test_mlflow_is_sent_what_the_disk_has(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut takes back would be recorded again at another time, and MLflow would have it twice."""
    disk_fails, sync = True, Spool.sync

    def sync_if_it_works(spool: Spool) -> None:
        if disk_fails:
            raise OSError(errno.EIO, "Input/output error")
        sync(spool)

    monkeypatch.setattr(Spool, "sync", sync_if_it_works)
    monkeypatch.setattr(binsweep.tracking.runlog.delivery, "_MAX_DELAY", 0.1)
    log = RunLog(tmp_path, server, "failing-disk")
    log.start_run("sweep", "bins")
    assert log.run_id("sweep", timeout=2.0) is None
    disk_fails = False
    assert log.run_id("sweep", timeout=20.0) is not None
    assert log.close(20) == 0


def test_one_process_owns_a_spool(server: str, tmp_path: Path) -> None:
    log = RunLog(tmp_path, server, "owned")
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        replay(tmp_path, server, "owned", 1)
    log.close(0)
    RunLog(tmp_path, server, "owned").close(0)


def test_there_is_nothing_to_replay_where_no_sweep_has_run(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run log"):
        replay(tmp_path, server, "none", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a b", "it's", "x" * 201])
def test_keys_and_statuses_are_checked(key: str, server: str, tmp_path: Path) -> None:
    log = RunLog(tmp_path, server, "checked")
    with pytest.raises(ValueError, match="key"):
        log.start_run(key, "name")
    with pytest.raises(ValueError, match="key"):
        log.metrics(key, 0, {"loss": 1.0})
    with pytest.raises(ValueError, match="status"):
        log.end_run("trial-0", "DONE")
    with pytest.raises(ValueError, match="folder"):
        log.artifact("trial-0", tmp_path, "../up")
    assert log.close(0) == 0
