"""The MLflow server that a sweep talks to: the one the user names, or one of our own under the sweep's home.

Our own server is shared by all processes that use the same home. Each of them holds a shared lock on
`mlflow/users.lock` for as long as it needs the server; the last one to leave ends it, whoever started it.
The lock goes with its process, so a killed sweep neither keeps the server alive nor takes it from others:
the next to come shares the server it left behind, and ends it when leaving last.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import requests

from data.errors import UserError
from tracking.locks import locked, open_lock, try_lock
from tracking.processes import (
    LOOPBACK,
    Server,
    clean_environment,
    end,
    fate,
    free_port,
    interrupted_by_sigterm,
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
REACH_SECONDS = 5.0
WATCH_SECONDS = 2.0
_log = logging.getLogger(__name__)


@contextmanager
def tracking_server(home: Path) -> Iterator[str]:
    """Yield the URI of a reachable MLflow server.

    MLFLOW_TRACKING_URI decides if it is set and not empty. Otherwise it is the embedded server of `home`
    (SQLite and artifacts under `home`/mlflow, 127.0.0.1, a free port), shared or started; it is started again
    if it dies, and its last user to leave this block ends it. Raises UserError if the named server cannot be
    reached, or if ours does not start within 60 s.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if named:
        require_reachable(named)
        yield named.rstrip("/")
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


def run_ui(home: Path, port: int, ready: Callable[[str], None]) -> int:
    """Serve the MLflow UI of `home` on 127.0.0.1:`port` until Ctrl-C or SIGTERM: 130, or 1 if it ends itself.

    `ready` is called once with the address when it answers. It is a server of its own beside the shared one,
    on the same database, so that neither ends the other. Raises UserError if the port is taken.
    """
    require_port(port)
    folder = _folder(home)
    with interrupted_by_sigterm():
        with _turn(folder):
            server = _launch(folder, port)
        try:
            ready(server.url)
            return wait_in_foreground(server)
        except KeyboardInterrupt:
            return 130
        finally:
            end(server)


def require_reachable(uri: str, timeout: float = REACH_SECONDS) -> None:
    """Raise UserError, naming `uri`, unless an MLflow server answers there within `timeout` seconds."""
    remedy = "start that server or correct MLFLOW_TRACKING_URI; unset it to use the embedded server"
    if not uri.startswith(("http://", "https://")):
        raise UserError(f"MLFLOW_TRACKING_URI: must be the http(s) address of a server, got {uri!r}", remedy)
    try:
        reply = requests.get(uri.rstrip("/") + "/health", timeout=timeout)
    except requests.RequestException as error:
        reason = "no answer in time" if isinstance(error, requests.Timeout) else type(error).__name__
        raise UserError(f"MLflow server {uri} cannot be reached: {reason}", remedy) from error
    if reply.status_code in (401, 403):
        raise UserError(
            f"MLflow server {uri} refuses us: it answered {reply.status_code}",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or allow this host name at the server (--allowed-hosts)",
        )
    if reply.status_code != 200:
        raise UserError(f"{uri} is not a healthy MLflow server: /health answered {reply.status_code}", remedy)


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
    written = folder / "server.json.new"
    written.write_text(json.dumps(asdict(server)))
    written.replace(folder / "server.json")
    return server


def _launch(folder: Path, port: int) -> Server:
    log = folder / "server.log"
    start = log.stat().st_size if log.exists() else 0
    arguments = ["server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    arguments += ["--artifacts-destination", (folder / "artifacts").as_uri()]
    arguments += ["--uvicorn-opts", "--log-level warning"]
    # Job execution serves MLflow's own evaluation of language models; it would only add processes.
    environment = clean_environment({"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    server = spawn(arguments, port, folder, log, environment)
    try:
        healthy = wait_until_answers(server, "/health", START_SECONDS)
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
