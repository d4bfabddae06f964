import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from data.errors import UserError
from tracking.processes import Server, end, free_port
from tracking.server import run_ui, tracking_server

STAY = """
import sys, time
from pathlib import Path
from tracking.server import tracking_server
with tracking_server(Path(sys.argv[1])) as uri:
    print(uri, flush=True)
    time.sleep(120)
"""


def answers(uri: str) -> bool:
    try:
        return requests.get(uri + "/health", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def known(home: Path) -> Server:
    return Server(**json.loads((home / "mlflow" / "server.json").read_text()))


def stay(home: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", STAY, str(home)], stdout=subprocess.PIPE, text=True)


def address(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_one_server_for_all_and_the_last_to_leave_ends_it(tmp_path: Path) -> None:
    # Two processes meet on a cold database: one migrates it, both get the same server.
    first, second = stay(tmp_path), stay(tmp_path)
    try:
        uri = address(first)
        assert uri.startswith("http://127.0.0.1:")
        assert address(second) == uri
        server = known(tmp_path)
        first.send_signal(signal.SIGINT)  # a clean way out: the other one still needs the server
        first.wait(30)
        assert answers(uri)
        second.kill()  # no way out at all: nobody ends the server
        second.wait(30)
        assert answers(uri)
    finally:
        first.kill()
        second.kill()
    with tracking_server(tmp_path) as shared:
        assert shared == uri
        assert known(tmp_path) == server
        with tracking_server(tmp_path) as again:
            assert again == uri
        assert answers(uri)
        process = server.process()
        assert process is not None
        children = process.children(recursive=True)
        assert children
        # Only the loopback is listened on, by the server and by all its children.
        family = [process, *children]
        listening = [c for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
    assert server.process() is None
    assert not [child for child in children if child.is_running() and child.status() != "zombie"]
    assert not answers(uri)


def test_a_server_that_dies_is_started_again_at_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking_server(tmp_path) as uri:
        first = known(tmp_path)
        psutil.Process(first.pid).kill()
        deadline = time.monotonic() + 60
        while known(tmp_path) == first:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert answers(uri)
        second = known(tmp_path)
        assert second.port == first.port
    assert second.process() is None


def test_what_a_server_left_that_was_killed_with_its_user_is_ended_by_the_next(tmp_path: Path) -> None:
    user = stay(tmp_path)
    try:
        uri = address(user)
        server = known(tmp_path)
        process = psutil.Process(server.pid)
        workers = process.children(recursive=True)
    finally:
        user.kill()
        user.wait(30)
    process.kill()
    deadline = time.monotonic() + 30
    while server.process() is not None:  # until it is gone, its worker answers for it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert workers and all(worker.is_running() for worker in workers)
    with tracking_server(tmp_path) as again:
        assert again == uri and answers(again)
        assert not [worker for worker in workers if worker.is_running() and worker.status() != "zombie"]


def test_a_stale_record_with_a_recycled_process_id_is_not_trusted(tmp_path: Path) -> None:
    me = psutil.Process()
    stale = Server(me.pid, me.create_time() - 100, free_port())
    assert stale.process() is None
    end(stale)  # must not end this very process
    assert Server(me.pid, me.create_time(), 1).process() is not None


def test_the_named_server_is_used_and_left_running(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f" {server}/ ")
    with tracking_server(tmp_path) as uri:
        assert uri == server
    assert answers(server)
    assert not (tmp_path / "mlflow").exists()


# Port 9 (discard): nothing listens there, and unlike a free port it is the same in every test process.
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///mlflow.db", "nonsense"])
def test_a_named_server_that_cannot_be_used_is_the_users_mistake(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(UserError) as mistake, tracking_server(tmp_path):
        pass
    assert uri in mistake.value.message
    assert "MLFLOW_TRACKING_URI" in mistake.value.hint
    assert time.monotonic() - began < 30  # MLflow's client alone would try for minutes


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_text("this is no database " * 100)
    with pytest.raises(UserError, match="file is not a database"), tracking_server(tmp_path):
        pass


def test_the_ui_runs_in_the_foreground_until_interrupted(server: str, server_home: Path) -> None:
    port = free_port()

    def interrupt(uri: str) -> None:
        assert uri == f"http://127.0.0.1:{port}"
        assert "mlflow" in requests.get(uri, timeout=20).text.lower()
        os.kill(os.getpid(), signal.SIGINT)

    assert run_ui(server_home, port, interrupt) == 130
    assert not answers(f"http://127.0.0.1:{port}")
    assert answers(server)


@pytest.mark.parametrize("port", [0, 70000, None])
def test_the_ui_refuses_a_port_it_cannot_have(port: int | None, server: str, tmp_path: Path) -> None:
    wanted = int(server.rsplit(":", 1)[1]) if port is None else port
    with pytest.raises(UserError, match=f"port: .*{wanted}"):
        run_ui(tmp_path, wanted, print)
