"""One real MLflow server for all tests of this room: a cold database takes seconds to migrate."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tracking.server import tracking_server


@pytest.fixture(autouse=True)
def _no_server_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "home with #1 odd name"


@pytest.fixture(scope="session")
def server(server_home: Path) -> Iterator[str]:
    """The address of a running MLflow server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with tracking_server(server_home) as uri:
            yield uri
