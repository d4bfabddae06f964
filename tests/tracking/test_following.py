"""`binsweep serve --follow` as a process beside a real MLflow server."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import requests
from flaky import flaky
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from binsweep.data.errors import UserError
from binsweep.search.cli.main import cli
from binsweep.tracking.processes import free_port
from binsweep.tracking.serving import follow_champion as following

PATIENCE = 90.0


@pytest.fixture
def client(server: str) -> MlflowClient:
    """A server with a registered model `followed` of two versions, and no champion."""
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment("followed")
    with mlflow.start_run():
        made = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).parent / "echo_model.py"),
            registered_model_name="followed",
            pip_requirements=["mlflow"],
        )
    mlflow.register_model(made.model_uri, "followed")
    return MlflowClient(server)


@pytest.fixture
def follower(
    server: str, client: MlflowClient, tmp_path: Path
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    command = [sys.executable, "-m", "binsweep", "serve", "followed", "--follow", "--port", str(port)]
    environment = {**os.environ, "BINSWEEP_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": server}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.wait(60)


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ping(url: str) -> requests.Response | None:
    try:
        return requests.get(f"{url}/ping", timeout=5)
    except requests.RequestException:
        return None


@pytest.mark.integration
def test_whoever_is_champion_is_served(
    client: MlflowClient, follower: tuple[str, subprocess.Popen[str]]
) -> None:
    url, process = follower
    assert told(process) == "not serving: there is no champion of followed yet"
    deadline = time.monotonic() + PATIENCE
    while (reply := ping(url)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert reply.status_code == 503 and reply.json()["error"] == "there is no champion of followed yet"
    refused = requests.post(f"{url}/invocations", data=b"x" * 2**20, timeout=30)
    assert refused.status_code == 503 and refused.headers["Retry-After"] == "5"
    for version in ("1", "2"):
        client.set_registered_model_alias("followed", "champion", version)
        assert told(process) == f"serving followed version {version} at {url}"
        assert requests.get(f"{url}/ping", timeout=5).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert ping(url) is None


def test_what_keeps_a_version_from_being_served_is_told_and_tried_again(
    server: str, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow away from the start and later, and a port that somebody takes while nobody serves."""
    monkeypatch.setattr(following, "POLL_SECONDS", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with contextlib.suppress(MlflowException):
        client.delete_registered_model_alias("followed", "champion")
    fate, said, port = ["down"], queue.SimpleQueue[str](), free_port()
    url, over = f"http://127.0.0.1:{port}", threading.Event()

    def tell(text: str) -> None:
        if over.is_set():
            raise KeyboardInterrupt
        said.put(text)

    with flaky(server, lambda: fate[0]) as proxy:
        follower = threading.Thread(
            target=following.follow_champion, args=("followed", "127.0.0.1", port, proxy, tell)
        )
        follower.start()
        assert said.get(timeout=PATIENCE).startswith(f"not serving: MLflow at {proxy} cannot be queried: ")
        deadline = time.monotonic() + PATIENCE
        while (reply := ping(url)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert reply.status_code == 503 and proxy in reply.json()["error"]
        fate[0] = "pass"
        assert said.get(timeout=PATIENCE) == "not serving: there is no champion of followed yet"
        taken = f"port: {port} on 127.0.0.1 is taken"
        with take(port):
            client.set_registered_model_alias("followed", "champion", "1")
            assert taken in said.get(timeout=PATIENCE)
            time.sleep(1.0)
            assert follower.is_alive()
        # It may be told once more, without the process that holds the port, if asked just as the port is given back.
        while (text := said.get(timeout=PATIENCE)) == f"not serving followed version 1: {taken}":
            pass
        assert text == f"serving followed version 1 at {url}"
        fate[0] = "down"
        time.sleep(1.0)
        assert ping(url) is not None and ping(url).status_code == 200  # type: ignore[union-attr]
        fate[0] = "pass"
        client.delete_registered_model_alias("followed", "champion")
        assert said.get(timeout=PATIENCE) == "not serving: there is no champion of followed yet"
        assert follower.is_alive()
        over.set()
        fate[0] = "down"
        follower.join(PATIENCE)
    assert not follower.is_alive()


def take(port: int) -> socket.socket:
    """A socket that listens on a port which is free now and then only."""
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        else:
            taken.listen()
            return taken


@pytest.mark.parametrize(
    "words", [["counter@champion"], ["counter/3"], ["models:/counter/3"], ["counter", "--check"]]
)
def test_only_a_names_champion_is_followed(words: list[str]) -> None:
    with pytest.raises(UserError, match="only the champion of a registered name is followed"):
        cli.main(["serve", *words, "--follow"], standalone_mode=False)
