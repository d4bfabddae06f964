"""An S3 server for tests and benchmarks: moto's, as a process of its own, with faults on demand.

    python tests/s3_server.py [--load DIR --bucket NAME]

It prints its port. PUT /-/faults?latency=0.02&cut=0.1&deny=1&stall=0.1 sets the faults of all later requests:
seconds before an answer, the share of bodies that are cut in the middle, whether everything is forbidden, the
share of answers that never come. PUT /-/load?folder=DIR&bucket=NAME&prefix=P/ fills a new bucket. GET
/-/counts tells how often each method and path prefix was asked for.
"""

import argparse
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ACCOUNT = "123456789012"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Handler(WSGIRequestHandler):
    """Keeps connections open, as real servers do, and says nothing."""

    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None: ...


class Faulty:
    """Moto's application behind the faults."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._faults = {"latency": 0.0, "cut": 0.0, "deny": 0.0, "stall": 0.0}
        self._counts: Counter[str] = Counter()
        self._random, self._lock = random.Random(0), threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path.startswith("/-/"):
            return self._control(path, environ.get("QUERY_STRING", ""), start)
        with self._lock:
            kind = path.split("/")[2] if path.count("/") > 2 else "bucket"
            self._counts[f"{method} {kind}"] += 1
            cut, stall = (self._random.random() < self._faults[name] for name in ("cut", "stall"))
        time.sleep(self._faults["latency"])
        if self._faults["deny"]:
            start(
                "403 Forbidden", [("Content-Length", str(len(DENIED))), ("Content-Type", "application/xml")]
            )
            return [DENIED]
        if stall:
            time.sleep(60)
        body = self._app(environ, start)
        return _half(body) if cut and method == "GET" else body

    def _control(self, path: str, query: str, start: Callable[..., Any]) -> Iterable[bytes]:
        if path == "/-/faults":
            self._faults |= {name: float(value) for name, value in parse_qsl(query)}
        if path == "/-/load":
            wanted = dict(parse_qsl(query))
            load(Path(wanted["folder"]), wanted["bucket"], wanted.get("prefix", ""))
        data = json.dumps(self._counts).encode()
        start("200 OK", [("Content-Length", str(len(data)))])
        return [data]


def _half(body: Iterable[bytes]) -> Iterator[bytes]:
    """Half of a body, then a closed connection: the server ends it when the application fails."""
    data = b"".join(body)
    yield data[: len(data) // 2]
    raise ConnectionAbortedError


def load(folder: Path, bucket: str, prefix: str = "") -> None:
    """Make a bucket with the files of a folder in it."""
    backend = s3_backends[ACCOUNT]["aws"]
    backend.create_bucket(bucket, "us-east-1")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            backend.put_object(bucket, prefix + path.relative_to(folder).as_posix(), path.read_bytes())


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--load", type=Path)
    parser.add_argument("--bucket", default="bins")
    options = parser.parse_args()
    if options.load:
        load(options.load, options.bucket)
    server = make_server("127.0.0.1", 0, Faulty(), threaded=True, request_handler=Handler)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
