"""One model server of `binsweep serve`: a process that its parent starts, warms, switches to, and ends.

    python -m binsweep.tracking.serving.worker TASK

TASK is a WorkerTask as JSON. It loads the model and serves MLflow's own application on a port of the loopback. After
one byte on the file descriptor `control`, a pipe, it also accepts connections of the listening sockets `listeners`,
file descriptors that it shares with the parent and the other version's server, and begins to count what it sees. Once
the pipe is closed, also by the parent's death, it accepts no more connections, answers the requests that it has, and
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import uvicorn
from mlflow.pyfunc import scoring_server

from binsweep.tracking.monitoring.watcher import Watcher
from binsweep.tracking.processes import LOOPBACK
from binsweep.tracking.serving.replica import DRAIN_SECONDS, WorkerTask
from binsweep.tracking.serving.watching import (
    Application,
    Message,
    Send,
    WatchedApp,
    open_watcher,
    watch_answers,
)

END_SECONDS = 5  # for requests that a signal finds unanswered
VERSION_HEADER = "Model-Version"


class ModelApp:
    """An ASGI application whose answers name the model's version, if it has one; while it is `closing`, each answer
    also ends its connection, so that the client's next request opens another one, to the next version's server."""

    def __init__(self, app: Application, version: str) -> None:
        self.closing = False
        self._app = app
        self._version = version.encode()

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"]]
                if self._version:
                    headers.append((VERSION_HEADER.lower().encode(), self._version))
                if self.closing:
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Server(uvicorn.Server):
    """uvicorn's server, which begins and ceases to accept connections of further sockets while it runs."""

    watcher: Watcher | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections, and write what was counted: afterwards a signal ends the process at once."""
        await super().shutdown(sockets)
        if self.watcher is not None:
            await asyncio.to_thread(self.watcher.close)

    async def obey(self, app: ModelApp, control: int, listeners: Sequence[socket.socket]) -> None:
        """Do what the pipe `control` orders; the server ends with it."""
        try:
            orders = asyncio.StreamReader()
            loop = asyncio.get_running_loop()
            await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(orders), os.fdopen(control, "rb", 0)
            )
            while not self.started:
                await asyncio.sleep(0.01)
            if await orders.read(1):
                inner = self.servers
                await self.startup(list(listeners))
                self.servers += inner
                if self.watcher is not None:
                    self.watcher.start()
                await orders.read()
            app.closing = True
            # Not by closing the asyncio server: it drops a connection that it has accepted in the same moment.
            for listener in listeners:
                loop.remove_reader(listener)
            await self._drain()
        finally:
            self.should_exit = True

    async def _drain(self) -> None:
        """Wait until every connection has had its last answer, or was idle for uvicorn's 5 s, at most DRAIN_SECONDS."""
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        await asyncio.sleep(0.1)  # connections that were accepted just now are counted a little later
        while self.server_state.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)


def _yield_to_others() -> None:
    """Compute with one thread, in time that no other process wants; threads that are started later inherit that."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.nice(19)
    if hasattr(os, "sched_setscheduler"):  # Linux
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Where Linux shares time among sessions (autogroup), these two count within this process's own session only.
    with contextlib.suppress(OSError):  # other systems, and kernels without it
        Path("/proc/self/autogroup").write_text("19")


async def _serve(task: WorkerTask) -> None:
    if task.in_background:
        _yield_to_others()
    model = mlflow.pyfunc.load_model(task.model_uri)
    served: Application = scoring_server.init(model)
    watcher = None
    if task.watch is not None and task.name is not None:
        watcher = open_watcher(task.watch, task.name, task.version, task.shadow)
        served = WatchedApp(served, watcher, task.name, watch_answers(model, watcher))
    app = ModelApp(served, task.version)
    listeners = [socket.socket(fileno=descriptor) for descriptor in task.listeners]
    server = _Server(
        uvicorn.Config(app, lifespan="off", access_log=False, timeout_graceful_shutdown=END_SECONDS)
    )
    server.watcher = watcher
    obeying = asyncio.create_task(server.obey(app, task.control, listeners))
    await server.serve(sockets=[socket.create_server((LOOPBACK, task.port))])
    await obeying


def main() -> None:
    """The entry point."""
    asyncio.run(_serve(WorkerTask.from_json(sys.argv[1])))


if __name__ == "__main__":
    main()
