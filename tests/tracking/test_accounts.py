"""A server with accounts, as the compose file has it: prepared by deploy/prepare.py."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from binsweep.tracking.processes import clean_environment, end, free_port, spawn, tail, wait_until_answers
from binsweep.tracking.registry.versions import champion_of

PREPARE = Path(__file__).parents[2] / "deploy" / "prepare.py"


def prepare(folder: Path, **passwords: str) -> dict[str, str]:
    """Make bucket, tables and accounts in a database of the test's; the settings of its server."""
    config = (PREPARE.parent / "basic_auth.ini").read_text()
    file = folder / "auth.ini"
    known = "postgresql+psycopg://mlflow@postgres:5432/mlflow"
    assert known in config and "auth_cache_ttl_seconds = 60" in config
    # Checked passwords are believed for a while there; a test does not wait that long.
    config = config.replace("auth_cache_ttl_seconds = 60", "auth_cache_ttl_seconds = 0")
    file.write_text(config.replace(known, f"sqlite:///{folder}/auth.db"))
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(file),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "the-password-of-admin",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "the-key-of-sessions",
    }
    more = {"BUCKET": "prepared", "AWS_DEFAULT_REGION": "us-east-1", **passwords}
    subprocess.run([sys.executable, PREPARE], env={**os.environ, **settings, **more}, check=True, timeout=120)
    return settings


@pytest.mark.integration
def test_accounts_are_what_the_environment_says_and_tell_nothing_of_absent_models(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"MLFLOW_SWEEPS_PASSWORD": "first-password-1", "MLFLOW_SERVING_PASSWORD": "first-password-2"}
    settings = prepare(tmp_path, **first)
    assert "prepared" in [bucket["Name"] for bucket in s3.client.list_buckets()["Buckets"]]
    port, log = free_port(), tmp_path / "server.log"
    words = [
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--app-name",
        "basic-auth",
    ]
    words += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination",
        str(tmp_path),
    ]
    settings["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    server = spawn(words, port, tmp_path, log, clean_environment(settings))
    try:
        assert wait_until_answers(server, "/health", 120), tail(log)

        def be(user: str, password: str) -> MlflowClient:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            return MlflowClient(server.url)

        sweeps = be("sweeps", "first-password-1")
        assert champion_of(server.url, "counter") is None  # though the server says that it may not be asked
        sweeps.create_registered_model("counter")
        assert champion_of(server.url, "counter") is None
        sweeps.create_model_version("counter", "s3://elsewhere/model")
        sweeps.set_registered_model_alias("counter", "champion", "1")
        serving = be("serving", "first-password-2")
        found = champion_of(server.url, "counter")
        assert found is not None and found.version == "1"
        with pytest.raises(MlflowException, match="403"):
            serving.delete_registered_model_alias("counter", "champion")
        # Another .env, and the old password opens nothing.
        prepare(tmp_path, **first | {"MLFLOW_SERVING_PASSWORD": "second-password-2"})
        with pytest.raises(MlflowException, match="401"):
            champion_of(server.url, "counter")
        be("serving", "second-password-2")
        assert champion_of(server.url, "counter") is not None
    finally:
        end(server)
