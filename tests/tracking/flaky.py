"""A proxy before a real server that fails the way networks and servers do."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

# What happens to a request: "pass", "fail" (500, never forwarded), "forget" (carried out, but the answer is
# lost), "down" (no answer, never forwarded), "slow" or "very slow" (late).
Fate = Callable[[], str]
DELAYS = {"slow": 0.3, "very slow": 5.0}


@contextmanager
def flaky(target: str, fate: Fate) -> Iterator[str]:
    """The address of a proxy for `target`; `fate` is asked about every request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            what = fate()
            if what == "fail":
                self.answer(500, b"the server is not well", "text/plain")
                return
            if what == "down":
                self.close_connection = True
                self.connection.close()
                return
            time.sleep(DELAYS.get(what, 0.0))
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
            reply = requests.request(self.command, target + self.path, data=body, headers=headers, timeout=60)
            if what == "forget":
                self.close_connection = True
                self.connection.close()
                return
            self.answer(reply.status_code, reply.content, reply.headers.get("Content-Type", "text/plain"))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Proxy(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # connections are broken on purpose

    proxy = Proxy(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
    finally:
        proxy.shutdown()
        thread.join(10)
        proxy.server_close()
