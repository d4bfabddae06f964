"""The run log against MLflow over PostgreSQL: the same promises as over SQLite."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flaky import flaky
from mlflow.tracking import MlflowClient
from postgres import mlflow_on, postgres
from small_sweep import assert_complete, write_sweep

from binsweep.tracking.runlog.run_log import RunLog, replay

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres() as database, mlflow_on(database, tmp_path_factory.mktemp("mlflow")) as url:
        yield url


def test_everything_arrives_exactly_once_and_a_replay_changes_nothing(server: str, tmp_path: Path) -> None:
    log = RunLog(tmp_path / "spool", server, "once")
    write_sweep(log, trials=3, epochs=30)
    log.artifact("sweep", Path(__file__), "tests")
    assert log.close(120) == 0 and log.refused == []
    assert_complete(MlflowClient(server), "once", trials=3, epochs=30)
    (sent,) = (tmp_path / "spool").glob("*.sent")
    sent.unlink()  # as if nothing of it had been acknowledged
    assert replay(tmp_path / "spool", server, "once", 120) == 0
    assert_complete(MlflowClient(server), "once", trials=3, epochs=30)


def test_failures_and_lost_answers_lose_and_double_nothing(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    fates = iter(["pass", "forget", "fail", "pass", "pass"] * 1000)
    with flaky(server, lambda: next(fates)) as proxy:
        log = RunLog(tmp_path / "spool", proxy, "flaky")
        write_sweep(log, trials=2, epochs=20, pause=0.1)
        assert log.close(120) == 0 and log.refused == []
    assert_complete(MlflowClient(server), "flaky", trials=2, epochs=20)
