"""Server processes on this machine: find a port, start one, wait until it answers, end it."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from binsweep.data.errors import UserError
from binsweep.data.machine import boot_id
from binsweep.data.python_process import python_module, without_working_folder

LOOPBACK = "127.0.0.1"
BACKLOG = 2048  # connections that wait to be accepted, as uvicorn has it
# The servers that this process started and has not ended yet, for an exit that leaves no time to terminate them.
_started: list["Server"] = []


def started_at(process: psutil.Process) -> float:
    """When a process was started, in seconds since the machine's boot: unlike its time of the day, which psutil derives
    from the present clock, that stays the same when somebody sets the clock."""
    return process.create_time() - psutil.boot_time()


@dataclass(frozen=True)
class Server:
    """A listening process: its id, creation time (`started_at`, to recognise a recycled id), port, the address that it
    listens on, and the machine with its boot."""

    pid: int
    created: float
    port: int
    host: str = LOOPBACK
    boot: str = field(default_factory=boot_id)
    machine: str = field(default_factory=socket.gethostname)

    @property
    def url(self) -> str:
        """Its address for clients on this machine: the loopback if it listens on every address."""
        return local_url(self.host, self.port)

    def process(self) -> psutil.Process | None:
        """The running process, or None if it has ended or its id now belongs to another one."""
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self.pid)
            same = abs(started_at(found) - self.created) < 1.0 and self.boot == boot_id()
            if same and found.status() != psutil.STATUS_ZOMBIE:
                return found
        return None

    def answers(self, path: str, timeout: float = 2.0) -> bool:
        """Whether GET `path` gives 200 within `timeout` seconds."""
        try:
            with requests.Session() as session:
                session.trust_env = False  # no proxy of the environment for calls to this machine
                return session.get(self.url + path, timeout=timeout).status_code == 200
        except requests.RequestException:
            return False


def local_url(host: str, port: int) -> str:
    """The URL at which clients on this machine reach what listens on `host`:`port`."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def free_port(host: str = LOOPBACK) -> int:
    """A free port of `host`, an address of this machine."""
    family, address = _socket_addresses(host, 0)[0]
    with socket.socket(family) as probe:
        probe.bind(address)
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on `port` of `host` now."""
    return not any(_bind_error(family, address) for family, address in _socket_addresses(host, port))


def require_port(port: int, host: str = LOOPBACK) -> None:
    """Raise UserError unless `port` is a usable and free port of `host`, an address of this machine."""
    if not 1 <= port <= 65535:
        raise UserError(f"port: must be from 1 to 65535, got {port}", "choose another port with --port")
    for family, address in _socket_addresses(host, port):
        match _bind_error(family, address):
            case None:
                continue
            case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
                raise UserError(
                    f"host: {host} is not an address of this machine", "0.0.0.0 listens on all of them"
                )
            case errno.EACCES:
                raise UserError(
                    f"port: {port} on {host} requires more rights", "choose one above 1023 with --port"
                )
        raise UserError(
            f"port: {port} on {host} is taken{_describe(listening_process(port))}",
            "end what listens there, or choose another port with --port",
        )


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on `port` of each address of `host`, for processes that share them: whichever accepts first
    has the connection, so accepting does not block. Raises the errors of `require_port`."""
    require_port(port, host)
    sockets = []
    for family, address in _socket_addresses(host, port):
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
        listener.setblocking(False)
        sockets.append(listener)
    return sockets


def listening_process(port: int) -> psutil.Process | None:
    """The process that listens on `port` of this machine; None if there is none, or this user may not see it."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
            if listens and connection.pid:
                return psutil.Process(connection.pid)
    return None


def _describe(process: psutil.Process | None) -> str:
    with contextlib.suppress(psutil.Error):  # it may have ended since
        if process is not None:
            return f" by process {process.pid} ({' '.join(process.cmdline())[:200]})"
    return ""


def _socket_addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """The socket addresses of `host`. Raises UserError if it has none."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"host: {host} is not an address of this machine: {error}", "0.0.0.0 listens on all of them"
        ) from error
    return [(family, address) for family, *_, address in found]


def _bind_error(family: socket.AddressFamily, address: Any) -> int | None:
    """The errno with which listening there fails; None if it succeeds."""
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno or errno.EADDRINUSE
    return None


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment for a tracking server: this process's without any MLflow setting, plus `settings`.

    A server must follow its command line, not variables that are meant for clients.
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
    module: str = "mlflow",
    pass_fds: Sequence[int] = (),
) -> Server:
    """Start `python -m MODULE ARGUMENTS` in `folder` as a session of its own, its output appended to `log`.

    It inherits the file descriptors `pass_fds`.

    In a session (and so a process group) of its own, a Ctrl-C at the terminal does not end it before its users have
    sent their last records.
    """
    server: Server | None = None
    try:
        with _signals_deferred(), log.open("ab") as output:
            child = subprocess.Popen(
                python_module(module, *arguments),
                cwd=folder,
                env=without_working_folder(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=pass_fds,
            )
            server = Server(child.pid, started_at(psutil.Process(child.pid)), port, host)
            _started.append(server)
    except BaseException:  # interrupted here: no caller would know of the process
        if server is not None:
            end(server)
        raise
    return server


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer signals, whose handlers may raise anywhere, until the end of this block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deferred: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(n))]
    before = {number: signal.signal(number, lambda n, _: deferred.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for received in deferred:
            signal.raise_signal(received)


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


def describe_failed_start(server: Server, timeout: float) -> str:
    """Why `server` did not start, as the end of a sentence."""
    return f"did not answer within {timeout:g} s" if server.process() else "ended while starting"


def wait_in_foreground(server: Server) -> int:
    """Wait until this process is interrupted (130) or `server` ends by itself (1)."""
    try:
        if process := server.process():
            process.wait()
    except KeyboardInterrupt:
        return 130
    return 1


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that child processes are ended on the way out.

    An existing handler for SIGTERM stays. Otherwise further signals are ignored: ending takes little time, and a
    second interrupt would leave child processes behind.
    """
    is_main = threading.current_thread() is threading.main_thread()  # only it may set a handler
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)

    def interrupt(number: int, frame: object) -> None:
        for ignored in numbers:
            signal.signal(ignored, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(server: Server, grace: float = 10.0) -> None:
    """Terminate `server` and all processes of its session; after `grace` seconds, or if interrupted, kill them.

    Raises nothing of its own.
    """
    processes = _session_processes(server)
    try:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _wait_for_end(processes, grace)
    finally:
        _kill(processes)
        _wait_for_end(processes, grace)
        with contextlib.suppress(ValueError):
            _started.remove(server)


def kill_started() -> None:
    """Kill, without waiting, every server that this process started: the last act of an exiting process."""
    for server in list(_started):
        _kill(_session_processes(server))


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if _is_alive(process):
                process.kill()


def _wait_for_end(processes: Sequence[psutil.Process], timeout: float) -> None:
    """Wait at most `timeout` seconds until `processes` have ended.

    A zombie has ended: in a container it may never be collected.
    """
    deadline = time.monotonic() + timeout
    while any(_is_alive(process) for process in processes) and time.monotonic() <= deadline:
        time.sleep(0.05)


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        try:
            process.wait(0)  # collects a zombie of our own
        except psutil.TimeoutExpired:
            return process.status() != psutil.STATUS_ZOMBIE
    return False


def _session_processes(server: Server) -> list[psutil.Process]:
    """The processes of the server's session, including those that outlive it."""
    if server.process() is None and psutil.pid_exists(server.pid):
        with contextlib.suppress(psutil.Error):
            if psutil.Process(server.pid).status() != psutil.STATUS_ZOMBIE:
                return []  # another process has the id now, so the whole session is gone
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == server.pid and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


def tail(log: Path, start: int = 0, lines: int = 15) -> str:
    """The last `lines` lines of `log` after byte `start`; empty if there is no such file."""
    try:
        text = log.read_bytes()[start:].decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


def root_cause(error: BaseException) -> str:
    """The type and text of the first error in the chain behind `error`."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {error}"[:200]
