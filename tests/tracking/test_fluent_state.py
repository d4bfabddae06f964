"""What Binsweep does with MLflow's settings of a process, of which a notebook may make use for its own runs."""

import os

import mlflow
import pytest
from mlflow.tracking import fluent, is_tracking_uri_set

from binsweep.tracking.fluent_state import process_settings

SERVER = "http://127.0.0.1:9"  # never asked


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process keep their own settings."""
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_process_without_a_server_has_none_afterwards() -> None:
    with process_settings(SERVER):
        assert mlflow.get_tracking_uri() == SERVER
        fluent._active_experiment_id = "7"
        os.environ["MLFLOW_EXPERIMENT_ID"] = "7"
    # The embedded server has ended: the next sweep must not take it for one that is named in the environment.
    assert not is_tracking_uri_set() and fluent._active_experiment_id is None
    assert "MLFLOW_TRACKING_URI" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ


def test_a_process_keeps_its_server_and_experiment_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri("http://127.0.0.1:8")
    monkeypatch.setattr(fluent, "_active_experiment_id", "3")
    with pytest.raises(RuntimeError), process_settings(SERVER):
        fluent._active_experiment_id = "7"
        raise RuntimeError
    assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:8"
    assert fluent._active_experiment_id == "3"
