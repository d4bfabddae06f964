"""The page's server for tests: in a thread of this process, on a real port of the loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import uvicorn

from binsweep.search.ui.app import make_app
from binsweep.search.ui.guard import TOKEN_HEADER
from binsweep.search.ui.promotions import Promotions
from binsweep.search.ui.views import Home
from binsweep.tracking.mlflow_server.beside import ServerBeside
from binsweep.tracking.processes import LOOPBACK, free_port, listen

TOKEN = "a-token-of-tests"


@dataclass
class Page:
    """The server as the page asks it."""

    base: str
    mlflow: ServerBeside
    promotions: Promotions
    routes: Sequence[Any]  # of the application behind the guard

    @property
    def link(self) -> str:
        return f"{self.base}/#token={TOKEN}"

    def get(self, path: str, **headers: str) -> requests.Response:
        sent = {TOKEN_HEADER: TOKEN, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return requests.get(self.base + path, headers=sent, timeout=60, allow_redirects=False)

    def post(self, path: str, body: Any, **headers: str) -> requests.Response:
        sent = {TOKEN_HEADER: TOKEN, "Origin": self.base}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(self.base + path, json=body, headers=sent, timeout=60)

    def json(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.ok, answer.text
        return answer.json()


@contextmanager
def served(home: Path, dashboard: str | None = None) -> Iterator[Page]:
    """The page of a home; what it has started ends with the block."""
    (listener,) = listen(LOOPBACK, free_port())
    port = listener.getsockname()[1]
    mlflow, promotions = ServerBeside(home), Promotions(home)
    app = make_app(Home(home), port, TOKEN, mlflow, promotions, dashboard)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Page(f"http://{LOOPBACK}:{port}", mlflow, promotions, app.app.routes)
    finally:
        promotions.end()
        server.should_exit = True
        thread.join(20)
        mlflow.close()
        listener.close()
