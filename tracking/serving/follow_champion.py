"""A model's champion behind HTTP: another version as soon as the alias moves, 503 while there is none."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from mlflow.exceptions import MlflowException

from binsweep.data.errors import UserError
from binsweep.tracking.processes import Server, interrupted_by_sigterm, require_port
from binsweep.tracking.registry.versions import champion_of
from binsweep.tracking.serving.model_server import serve_model

WATCH_SECONDS = 5.0
AWAY = (MlflowException, OSError)  # MLflow does not answer, or not as MLflow
LARGEST_REQUEST = 64 * 2**20  # bytes that are read of a request before it is refused


def follow_champion(name: str, host: str, port: int, tracking_uri: str, tell: Callable[[str], None]) -> int:
    """Serve the champion of the model `name` on `host`:`port`, whichever version it is, until Ctrl-C or SIGTERM: 130.

    The alias is looked up every 5 s. When it moves, the old version's server ends before the new one's begins, so
    that requests are refused while that one loads. Whatever keeps a version from being served (there is no
    champion, MLflow does not answer, the model does not load, somebody has taken the port) is told and answered
    with 503, and tried again; while MLflow does not answer, what is served stays. Raises UserError only at the
    start, if the port is taken then.
    """
    require_port(port, host)
    tell = _once(tell)
    with interrupted_by_sigterm():
        try:
            while True:
                version = _await_champion(name, host, port, tracking_uri, tell)
                try:
                    with serve_model(f"models:/{name}/{version}", tracking_uri, port, host) as served:
                        tell(f"serving {name} version {version} at {served.url}")
                        _watch(served.server, name, version, tracking_uri)
                except (UserError, *AWAY) as error:
                    reason = error.message if isinstance(error, UserError) else _first_line(error)
                    tell(f"not serving {name} version {version}: {reason}")
                    _refuse_a_while(host, port, reason)
        except KeyboardInterrupt:
            return 130


def _await_champion(name: str, host: str, port: int, tracking_uri: str, tell: Callable[[str], None]) -> str:
    """The champion's version, once there is one; until then every request is refused."""
    while True:
        try:
            version = _champion(name, tracking_uri)
            reason = f"there is no champion of {name} yet"
        except AWAY as error:
            version, reason = None, f"MLflow at {tracking_uri} cannot be asked: {_first_line(error)}"
        if version is not None:
            return version
        tell(f"not serving: {reason}")
        _refuse_a_while(host, port, reason)


def _champion(name: str, tracking_uri: str) -> str | None:
    champion = champion_of(tracking_uri, name)
    return None if champion is None else str(champion.version)


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """`tell`, without what it was told last: what is tried every 5 s would fill the log."""
    last = ""

    def tell_news(text: str) -> None:
        nonlocal last
        if text != last:
            last = text
            tell(text)

    return tell_news


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _watch(server: Server, name: str, version: str, tracking_uri: str) -> None:
    """Return once `server` has ended or the champion is another version; an MLflow that is away changes nothing."""
    while server.process() is not None:
        with contextlib.suppress(*AWAY):
            if _champion(name, tracking_uri) != version:
                return
        time.sleep(WATCH_SECONDS)


def _refuse_a_while(host: str, port: int, reason: str) -> None:
    """Refuse requests until it is time to try again; where the port is not ours to listen on, only wait."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(_refusing(host, port, reason))
        time.sleep(WATCH_SECONDS)


@contextmanager
def _refusing(host: str, port: int, reason: str) -> Iterator[None]:
    """Answer every request with 503 and `reason` in this block."""
    body = json.dumps({"error": reason}).encode()

    class Refusal(BaseHTTPRequestHandler):
        timeout = 10.0  # seconds a client may take to say what it wants

        def do_GET(self) -> None:
            # A client that is still sending would see a broken connection instead of the answer.
            self.rfile.read(min(int(self.headers.get("Content-Length") or 0), LARGEST_REQUEST))
            self.send_response(503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", str(int(WATCH_SECONDS)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: whoever asks is told."""

    class Listener(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    with Listener((host, port), Refusal) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
