"""The schema of the embedded server's database: checked before a start, migrated on request with a copy kept."""

import contextlib
import importlib.util
import os
import re
import shlex
import sqlite3
import subprocess
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.data.locks import open_lock, try_lock
from binsweep.data.python_process import python_module, without_working_folder
from binsweep.tracking.mlflow_server.server_folder import DATABASE, USERS_LOCK, recorded_server, start_lock
from binsweep.tracking.processes import clean_environment, end

MIGRATION_SECONDS = 1800.0
_BACKUP_NAME = re.compile(r"mlflow\.before-(\d+)\.db")
# The lines in which one of MLflow's migrations names its schema and the one before it.
_REVISION = re.compile(r"^(down_)?revision\b.*?= *[\"'](\w+)[\"']", re.MULTILINE)


def migrate_database(home: Path) -> Path | None:
    """Migrate the MLflow database of `home` to the schema of this MLflow; returns the backup of the old one, or None
    if the schema is this MLflow's already.

    The migration runs on a second copy, which then replaces the database. Raises UserError if there is no database,
    if it is in use, or if it cannot be migrated; then nothing has changed.
    """
    folder = home.absolute() / "mlflow"
    database = folder / DATABASE
    if not database.exists():
        raise UserError(
            f"there is no MLflow database in {home}", "set BINSWEEP_HOME to the home that you mean"
        )
    users = open_lock(folder / USERS_LOCK)
    try:
        with start_lock(folder):
            if not try_lock(users):
                raise UserError(
                    f"the MLflow database of {home} is in use",
                    "wait until its sweeps have ended, or end them",
                )
            if server := recorded_server(folder):
                end(server)  # left by a killed sweep
            return None if _schema_to_migrate(database) is None else _migrate(database)
    finally:
        os.close(users)


def _migrate(database: Path) -> Path:
    numbers = [
        int(found[1]) for file in database.parent.iterdir() if (found := _BACKUP_NAME.fullmatch(file.name))
    ]
    backup = database.with_name(f"{database.stem}.before-{max(numbers, default=0) + 1}.db")
    work = database.with_name(f"{database.name}.new")
    try:
        for copy in (backup, work):
            _copy_database(database, copy)
        process = subprocess.run(
            python_module("mlflow", "db", "upgrade", f"sqlite:///{work}"),
            cwd=database.parent,
            env=without_working_folder(clean_environment({})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MIGRATION_SECONDS,
        )
        if process.returncode != 0:
            reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise UserError(f"{database} cannot be migrated: {reason}", "nothing was changed")
        work.replace(database)
    except (sqlite3.Error, OSError, subprocess.TimeoutExpired) as error:
        backup.unlink(missing_ok=True)
        raise UserError(f"{database} cannot be migrated: {error}", "nothing was changed") from error
    except BaseException:
        backup.unlink(missing_ok=True)
        raise
    finally:
        work.unlink(missing_ok=True)
    return backup


def _copy_database(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(source)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


def require_current_schema(database: Path) -> None:
    """Raise UserError if another MLflow wrote `database`: ours would refuse it, or change it without a backup."""
    if (schema := _schema_to_migrate(database)) is None:
        return
    with contextlib.closing(sqlite3.connect(database)) as opened:
        has_runs = bool(opened.execute("select 1 from runs limit 1").fetchall())
    if has_runs:
        home = f"BINSWEEP_HOME={shlex.quote(str(database.parent.parent))}"
        raise UserError(
            f"{database} was written by an older MLflow (schema {schema})",
            f"`{home} binsweep migrate` keeps a copy and brings it up to date; all runs and models stay",
        )
    _migrate(database).unlink()  # left by an interrupted first start: it holds nothing


def _schema_to_migrate(database: Path) -> str | None:
    """The schema of a database that an older MLflow wrote; None if there is nothing to migrate.

    Raises UserError for a file that is no database, and for one that a newer MLflow wrote.
    """
    if not database.exists():
        return None
    with contextlib.closing(sqlite3.connect(database)) as opened:
        try:
            ((schema,),) = opened.execute("select version_num from alembic_version").fetchall()
        except (sqlite3.OperationalError, ValueError):
            return None  # empty, or locked: MLflow's own server creates its tables, or reports it
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{database} is damaged: {error}",
                "put a copy of it back, or move it away: the runs and models in it are lost to a new one, which gets "
                "the sweeps' runs again by `binsweep sync`",
            ) from error
    known, newest = _schemas()
    if schema == newest or not newest:
        return None
    if schema not in known:
        raise UserError(
            f"{database} was written by a newer MLflow (schema {schema}, this one has {newest})",
            "install the Binsweep that wrote it, or use another BINSWEEP_HOME",
        )
    return str(schema)


def _schemas() -> tuple[set[str], str]:
    """The schemas that this MLflow knows, and the newest of them ("" if that cannot be determined)."""
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    files = (Path(spec.origin).parent / "store" / "db_migrations" / "versions").glob("*.py")
    found = [match for file in files for match in _REVISION.findall(file.read_text(encoding="utf-8"))]
    known = {schema for down, schema in found if not down}
    newest = known - {schema for down, schema in found if down}
    return known, newest.pop() if len(newest) == 1 else ""
