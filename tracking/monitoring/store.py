"""What a served model has seen, in a SQLite file of the home: servers add to it, and `binsweep monitor` reads it.

Everything in it is bounded: counts per bin in all and for the last blocks of photos, one row for each of the last
photos (no pixels), true labels, and a few thumbnails where they were asked for. A block is what the drift tests look
at: it is closed with the addition that brings it to BLOCK_PHOTOS measured photos, and its number says which look it is.
"""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from binsweep.data.errors import UserError
from binsweep.tracking.monitoring.figures import PhotoStats

FILE_NAME = "watch.db"
FORMAT = 1
BLOCK_PHOTOS = 250  # measured photos, after which a look at drift is due
MAX_BLOCKS = 400  # of a version
MAX_PHOTOS = 100_000  # of all versions; 20 MB
MAX_TRUTHS = 100_000
MAX_THUMBNAILS = 24  # of a version
MAX_VERSIONS = 20
BUSY_SECONDS = 10.0  # that another process may hold the file
ALL = 0  # the block in which everything is counted
_SCHEMA = f"""
CREATE TABLE counts (version TEXT, block INTEGER, figure TEXT, bin TEXT, n INTEGER NOT NULL, total REAL NOT NULL,
    PRIMARY KEY (version, block, figure, bin)) WITHOUT ROWID;
CREATE TABLE blocks (version TEXT, block INTEGER, began REAL, ended REAL, measured INTEGER,
    PRIMARY KEY (version, block)) WITHOUT ROWID;
CREATE TABLE photos (number INTEGER PRIMARY KEY AUTOINCREMENT, version TEXT, sha256 BLOB, at REAL, answer TEXT,
    confidence REAL, bytes INTEGER, brightness REAL, sharpness REAL, width INTEGER, height INTEGER,
    UNIQUE (version, sha256));
CREATE TABLE truths (number INTEGER PRIMARY KEY AUTOINCREMENT, sha256 BLOB UNIQUE, truth TEXT, at REAL);
CREATE TABLE shadowed (number INTEGER PRIMARY KEY AUTOINCREMENT, version TEXT, challenger TEXT, sha256 BLOB, at REAL,
    answer TEXT, other TEXT, confidence REAL, other_confidence REAL, jpeg BLOB, UNIQUE (version, challenger, sha256));
CREATE TABLE thumbnails (version TEXT, sha256 BLOB, oddness REAL, jpeg BLOB, PRIMARY KEY (version, sha256));
PRAGMA user_version = {FORMAT};
"""
Counts = dict[str, dict[str, int]]  # figure -> bin -> how often


@dataclass(frozen=True, slots=True)
class AnsweredPhoto:
    """A photo that was answered at `at` (seconds since 1970): its file's sha256 and bytes, the answer as JSON, and what
    was measured, None if the server had no time for it."""

    sha256: bytes
    at: float
    answer: str
    confidence: float
    bytes: int
    stats: PhotoStats | None


@dataclass(frozen=True, slots=True)
class ShadowedPhoto:
    """A photo that a challenger was asked about, too: both answers as JSON, and a thumbnail if they differ and
    thumbnails were asked for."""

    sha256: bytes
    at: float
    answer: str
    other: str
    confidence: float
    other_confidence: float
    jpeg: bytes | None


@dataclass
class Tally:
    """What was counted since the last addition to the store: (figure, bin) -> [how often, sum of the values]."""

    counts: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0.0]))
    photos: list[AnsweredPhoto] = field(default_factory=list)
    thumbnails: list[tuple[bytes, float, bytes]] = field(default_factory=list)  # sha256, oddness, JPEG
    measured: int = 0

    def add(self, figure: str, place: object, value: float = 0.0, times: int = 1) -> None:
        """Count `value` in the bin `place` of a figure."""
        cell = self.counts[figure, str(place)]
        cell[0] += times
        cell[1] += value


@dataclass(frozen=True)
class Block:
    """The counts of consecutive photos, and when the first and the last of them were answered."""

    number: int
    began: float
    ended: float
    measured: int
    counts: Counts


def store_path(home: Path, model: str) -> Path:
    """The file of a registered model; a name may have any characters."""
    return home / "serving" / quote(model, safe=" ()+,=@'!") / FILE_NAME


class WatchStore:
    """The file of a model. Each call is a transaction of its own, so that threads and processes may share the file."""

    def __init__(self, path: Path) -> None:
        """Open it, and create it if it does not exist. Raises OSError or sqlite3.Error if that fails, UserError for a
        file of another format."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    database.execute(statement)
        if version not in (0, FORMAT):
            raise UserError(
                f"{path} has format {version}, and this Binsweep knows {FORMAT}",
                "use the Binsweep that wrote it, or move the file away",
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def add(self, version: str, tally: Tally) -> None:
        """Add what a server of `version` has counted."""
        with self._transaction() as database:
            # What is added later is known to be later, though the clock was set back meanwhile.
            (latest,) = database.execute("SELECT coalesce(max(ended), 0) FROM blocks").fetchone()
            now = max(time.time(), latest + 0.001)
            block = self._open_block(database, version, tally.measured, now)
            rows = [
                (version, number, figure, place, times, total)
                for (figure, place), (times, total) in tally.counts.items()
                for number in (ALL, block)
            ]
            database.executemany(
                "INSERT INTO counts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (version, block, figure, bin)"
                " DO UPDATE SET n = n + excluded.n, total = total + excluded.total",
                rows,
            )
            self._add_photos(database, version, tally)

    def _open_block(self, database: sqlite3.Connection, version: str, measured: int, now: float) -> int:
        """The number of the block that takes an addition; the block before is closed if it is full."""
        last = database.execute(
            "SELECT block, measured FROM blocks WHERE version = ? ORDER BY block DESC LIMIT 1", (version,)
        ).fetchone()
        number, full = (1, True) if last is None else (last[0], last[1] >= BLOCK_PHOTOS)
        if full:
            number += last is not None
            database.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, 0)", (version, number, now, now))
            self._prune(database, version, number)
        database.execute(
            "UPDATE blocks SET ended = ?, measured = measured + ? WHERE version = ? AND block = ?",
            (now, measured, version, number),
        )
        return int(number)

    def _prune(self, database: sqlite3.Connection, version: str, newest: int) -> None:
        """Forget the oldest blocks of a version, and the versions that were served longest ago."""
        for table in ("counts", "blocks"):
            database.execute(
                f"DELETE FROM {table} WHERE version = ? AND block BETWEEN 1 AND ?",
                (version, newest - MAX_BLOCKS),
            )
        kept = "SELECT version FROM blocks GROUP BY version ORDER BY max(ended) DESC LIMIT ?"
        for table in ("counts", "blocks", "thumbnails"):
            database.execute(f"DELETE FROM {table} WHERE version NOT IN ({kept})", (MAX_VERSIONS,))

    def _add_photos(self, database: sqlite3.Connection, version: str, tally: Tally) -> None:
        database.executemany(
            "INSERT OR REPLACE INTO photos (version, sha256, at, answer, confidence, bytes, brightness, sharpness,"
            " width, height) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (version, one.sha256, one.at, one.answer, one.confidence, one.bytes, *_measured(one.stats))
                for one in tally.photos
            ],
        )
        _forget(database, "photos", MAX_PHOTOS)
        if tally.thumbnails:
            database.executemany(
                "INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?, ?)",
                [(version, *thumbnail) for thumbnail in tally.thumbnails],
            )
            database.execute(
                "DELETE FROM thumbnails WHERE version = ? AND sha256 NOT IN (SELECT sha256 FROM thumbnails"
                " WHERE version = ? ORDER BY oddness DESC LIMIT ?)",
                (version, version, MAX_THUMBNAILS),
            )

    def add_truths(self, truths: Sequence[tuple[bytes, str]]) -> int:
        """Keep true labels (sha256 of a photo's file, label as JSON); a later one for the same photo replaces it.

        Returns how many of the photos are among the last that were answered; a truth may also come before the answer.
        """
        now = time.time()
        with self._transaction() as database:
            database.executemany(
                "INSERT OR REPLACE INTO truths (sha256, truth, at) VALUES (?, ?, ?)",
                [(sha256, truth, now) for sha256, truth in truths],
            )
            _forget(database, "truths", MAX_TRUTHS)
            find = "SELECT 1 FROM photos WHERE sha256 = ? LIMIT 1"
            return sum(
                database.execute(find, (sha256,)).fetchone() is not None for sha256 in {t[0] for t in truths}
            )

    def add_shadowed(self, version: str, challenger: str, photos: Sequence[ShadowedPhoto]) -> None:
        """Keep both answers to photos; of one that was asked before, the last ones."""
        with self._transaction() as database:
            database.executemany(
                "INSERT OR REPLACE INTO shadowed (version, challenger, sha256, at, answer, other, confidence,"
                " other_confidence, jpeg) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(version, challenger, one.sha256, one.at, one.answer, one.other),
                        *(one.confidence, one.other_confidence, one.jpeg),
                    )
                    for one in photos
                ],
            )
            _forget(database, "shadowed", MAX_PHOTOS)
            database.execute(
                "UPDATE shadowed SET jpeg = NULL WHERE jpeg IS NOT NULL AND number NOT IN"
                " (SELECT number FROM shadowed WHERE jpeg IS NOT NULL ORDER BY number DESC LIMIT ?)",
                (MAX_THUMBNAILS,),
            )

    def challengers(self, version: str) -> list[str]:
        """The versions that answered in the shadow of a version, the last one first."""
        rows = self._read(
            "SELECT challenger FROM shadowed WHERE version = ? GROUP BY challenger ORDER BY max(number) DESC",
            version,
        )
        return [challenger for (challenger,) in rows]

    def shadowed(self, version: str, challenger: str) -> list[tuple[ShadowedPhoto, str | None]]:
        """The last photos that both have answered, in order, each with its true label as JSON if that is known."""
        rows = self._read(
            "SELECT sha256, shadowed.at, answer, other, confidence, other_confidence, jpeg, truth FROM shadowed"
            " LEFT JOIN truths USING (sha256) WHERE version = ? AND challenger = ? ORDER BY shadowed.number",
            version,
            challenger,
        )
        return [(ShadowedPhoto(*row[:7]), row[7]) for row in rows]

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as database:
            return database.execute(query, values).fetchall()

    def versions(self) -> list[str]:
        """The versions that were watched, the one that was served last first."""
        rows = self._read("SELECT version FROM blocks GROUP BY version ORDER BY max(ended) DESC")
        return [version for (version,) in rows]

    def totals(self, version: str) -> dict[str, dict[str, tuple[int, float]]]:
        """Everything that was counted for a version: figure -> bin -> (how often, sum of the values)."""
        found: dict[str, dict[str, tuple[int, float]]] = defaultdict(dict)
        query = "SELECT figure, bin, n, total FROM counts WHERE version = ? AND block = ?"
        for figure, place, times, total in self._read(query, version, ALL):
            found[figure][place] = (times, total)
        return dict(found)

    def blocks(self, version: str, last: int = MAX_BLOCKS) -> list[Block]:
        """The last blocks of a version in order; the newest one may not be full yet."""
        heads = self._read(
            "SELECT block, began, ended, measured FROM blocks WHERE version = ? ORDER BY block DESC LIMIT ?",
            version,
            last,
        )
        if not heads:
            return []
        counts: dict[int, Counts] = defaultdict(lambda: defaultdict(dict))
        query = "SELECT block, figure, bin, n FROM counts WHERE version = ? AND block >= ?"
        for number, figure, place, times in self._read(query, version, heads[-1][0]):
            counts[number][figure][place] = times
        return [
            Block(number, began, ended, measured, counts[number])
            for number, began, ended, measured in reversed(heads)
        ]

    def photos(self, version: str) -> list[AnsweredPhoto]:
        """The last photos of a version, in the order of their answers."""
        query = (
            "SELECT sha256, at, answer, confidence, bytes, brightness, sharpness, width, height FROM photos"
            " WHERE version = ? ORDER BY number"
        )
        return [_photo(*row) for row in self._read(query, version)]

    def judged(self, version: str) -> list[tuple[str, str]]:
        """The answer and the true label, both as JSON, of each of the last photos whose label is known."""
        query = "SELECT answer, truth FROM photos JOIN truths USING (sha256) WHERE version = ? ORDER BY photos.number"
        return [(answer, truth) for answer, truth in self._read(query, version)]

    def thumbnails(self, version: str) -> dict[bytes, bytes]:
        """The thumbnails of a version, JPEG by the sha256 of the photo's file."""
        rows = self._read("SELECT sha256, jpeg FROM thumbnails WHERE version = ?", version)
        return dict(rows)


def _photo(
    sha256: bytes, at: float, answer: str, confidence: float, size: int, brightness: float | None, *stats: Any
) -> AnsweredPhoto:
    measured = None if brightness is None else PhotoStats(brightness, *stats)
    return AnsweredPhoto(sha256, at, answer, confidence, size, measured)


def _measured(stats: PhotoStats | None) -> tuple[float | None, ...]:
    return (None,) * 4 if stats is None else (stats.brightness, stats.sharpness, stats.width, stats.height)


def _forget(database: sqlite3.Connection, table: str, kept: int) -> None:
    """Keep the newest rows of a table."""
    database.execute(f"DELETE FROM {table} WHERE number <= (SELECT max(number) FROM {table}) - ?", (kept,))
