import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
import requests
from flaky import flaky
from mlflow.tracking import MlflowClient

from binsweep.data.errors import UserError
from binsweep.tracking.processes import Server, free_port, require_port
from binsweep.tracking.registry.versions import versions_of
from binsweep.tracking.serving.model_server import ServedModel, open_model, predict, serve_model

ALIAS = "models:/echo@champion"


@pytest.fixture(scope="module")
def echo(server: str) -> str:
    """The address of a server that has a registered model `echo`, version 1 = champion."""
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment("echo")
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).parent / "echo_model.py"),
            registered_model_name="echo",
            pip_requirements=["mlflow"],
        )
    MlflowClient(server).set_registered_model_alias("echo", "champion", "1")
    return server


@pytest.fixture(scope="module")
def served(echo: str) -> Iterator[ServedModel]:
    with serve_model(ALIAS, echo) as model:
        yield model


def test_one_answer_for_each_image(served: ServedModel, echo: str) -> None:
    images = [b"a", b"bcd", bytes(range(256))]
    rows = predict(served.url, images, timeout=30)
    assert [row["count"] for row in rows] == [1, 3, 256]
    assert rows[0] == {"count": 1, "confidence": 0.5, "probabilities": {"1": 0.5}}
    assert predict(served.url + "/", images, timeout=30) == rows
    assert open_model(ALIAS, echo)(images) == rows
    assert predict(served.url, [], timeout=30) == []


def test_the_servers_reason_is_passed_on_in_one_line(served: ServedModel, echo: str) -> None:
    with pytest.raises(UserError, match="answered 400: no readable image: bad") as refusal:
        predict(served.url, [b"a", b"bad"], timeout=30)
    assert "\n" not in refusal.value.message
    with pytest.raises(UserError, match="no readable image"):
        open_model(ALIAS, echo)([b"bad"])


def test_an_unanswered_question_ends_in_time(served: ServedModel) -> None:
    with pytest.raises(UserError, match=r"no answer in 0\.5 s"):
        predict(served.url, [b"slow"], timeout=0.5)


def test_nobody_to_ask(server: str) -> None:
    for url in (f"http://127.0.0.1:{free_port()}", "nonsense"):
        with pytest.raises(UserError, match=f"{url} cannot be reached") as mistake:
            predict(url, [b"a"], timeout=5)
        assert "binsweep serve" in mistake.value.hint
        assert ("Connection refused" in mistake.value.message) == (url != "nonsense")
    with pytest.raises(UserError, match="answered 40"):
        predict(server, [b"a"], timeout=5)  # it is a server, but not of a model


def test_a_served_model_is_gone_with_all_its_processes(echo: str) -> None:
    port = free_port()
    with serve_model(ALIAS, echo, port) as model:
        assert model.url == f"http://127.0.0.1:{port}"
        session = [p for p in psutil.process_iter() if os.getsid(p.pid) == model.server.pid]
        command = psutil.Process(model.server.pid).cmdline()
        assert (
            command[2:]
            == f"mlflow models serve -m {ALIAS} --env-manager local --host 127.0.0.1 -p {port}".split()
        )
        assert len(session) > 1
        listening = [c for p in session for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
        # Even when the first of them has died and left the others behind.
        psutil.Process(model.server.pid).kill()
    assert not [p for p in session if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    with pytest.raises(requests.ConnectionError):
        requests.get(model.url + "/ping", timeout=5)


def test_serving_in_the_foreground_ends_on_sigterm(echo: str) -> None:
    port = free_port()
    script = (
        "import sys; from binsweep.tracking.serving.foreground import serve_foreground; "
        "sys.exit(serve_foreground(sys.argv[1], int(sys.argv[2]), sys.argv[3], lambda u: print(u, flush=True)))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, ALIAS, str(port), echo], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port}"
        assert predict(url, [b"abc"], timeout=30)[0]["count"] == 3
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 130
        with pytest.raises(UserError, match="cannot be reached"):
            predict(url, [b"abc"], timeout=5)
    finally:
        child.kill()
        child.wait(10)
        if child.stdout is not None:
            child.stdout.close()


@pytest.mark.parametrize(
    ("uri", "wrong", "there"),
    [
        ("models:/nobody@champion", "'nobody' is not registered", "echo"),
        ("models:/echo@challenger", "no alias 'challenger'", r"champion \(version 1\)"),
        ("models:/echo/7", "no version '7'", "its versions: 1"),
    ],
)
def test_an_unknown_model_is_told_at_once_with_what_there_is(
    uri: str, wrong: str, there: str, echo: str
) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=wrong) as mistake, serve_model(uri, echo):
        pass
    assert mistake.match(there)
    assert time.monotonic() - began < 30  # a model server is given a minute to start
    with pytest.raises(UserError, match=wrong):
        open_model(uri, echo)


def test_a_taken_port_is_told_at_once(echo: str) -> None:
    port = int(echo.rsplit(":", 1)[1])
    with pytest.raises(UserError, match=f"port: {port} "), serve_model(ALIAS, echo, port):
        pass


def test_a_model_that_does_not_come_up_shows_its_log(server: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"(?s)ended while starting.*No such artifact"),
        serve_model(str(tmp_path), server),
    ):
        pass


def test_a_server_on_another_address_is_asked_there(echo: str) -> None:
    for host, url in (("127.0.0.2", "http://127.0.0.2"), ("0.0.0.0", "http://127.0.0.1")):
        with serve_model(ALIAS, echo, host=host) as model:
            assert model.url == f"{url}:{model.server.port}"
            assert predict(model.url, [b"abc"], timeout=30)[0]["count"] == 3
            with pytest.raises(
                UserError, match=rf"port: {model.server.port} on {host} is taken by process \d+ \("
            ):
                require_port(model.server.port, host)
    began = time.monotonic()
    for nowhere in ("192.0.2.1", "no such host"):
        with pytest.raises(UserError, match=f"host: {nowhere} is not an address of this machine"):
            require_port(free_port(), nowhere)
    assert time.monotonic() - began < 30
    assert Server(1, 0.0, 5, "::").url == Server(1, 0.0, 5, "::1").url == "http://[::1]:5"


def test_an_address_as_people_write_it(served: ServedModel) -> None:
    host = served.url.removeprefix("http://")
    for url in (
        host,
        f" {host}/",
        f"{served.url}/invocations",
        f"{served.url}/invocations/",
        f"{host}/invocations",
    ):
        assert predict(url, [b"abc"], timeout=30)[0]["count"] == 3


def test_a_server_that_fails_is_not_told_as_a_bad_photo(served: ServedModel) -> None:
    with (
        flaky(served.url, lambda: "fail") as proxy,
        pytest.raises(UserError, match="failed: it answered 500: the server is not well") as mistake,
    ):
        predict(proxy, [b"abc"], timeout=30)
    assert "photo" not in mistake.value.hint


@pytest.mark.parametrize("name", ["bill's counter", 'a "good" one', """both ' and " """])
def test_names_that_a_filter_cannot_quote(echo: str, name: str) -> None:
    client = MlflowClient(echo)
    source = client.get_model_version("echo", "1").source
    mlflow.set_tracking_uri(echo)
    mlflow.register_model(source, name)
    assert open_model(f"models:/{name}/1", echo)([b"abc"])[0]["count"] == 3
    with pytest.raises(UserError, match="its versions: 1"):
        open_model(f"models:/{name}/2", echo)
    with pytest.raises(UserError, match="its aliases: none"):
        open_model(f"models:/{name}@champion", echo)
    client.set_registered_model_alias(name, "challenger", "1")
    with pytest.raises(UserError, match=r"challenger \(version 1\); name one as .*@challenger"):
        open_model(f"models:/{name}@champion", echo)
    assert [(version.name, version.version) for version in versions_of(echo, name)] == [(name, "1")]


@pytest.mark.integration  # four servers of a model
@pytest.mark.parametrize("options", [[], ["--follow"]])
@pytest.mark.parametrize("gap", [0.0, 0.3])
def test_a_served_model_that_is_asked_to_end_twice_leaves_nothing_behind(
    echo: str, tmp_path: Path, options: list[str], gap: float
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "binsweep", "serve", "echo", "--port", str(port), *options]
    environment = {**os.environ, "BINSWEEP_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": echo}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None and "serving" in serving.stdout.readline()
        family = psutil.Process(serving.pid).children(recursive=True)
        assert family
        serving.send_signal(signal.SIGTERM)
        time.sleep(gap)
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(60) == 130
    _, left = psutil.wait_procs(family, timeout=20)
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
    with pytest.raises(UserError, match="cannot be reached"):
        predict(f"http://127.0.0.1:{port}", [b"abc"], timeout=5)
