"""The page's server in the foreground, for `binsweep ui`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import uvicorn

from binsweep.data.errors import UserError
from binsweep.search.history.sweep_state import folders_by_age
from binsweep.search.ui.app import make_app
from binsweep.search.ui.guard import new_token
from binsweep.search.ui.promotions import Promotions
from binsweep.search.ui.views import Home
from binsweep.tracking.mlflow_server.beside import ServerBeside
from binsweep.tracking.mlflow_server.named_server import named_registry, named_server
from binsweep.tracking.processes import LOOPBACK, listen

START_SECONDS = 30.0
LOOK_SECONDS = 0.2


def serve_ui(home: Path, port: int, ready: Callable[[str], None], dashboard: str | None = None) -> int:
    """Serve the page of `home` on 127.0.0.1:`port` until Ctrl-C or SIGTERM (130) or until it ends itself (1).

    `ready` is called once with the link that opens it. MLflow's server is started, or shared, meanwhile. Raises
    UserError if the port is taken, or if MLFLOW_TRACKING_URI or MLFLOW_REGISTRY_URI is
    no server's address.
    """
    named_server()  # a mistake is told before anything starts
    named_registry()
    sockets = listen(LOOPBACK, port)
    with ExitStack() as stack:
        for one in sockets:
            stack.callback(one.close)
        shown, token, promotions = Home(home), new_token(), Promotions(home)
        mlflow = ServerBeside(home)
        stack.callback(mlflow.close)
        stack.callback(_end_promotions, promotions)
        app = make_app(shown, port, token, mlflow, promotions, dashboard)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", server_header=False,
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = uvicorn.Server(config)
        # In a thread, where uvicorn leaves signals to the command line, which ends this process in order.
        thread = threading.Thread(target=server.run, args=(sockets,), name="ui", daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                thread.join(LOOK_SECONDS / 10)
            if server.started:
                ready(f"http://{LOOPBACK}:{port}/#token={token}")
                threading.Thread(target=_read_newest, args=(shown,), name="reading", daemon=True).start()
            while thread.is_alive():
                thread.join(LOOK_SECONDS)
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)


def _read_newest(home: Home) -> None:
    """Read the sweep that is probably looked at first, before it is asked for."""
    with suppress(UserError, OSError, KeyError, ValueError):
        home.sweep(folders_by_age(home.folder)[0].name).state()


def _end_promotions(promotions: Promotions) -> None:
    for sweep in promotions.end():
        print(
            f"the promotion of {sweep} was interrupted; what it has trained is kept, and the next one goes on with it",
            file=sys.stderr,
        )


def opening_file(folder: Path, url: str) -> Path:
    """A file for this user alone that forwards a browser to `url`, so that its token is on no command line."""
    file = folder / "open-ui.html"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(
            f'<!doctype html><meta http-equiv="refresh" content="0;url={url}"><title>binsweep</title>'
        )
    return file
