"""The MLflow UI of a home in the foreground, for `binsweep mlflow`."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from binsweep.data.errors import UserError
from binsweep.tracking.mlflow_server.embedded import launch
from binsweep.tracking.mlflow_server.server_folder import database_uri, server_folder, start_lock
from binsweep.tracking.processes import (
    LOOPBACK,
    Server,
    end,
    interrupted_by_sigterm,
    listening_process,
    require_port,
    wait_in_foreground,
)

_LOCAL_HOSTS = ("localhost", "localhost:*", LOOPBACK, f"{LOOPBACK}:*")


def run_ui(
    home: Path,
    port: int,
    ready: Callable[[str], None],
    allowed_hosts: Sequence[str] = (),
    static_prefix: str = "",
) -> int:
    """Serve the MLflow UI of `home` on 127.0.0.1:`port` until Ctrl-C or SIGTERM (130) or until it ends itself (1).

    `ready` is called once with the address when it answers. The UI is a second server next to the shared one, on the
    same database, so that neither ends the other. A browser may reach it under the names of `allowed_hosts` (a
    tunnel, a notebook's proxy; * allows any), below the path `static_prefix`. Raises UserError if the port is taken.
    """
    folder = server_folder(home)
    prefix = f"/{static_prefix.strip('/')}" if static_prefix.strip("/") else ""
    if address := _ui_address(folder, port):
        raise UserError(
            f"port: the MLflow of {home} is at {address} already",
            "open that, or start another one with --port",
        )
    require_port(port)
    options = [*_host_options(allowed_hosts), *(["--static-prefix", prefix] if prefix else [])]
    with interrupted_by_sigterm():
        server: Server | None = None
        try:
            with start_lock(folder):
                server = launch(folder, port, options, f"{prefix}/health")
            ready(server.url + prefix)
            return wait_in_foreground(server)
        except KeyboardInterrupt:
            return 130
        finally:
            if server is not None:
                end(server)


def _host_options(hosts: Sequence[str]) -> list[str]:
    """The server's options that admit browsers under the names `hosts`; none keeps MLflow's own rule."""
    names = [urlsplit(host if "://" in host else f"//{host}").netloc for host in hosts]
    if not any(names):
        return []
    allowed = [name for name in names if name]
    allowed += [f"{name}:*" for name in allowed if ":" not in name and name != "*"]
    # A page may call the server only from the origin that it was loaded from.
    origins = [f"{scheme}://{name}" for name in allowed for scheme in ("https", "http")]
    if "*" in allowed:
        origins = ["*"]
    return [
        "--allowed-hosts", ",".join([*_LOCAL_HOSTS, *allowed]), "--cors-allowed-origins", ",".join(origins)
    ]  # fmt: skip


def _ui_address(folder: Path, port: int) -> str | None:
    """The address of this home's MLflow, if it is the process that listens on `port`."""
    process = listening_process(port)
    with contextlib.suppress(psutil.Error):
        for ancestor in [process, *process.parents()] if process else []:
            arguments = ancestor.cmdline()
            if database_uri(folder) in arguments:
                prefix = ""
                if "--static-prefix" in arguments:
                    prefix = arguments[arguments.index("--static-prefix") + 1]
                return f"http://{LOOPBACK}:{port}{prefix}"
    return None
