"""A model's champion behind HTTP: another version as soon as the alias moves, 503 while there is none."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from mlflow.exceptions import MlflowException

from data.errors import UserError
from tracking.processes import Server, interrupted_by_sigterm, require_port
from tracking.registry import champion_of
from tracking.serving import serve_model

WATCH_SECONDS = 5.0
LARGEST_REQUEST = 64 * 2**20  # bytes that are read of a request before it is refused


def follow_champion(name: str, host: str, port: int, tracking_uri: str, tell: Callable[[str], None]) -> int:
    """Serve the champion of the model `name` on `host`:`port`, whichever version it is, until Ctrl-C or SIGTERM: 130.

    The alias is looked up every 5 s. When it moves, the old version's server ends before the new one's begins, so
    that requests are refused while that one loads. Whatever keeps a version from being served, and that there is
    no champion, is told and answered with 503, and tried again; while MLflow does not answer, what is served
    stays. Raises UserError at the start if the port is taken.
    """
    require_port(port)
    with interrupted_by_sigterm():
        try:
            while True:
                version = _await_champion(name, host, port, tracking_uri, tell)
                try:
                    with serve_model(f"models:/{name}/{version}", tracking_uri, port, host) as served:
                        tell(f"serving {name} version {version} at {served.url}")
                        _watch(served.server, name, version, tracking_uri)
                except UserError as error:
                    tell(f"not serving {name} version {version}: {error.message}")
                    with _refusing(host, port, error.message):
                        time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return 130


def _await_champion(name: str, host: str, port: int, tracking_uri: str, tell: Callable[[str], None]) -> str:
    """The champion's version, once there is one; until then every request is refused."""
    version = _champion(name, tracking_uri, None)
    if version is None:
        reason = f"there is no champion of {name} yet"
        tell(f"not serving: {reason}")
        with _refusing(host, port, reason):
            while version is None:
                time.sleep(WATCH_SECONDS)
                version = _champion(name, tracking_uri, None)
    return version


def _champion(name: str, tracking_uri: str, known: str | None) -> str | None:
    """The champion's version, or `known` where MLflow does not answer."""
    try:
        champion = champion_of(tracking_uri, name)
    except MlflowException:
        return known
    return None if champion is None else str(champion.version)


def _watch(server: Server, name: str, version: str, tracking_uri: str) -> None:
    """Return once `server` has ended or the champion is another version."""
    while server.process() is not None and _champion(name, tracking_uri, version) == version:
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

    with ThreadingHTTPServer((host, port), Refusal) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
