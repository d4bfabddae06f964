"""Child processes that listen on a loopback port: find a port, wait for an answer, end them."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from data.errors import UserError

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
    """This process's environment without any MLflow setting, plus `settings`.

    A server must obey its command line, not variables that were meant for clients.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "_MLFLOW_"))}
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true"} | dict(settings)


def spawn(
    arguments: Sequence[str], port: int, folder: Path, log: Path, environment: dict[str, str]
) -> Server:
    """Start `python -m mlflow ARGUMENTS` in `folder` as a session of its own, its output appended to `log`.

    Its own session (and so its own process group) keeps a Ctrl-C at the terminal from ending it before its
    users have sent their last words.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            cwd=folder,
            env=environment,
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


def end(server: Server, grace: float = 10.0) -> None:
    """End `server` and all its descendants: politely, then after `grace` seconds by force. Never raises."""
    root = server.process()
    if root is None:
        return
    with contextlib.suppress(psutil.Error):
        family = [root, *root.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, left = psutil.wait_procs(family, timeout=grace)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=grace)


def tail(log: Path, start: int = 0, lines: int = 15) -> str:
    """The last `lines` lines of `log` after byte `start`; empty if there is no such file."""
    try:
        text = log.read_bytes()[start:].decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])
