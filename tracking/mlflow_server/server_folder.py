"""The folder of the embedded server in a home: its database, its locks, and the record of the running server."""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from binsweep.data.atomic_write import write_bytes
from binsweep.data.locks import locked_or_refused
from binsweep.tracking.processes import Server

# Waiting ends at once if the server does. Migrating a cold database takes half a minute, on a busy machine several.
START_SECONDS = 180.0
# Waiting for the lock includes the time to find a server hung, end it and start another.
LOCK_TIMEOUT_SECONDS = 2 * START_SECONDS + 30.0
DATABASE = "mlflow.db"
USERS_LOCK = "users.lock"
SERVER = "server.json"


def server_folder(home: Path) -> Path:
    """The folder of the embedded server in `home`, created if it does not exist."""
    folder = home.absolute() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def database_uri(folder: Path) -> str:
    return f"sqlite:///{folder / DATABASE}"


def start_lock(folder: Path) -> AbstractContextManager[None]:
    """One process at a time starts, shares or ends a server here, so that a database is migrated only once."""
    return locked_or_refused(
        folder / "start.lock",
        LOCK_TIMEOUT_SECONDS,
        f"another process is starting the MLflow server of {folder.parent}",
        "end the process that holds the lock, or use another BINSWEEP_HOME",
    )


def recorded_server(folder: Path) -> Server | None:
    """The server that server.json records, alive or not."""
    try:
        return Server(**json.loads((folder / SERVER).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def record_server(folder: Path, server: Server) -> None:
    write_bytes(folder / SERVER, json.dumps(asdict(server)).encode(), durable=False)
