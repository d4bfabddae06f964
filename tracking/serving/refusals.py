"""Answering every request with 503 and the reason, while there is no model to answer it."""

import json
import socket
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

MAX_REFUSED_BYTES = 64 * 2**20  # that are read of a request before it is refused


class Refusals:
    """Refuses the requests that come to `listeners`, sockets that stay open, with `reason`, until it is closed."""

    def __init__(self, listeners: Sequence[socket.socket], reason: str, retry_seconds: float) -> None:
        self.reason = reason
        handler = self._handler(int(retry_seconds))
        self._servers = [_listen(listener, handler) for listener in listeners]
        self._threads = [
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Take no more connections; those that are there are still answered."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def _handler(self, retry_seconds: int) -> type[BaseHTTPRequestHandler]:
        refusals = self

        class Refusal(BaseHTTPRequestHandler):
            timeout = 10.0  # seconds for a client to send its request

            def do_GET(self) -> None:
                # A client that is still sending would see a broken connection instead of the answer.
                self.rfile.read(min(int(self.headers.get("Content-Length") or 0), MAX_REFUSED_BYTES))
                body = json.dumps({"error": refusals.reason}).encode()
                self.send_response(503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Retry-After", str(retry_seconds))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: the client gets the reason."""

        return Refusal


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def _listen(listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> _Server:
    """A server on a duplicate of `listener`, which does not block: another process may take the connection."""
    server = _Server(("", 0), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener.dup()
    server.socket.setblocking(False)
    return server
