"""A real nginx before an MLflow server, as companies have one: a login, a token, an own authority, a path."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from binsweep.tracking.processes import free_port

USER, PASSWORD, TOKEN = "ada", "p@ss:w/rd-in-nginx", "a-token-in-nginx"

CONFIG = """
daemon off; {user} worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 0;  # its own limit is 1 MB, and artifacts are larger
  server {{ listen 127.0.0.1:{basic}; auth_basic mlflow; auth_basic_user_file {folder}/accounts;
    location / {{ proxy_pass {target}; }} }}
  server {{ listen 127.0.0.1:{token};
    location / {{ if ($http_authorization != "Bearer {token_text}") {{ return 401; }} proxy_pass {target}; }} }}
  server {{ listen 127.0.0.1:{tls} ssl; ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;
    location / {{ proxy_pass {target}; }} }}
  server {{ listen 127.0.0.1:{path}; location /team/mlflow/ {{ proxy_pass {target}/; }} location / {{ return 404; }} }}
  server {{ listen 127.0.0.1:{forbidden};
    location = /health {{ return 403; }} location = /version {{ return 403; }} location / {{ proxy_pass {target}; }} }}
  server {{ listen 127.0.0.1:{all} ssl; ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;
    location = /team/mlflow/health {{ return 404; }}
    location /team/mlflow/ {{
      auth_basic mlflow; auth_basic_user_file {folder}/accounts; proxy_pass {target}/; }}
    location / {{ return 404; }} }}
  server {{ listen 127.0.0.1:{small}; client_max_body_size 1m; location / {{ proxy_pass {target}; }} }}
}}
"""
KINDS = ("basic", "token", "tls", "path", "forbidden", "all", "small")


@contextmanager
def nginx(target: str, folder: Path) -> Iterator[dict[str, str]]:
    """The addresses of one nginx by kind, and under "authority" the certificate to trust; skips where there is none."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("nginx and openssl are not here: `apt-get install nginx-light openssl`")
    _certificates(folder)
    known = subprocess.run(
        ["openssl", "passwd", "-apr1", PASSWORD], check=True, capture_output=True, text=True
    )
    (folder / "accounts").write_text(f"{USER}:{known.stdout}")
    ports = {kind: free_port() for kind in KINDS}
    user = (
        "" if os.geteuid() else "user root;"
    )  # otherwise it gives up its rights, and cannot read this folder
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(target=target, folder=folder, token_text=TOKEN, user=user, **ports))
    with subprocess.Popen(
        [program, "-p", str(folder), "-c", str(config)], stderr=subprocess.DEVNULL
    ) as process:
        try:
            for port in ports.values():
                _wait(port, process)
            paths = {"path": "/team/mlflow", "all": "/team/mlflow"}
            yield {
                **{
                    kind: f"http{'s' * (kind in ('tls', 'all'))}://127.0.0.1:{port}{paths.get(kind, '')}"
                    for kind, port in ports.items()
                },
                "authority": str(folder / "authority.pem"),
            }
        finally:
            process.terminate()
            process.wait(10)


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("nginx does not listen")


def _certificates(folder: Path) -> None:
    """An authority, and a server's certificate that it has signed."""

    def openssl(words: str) -> None:
        subprocess.run(["openssl", *words.split()], check=True, capture_output=True, cwd=folder)

    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        "req -x509 -newkey rsa:2048 -nodes -keyout authority.key -out authority.pem -days 2 -subj /CN=Authority"
    )
    openssl("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost")
    openssl(
        "x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -out server.pem -days 2 "
        "-extfile names"
    )
