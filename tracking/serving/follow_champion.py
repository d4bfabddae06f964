"""Serve a model's champion over HTTP: a new version as soon as the alias moves, 503 while there is none."""

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

POLL_SECONDS = 5.0
TRACKING_ERRORS = (MlflowException, OSError)  # MLflow does not answer, or something else answers
MAX_REFUSED_BYTES = 64 * 2**20  # that are read of a request before it is refused


def follow_champion(name: str, host: str, port: int, tracking_uri: str, report: Callable[[str], None]) -> int:
    """Serve the champion of the model `name` on `host`:`port`, whichever version it is, until Ctrl-C or SIGTERM: 130.

    The alias is looked up every 5 s. When it moves, the old version's server ends before the new one's starts, and
    requests are refused while the new one loads. If a version cannot be served (no champion, no answer from MLflow,
    the model does not load, the port is taken), the reason goes to `report` and, with 503, to clients, and serving is
    tried again. While MLflow does not answer, the present version stays served. Raises UserError only at the start,
    if the port is taken then.
    """
    require_port(port, host)
    report = _without_repetition(report)
    with interrupted_by_sigterm():
        try:
            while True:
                version = _await_champion(name, host, port, tracking_uri, report)
                try:
                    with serve_model(f"models:/{name}/{version}", tracking_uri, port, host) as served:
                        report(f"serving {name} version {version} at {served.url}")
                        _wait_for_change(served.server, name, version, tracking_uri)
                except (UserError, *TRACKING_ERRORS) as error:
                    reason = error.message if isinstance(error, UserError) else _first_line(error)
                    report(f"not serving {name} version {version}: {reason}")
                    _refuse_until_next_poll(host, port, reason)
        except KeyboardInterrupt:
            return 130


def _await_champion(name: str, host: str, port: int, tracking_uri: str, report: Callable[[str], None]) -> str:
    """The champion's version, once there is one; until then every request is refused."""
    while True:
        try:
            version = _champion_version(name, tracking_uri)
            reason = f"there is no champion of {name} yet"
        except TRACKING_ERRORS as error:
            version, reason = None, f"MLflow at {tracking_uri} cannot be queried: {_first_line(error)}"
        if version is not None:
            return version
        report(f"not serving: {reason}")
        _refuse_until_next_poll(host, port, reason)


def _champion_version(name: str, tracking_uri: str) -> str | None:
    champion = champion_of(tracking_uri, name)
    return None if champion is None else str(champion.version)


def _without_repetition(report: Callable[[str], None]) -> Callable[[str], None]:
    """`report` that skips a text equal to the last one: an attempt every 5 s would fill the log."""
    last = ""

    def report_news(text: str) -> None:
        nonlocal last
        if text != last:
            last = text
            report(text)

    return report_news


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _wait_for_change(server: Server, name: str, version: str, tracking_uri: str) -> None:
    """Return once `server` has ended or the champion is another version; go on while MLflow does not answer."""
    while server.process() is not None:
        with contextlib.suppress(*TRACKING_ERRORS):
            if _champion_version(name, tracking_uri) != version:
                return
        time.sleep(POLL_SECONDS)


def _refuse_until_next_poll(host: str, port: int, reason: str) -> None:
    """Refuse requests until the next attempt; only wait if the port is taken."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(_refusing(host, port, reason))
        time.sleep(POLL_SECONDS)


@contextmanager
def _refusing(host: str, port: int, reason: str) -> Iterator[None]:
    """Answer every request with 503 and `reason` during this block."""
    body = json.dumps({"error": reason}).encode()

    class Refusal(BaseHTTPRequestHandler):
        timeout = 10.0  # seconds for a client to send its request

        def do_GET(self) -> None:
            # A client that is still sending would see a broken connection instead of the answer.
            self.rfile.read(min(int(self.headers.get("Content-Length") or 0), MAX_REFUSED_BYTES))
            self.send_response(503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", str(int(POLL_SECONDS)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: the client gets the reason."""

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
