"""Child processes that listen on a port of this machine: find a port, wait for an answer, end them."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from binsweep.data.errors import UserError
from binsweep.data.python_process import python_module, without_working_folder

LOOPBACK = "127.0.0.1"
# Those that this process started and has not ended yet, for the moment when there is no time to end them politely.
_started: list["Server"] = []


@dataclass(frozen=True)
class Server:
    """A listening process: its id, when it was created (seconds since 1970, so that a recycled id is not
    mistaken for it), its port, and the address that it listens on."""

    pid: int
    created: float
    port: int
    host: str = LOOPBACK

    @property
    def url(self) -> str:
        """Where this machine asks it; one that listens on every address is asked on the loopback."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

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
                session.trust_env = False  # a proxy of the environment has no business on this machine
                return session.get(self.url + path, timeout=timeout).status_code == 200
        except requests.RequestException:
            return False


def free_port(host: str = LOOPBACK) -> int:
    """A port of `host`, an address of this machine, that nobody listens on just now."""
    family, address = _places(host, 0)[0]
    with socket.socket(family) as probe:
        probe.bind(address)
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on `port` of `host` now."""
    return not any(_refusal(family, address) for family, address in _places(host, port))


def require_port(port: int, host: str = LOOPBACK) -> None:
    """Raise UserError unless `port` is a usable and free port of `host`, an address of this machine."""
    if not 1 <= port <= 65535:
        raise UserError(f"port: must be from 1 to 65535, got {port}", "choose another port with --port")
    for family, address in _places(host, port):
        match _refusal(family, address):
            case None:
                continue
            case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
                raise UserError(
                    f"host: {host} is not an address of this machine", "0.0.0.0 listens on all that it has"
                )
            case errno.EACCES:
                raise UserError(
                    f"port: {port} on {host} needs more rights", "choose one above 1023 with --port"
                )
        raise UserError(
            f"port: {port} on {host} is taken{_by(listener(port))}",
            "end what listens there, or choose another port with --port",
        )


def listener(port: int) -> psutil.Process | None:
    """The process that listens on `port` of this machine, as far as this user may know."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            at_it = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
            if at_it and connection.pid:
                return psutil.Process(connection.pid)
    return None


def _by(process: psutil.Process | None) -> str:
    with contextlib.suppress(psutil.Error):  # it may have ended since
        if process is not None:
            return f" by process {process.pid} ({' '.join(process.cmdline())[:200]})"
    return ""


def _places(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """The sockets' addresses that stand for `host`. Raises UserError if it stands for none."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"host: {host} is not an address of this machine: {error}", "0.0.0.0 listens on all that it has"
        ) from error
    return [(family, address) for family, *_, address in found]


def _refusal(family: socket.AddressFamily, address: Any) -> int | None:
    """Why nothing can listen there now, as an errno; None if something can."""
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno or errno.EADDRINUSE
    return None


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without any MLflow setting, plus `settings`: for a tracking server.

    A server must obey its command line, not variables that were meant for clients.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "_MLFLOW_"))}
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true"} | dict(settings)


def spawn(
    arguments: Sequence[str],
    port: int,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    host: str = LOOPBACK,
) -> Server:
    """Start `python -m mlflow ARGUMENTS` in `folder` as a session of its own, its output appended to `log`.

    Its own session (and so its own process group) keeps a Ctrl-C at the terminal from ending it before its
    users have sent their last words.
    """
    server: Server | None = None
    try:
        with _undisturbed(), log.open("ab") as output:
            child = subprocess.Popen(
                python_module("mlflow", *arguments),
                cwd=folder,
                env=without_working_folder(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            server = Server(child.pid, psutil.Process(child.pid).create_time(), port, host)
            _started.append(server)
    except BaseException:  # asked to end just then: nobody else would know of it
        if server is not None:
            end(server)
        raise
    return server


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep signals, whose handlers may raise anywhere, until the end of this block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(n))]
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)


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
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that children are ended on the way out.

    Whoever has a handler of their own for SIGTERM keeps it. Else what follows the first signal is ignored: the way
    out is short, and a second one would leave children behind.
    """
    ours = threading.current_thread() is threading.main_thread()  # no other may set a handler
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)

    def interrupt(number: int, frame: object) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(server: Server, grace: float = 10.0) -> None:
    """End `server` and all that it started: politely, then after `grace` seconds by force.

    Raises nothing of its own; interrupted, it goes on by force at once.
    """
    family = _family(server)
    try:
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _still_alive(family, grace)
    finally:
        _kill(family)
        _still_alive(family, grace)
        with contextlib.suppress(ValueError):
            _started.remove(server)


def kill_started() -> None:
    """End by force, without waiting, every server that this process started: the last thing before it is gone."""
    for server in list(_started):
        _kill(_family(server))


def _kill(family: Sequence[psutil.Process]) -> None:
    for process in family:
        with contextlib.suppress(psutil.Error):
            if _lives(process):
                process.kill()


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


def deepest(error: BaseException) -> str:
    """The kind of the first error behind `error`, and its words."""
    while (behind := error.__cause__ or error.__context__) is not None:
        error = behind
    return f"{type(error).__name__}: {error}"[:200]
