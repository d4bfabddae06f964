"""What stands before an MLflow server in companies: logins, tokens, certificates of their own, paths; or no MLflow."""

import base64
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests

WANTED = {
    "basic": "Basic " + base64.b64encode(b"user:p@ss/word").decode(),
    "token": "Bearer a-token",
}
# What answers for itself, whatever it is asked: status, kind, body.
PAGES = {
    "page": (200, "text/html", b"<html>please log in</html>"),
    "json": (200, "application/json", b"{}"),
    "other json": (200, "application/json", b'{"experiment": {"name": "Default"}, "status": "ok"}'),
    "absent": (404, "text/html", b"<html>404</html>"),
    "other absent": (404, "application/json", b'{"detail": "Not Found"}'),
    "absent resource": (
        404,
        "application/json",
        b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}',
    ),
    "other API": (
        404,
        "application/json",
        b'{"error_code": "ENDPOINT_NOT_FOUND", "message": "no such call"}',
    ),
    "error": (503, "text/html", b"<html>come back later</html>"),
}


@contextmanager
def front(target: str, kind: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The address of a front of this kind before `target`, and the certificate of its authority (of `tls`)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path
            if kind in PAGES:
                self.answer(*PAGES[kind])
            elif kind == "small" and len(body) > 100_000:
                self.answer(413, "text/html", b"<html><h1>413</h1></html>")
            elif kind in WANTED and self.headers.get("Authorization") != WANTED[kind]:
                self.answer(401, "text/html", b"<html><h1>401</h1>\n<hr>log in first</html>")
            elif kind == "login" and path != "/login":
                self.answer(302, "text/html", b"", Location="/login")
            elif kind == "login":
                self.answer(*PAGES["page"])
            elif (kind == "no health" and path == "/health") or (kind == "path" and path[:8] != "/mlflow/"):
                self.answer(404, "text/plain", b"not found")
            else:
                time.sleep(6.0 if kind == "slow" and "get-by-name" in path else 0.0)
                path = path.removeprefix("/mlflow") if kind == "path" else path
                headers = {"Content-Type": self.headers.get("Content-Type", "")}
                reply = requests.request(self.command, target + path, data=body, headers=headers, timeout=60)
                self.answer(reply.status_code, reply.headers.get("Content-Type", "text/plain"), reply.content)

        do_POST = do_PUT = do_PATCH = do_GET

        def answer(self, status: int, content_type: str, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": content_type, **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Front(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # connections are broken where certificates are not trusted

    server, ca = Front(("127.0.0.1", 0), Handler), folder / "authority.pem"
    if kind == "tls":
        key = folder / "key.pem"
        words = f"req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {ca} -days 2 -subj /CN=localhost"
        subprocess.run(
            ["openssl", *words.split(), "-addext", "subjectAltName=IP:127.0.0.1"],
            check=True,
            capture_output=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(ca, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http{'s' if kind == 'tls' else ''}://127.0.0.1:{server.server_address[1]}", ca
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
