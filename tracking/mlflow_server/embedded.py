"""The MLflow server of a sweep: the one that the user names, or an embedded one in the sweep's home.

All processes that use the same home share its embedded server. Each holds a shared lock on `mlflow/users.lock` for
as long as it needs the server; the last one to leave ends it, whichever process started it. The lock vanishes with
its process, so a killed sweep neither keeps the server alive nor takes it from others: the next process shares the
server that was left behind, and ends it if it is the last to leave.

A home on a disk that machines share has one server, too: it is refused to other machines while one uses it.
"""

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.data.locks import open_lock, try_lock
from binsweep.data.machine import boot_id, gives_signs, is_shared
from binsweep.tracking.mlflow_server.credentials import REGISTRY
from binsweep.tracking.mlflow_server.migration import require_current_schema
from binsweep.tracking.mlflow_server.named_server import (
    named_registry,
    named_server,
    require_reachable,
)
from binsweep.tracking.mlflow_server.server_folder import (
    DATABASE,
    SERVER,
    START_SECONDS,
    USERS_LOCK,
    database_uri,
    record_server,
    recorded_server,
    server_folder,
    start_lock,
)
from binsweep.tracking.processes import (
    LOOPBACK,
    Server,
    clean_environment,
    describe_failed_start,
    end,
    free_port,
    port_is_free,
    spawn,
    tail,
    wait_until_answers,
)

WATCH_SECONDS = 2.0
_log = logging.getLogger(__name__)


@contextmanager
def tracking_server(home: Path) -> Iterator[str]:
    """Yield the URI of a reachable MLflow server.

    MLFLOW_TRACKING_URI decides if it is set and not empty. Otherwise it is the embedded server of `home`
    (SQLite and artifacts under `home`/mlflow, 127.0.0.1, a free port), shared or started; it is started again
    if it dies, and its last user to leave this block ends it. Raises UserError if the named server cannot be
    reached, or if the embedded one does not start within 60 s.
    """
    named = named_server()
    if named:
        require_reachable(named)
        yield named
        return
    folder = server_folder(home)
    users = open_lock(folder / USERS_LOCK)
    try:
        with start_lock(folder):
            _require_this_machine(folder, users)
            # Free for sharing: only a process that leaves holds this lock alone, and it needs the start lock too.
            try_lock(users, shared=True)
            server = _share(folder) or _start(folder)
        with _watched(folder, server, users):
            yield server.url
    finally:
        _leave(folder, users)


@contextmanager
def registry_server(home: Path) -> Iterator[str]:
    """Yield the URI of the server that has the registered models.

    MLFLOW_REGISTRY_URI decides if it names an MLflow server; otherwise it is the server of `tracking_server`. Raises
    UserError if it cannot be used.
    """
    named = named_registry()
    if named is None:
        with tracking_server(home) as uri:
            yield uri
        return
    require_reachable(named, REGISTRY)
    yield named


@contextmanager
def model_server(home: Path, model_uri: str) -> Iterator[str]:
    """Yield the URI of the server that has a model: `registry_server` for a registered one, else `tracking_server`."""
    registered = re.match(r"models:/[^/@]+[/@]", model_uri)  # models:/ID is a model of a run
    with registry_server(home) if registered else tracking_server(home) as uri:
        yield uri


def _require_this_machine(folder: Path, users: int) -> None:
    """Raise UserError if another machine uses the server of this home; its address means nothing here."""
    server = recorded_server(folder)
    if server is None or server.boot == boot_id():
        return
    if not try_lock(users) or (is_shared(folder) and gives_signs(folder / USERS_LOCK)):
        raise UserError(
            f"the MLflow server of {folder.parent} runs on another machine, {server.machine}",
            "set MLFLOW_TRACKING_URI to a server that both machines reach, or use another BINSWEEP_HOME here",
        )


@contextmanager
def _watched(folder: Path, server: Server, users: int) -> Iterator[None]:
    """Start the shared server again, at the same address, whenever it dies within this block; and give signs of life
    to other machines."""
    leaving, shared = threading.Event(), is_shared(folder)

    def watch() -> None:
        current = server
        while not leaving.wait(WATCH_SECONDS):
            if shared:
                with contextlib.suppress(OSError):
                    os.pwrite(users, f"{time.monotonic_ns():020d}\n".encode(), 0)
                    os.fsync(users)
            if current.process() is not None:
                continue
            _log.warning("the embedded MLflow server died; starting it again")
            try:
                with start_lock(folder):
                    end(current)  # its child processes may still hold the port
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


def _share(folder: Path) -> Server | None:
    """The running server of this home, or None; a hung server, or what a killed one left, is ended first."""
    server = recorded_server(folder)
    if server is None:
        return None
    if wait_until_answers(server, "/health", timeout=15.0):
        return server
    if server.process() is not None or not port_is_free(server.port):
        end(server)
    return None


def _start(folder: Path) -> Server:
    """Start the shared server, if possible on its predecessor's port, whose clients then find it."""
    before = recorded_server(folder)
    port = before.port if before and port_is_free(before.port) else free_port()
    server = launch(folder, port)
    record_server(folder, server)
    return server


def launch(folder: Path, port: int, options: Sequence[str] = (), health_path: str = "/health") -> Server:
    """Start an MLflow server on the database of `folder` and wait until it answers."""
    require_current_schema(folder / DATABASE)
    log = folder / "server.log"
    log_start = log.stat().st_size if log.exists() else 0
    arguments = ["server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", database_uri(folder)]
    arguments += ["--artifacts-destination", (folder / "artifacts").as_uri()]
    arguments += ["--uvicorn-opts", "--log-level warning", *options]
    # Job execution serves MLflow's evaluation of language models; here it would only add processes.
    environment = clean_environment({"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    server = spawn(arguments, port, folder, log, environment)
    try:
        healthy = wait_until_answers(server, health_path, START_SECONDS)
    except BaseException:
        end(server)
        raise
    if not healthy:
        reason = describe_failed_start(server, START_SECONDS)
        end(server)
        raise UserError(
            f"the embedded MLflow server {reason}; its log {log} ends:\n{tail(log, log_start)}",
            "fix what the log reports; if that is nothing, the machine is busy: run the same command again; or set "
            "MLFLOW_TRACKING_URI to a running server",
        )
    return server


def _leave(folder: Path, users: int) -> None:
    """Release the server, and end it if no other process uses it."""
    try:
        with start_lock(folder):
            server = recorded_server(folder)
            if try_lock(users) and server is not None:
                end(server)
                if is_shared(folder):  # so that other machines need not wait for a sign of it
                    (folder / SERVER).unlink(missing_ok=True)
    except UserError:
        pass  # another process is starting it, and will end it
    finally:
        os.close(users)
