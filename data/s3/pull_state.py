"""The state of a pull in SQLite: the bucket's objects, the chosen ones, and those that are complete on this disk.

A listing of any length stays out of memory, and a killed pull continues from its last transaction.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from binsweep.data.decode import VERSION as DECODER_VERSION

_FORMAT = "1"
_TABLES = """
create table if not exists facts (name text primary key, value text);
-- The bucket's current objects; rebuilt by every run.
create table if not exists listed (
    name text primary key, layout text, kind text, id text, label, split text, size integer, etag text
) without rowid;
create index if not exists listed_id on listed (layout, kind, id);
create table if not exists asked (id text primary key) without rowid;
create table if not exists chosen (id text primary key, label, split text) without rowid;
create table if not exists problems (id text, reason text, unique (id, reason));
-- Objects that this run and earlier ones have read; valid while size and etag equal the listed ones.
create table if not exists documents (
    id text primary key, size integer, etag text,
    label integer, reason text, disagreement text, names text, quantities text
) without rowid;
create table if not exists images (
    name text primary key, size integer, etag text, sha256 text, width integer, height integer, reason text
) without rowid;
"""
_RUN_TABLES = ("listed", "asked", "chosen", "problems")
_COMMIT_INTERVAL = 256


class _OtherFormat(sqlite3.DatabaseError):
    """The database has another version."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error means that the database is corrupt.

    SQLite raises the same class for a full or failing disk and for a lock, which leave the database intact.
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, _OtherFormat) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def remove_pull_state(folder: Path) -> None:
    """Remove the database in `folder`; the next pull starts from nothing."""
    for file in folder.glob("ledger.db*"):
        file.unlink()


class PullState:
    """The state in `folder`, for one thread. Without `close`, the last changes are lost."""

    def __init__(self, folder: Path) -> None:
        path = folder / "ledger.db"
        try:
            self._open(path)
        except sqlite3.DatabaseError as error:
            with suppress(AttributeError):
                self._connection.close()
            # A table of another version raises the general error.
            if not is_damage(error) and getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR:
                raise
            remove_pull_state(folder)  # damaged, or of another version: everything is fetched again
            self._open(path)
        self._uncommitted = 0

    def _open(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        # A power cut may lose the last changes, here and of the images; a new pull fetches them again.
        self._connection.executescript("pragma journal_mode = wal; pragma synchronous = off;")
        # Created anew: in those of earlier versions, a name of digits would become a number.
        for table in _RUN_TABLES:
            self._connection.execute(f"drop table if exists {table}")
        self._connection.executescript(_TABLES)
        if self.fact("format") not in (None, _FORMAT):
            raise _OtherFormat
        self._connection.create_function("place", 2, _shuffle_key, deterministic=True)
        self._connection.execute("begin")
        self._connection.execute("insert or replace into facts values ('format', ?)", (_FORMAT,))
        # Another decoder may read images that the last one could not.
        if self.fact("decoder") != str(DECODER_VERSION):
            self._connection.execute("update images set etag = '' where reason != ''")
            self._connection.execute(
                "insert or replace into facts values ('decoder', ?)", (str(DECODER_VERSION),)
            )

    def write(self, statement: str, values: tuple[Any, ...] = ()) -> None:
        """Execute a change; every `_COMMIT_INTERVAL`-th one commits."""
        self._connection.execute(statement, values)
        self._uncommitted += 1
        if self._uncommitted >= _COMMIT_INTERVAL:
            self.commit()

    def fill(self, table: str, rows: Iterable[tuple[Any, ...]], columns: int) -> None:
        """Add rows to a table; the first row of each key stays."""
        marks = ", ".join("?" * columns)
        self._connection.executemany(f"insert or ignore into {table} values ({marks})", rows)
        self.commit()

    def commit(self) -> None:
        self._connection.execute("commit")
        self._connection.execute("begin")
        self._uncommitted = 0

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[Any]:
        """The rows of a query, a thousand at a time; its tables must not change meanwhile."""
        cursor = self._connection.cursor()
        cursor.arraysize = 1000
        cursor.execute(query, values)
        while some := cursor.fetchmany():
            yield from some

    def scalar(self, query: str, values: tuple[Any, ...] = ()) -> int:
        """The single number of a query's result."""
        return int(self._connection.execute(query, values).fetchone()[0] or 0)

    def fact(self, name: str, value: str | None = None) -> str | None:
        """A stored text by name; with `value`, store it."""
        if value is not None:
            self.write("insert or replace into facts values (?, ?)", (name, value))
            return value
        row = self._connection.execute("select value from facts where name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def problem(self, id: str, reason: str) -> None:
        """Record why something is left out or doubtful."""
        self.write("insert or ignore into problems values (?, ?)", (id, reason))

    def close(self) -> None:
        with suppress(sqlite3.Error):  # a full disk: the last objects are fetched again
            self._connection.execute("commit")
        self._connection.close()


def _shuffle_key(seed: int, id: str) -> int:
    """The place of an image in the shuffled order of a seed; it depends on nothing but the id."""
    digest = hashlib.blake2b(f"{seed}\n{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
