import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil
import pytest
import requests
from front import front
from mlflow.tracking import MlflowClient

from binsweep.data.errors import UserError
from binsweep.tracking.mlflow_server.credentials import normalize_address, normalize_addresses
from binsweep.tracking.mlflow_server.embedded import model_server, registry_server, tracking_server
from binsweep.tracking.mlflow_server.migration import migrate_database
from binsweep.tracking.mlflow_server.named_server import named_registry, named_server, require_named_servers
from binsweep.tracking.mlflow_server.ui import run_ui
from binsweep.tracking.processes import Server, end, free_port, started_at

STAY = """
import sys, time
from pathlib import Path
from binsweep.tracking.mlflow_server.embedded import tracking_server
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
    stale = Server(me.pid, started_at(me) - 100, free_port())
    assert stale.process() is None
    end(stale)  # must not end this very process
    assert Server(me.pid, started_at(me), 1).process() is not None
    assert Server(me.pid, started_at(me), 1, boot="an earlier one").process() is None


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_server_is_still_known_when_somebody_has_set_the_clock(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system derives the time of its boot, and psutil that of each process, from the present clock."""
    if sys.platform != "linux":
        pytest.skip("sets Linux' time of the boot")
    me, boot = psutil.Process(), psutil.boot_time()
    server = Server(me.pid, started_at(me), 1)
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + seconds)
    assert psutil.Process().create_time() == pytest.approx(me.create_time() + seconds)
    assert server.process() is not None


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


@pytest.mark.parametrize(
    ("copied", "meant"),
    [
        (" http://127.0.0.1:5000/ ", "http://127.0.0.1:5000"),
        ("HTTP://Host.example:5000", "http://Host.example:5000"),
        ("http://host:5000/#/experiments/0", "http://host:5000"),
        ("https://host/mlflow/#/models", "https://host/mlflow"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("localhost:5000/", "http://localhost:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("databricks://profile", "databricks://profile"),
        ("", ""),
    ],
)
def test_an_address_as_people_copy_it(copied: str, meant: str) -> None:
    assert normalize_address(copied) == meant


@pytest.mark.parametrize(
    "uri",
    [
        "./mlruns",
        "file:///tmp/x",
        "postgresql+psycopg://h/db",
        "http://",
        "http://host:notaport",
        "http:///x",
        "http//host:5000",
        r"C:\mlruns",
    ],
)
def test_what_is_no_servers_address(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        named_server()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("basic", {"MLFLOW_TRACKING_USERNAME": "user", "MLFLOW_TRACKING_PASSWORD": "p@ss/word"}),
        ("token", {"MLFLOW_TRACKING_TOKEN": "a-token"}),
        ("tls", {"MLFLOW_TRACKING_SERVER_CERT_PATH": "{ca}"}),
        ("tls", {"REQUESTS_CA_BUNDLE": "{ca}"}),
        ("tls", {"MLFLOW_TRACKING_INSECURE_TLS": "true"}),
        ("no health", {}),
        ("path", {}),
        ("slow", {}),
    ],
)
def test_a_server_behind_a_proxy_is_asked_with_the_users_settings(
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    settings: dict[str, str],
) -> None:
    with front(server, kind, tmp_path) as (uri, ca):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{uri}/mlflow" if kind == "path" else uri)
        if settings:
            with pytest.raises(UserError) as mistake, tracking_server(tmp_path):
                pass
            assert uri in mistake.value.message and "<" not in mistake.value.message
            assert all(name in mistake.value.hint for name in settings)
        for name, value in settings.items():
            monkeypatch.setenv(name, value.format(ca=ca))
        with warnings.catch_warnings(), tracking_server(tmp_path) as found:
            assert MlflowClient(found).get_experiment_by_name("Default") is not None
            assert ("certificate" in caplog.text) == ("MLFLOW_TRACKING_INSECURE_TLS" in settings)
        if kind in ("basic", "token"):
            secret = list(settings)[-1]
            monkeypatch.setenv(secret, "wrong")
            with pytest.raises(UserError) as mistake, tracking_server(tmp_path):
                pass
            assert mistake.value.hint.startswith("it does not accept") and secret in mistake.value.hint
            assert "allowed-hosts" not in mistake.value.hint


@pytest.mark.parametrize(
    "kind",
    [
        "login",
        "page",
        "json",
        "other json",
        "absent",
        "other absent",
        "absent resource",
        "other API",
        "error",
    ],
)
def test_a_page_that_is_no_mlflow_is_told_from_one(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with front(server, kind, tmp_path) as (uri, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        said = (
            "is not a healthy MLflow server: it answered 503" if kind == "error" else "it is no MLflow server"
        )
        with pytest.raises(UserError, match=f"{uri} .*{said}"), tracking_server(tmp_path):
            pass


def test_a_server_that_speaks_no_tls_is_told_as_such(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("http", "https"))
    with pytest.raises(UserError, match="nothing there speaks TLS") as mistake, tracking_server(tmp_path):
        pass
    assert mistake.value.hint == "write http://"


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "arn:aws:sagemaker:eu-west-1:1:x/y"])
def test_managed_servers_are_left_to_mlflows_client(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert named_server() == uri


@pytest.mark.parametrize("uri", ["databricks://profile", "arn:aws:sagemaker:eu-west-1:1:x/y"])
def test_what_mlflows_client_says_of_managed_servers_comes_whole(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(Exception) as own:
        MlflowClient(uri).search_experiments(max_results=1)
    with pytest.raises(UserError) as mistake, tracking_server(tmp_path):
        pass
    assert mistake.value.message.startswith(f"MLflow at {uri} cannot be used: ")
    assert mistake.value.message.endswith(" ".join(str(own.value).split())[-60:])
    assert "MLflow's own message" in mistake.value.hint and not (tmp_path / "mlflow").exists()


LOGINS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@pytest.mark.parametrize(
    ("tracking", "registry", "login"),
    [
        ("http://a:b@one", "http://two", ("a", "b")),
        ("http://one", "https://c:d%40e@two/x/#/models", ("c", "d@e")),
        ("http://a:b@one", "http://c:d@two", ("a", "b")),
        ("", "http://c:d@two", ("c", "d")),
    ],
)
def test_no_login_stays_in_an_address(
    tracking: str, registry: str, login: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LOGINS:  # set first, so that what the function sets is put back
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", registry)
    normalize_addresses()
    assert (named_server() or "") == tracking.replace("a:b@", "")
    assert named_registry() == ("https://two/x" if "models" in registry else "http://two")
    assert tuple(os.environ[name] for name in LOGINS) == login


def test_a_registry_is_asked_before_it_is_used(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    for uri in ("http://127.0.0.1:9", "sqlite:///registry.db"):
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
        with pytest.raises(UserError, match=uri) as mistake, registry_server(tmp_path):
            pass
        assert "MLFLOW_REGISTRY_URI" in mistake.value.hint
        with pytest.raises(UserError, match=uri):
            require_named_servers()  # before a sweep
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "databricks-uc")
    with registry_server(tmp_path) as uri:
        assert uri == server, "MLflow's client finds it"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"{server}/")
    with model_server(tmp_path, "models:/name@champion") as uri:
        assert uri == server, "the tracking server is not needed"
    with pytest.raises(UserError, match=":9"), model_server(tmp_path, "runs:/1/model"):
        pass


def test_the_ui_under_other_host_names_and_a_path(server: str, server_home: Path) -> None:
    port = free_port()
    seen: dict[str, list[int]] = {}

    def ask(uri: str) -> None:
        assert uri == f"http://127.0.0.1:{port}/user/me/ui"
        for host in (f"127.0.0.1:{port}", "my.codespace.dev", "my.codespace.dev:8443", "elsewhere.dev"):
            headers = {"Host": host, "Origin": f"https://{host}"}
            search = f"{uri}/ajax-api/2.0/mlflow/experiments/search"
            page = requests.get(f"{uri}/", headers=headers, timeout=20).status_code
            seen[host] = [
                page,
                requests.post(search, json={"max_results": 1}, headers=headers, timeout=20).status_code,
            ]
        os.kill(os.getpid(), signal.SIGINT)

    allowed = ["https://my.codespace.dev/"]
    assert run_ui(server_home, port, ask, allowed, "user/me/ui/") == 130
    assert seen == {
        f"127.0.0.1:{port}": [200, 200],
        "my.codespace.dev": [200, 200],
        "my.codespace.dev:8443": [200, 200],
        "elsewhere.dev": [403, 403],
    }


def test_a_second_ui_says_where_the_first_is(server: str, server_home: Path, tmp_path: Path) -> None:
    port = free_port()

    def second(uri: str) -> None:
        with pytest.raises(UserError, match=f"{uri} already"):
            run_ui(server_home, port, print)
        with pytest.raises(UserError, match=rf"port: {port} on 127.0.0.1 is taken by process \d+ \(.*mlflow"):
            run_ui(tmp_path, port, print)
        os.kill(os.getpid(), signal.SIGTERM)

    assert run_ui(server_home, port, second) == 130


ASKED_TWICE = """
import functools, sys
from pathlib import Path
from binsweep.tracking.mlflow_server.ui import run_ui
sys.exit(run_ui(Path(sys.argv[1]), int(sys.argv[2]), functools.partial(print, flush=True)))
"""


@pytest.mark.parametrize(
    ("words", "first", "gap"),
    [
        (["-m", "binsweep", "mlflow", "--port", "{port}"], signal.SIGHUP, 0.3),  # a terminal that is closed
        (["-c", ASKED_TWICE, "{home}", "{port}"], signal.SIGTERM, 0.0),
        pytest.param(
            ["-m", "binsweep", "mlflow", "--port", "{port}"],
            signal.SIGTERM,
            0.0,
            marks=pytest.mark.integration,
        ),
    ],
)
def test_a_ui_that_is_asked_to_end_twice_leaves_nothing_behind(
    server: str, server_home: Path, words: list[str], first: int, gap: float
) -> None:
    port = free_port()
    command = [sys.executable, *(word.format(home=server_home, port=port) for word in words)]
    environment = {**os.environ, "BINSWEEP_HOME": str(server_home)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None and str(port) in ui.stdout.readline()
        family = psutil.Process(ui.pid).children(recursive=True)
        assert len(family) > 1
        ui.send_signal(first)
        time.sleep(gap)
        ui.send_signal(signal.SIGTERM)
        assert ui.wait(30) == 130
    _, left = psutil.wait_procs(family, timeout=10)
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_server_is_started_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    """It comes in the middle of Popen, where the new process is known to nobody yet."""
    script = (
        "import os, signal, subprocess, sys; from pathlib import Path; from binsweep.tracking import processes\n"
        "start = subprocess.Popen\n"
        "def interrupted(*words, **options):\n"
        "    child = start(*words, **options); print(child.pid, flush=True)\n"
        "    signal.raise_signal(int(sys.argv[2])); return child\n"
        "subprocess.Popen = interrupted\n"
        "folder = Path(sys.argv[1])\n"
        "with processes.interrupted_by_sigterm():\n"
        "    try: processes.spawn(['server', '--help'], 1, folder, folder / 'log', os.environ)\n"
        "    except KeyboardInterrupt: sys.exit(130)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(int(number))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 130, done.stderr
    assert not psutil.pid_exists(int(done.stdout))


def old_database(file: Path, revision: str) -> None:
    """What an MLflow of that schema would have left, made by MLflow's own migrations."""
    script = (
        "import sys, sqlalchemy; from alembic import command\n"
        "from mlflow.store.db.utils import _get_alembic_config\n"
        "from mlflow.store.tracking.dbmodels.initial_models import Base\n"
        "engine = sqlalchemy.create_engine(sys.argv[1]); Base.metadata.create_all(engine)\n"
        "settings = _get_alembic_config(sys.argv[1])\n"
        "with engine.begin() as connection:\n"
        "    settings.attributes['connection'] = connection\n"
        "    command.upgrade(settings, sys.argv[2])\n"
    )
    file.parent.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{file}", revision],
        check=True,
        capture_output=True,
        timeout=120,
    )


def test_a_database_of_an_older_mlflow_is_migrated_on_demand_and_kept(tmp_path: Path) -> None:
    home = tmp_path / "home with #1 odd name"
    file = home / "mlflow" / "mlflow.db"
    old_database(file, "acf3f17fdcc7")  # of MLflow 2.9
    run = "'r1', 'first', 'active', 'FINISHED', 'LOCAL', 7, 1, 2"
    names = "run_uuid, name, lifecycle_stage, status, source_type, experiment_id, start_time, end_time"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "insert into experiments (experiment_id, name, lifecycle_stage) values (7, 'a', 'active')"
        )
        database.execute(f"insert into runs ({names}) values ({run})")
    before = file.read_bytes()
    with (
        pytest.raises(UserError, match=r"older MLflow \(schema acf3f17fdcc7") as mistake,
        tracking_server(home),
    ):
        pass
    assert "binsweep migrate" in mistake.value.hint and file.read_bytes() == before
    copy = migrate_database(home)
    assert copy is not None and migrate_database(home) is None, "nothing is left to migrate"
    with contextlib.closing(sqlite3.connect(copy)) as database:
        assert database.execute("select version_num from alembic_version").fetchone() == ("acf3f17fdcc7",)
        assert database.execute("select run_uuid from runs").fetchall() == [("r1",)]
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("select run_uuid from runs").fetchall() == [("r1",)]
    with tracking_server(home) as uri:
        assert answers(uri)
        with pytest.raises(UserError, match="is in use"):
            migrate_database(home)


def test_a_file_that_is_no_database_is_named_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "mlflow" / "mlflow.db"
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)
    with (
        pytest.raises(UserError, match=r"mlflow.db is damaged: file is not a database"),
        tracking_server(tmp_path),
    ):
        pass
    with pytest.raises(UserError, match=r"mlflow.db is damaged: file is not a database"):
        migrate_database(tmp_path)
    assert file.read_bytes() == b"no database" * 1000


def test_a_database_of_a_newer_mlflow_or_none_stays_as_it_is(
    server_home: Path, server: str, tmp_path: Path
) -> None:
    file = tmp_path / "mlflow" / "mlflow.db"
    with pytest.raises(UserError, match="there is no MLflow database"):
        migrate_database(tmp_path)
    file.parent.mkdir()
    known = sqlite3.connect(server_home / "mlflow" / "mlflow.db")
    with contextlib.closing(known), contextlib.closing(sqlite3.connect(file)) as newer, newer:
        known.backup(newer)
        newer.execute("update alembic_version set version_num = 'ffffffffffff'")
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"newer MLflow \(schema ffffffffffff"), tracking_server(tmp_path):
        pass
    with pytest.raises(UserError, match=r"newer MLflow \(schema ffffffffffff"):
        migrate_database(tmp_path)
    assert file.read_bytes() == before
    assert [one.name for one in file.parent.glob("*.db*")] == ["mlflow.db"]
