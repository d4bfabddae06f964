"""The MLflow server that a sweep talks to: the one the user names, or one of our own under the sweep's home.

Our own server is shared by all processes that use the same home. Each of them holds a shared lock on
`mlflow/users.lock` for as long as it needs the server; the last one to leave ends it, whoever started it.
The lock goes with its process, so a killed sweep neither keeps the server alive nor takes it from others:
the next to come shares the server it left behind, and ends it when leaving last.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import shlex
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import requests

from binsweep.data.atomic_write import write_bytes
from binsweep.data.errors import UserError
from binsweep.data.locks import locked, open_lock, try_lock
from binsweep.data.python_process import environment_variable, python_module, without_working_folder
from binsweep.tracking.mlflow_server.credentials import VARIABLE, tidy
from binsweep.tracking.processes import (
    LOOPBACK,
    Server,
    clean_environment,
    deepest,
    end,
    fate,
    free_port,
    interrupted_by_sigterm,
    listener,
    port_is_free,
    require_port,
    spawn,
    tail,
    wait_in_foreground,
    wait_until_answers,
)

START_SECONDS = 60.0  # a cold SQLite database takes up to half of it to migrate
# One server may have to be found hung, ended and started anew while we wait for our turn.
TURN_SECONDS = 2 * START_SECONDS + 30.0
MIGRATE_SECONDS = 1800.0
WATCH_SECONDS = 2.0
DATABASE = "mlflow.db"
# Stores that MLflow would use without a server; no other process may see them while a sweep writes to them.
_LOCAL = ("", "file", "sqlite", "postgresql", "mysql", "mssql")
# Servers that MLflow knows by a word alone.
_MANAGED = ("databricks", "databricks-uc")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # a letter alone is a disk of Windows
_REMEDY = "start that server or correct MLFLOW_TRACKING_URI; unset it to use the embedded server"
_COPY = re.compile(r"mlflow\.before-(\d+)\.db")
_HOSTS = ("localhost", "localhost:*", LOOPBACK, f"{LOOPBACK}:*")
# How each of MLflow's migrations names its schema, and the one before it.
_REVISION = re.compile(r"^(down_)?revision\b.*?= *[\"'](\w+)[\"']", re.MULTILINE)
_log = logging.getLogger(__name__)


@contextmanager
def tracking_server(home: Path) -> Iterator[str]:
    """Yield the URI of a reachable MLflow server.

    MLFLOW_TRACKING_URI decides if it is set and not empty. Otherwise it is the embedded server of `home`
    (SQLite and artifacts under `home`/mlflow, 127.0.0.1, a free port), shared or started; it is started again
    if it dies, and its last user to leave this block ends it. Raises UserError if the named server cannot be
    reached, or if ours does not start within 60 s.
    """
    named = named_server()
    if named:
        require_reachable(named)
        yield named
        return
    folder = _folder(home)
    users = open_lock(folder / "users.lock")
    try:
        with _turn(folder):
            # Only a leaver holds this lock alone, and leavers wait for their turn too.
            try_lock(users, shared=True)
            server = _share(folder) or _start(folder)
        with _watched(folder, server):
            yield server.url
    finally:
        _leave(folder, users)


@contextmanager
def _watched(folder: Path, server: Server) -> Iterator[None]:
    """Start the shared server again, at the same address, whenever it dies within this block."""
    leaving = threading.Event()

    def watch() -> None:
        current = server
        while not leaving.wait(WATCH_SECONDS):
            if current.process() is not None:
                continue
            _log.warning("the embedded MLflow server died; starting it again")
            try:
                with _turn(folder):
                    end(current)  # what it left of itself may still hold the port
                    current = _share(folder) or _start(folder)
            except Exception as error:
                _log.warning("the embedded MLflow server could not be started again: %s", error)

    thread = threading.Thread(target=watch, name="binsweep-server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join(START_SECONDS)


def run_ui(
    home: Path,
    port: int,
    ready: Callable[[str], None],
    allowed_hosts: Sequence[str] = (),
    static_prefix: str = "",
) -> int:
    """Serve the MLflow UI of `home` on 127.0.0.1:`port` until Ctrl-C or SIGTERM: 130, or 1 if it ends itself.

    `ready` is called once with the address when it answers. It is a server of its own beside the shared one,
    on the same database, so that neither ends the other. A browser may come to it by the names of `allowed_hosts`,
    too (a tunnel, a notebook's proxy; * is any), and finds it under `static_prefix`. Raises UserError if the port
    is taken.
    """
    folder = _folder(home)
    prefix = f"/{static_prefix.strip('/')}" if static_prefix.strip("/") else ""
    if there := _ours_at(folder, port):
        raise UserError(
            f"port: the MLflow of {home} is at {there} already", "open that, or start another one with --port"
        )
    require_port(port)
    options = [*_allowing(allowed_hosts), *(["--static-prefix", prefix] if prefix else [])]
    with interrupted_by_sigterm():
        server: Server | None = None
        try:
            with _turn(folder):
                server = _launch(folder, port, options, f"{prefix}/health")
            ready(server.url + prefix)
            return wait_in_foreground(server)
        except KeyboardInterrupt:
            return 130
        finally:
            if server is not None:
                end(server)


def _allowing(hosts: Sequence[str]) -> list[str]:
    """The server's options that let a browser in which names one of `hosts`; without any, MLflow's own rule."""
    names = [urlsplit(host if "://" in host else f"//{host}").netloc for host in hosts]
    if not any(names):
        return []
    known = [name for name in names if name]
    known += [f"{name}:*" for name in known if ":" not in name and name != "*"]
    # A page may call the server only from where it was loaded.
    origins = (
        ["*"] if "*" in known else [f"{scheme}://{name}" for name in known for scheme in ("https", "http")]
    )
    return [
        "--allowed-hosts", ",".join([*_HOSTS, *known]), "--cors-allowed-origins", ",".join(origins)
    ]  # fmt: skip


def _ours_at(folder: Path, port: int) -> str | None:
    """Where the MLflow of this home is, if it is what listens on `port`."""
    who = listener(port)
    with contextlib.suppress(psutil.Error):
        for process in [who, *who.parents()] if who else []:
            words = process.cmdline()
            if _database(folder) in words:
                prefix = words[words.index("--static-prefix") + 1] if "--static-prefix" in words else ""
                return f"http://{LOOPBACK}:{port}{prefix}"
    return None


def named_server() -> str | None:
    """The address that MLFLOW_TRACKING_URI names, None if it is not set or empty.

    Raises UserError for what is no server's address: a file or a database.
    """
    uri = tidy(os.environ.get(VARIABLE, ""))
    if not uri:
        return None
    scheme = found[1].lower() if (found := _SCHEME.match(uri)) else ""
    if scheme.partition("+")[0] in _LOCAL and uri.lower() not in _MANAGED:
        raise UserError(f"{VARIABLE}: must be the http(s) address of a server, got {uri!r}", _REMEDY)
    if scheme in ("http", "https"):
        try:
            parts = urlsplit(uri)
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UserError(f"{VARIABLE}: {uri!r} names no host and port", "write http://HOST:PORT")
    return uri


def require_reachable(uri: str) -> None:
    """Raise UserError, naming `uri`, unless an MLflow server answers there.

    It is asked by MLflow's own client, with all that the user has set for it (accounts, tokens, certificates,
    time-outs, plug-ins), for something that needs no rights and that nothing but MLflow can answer.
    """
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES
    from mlflow.tracking import MlflowClient

    name = "binsweep: does MLflow answer?"
    with environment_variable(RETRIES.name, "0"):  # once: whoever waits in front of the screen can try again
        try:
            found = MlflowClient(uri).get_experiment_by_name(name)
        except Exception as error:  # also of a plug-in, a missing library, a store of its own
            raise _unreachable(uri, error) from error
    if found is not None and found.name != name:
        raise UserError(f"{uri} answers, but it is no MLflow server", _REMEDY)


def _unreachable(uri: str, error: Exception) -> UserError:
    """What is wrong with the server at `uri`, from what MLflow's client says of it."""
    said, cause = " ".join(str(error).split()), error.__cause__ or error.__context__
    answered = re.search(r"failed with error code (\d+)|too many (\d+) error responses", said)
    status = int(answered[1] or answered[2]) if answered else None
    body = said.rpartition("Response body: ")[2][:150]
    code = getattr(error, "error_code", "")
    if "WRONG_VERSION_NUMBER" in said:
        return UserError(f"MLflow server {uri} cannot be reached: nothing there speaks TLS", "write http://")
    if isinstance(cause, requests.exceptions.SSLError):
        return UserError(
            f"MLflow server {uri} cannot be trusted: {deepest(cause)}",
            "name your authority's certificate in MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE "
            "(MLFLOW_TRACKING_INSECURE_TLS=true checks nothing)",
        )
    if isinstance(cause, requests.Timeout):
        return UserError(
            f"MLflow server {uri} cannot be reached: no answer in time",
            f"{_REMEDY}; MLFLOW_HTTP_REQUEST_TIMEOUT gives it more seconds",
        )
    if status is None and isinstance(cause, requests.RequestException):
        return UserError(f"MLflow server {uri} cannot be reached: {deepest(cause)}", _REMEDY)
    if status in (401, 403) or code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"):
        return UserError(
            f"MLflow server {uri} refuses us: {f'it answered {status}: ' if status else ''}{body}",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
            "or allow this host name at the server (--allowed-hosts)",
        )
    # Of JSON in which is no error of MLflow's the client says the latter; of an API without this call ENDPOINT_....
    strange = said.startswith("INTERNAL_ERROR: Response: ") or code == "ENDPOINT_NOT_FOUND"
    if strange or "not in a valid JSON format" in said or status in (404, 405):
        return UserError(
            f"{uri} answers, but it is no MLflow server (a login page, or a wrong path?): {body}",
            f"{_REMEDY}; a proxy that asks for a login wants MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_TOKEN",
        )
    if status is not None:
        more = f": {body}" if "Response body" in said else ""
        return UserError(f"{uri} is not a healthy MLflow server: it answered {status}{more}", _REMEDY)
    return UserError(f"MLflow at {uri} cannot be used: {said[:300] or type(error).__name__}", _REMEDY)


def migrate_database(home: Path) -> Path:
    """Bring the MLflow database of `home` up to the schema of this MLflow; returns the copy of it as it was.

    The work is done on another copy, which takes the place of the database once it is whole. Raises UserError if
    there is none, if it is in use, or if it cannot be migrated; then nothing has changed.
    """
    folder = home.absolute() / "mlflow"
    database = folder / DATABASE
    if not database.exists():
        raise UserError(
            f"there is no MLflow database in {home}", "set BINSWEEP_HOME to the home that you mean"
        )
    users = open_lock(folder / "users.lock")
    try:
        with _turn(folder):
            if not try_lock(users):
                raise UserError(
                    f"the MLflow database of {home} is in use",
                    "wait until its sweeps have ended, or end them",
                )
            if server := _known(folder):
                end(server)  # a killed sweep's
            return _migrate(database)
    finally:
        os.close(users)


def _migrate(database: Path) -> Path:
    known = [int(number[1]) for file in database.parent.iterdir() if (number := _COPY.fullmatch(file.name))]
    copy = database.with_name(f"{database.stem}.before-{max(known, default=0) + 1}.db")
    work = database.with_name(f"{database.name}.new")
    try:
        for place in (copy, work):
            place.unlink(missing_ok=True)
            with (
                contextlib.closing(sqlite3.connect(database)) as old,
                contextlib.closing(sqlite3.connect(place)) as new,
            ):
                old.backup(new)
        done = subprocess.run(
            python_module("mlflow", "db", "upgrade", f"sqlite:///{work}"),
            cwd=database.parent,
            env=without_working_folder(clean_environment({})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MIGRATE_SECONDS,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(f"{database} cannot be migrated: {reason}", "nothing was changed")
        work.replace(database)
    except (sqlite3.Error, OSError, subprocess.TimeoutExpired) as error:
        copy.unlink(missing_ok=True)
        raise UserError(f"{database} cannot be migrated: {error}", "nothing was changed") from error
    except BaseException:
        copy.unlink(missing_ok=True)
        raise
    finally:
        work.unlink(missing_ok=True)
    return copy


def _folder(home: Path) -> Path:
    folder = home.absolute() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One process at a time starts, shares or ends a server here, so that a database migrates only once."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / "start.lock", TURN_SECONDS))
        except TimeoutError as error:
            raise UserError(
                f"the MLflow server of {folder.parent} is being started elsewhere: {error}",
                "end the process that holds the lock, or use another BINSWEEP_HOME",
            ) from error
        yield


def _known(folder: Path) -> Server | None:
    """The server that server.json tells of, alive or not."""
    try:
        return Server(**json.loads((folder / "server.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _share(folder: Path) -> Server | None:
    """The running server of this home, or None; one that hangs, or what a killed one left, is ended first."""
    server = _known(folder)
    if server is None:
        return None
    if wait_until_answers(server, "/health", timeout=15.0):
        return server
    if server.process() is not None or not port_is_free(server.port):
        end(server)
    return None


def _start(folder: Path) -> Server:
    """Start the shared server, on the port of its predecessor if that is free: whoever still talks to the old
    address then finds the new server there."""
    before = _known(folder)
    port = before.port if before and port_is_free(before.port) else free_port()
    server = _launch(folder, port)
    write_bytes(folder / "server.json", json.dumps(asdict(server)).encode(), durable=False)
    return server


def _database(folder: Path) -> str:
    return f"sqlite:///{folder / DATABASE}"


def _launch(folder: Path, port: int, options: Sequence[str] = (), health: str = "/health") -> Server:
    _require_our_schema(folder / DATABASE)
    log = folder / "server.log"
    start = log.stat().st_size if log.exists() else 0
    arguments = ["server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", _database(folder)]
    arguments += ["--artifacts-destination", (folder / "artifacts").as_uri()]
    arguments += ["--uvicorn-opts", "--log-level warning", *options]
    # Job execution serves MLflow's own evaluation of language models; it would only add processes.
    environment = clean_environment({"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    server = spawn(arguments, port, folder, log, environment)
    try:
        healthy = wait_until_answers(server, health, START_SECONDS)
    except BaseException:
        end(server)
        raise
    if not healthy:
        how = fate(server, START_SECONDS)
        end(server)
        raise UserError(
            f"the embedded MLflow server {how}; its log {log} ends:\n{tail(log, start)}",
            "mend what the log says, or set MLFLOW_TRACKING_URI to a running server",
        )
    return server


def _require_our_schema(database: Path) -> None:
    """Raise UserError if another MLflow wrote `database`: ours would refuse it, or change it without a copy."""
    if not database.exists():
        return
    with contextlib.closing(sqlite3.connect(database)) as opened:
        try:
            ((found,),) = opened.execute("select version_num from alembic_version").fetchall()
            used = bool(opened.execute("select 1 from runs limit 1").fetchall())
        except (sqlite3.Error, ValueError):
            return  # empty, or not MLflow's at all: its server says so
    known, newest = _schemas()
    if found == newest or not newest:
        return
    if found not in known:
        raise UserError(
            f"{database} was written by a newer MLflow (schema {found}, this one has {newest})",
            "install the Binsweep that wrote it, or use another BINSWEEP_HOME",
        )
    if used:
        home = f"BINSWEEP_HOME={shlex.quote(str(database.parent.parent))}"
        raise UserError(
            f"{database} was written by an older MLflow (schema {found}, this one has {newest})",
            f"`{home} binsweep migrate` keeps a copy and brings it up to date; all runs and models stay",
        )
    _migrate(database).unlink()  # a first start was interrupted: nothing is in it


def _schemas() -> tuple[set[str], str]:
    """The schemas that this MLflow knows, and the newest of them ("" where that cannot be told)."""
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    files = (Path(spec.origin).parent / "store" / "db_migrations" / "versions").glob("*.py")
    names = [name for file in files for name in _REVISION.findall(file.read_text(encoding="utf-8"))]
    known = {name for before, name in names if not before}
    newest = known - {name for before, name in names if before}
    return known, newest.pop() if len(newest) == 1 else ""


def _leave(folder: Path, users: int) -> None:
    """Let go of the server, and end it if nobody else uses it."""
    try:
        with _turn(folder):
            server = _known(folder)
            if try_lock(users) and server is not None:
                end(server)
    except UserError:
        pass  # someone is just starting it: theirs to end
    finally:
        os.close(users)
