"""The run that holds a model's files, where the registry is another server than that of the sweep's runs."""

import contextlib
import sqlite3
from pathlib import Path

import pytest
from front import front
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from binsweep.tracking.mlflow_server.embedded import tracking_server
from binsweep.tracking.promotion.registry_run import (
    EXPERIMENT,
    REGISTERED,
    SOURCE_RUN,
    record_registered,
    registry_run,
)


@pytest.fixture
def run_id(server: str) -> str:
    client = MlflowClient(server)
    found = client.get_experiment_by_name("promoted from")
    place = found.experiment_id if found else client.create_experiment("promoted from")
    run = str(client.create_run(place, run_name="trial 3").info.run_id)
    client.log_batch(run, [Metric("val_accuracy", 0.9, 1, 7)], [Param("lr", "0.1")], [RunTag("sweep", "s-1")])
    return run


def test_another_address_of_the_same_server_has_the_run_itself(
    server: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry_run(server, run_id, create=True).run_id == run_id
    with front(server, "path", tmp_path) as (address, _):
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"{address}/mlflow/")
        place = registry_run(server, run_id, create=True)
        record_registered(server, run_id, place, "a", "1")
    assert (place.server, place.run_id) == (f"{address}/mlflow", run_id)
    client = MlflowClient(server)
    assert client.get_experiment_by_name(EXPERIMENT) is None
    assert REGISTERED not in client.get_run(run_id).data.tags


def test_another_server_gets_one_run_with_what_the_sweeps_run_says(
    server: str, server_home: Path, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow" / "mlflow.db"
    file.parent.mkdir()
    with (  # a database that needs no migration
        contextlib.closing(sqlite3.connect(server_home / "mlflow" / "mlflow.db")) as known,
        contextlib.closing(sqlite3.connect(file)) as copy,
    ):
        known.backup(copy)
        copy.execute("delete from tags")
        copy.execute("delete from runs where run_uuid = ?", (run_id,))
        copy.commit()
    with tracking_server(tmp_path) as other:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", other)
        asked = registry_run(server, run_id, create=False)
        there = MlflowClient(other)
        assert asked.run_id == run_id and there.get_experiment_by_name(EXPERIMENT) is None, "a dry run"
        place = registry_run(server, run_id, create=True)
        assert place.server == other and place.run_id != run_id
        assert (
            registry_run(server, run_id, create=True) == registry_run(server, run_id, create=False) == place
        )
        data = there.get_run(place.run_id).data
        assert (data.params, data.metrics) == ({"lr": "0.1"}, {"val_accuracy": 0.9})
        assert data.tags["sweep"] == "s-1" and data.tags[SOURCE_RUN] == run_id
        assert f"{server}/#/experiments/" in data.tags["mlflow.note.content"]
        record_registered(server, run_id, place, "counter", "4")
    here = MlflowClient(server).get_run(run_id).data.tags
    assert here[REGISTERED] == f"{other}/#/models/counter/versions/4"
