"""Which photos a command is asked about: files, folders, globs, tables, buckets and stdin, as a list on the disk."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from binsweep.data.decode import ImageError, read
from binsweep.data.errors import UserError
from binsweep.data.sources.object_names import IMAGE_SUFFIXES, is_hidden, printable
from binsweep.data.sources.table import bucket_path, is_table, table_paths

if TYPE_CHECKING:  # boto3 takes a second to import
    from binsweep.data.s3.bucket import Bucket

S3 = "s3://"
# Image files contain such bytes. A list of names contains none of them, no two zero bytes in a row, and no longer name.
BINARY_BYTES = re.compile(rb"[\x01-\x08\x0e-\x1f\x7f]|\0\0")
MAX_NAME_BYTES = 4096
Reader = Callable[[str], bytes]  # the bytes of the photo at an address; raises ImageError


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo: its name in answers, and the address at which its reader finds it."""

    name: str
    address: str
    reader: Reader

    def read(self) -> bytes:
        """Its file's bytes. Raises ImageError."""
        return self.reader(self.address)


class PhotoList:
    """Photos in a temporary file, so that any number of them needs little memory; `digest` is a hash of their names."""

    def __init__(self, photos: Iterable[Photo]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the list)
        self._readers: list[Reader] = []  # one for each place, not for each photo
        places: dict[Reader, int] = {}
        digest, self._length = hashlib.sha256(), 0
        for photo in photos:
            if photo.reader not in places:
                places[photo.reader] = len(self._readers)
                self._readers.append(photo.reader)
            self._file.write(json.dumps([places[photo.reader], photo.name, photo.address]).encode() + b"\n")
            digest.update(json.dumps([photo.name, photo.address]).encode())
            self._length += 1
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._length

    def after(self, number: int) -> Iterator[Photo]:
        """The photos from that number on; one such iterator at a time."""
        self._file.seek(0)
        for line in islice(self._file, number, None):
            place, name, address = json.loads(line)
            yield Photo(name, address, self._readers[place])


def find_photos(places: Sequence[str], stdin: BinaryIO | None) -> Iterator[Photo]:
    """The photos at files, folders (recursively), globs, tables (a column `path`), s3:// URLs of an image, a table or a
    prefix, and `-` (a photo on `stdin`, or one place per line), always in the same order.

    In folders, globs and prefixes, hidden files are left out, such as the ._NAME files of macOS. Raises UserError for a
    place without photos.
    """
    for place in places:
        photos = _from_stdin(stdin) if place == "-" else _photos_at(place)
        first = next(photos, None)
        if first is None:
            what = (
                "neither a photo nor a name on stdin" if place == "-" else "no such file, or no photo in it"
            )
            hint = "give photos (JPEG, PNG, WebP, TIFF, AVIF or HEIC), or a table of them (CSV, Parquet)"
            raise UserError(f"{what}: {place!r}", hint)
        yield from chain([first], photos)


def _from_stdin(stdin: BinaryIO | None) -> Iterator[Photo]:
    if stdin is None:
        raise UserError("-: stdin is closed", "pipe in a photo or names, or give photos as arguments")
    content = stdin.read()
    names = _names(content)
    if names is None:
        yield Photo("-", hashlib.sha256(content).hexdigest(), lambda _: content)
        return
    for name in names:
        if name and not PurePath(name).name.startswith("._"):
            photos = _photos_at(name)
            yield from chain([next(photos, None) or _local(Path(name))], photos)


def _names(content: bytes) -> list[str] | None:
    """The places in a list: one per line, also as written by `find -print0` or by Windows. None if the content is not a
    list: a photo, or something that only the decoder can identify."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode()
    content = content.removeprefix(codecs.BOM_UTF8)
    lines = [line.strip() for line in (content.split(b"\0") if b"\0" in content else content.splitlines())]
    if BINARY_BYTES.search(content) or max(map(len, lines), default=0) > MAX_NAME_BYTES:
        return None
    return [os.fsdecode(line) for line in lines]


def _photos_at(place: str) -> Iterator[Photo]:
    if not place:
        return
    if is_table(place):
        yield from _in_table(place)
        return
    if place.startswith(S3):
        yield from _in_bucket(place)
        return
    path = Path(place)
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            yield from (_local(file) for file in _below(path) if _is_photo(file, path))
        else:
            yield _local(path)
        return
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):  # reading it reports the error
            yield _local(path)
            return
    try:
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except (OSError, ValueError):  # not a pattern and too long for a name, or `**` next to other characters
        return
    yield from (_local(file) for file in found if file.is_file() and not _is_hidden(file, path))


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the order of their paths, following links, like the folder source of a sweep; the
    names of one folder at a time are in memory. Raises UserError if a folder in it cannot be read: missing photos would
    go unnoticed."""
    seen: set[str] = set()  # links may form a cycle
    waiting = [_entries(folder, seen)]
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
        elif entry[1]:
            waiting.append(_entries(entry[0], seen))
        else:
            yield entry[0]


def _entries(folder: Path, seen: set[str]) -> Iterator[tuple[Path, bool]]:
    """What is in a folder, in the order of names, and whether it is a folder; nothing of a folder that was seen."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(folder) as entries:
            found = sorted((one.name, one.is_dir()) for one in entries)
    except OSError as error:
        where = printable(str(error.filename or folder))
        raise UserError(f"{where}: {error.strerror}", "give readable places") from error
    yield from (
        (folder / name, is_folder) for name, is_folder in found if not (is_folder and is_hidden(name))
    )


def _is_photo(file: PurePath, place: PurePath) -> bool:
    """Whether it has the suffix of a photo, like in sweeps, and is not hidden below `place`."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(file, place)


def _is_hidden(file: PurePath, place: PurePath) -> bool:
    """Whether a part of its path is hidden, and `place` does not name that part."""
    asked = [part for part in place.parts if is_hidden(part)]
    return any(is_hidden(part) and not any(fnmatchcase(part, one) for one in asked) for part in file.parts)


def _read_local(address: str) -> bytes:
    return read(Path(address))


def _local(path: Path) -> Photo:
    return Photo(printable(str(path)), str(path), _read_local)


def _in_table(place: str) -> Iterator[Photo]:
    """The photos of a table, one for each row: paths are relative to the table's folder, or addresses of objects."""
    if place.startswith(S3):
        yield from _in_bucket_table(place)
        return
    table = Path(place).expanduser()
    try:
        content = table.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {place}: {error.strerror}", "a CSV or Parquet file") from error
    buckets: dict[str, Reader] = {}
    for number, path in table_paths(place, content):
        if path.startswith(S3):
            bucket, _, key = path.removeprefix(S3).partition("/")
            if not key:
                raise UserError(
                    f"{place}: row {number} has the path {printable(path)!r}, which names no object",
                    "s3://BUCKET/KEY of a photo, or its path relative to the table's folder",
                )
            if bucket not in buckets:
                buckets[bucket] = _open(f"{S3}{bucket}")[-1]
            yield Photo(printable(path), key, buckets[bucket])
        else:
            yield _local(table.parent / path)


def _in_bucket_table(place: str) -> Iterator[Photo]:
    folder, _, name = place.rpartition("/")
    _, prefix, reader = _open(folder)
    try:
        content = reader(name)
    except ImageError as error:
        raise UserError(f"cannot read {place}: {error}", "the address of a CSV or Parquet file") from error
    for number, path in table_paths(place, content):
        try:
            key = bucket_path(path, prefix)
        except ValueError as error:
            raise UserError(
                f"{place}: row {number} {error}", "paths relative to the table's folder"
            ) from error
        yield Photo(printable(f"{prefix}{key}"), key, reader)


def _in_bucket(uri: str) -> Iterator[Photo]:
    folder, _, name = uri.rpartition("/")
    if name.lower().endswith(IMAGE_SUFFIXES):
        bucket, prefix, reader = _open(folder)
        yield Photo(f"{prefix}{name}", name, reader)
        return
    bucket, prefix, reader = _open(uri)
    for one in bucket.list():
        if _is_photo(PurePosixPath(one.name), PurePosixPath()):
            yield Photo(f"{prefix}{one.name}", one.name, reader)


def _open(uri: str) -> tuple[Bucket, str, Reader]:
    """A bucket, the address that its names begin with, and the reader of its objects."""
    from binsweep.data.s3.address import parse_address
    from binsweep.data.s3.bucket import open_bucket

    bucket = open_bucket(parse_address(uri))
    prefix = f"{S3}{bucket.address.bucket}/{bucket.address.prefix}"
    return bucket, prefix, partial(_read_object, bucket)


def _read_object(bucket: Bucket, name: str) -> bytes:
    from binsweep.data.s3.errors import ObjectError

    try:
        return bucket.get(name).data
    except ObjectError as error:
        raise ImageError(str(error)) from error
