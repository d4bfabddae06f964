"""MLflow away, failing, forgetful or slow: the caller notices nothing, and afterwards nothing is missing."""

import json
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import ClientError, NoCredentialsError
from flaky import flaky
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracking import MlflowClient
from small_sweep import NAMES, assert_complete, runs_of, write_sweep

from binsweep.tracking.mlflow_server.embedded import tracking_server
from binsweep.tracking.processes import Server, end
from binsweep.tracking.runlog import delivery
from binsweep.tracking.runlog.permanent_errors import is_permanent_for_artifact
from binsweep.tracking.runlog.run_log import RunLog
from binsweep.tracking.runlog.s3_patience import limit_s3_patience


@pytest.fixture
def no_client_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fault reaches our code, instead of being smoothed by MLflow's client, and is soon tried again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(delivery, "_MIN_DELAY", 0.02)
    monkeypatch.setattr(delivery, "_MAX_DELAY", 0.2)


def test_mlflow_killed_in_the_middle_and_restarted(tmp_path: Path) -> None:
    with tracking_server(tmp_path) as uri:
        log = RunLog(tmp_path / "spool", uri, "outage")
        log.start_run("sweep", "the sweep")
        assert log.run_id("sweep", 60)
        server = Server(**json.loads((tmp_path / "mlflow" / "server.json").read_text()))
        end(server, grace=0.0)
        began = time.monotonic()
        write_sweep(log, trials=2, epochs=30)
        assert time.monotonic() - began < 30  # waiting for the server would take minutes
        assert log.flush(1.0) > 0
        with tracking_server(tmp_path) as back:
            assert back == uri  # at its old address, with its old data
            assert log.close(60) == 0
            assert_complete(MlflowClient(uri), "outage", trials=2, epochs=30)


@pytest.mark.usefixtures("no_client_retries")
@pytest.mark.parametrize("seed", [0, 1])
def test_failures_and_lost_answers_lose_and_double_nothing(seed: int, server: str, tmp_path: Path) -> None:
    dice, seen, lock = random.Random(seed), [], threading.Lock()

    def fate() -> str:
        with lock:
            seen.append(dice.choices(["pass", "fail", "forget"], [60, 20, 20])[0])
            return str(seen[-1])

    (tmp_path / "weights.bin").write_bytes(bytes(100_000))
    experiment = f"failing {seed}"
    with flaky(server, fate) as proxy:
        log = RunLog(tmp_path / "spool", proxy, experiment)
        log.start_run("sweep", "the sweep")
        log.artifact("sweep", tmp_path / "weights.bin", "best")
        log.dataset("sweep", "abid", "0" * 36, "somewhere", "training", {})
        write_sweep(log, trials=2, epochs=20, pause=0.1)
        assert log.close(120) == 0
    assert {"fail", "forget"} < set(seen)
    assert log.refused == []
    client = MlflowClient(server)
    assert_complete(client, experiment, trials=2, epochs=20)


@pytest.mark.usefixtures("no_client_retries")
def test_the_creation_of_a_run_whose_answer_is_lost_makes_one_run(server: str, tmp_path: Path) -> None:
    forgetful = threading.Event()
    with flaky(server, lambda: "forget" if forgetful.is_set() else "pass") as proxy:
        log = RunLog(tmp_path, proxy, "lost creations")
        log.start_run("sweep", "the sweep")
        assert log.run_id("sweep", 60)  # the experiment exists from here on
        forgetful.set()
        for t in range(2):
            log.start_run(f"trial-{t}", f"trial {t}")  # none of them ends: nothing is put in order at the end
        time.sleep(2.0)
        forgetful.clear()
        assert log.close(60) == 0
    assert set(runs_of(MlflowClient(server), "lost creations")) == {"sweep", "trial-0", "trial-1"}


@pytest.mark.usefixtures("no_client_retries")
def test_a_slow_server_costs_the_caller_nothing(
    server: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    values = {name: i / 3 for i, name in enumerate(NAMES)}
    with flaky(server, lambda: "slow") as proxy:
        log = RunLog(tmp_path, proxy, "slow")
        log.start_run("trial-0", "trial 0")
        costs = []
        for e in range(400):
            began = time.perf_counter()
            log.metrics("trial-0", e, values)
            costs.append(time.perf_counter() - began)
            time.sleep(0.005)
        log.end_run("trial-0", "FINISHED")
        figure(
            f"one report of 20 metrics to a slow server: {1000 * statistics.median(costs):.3f} ms at the median"
        )
        assert statistics.median(costs) < 0.1  # each answer of the server takes 0.3 s
        run_id = str(log.run_id("trial-0", 30))
        assert log.close(60) == 0
    assert len(MlflowClient(server).get_metric_history(run_id, NAMES[0])) == 400


def test_leaving_is_bounded_when_mlflow_hangs(tmp_path: Path) -> None:
    with flaky("http://192.0.2.1", lambda: "fail") as proxy:
        log = RunLog(tmp_path, proxy, "hanging")
        log.start_run("trial-0", "trial 0")
        log.metrics("trial-0", 0, {"loss": 1.0})
        began = time.monotonic()
        assert log.run_id("trial-0", 0.3) is None
        assert log.close(0.5) == 2
        assert time.monotonic() - began < 30


@pytest.mark.usefixtures("no_client_retries")
def test_a_slow_server_is_waited_for_while_it_takes_records(server: str, tmp_path: Path) -> None:
    fate = ["slow"]
    with flaky(server, lambda: fate[0]) as proxy:
        log = RunLog(tmp_path / "spool", proxy, "patience")
        write_sweep(log, trials=4, epochs=3)
        assert log.flush(1.0) > 0
        assert log.drain(1.5) == 0  # no request takes as long, all together take longer
        fate[0] = "down"
        log.tags("sweep", {"late": "yes"})
        assert log.drain(0.5) == 1
        fate[0] = "pass"
        assert log.close(60) == 0
        assert_complete(MlflowClient(server), "patience", trials=4, epochs=3)


@pytest.mark.usefixtures("no_client_retries")
def test_a_store_that_is_away_holds_nothing_up_and_gets_its_artifacts_later(
    server: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artifacts that go straight to S3, as with `mlflow server --no-serve-artifacts`."""
    client, fate, bucket = MlflowClient(server), ["down"], s3.bucket()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client.create_experiment("store away", artifact_location=f"s3://{bucket}/runs")
    weights = tmp_path / "best.pt"
    weights.write_bytes(bytes(1000))
    with flaky(s3.url, lambda: fate[0]) as store:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", store)
        log = RunLog(tmp_path / "spool", server, "store away")
        for key in ("trial-0", "trial-1"):
            log.start_run(key, key)
            log.artifact(key, weights, "weights")
            log.metrics(key, 0, {"loss": 1.0})
            log.end_run(key, "FINISHED")
        log.params("trial-1", {"p": "1"})
        log.params("trial-1", {"p": "2"})  # refused: written once
        assert log.flush(3.0) == 2
        s3.faults(deny=1)
        fate[0] = "pass"
        assert log.flush(1.0) == 2 and not log.delivered("trial-0")
        runs = runs_of(client, "store away")
        assert all(run.info.status == "FINISHED" and run.data.metrics["loss"] == 1 for run in runs.values())
        fate[0] = "fail"
        s3.faults()
        assert log.close(1.0) == 2
        log = RunLog(tmp_path / "spool", server, "store away")  # what is late is known to the next process
        assert log.flush(1.0) == 2
        fate[0] = "pass"
        assert log.flush(30) == 0
        assert log.delivered("trial-0") and log.delivered("trial-1")
        for run in runs.values():
            assert [file.path for file in client.list_artifacts(run.info.run_id, "weights")] == [
                "weights/best.pt"
            ]
        weights.unlink()
        log.artifact("trial-0", weights, "weights")  # what is not there any more is given up
        log.end_run("trial-0", "FINISHED")
        log.end_run("trial-1", "FINISHED")
        assert log.close(30) == 0
        assert not log.delivered("trial-0") and log.delivered("trial-1")


def test_an_s3_that_does_not_answer_is_given_up_after_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)

    def patience() -> tuple[float, float]:
        """Of the client that MLflow makes."""
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        config = boto3.client("s3", config=Config(signature_version="s3v4")).meta.config
        return config.connect_timeout, config.read_timeout

    limit_s3_patience("mlflow-artifacts:/1")
    assert boto3.DEFAULT_SESSION is None, "nothing of boto3's is touched where it is not needed"
    limit_s3_patience("s3://bucket/runs")
    assert patience() == (5.0, 30.0)
    theirs = boto3.Session()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", theirs)
    limit_s3_patience("s3://bucket/runs")
    assert boto3.DEFAULT_SESSION is theirs


class StoreError(Exception):
    """As Google's and Azure's libraries have them."""

    def __init__(self, **said: object) -> None:
        self.__dict__ |= said


def _raised(behind: Exception) -> Exception:
    try:
        raise S3UploadFailedError("Failed to upload") from behind
    except S3UploadFailedError as error:
        return error


@pytest.mark.parametrize(
    ("error", "never"),
    [
        (ClientError({"Error": {"Code": "EntityTooLarge"}}, "PutObject"), True),
        (_raised(ClientError({"Error": {"Code": "EntityTooLarge"}}, "PutObject")), True),
        (StoreError(code=413), True),
        (StoreError(status_code=413), True),
        (MlflowException("a name", INVALID_PARAMETER_VALUE), True),
        (ClientError({"Error": {"Code": "ExpiredToken"}}, "PutObject"), False),
        (_raised(ClientError({"Error": {"Code": "NoSuchBucket"}}, "PutObject")), False),
        (NoCredentialsError(), False),
        (StoreError(code=400), False),
        (StoreError(status_code=403), False),
        (StoreError(), False),
        (ModuleNotFoundError("No module named 'google'"), False),
        (MlflowException("the upload failed"), False),
        (FileNotFoundError("/var/run/secrets/token"), False),
        (ValueError("of a library"), False),
    ],
)
def test_only_what_no_store_will_ever_take_is_given_up(error: Exception, never: bool) -> None:
    assert is_permanent_for_artifact(error) is never
