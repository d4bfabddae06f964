"""The spool: an append-only file of checksummed records, to which every event of a sweep goes first.

A record is MARK, the payload's length and a CRC-32 over length and payload (both 4 bytes, big-endian), then
the payload: one JSON document in ASCII (NaN and Infinity as Python writes them). No byte of MARK is ASCII, so
the next record after a damaged range is found by searching for MARK: damage costs the records it touches and
no others. Every record carries its number `n`, counted from 1; a number that occurs twice is taken once. What has
been sent is stored as the last number and the late ones before it, which stays valid if parts of the file are lost.
"""

import contextlib
import json
import os
import struct
import threading
import uuid
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from binsweep.data.atomic_write import sync_folder, write_bytes
from binsweep.tracking.runlog.ownership import Ownership

Record = dict[str, Any]

MARK = b"\xb1\xf5\xbe\xd7"
_HEADER = struct.Struct(">4sII")
_LENGTH = struct.Struct(">I")
_MAX_PAYLOAD_BYTES = 32 * 2**20  # a greater length is damage
_SCAN_BYTES = 2**16


def encode_record(record: Record) -> bytes:
    """The bytes of one record, ready to be appended."""
    payload = json.dumps(record, separators=(",", ":")).encode("ascii")
    if len(payload) > _MAX_PAYLOAD_BYTES:
        raise ValueError(f"a record must have at most {_MAX_PAYLOAD_BYTES} bytes, got {len(payload)}")
    return _HEADER.pack(MARK, len(payload), _crc(payload)) + payload


def decode_records(fd: int, start: int, end: int) -> Iterator[tuple[Record | None, int]]:
    """Scan the bytes `start` to `end` of an open file.

    Yields each intact record with the offset of its end, and for each damaged range None with the offset where the
    next record may begin.
    """
    at = start
    while at < end:
        record, end_of_record = _record_at(fd, at, end)
        if record is None:
            end_of_record = _next_mark(fd, at + 1, end)
        yield record, end_of_record
        at = end_of_record


def _crc(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload))))


def _record_at(fd: int, at: int, end: int) -> tuple[Record | None, int]:
    header = os.pread(fd, _HEADER.size, at)
    if len(header) < _HEADER.size:
        return None, at
    mark, length, crc = _HEADER.unpack(header)
    end_of_record = at + _HEADER.size + length
    if mark != MARK or length > _MAX_PAYLOAD_BYTES or end_of_record > end:
        return None, at
    payload = os.pread(fd, length, at + _HEADER.size)
    if len(payload) < length or _crc(payload) != crc:
        return None, at
    try:
        record = json.loads(payload.decode("ascii"))  # of bytes, json would first look for their encoding
    except ValueError:
        return None, at
    return (
        (record, end_of_record)
        if isinstance(record, dict) and isinstance(record.get("n"), int)
        else (None, at)
    )


def _next_mark(fd: int, at: int, end: int) -> int:
    while at < end:
        chunk = os.pread(fd, min(_SCAN_BYTES, end - at), at)
        found = chunk.find(MARK)
        if found >= 0:
            return at + found
        if at + len(chunk) >= end or not chunk:
            break
        at += len(chunk) - len(MARK) + 1  # a mark may straddle two chunks
    return end


class Spool:
    """The spool of one directory, owned by one process at a time.

    `identity` names it permanently (it is part of the file's name, which damage to the content does not reach).
    `fresh` tells whether this process created it, `opened` when it opened it (`time.monotonic_ns()`). `damaged` counts
    the damaged ranges found on opening, `unsent` the intact records that wait. Any thread may append; only one may call
    `take` and `acknowledge`.
    """

    def __init__(self, directory: Path, visit: Callable[[Record], None]) -> None:
        """Open or create the spool of `directory`; `visit` is called with every intact record it already holds.

        Raises UserError if another process owns the directory's spool.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._ownership = Ownership(directory)
        self.opened = self._ownership.opened
        known = find_spool(directory)
        self.fresh = known is None
        self.path = known or directory / f"runlog-{uuid.uuid4().hex[:12]}.spool"
        self.identity = spool_identity(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        self._size = os.fstat(self._fd).st_size
        self._sent, known_late = self._load_sent()
        self._late: set[int] = set()  # numbers up to _sent that have not arrived
        self._last = self._sent
        self._taken: set[int] = set()  # numbers that were given out by `take` and have not arrived
        self.damaged = 0
        waiting: set[int] = set()
        self._position: int | None = None  # where `take` continues
        for record, start in self._scan():
            self._last = max(self._last, record["n"])
            if record["n"] in known_late:
                self._late.add(record["n"])
            if record["n"] > self._sent or record["n"] in known_late:
                waiting.add(record["n"])
                self._position = start if self._position is None else self._position
            visit(record)
        self._position = self._size if self._position is None else self._position
        self.unsent = len(waiting)
        if self.fresh:
            sync_folder(directory)

    def append(self, record: Record) -> int:
        """Number `record` and hand it to the operating system: from here on it survives this process.

        Returns its number; MLflow has it once `sent` has reached that. Raises OSError if the disk fails or is full; a
        part that was written then counts as a damaged range.
        """
        with self._lock:
            data = encode_record({"n": self._last + 1, **record})
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            finally:
                self._size = os.fstat(self._fd).st_size
            self._last += 1
            self.unsent += 1
            return self._last

    @property
    def sent(self) -> int:
        """The number up to which all records have arrived."""
        with self._lock:
            return min(self._late) - 1 if self._late else self._sent

    def sync(self) -> None:
        """Wait until the disk has all appended records: from here on they survive a power cut."""
        with self._lock:
            if self._fd < 0:
                return
            # A duplicate: appending and closing need not wait for the disk.
            fd = os.dup(self._fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def take(self, limit: int) -> list[Record]:
        """The next records to send, at most `limit`, by number; each is given out once."""
        with self._lock:
            start, end = self._position or 0, self._size
        batch: list[Record] = []
        for record, end_of_record in decode_records(self._fd, start, end):
            start = end_of_record
            if record is not None and self._waits(record["n"]):
                self._taken.add(record["n"])
                batch.append(record)
                if len(batch) == limit:
                    break
        self._position = start
        return sorted(batch, key=lambda record: int(record["n"]))

    def acknowledge(self, numbers: Collection[int], late: Collection[int] = ()) -> None:
        """Store that the records of these numbers have arrived, except those that are `late`.

        After a crash before this they are only sent once more.
        """
        with self._lock:
            if self._fd < 0:
                return
            arrived = set(numbers).difference(late)
            self.unsent -= len(arrived)
            self._sent = max(self._sent, *numbers)
            self._late = self._late.union(late) - arrived
            self._taken = {n for n in self._taken if n > self._sent or n in self._late}
            sent = encode_record({"n": self._sent, "late": sorted(self._late)})
            write_bytes(self.path.with_suffix(".sent"), sent, durable=False)

    def close(self) -> None:
        """Sync, and release the directory for the next owner."""
        self.sync()
        with self._lock:
            os.close(self._fd)
            self._fd = -1
            self._ownership.release()

    def _scan(self) -> Iterator[tuple[Record, int]]:
        start = 0
        for record, end_of_record in decode_records(self._fd, 0, self._size):
            if record is None:
                self.damaged += 1
            else:
                yield record, start
            start = end_of_record

    def _waits(self, number: int) -> bool:
        return (number > self._sent or number in self._late) and number not in self._taken

    def _load_sent(self) -> tuple[int, frozenset[int]]:
        """The last number that was sent, and the late ones before it."""
        with contextlib.suppress(OSError):
            fd = os.open(self.path.with_suffix(".sent"), os.O_RDONLY)
            try:
                record, _ = _record_at(fd, 0, os.fstat(fd).st_size)
            finally:
                os.close(fd)
            if record is not None:
                return int(record["n"]), frozenset(record.get("late", ()))
        # Missing or damaged: everything is sent again, which changes nothing on the server.
        return 0, frozenset()


def find_spool(directory: Path) -> Path | None:
    """The spool file of `directory`, or None."""
    return next(iter(sorted(directory.glob("runlog-*.spool"))), None)


def spool_identity(path: Path) -> str:
    """The identity of the spool in this file."""
    return path.stem.removeprefix("runlog-")


def read_spool(directory: Path) -> Iterator[Record]:
    """Every intact record of a spool in file order, also while its owner appends to it."""
    return (record for record, _ in SpoolReader(directory).new_records())


class SpoolReader:
    """Reads a spool, of any process, and later what was appended to it since. Not thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path: Path | None = None
        self._position = 0  # after the last intact record that was read
        self._looked_at = 0  # also after damaged ranges

    def new_records(self) -> Iterator[tuple[Record, int]]:
        """Each intact record that was not read before, with its place; what is left when the caller stops, comes at
        the next call."""
        self._path = self._path or find_spool(self._directory)
        if self._path is None:
            return
        fd = os.open(self._path, os.O_RDONLY)
        try:
            start = self._position
            for record, end_of_record in decode_records(fd, start, os.fstat(fd).st_size):
                self._looked_at = end_of_record
                if record is not None:
                    # A damaged end is read again: it may be a record that is just being appended.
                    self._position = end_of_record
                    yield record, start
                start = end_of_record
        finally:
            os.close(fd)

    def records_at(self, places: Sequence[int]) -> Iterator[Record]:
        """The records that were at these places."""
        if self._path is None:
            return
        fd = os.open(self._path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            for place in places:
                record, _ = _record_at(fd, place, size)
                if record is not None:
                    yield record
        finally:
            os.close(fd)

    @property
    def share(self) -> float:
        """The share of the file that was read."""
        try:
            size = 0 if self._path is None else self._path.stat().st_size
        except OSError:
            size = 0
        return min(1.0, self._looked_at / size) if size else 1.0
