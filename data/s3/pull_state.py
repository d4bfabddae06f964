"""What a pull knows: which objects the bucket has, which are chosen, and which lie here whole.

One SQLite file beside the data. It holds a listing of any length outside the memory, and because each of its
transactions is whole or absent, a pull that was killed goes on from the last one.
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
-- What the bucket has now; rebuilt by every run.
create table if not exists listed (
    name text primary key, layout text, kind text, id text, label integer, split text, size integer, etag text
) without rowid;
create index if not exists listed_id on listed (layout, kind, id);
create table if not exists asked (id text primary key) without rowid;
create table if not exists chosen (id text primary key, label integer, split text) without rowid;
create table if not exists problems (id text, reason text, unique (id, reason));
-- What earlier runs and this one have read; true as long as size and etag are the listed ones.
create table if not exists documents (
    id text primary key, size integer, etag text,
    label integer, reason text, disagreement text, names text, quantities text
) without rowid;
create table if not exists images (
    name text primary key, size integer, etag text, sha256 text, width integer, height integer, reason text
) without rowid;
"""
_OF_ONE_RUN = ("listed", "asked", "chosen", "problems")
_BATCH = 256


class _AnotherFormat(sqlite3.DatabaseError):
    """A ledger of another version."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the ledger is no ledger any more: what it holds is lost.

    A full disk, one that fails, or a lock that somebody holds is an error of the same class in SQLite's eyes,
    and leaves the ledger as it was.
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, _AnotherFormat) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def remove_ledger(folder: Path) -> None:
    """Take away the ledger in `folder`: the next pull begins anew."""
    for file in folder.glob("ledger.db*"):
        file.unlink()


class PullState:
    """The ledger in `folder`; one thread uses it. Close it, or what was written last is lost."""

    def __init__(self, folder: Path) -> None:
        path = folder / "ledger.db"
        try:
            self._open(path)
        except sqlite3.DatabaseError as error:
            with suppress(AttributeError):
                self._base.close()
            # The general error is what a table of another version gives.
            if not is_damage(error) and getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR:
                raise
            remove_ledger(folder)  # damaged, or of another version: only time is lost
            self._open(path)
        self._waiting = 0

    def _open(self, path: Path) -> None:
        self._base = sqlite3.connect(path, isolation_level=None)
        # The data are files beside this one: a power cut may lose the last of both, which a new pull fetches.
        self._base.executescript("pragma journal_mode = wal; pragma synchronous = off;")
        self._base.executescript(_TABLES)
        if self.fact("format") not in (None, _FORMAT):
            raise _AnotherFormat
        self._base.create_function("place", 2, _place, deterministic=True)
        self._base.execute("begin")
        self._base.execute("insert or replace into facts values ('format', ?)", (_FORMAT,))
        for table in _OF_ONE_RUN:
            self._base.execute(f"delete from {table}")
        if self.fact("decoder") != str(DECODER_VERSION):  # another one may read what this one could not
            self._base.execute("update images set etag = '' where reason != ''")
            self._base.execute("insert or replace into facts values ('decoder', ?)", (str(DECODER_VERSION),))

    def write(self, statement: str, values: tuple[Any, ...] = ()) -> None:
        """Change something; kept at the latest with every `_BATCH`-th change."""
        self._base.execute(statement, values)
        self._waiting += 1
        if self._waiting >= _BATCH:
            self.commit()

    def fill(self, table: str, rows: Iterable[tuple[Any, ...]], columns: int) -> None:
        """Add many rows, of which the first of each key stays."""
        marks = ", ".join("?" * columns)
        self._base.executemany(f"insert or ignore into {table} values ({marks})", rows)
        self.commit()

    def commit(self) -> None:
        self._base.execute("commit")
        self._base.execute("begin")
        self._waiting = 0

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[Any]:
        """The rows of a query, a thousand at a time in memory; none of its tables may change meanwhile."""
        cursor = self._base.cursor()
        cursor.arraysize = 1000
        cursor.execute(query, values)
        while some := cursor.fetchmany():
            yield from some

    def number(self, query: str, values: tuple[Any, ...] = ()) -> int:
        """The single number that a query gives."""
        return int(self._base.execute(query, values).fetchone()[0] or 0)

    def fact(self, name: str, value: str | None = None) -> str | None:
        """A remembered text; with `value`, remember it."""
        if value is not None:
            self.write("insert or replace into facts values (?, ?)", (name, value))
            return value
        row = self._base.execute("select value from facts where name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def problem(self, id: str, reason: str) -> None:
        """Remember why something is left out or doubtful."""
        self.write("insert or ignore into problems values (?, ?)", (id, reason))

    def close(self) -> None:
        with suppress(sqlite3.Error):  # a full disk: the last batch is fetched again
            self._base.execute("commit")
        self._base.close()


def _place(seed: int, id: str) -> int:
    """Where an image stands in the shuffled order of a seed: by nothing but its id."""
    digest = hashlib.blake2b(f"{seed}\n{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
