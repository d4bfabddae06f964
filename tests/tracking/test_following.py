"""`binsweep serve --follow` next to a real MLflow server: every request is answered, whichever version is champion."""

import contextlib
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
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
    """MLflow is away from the start and later; the port is held all the time."""
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
        with pytest.raises(UserError, match=f"port: {port} on 127.0.0.1 is taken"):
            following.follow_champion("followed", "127.0.0.1", port, server, tell)
        client.set_registered_model_alias("followed", "champion", "1")
        assert said.get(timeout=PATIENCE) == f"serving followed version 1 at {url}"
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


class Clients:
    """32 clients that ask without a pause, half of them with one connection each and half with one per request."""

    def __init__(self, url: str) -> None:
        self.url, self.over, self.failures = url, threading.Event(), list[str]()
        self.seen: list[list[str]] = [[] for _ in range(32)]  # each client's versions, in order
        self.threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(32)]

    def ask(self, number: int) -> None:
        session = requests.Session()
        body = {"inputs": {"image": ["YWJj"]}}
        while not self.over.is_set():
            if number % 2:
                session = requests.Session()
            try:
                reply = session.post(f"{self.url}/invocations", json=body, timeout=60)
                assert (reply.status_code, reply.json()["predictions"][0]["count"]) == (200, 3), reply.text
                self.seen[number].append(reply.headers["Model-Version"])
            except (requests.RequestException, AssertionError) as error:
                self.failures.append(repr(error))
            finally:
                if number % 2:
                    session.close()
        session.close()

    def until_all_see(self, version: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not all(seen and seen[-1] == version for seen in self.seen):
            assert time.monotonic() < deadline and not self.failures, self.failures[:3]
            time.sleep(0.05)

    def __enter__(self) -> "Clients":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(PATIENCE)


def register_sick(server: str, loads: bool) -> str:
    """Another version of `followed`, which cannot be served."""
    mlflow.set_tracking_uri(server)
    with mlflow.start_run():
        made = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).parent / "sick_model.py"),
            model_config={"loads": loads},
            registered_model_name="followed",
            pip_requirements=["mlflow"],
        )
    return str(made.registered_model_version)


def serve_first_version(client: MlflowClient, url: str, process: subprocess.Popen[str]) -> None:
    """Make version 1 the champion, and wait until the follower says that it is served."""
    client.set_registered_model_alias("followed", "champion", "1")
    while told(process) != f"serving followed version 1 at {url}":
        pass


@pytest.mark.integration
def test_no_request_is_lost_when_the_champion_changes(
    server: str, client: MlflowClient, follower: tuple[str, subprocess.Popen[str]]
) -> None:
    """Not to another version and back, and not to one that does not load or that loads and counts nothing."""
    url, process = follower
    serve_first_version(client, url, process)
    with Clients(url) as clients:
        clients.until_all_see("1")
        for version, before in (("2", "1"), ("1", "2"), ("2", "1")):
            client.set_registered_model_alias("followed", "champion", version)
            assert told(process) == f"serving followed version {version} at {url}"
            clients.until_all_see(version)
            for seen in clients.seen:  # each has moved once, and none was sent back
                changes = [new for old, new in itertools.pairwise(seen) if new != old]
                assert changes == [version] and seen[0] == before
                del seen[:-1]
        for loads, reason in ((False, "ended while starting"), (True, "no engine for this processor")):
            sick = register_sick(server, loads)
            client.set_registered_model_alias("followed", "champion", sick)
            while not (said := told(process)).startswith("still serving followed version 2: "):
                pass  # the end of the last one's log
            assert f"version {sick} cannot be served" in said and reason in said
        clients.until_all_see("2")
    assert not clients.failures, clients.failures[:3]
    assert {version for seen in clients.seen for version in seen} == {"2"}
    family = psutil.Process(process.pid).children(recursive=True)
    assert len([one for one in family if one.status() != psutil.STATUS_ZOMBIE]) == 1


def test_a_version_that_cannot_be_served_is_said_once_and_tried_again(
    server: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.2)
    attempts, open_replica = list[str](), following.open_replica

    def counted(name: str, version: str, *more: Any) -> Any:
        attempts.append(version)
        if attempts.count(sick) > 3:
            raise KeyboardInterrupt
        return open_replica(name, version, *more)

    monkeypatch.setattr(following, "open_replica", counted)
    sick, said, port = register_sick(server, loads=False), list[str](), free_port()
    client.set_registered_model_alias("followed", "champion", "1")

    def tell(text: str) -> None:
        said.append(text.partition("\n")[0])
        if "serving followed version 1 at" in text:
            client.set_registered_model_alias("followed", "champion", sick)

    assert following.follow_champion("followed", "127.0.0.1", port, server, tell) == 130
    assert attempts == ["1", *4 * [sick]]
    assert len(said) == 2 and said[1].startswith("still serving followed version 1: version"), said
    assert ping(f"http://127.0.0.1:{port}") is None


@pytest.mark.integration
def test_a_server_that_dies_is_replaced_and_requests_meanwhile_are_answered(
    client: MlflowClient, follower: tuple[str, subprocess.Popen[str]]
) -> None:
    url, process = follower
    serve_first_version(client, url, process)
    (worker,) = psutil.Process(process.pid).children()
    worker.kill()
    assert told(process) == "not serving: the server of followed version 1 has ended"
    refused = requests.get(f"{url}/ping", timeout=30)
    assert refused.status_code in (200, 503)
    assert told(process) == f"serving followed version 1 at {url}"
    assert requests.get(f"{url}/ping", timeout=30).headers["Model-Version"] == "1"


@pytest.mark.integration
def test_a_follower_that_is_killed_leaves_no_server_behind(
    client: MlflowClient, follower: tuple[str, subprocess.Popen[str]]
) -> None:
    url, process = follower
    serve_first_version(client, url, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    gone, left = psutil.wait_procs(workers, timeout=30)
    assert gone and not left


@pytest.mark.parametrize(
    "words", [["counter@champion"], ["counter/3"], ["models:/counter/3"], ["counter", "--check"]]
)
def test_only_a_names_champion_is_followed(words: list[str]) -> None:
    with pytest.raises(UserError, match="only the champion of a registered name is followed"):
        cli.main(["serve", *words, "--follow"], standalone_mode=False)
