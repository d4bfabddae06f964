"""A real PostgreSQL server for tests, where its programs are installed."""

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from binsweep.tracking.processes import (
    LOOPBACK,
    clean_environment,
    end,
    free_port,
    spawn,
    tail,
    wait_until_answers,
)


def _program(name: str) -> str:
    """Debian keeps them outside of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(places[-1]) if places else None)
    if found is None:
        pytest.skip(f"PostgreSQL is not here: no {name} in PATH or /usr/lib/postgresql")
    return found


@contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database; skips where there is no PostgreSQL. It refuses to run as root."""
    user = "postgres" if os.getuid() == 0 else None
    initdb, server = _program("initdb"), _program("postgres")
    # Not under pytest's folders: those of root are closed to others.
    with tempfile.TemporaryDirectory(prefix="binsweep-pg-", ignore_cleanup_errors=True) as folder:
        if user is not None:
            shutil.chown(folder, user)
        data, port = Path(folder) / "data", free_port()
        name = user or getpass.getuser()
        words = [initdb, "-D", str(data), "-U", name, "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(words, check=True, capture_output=True, user=user, cwd=folder, timeout=120)
        words = [server, "-D", str(data), "-h", LOOPBACK, "-p", str(port), "-k", folder]
        with subprocess.Popen(words, user=user, cwd=folder, stderr=subprocess.DEVNULL) as process:
            try:
                _wait(port, name)
                yield f"postgresql://{name}@{LOOPBACK}:{port}/postgres"
            finally:
                process.terminate()
                process.wait(30)


def _wait(port: int, user: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host=LOOPBACK, port=port, user=user, dbname="postgres").close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.1)


@contextmanager
def mlflow_on(database: str, folder: Path) -> Iterator[str]:
    """The address of an MLflow server over that database."""
    port, log = free_port(), folder / "server.log"
    words = ["server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", database, "--artifacts-destination", (folder / "artifacts").as_uri()]
    server = spawn(
        words, port, folder, log, clean_environment({"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    )
    try:
        assert wait_until_answers(server, "/health", 90), tail(log)
        yield server.url
    finally:
        end(server)
