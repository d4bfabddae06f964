"""Child processes that listen on a loopback port: find a port, wait for an answer, end them."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from data.errors import UserError
from data.start import python_module, without_working_folder

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """A listening process: its id, when it was created (seconds since 1970, so that a recycled id is not
    mistaken for it) and its port on 127.0.0.1."""

    pid: int
    created: float
    port: int

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def process(self) -> psutil.Process | None:
        """The living process, or None if it has ended or its id now belongs to another one."""
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < 1.0
            if same and found.status() != psutil.STATUS_ZOMBIE:
                return found
        return None

    def answers(self, path: str, timeout: float = 2.0) -> bool:
        """Whether GET `path` gives 200 within `timeout` seconds."""
        try:
            with requests.Session() as session:
                session.trust_env = False  # a proxy of the environment has no business on the loopback
                return session.get(self.url + path, timeout=timeout).status_code == 200
        except requests.RequestException:
            return False


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int) -> bool:
    """Whether a server could listen on `port` of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def require_port(port: int) -> None:
    """Raise UserError unless `port` is a usable and free port of 127.0.0.1."""
    if not 1 <= port <= 65535:
        raise UserError(f"port: must be from 1 to 65535, got {port}", "choose another port with --port")
    if not port_is_free(port):
        raise UserError(
            f"port: {port} on {LOOPBACK} is taken (or needs more rights)",
            "end what listens there, or choose another port with --port",
        )


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without any MLflow setting, plus `settings`: for a tracking server.

    A server must obey its command line, not variables that were meant for clients.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "_MLFLOW_"))}
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true"} | dict(settings)


def spawn(
    arguments: Sequence[str], port: int, folder: Path, log: Path, environment: Mapping[str, str]
) -> Server:
    """Start `python -m mlflow ARGUMENTS` in `folder` as a session of its own, its output appended to `log`.

    Its own session (and so its own process group) keeps a Ctrl-C at the terminal from ending it before its
    users have sent their last words.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            python_module("mlflow", *arguments),
            cwd=folder,
            env=without_working_folder(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(child.pid, psutil.Process(child.pid).create_time(), port)


def wait_until_answers(server: Server, path: str, timeout: float) -> bool:
    """Wait until `server` answers GET `path`; False once it has ended or `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if server.process() is None:
            return False
        if server.answers(path):
            return True
        time.sleep(0.1)
    return False


def fate(server: Server, timeout: float) -> str:
    """Why waiting for `server` was in vain, as the end of a sentence."""
    return f"did not answer within {timeout:g} s" if server.process() else "ended while starting"


def wait_in_foreground(server: Server) -> int:
    """Wait for `server`: 130 once this process is interrupted, 1 if the server ends by itself."""
    try:
        if process := server.process():
            process.wait()
    except KeyboardInterrupt:
        return 130
    return 1


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that children are ended on the way out."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end(server: Server, grace: float = 10.0) -> None:
    """End `server` and all that it started: politely, then after `grace` seconds by force. Never raises."""
    family = _family(server)
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in _still_alive(family, grace):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _still_alive(family, grace)


def _still_alive(family: Sequence[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those of `family` that have not ended within `timeout` seconds.

    A zombie has ended: in a container nobody may ever collect it.
    """
    deadline = time.monotonic() + timeout
    left = list(family)
    while left := [process for process in left if _lives(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        try:
            process.wait(0)  # collects it if it is our own child
        except psutil.TimeoutExpired:
            return process.status() != psutil.STATUS_ZOMBIE
    return False


def _family(server: Server) -> list[psutil.Process]:
    """The members of the server's session, also those that it left behind when it died."""
    if server.process() is None and psutil.pid_exists(server.pid):
        with contextlib.suppress(psutil.Error):
            if psutil.Process(server.pid).status() != psutil.STATUS_ZOMBIE:
                return []  # the id was given to somebody else, so the whole session is gone
    family = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == server.pid and process.status() != psutil.STATUS_ZOMBIE:
                family.append(process)
    return family


def tail(log: Path, start: int = 0, lines: int = 15) -> str:
    """The last `lines` lines of `log` after byte `start`; empty if there is no such file."""
    try:
        text = log.read_bytes()[start:].decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])
