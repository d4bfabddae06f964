"""Counting the items in photos, wherever they lie, by a server or in this process."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

from binsweep.data.decode import ImageError, decode, read
from binsweep.data.errors import UserError
from binsweep.data.sources.object_names import IMAGE_SUFFIXES, is_hidden, printable
from binsweep.search.terminal.progress import ProgressBar
from binsweep.tracking.mlflow_server.embedded import tracking_server
from binsweep.tracking.serving.model_server import ROWS, open_model
from binsweep.tracking.serving.model_server import predict as ask

ANSWER_SECONDS = 60.0
READERS = 8
# Every picture's file has such bytes; a list of names has none, nor two zero bytes together, nor such a long name.
NOT_OF_NAMES = re.compile(rb"[\x01-\x08\x0e-\x1f\x7f]|\0\0")
LONGEST_NAME = 4096


@dataclass(frozen=True)
class Photo:
    """A photo by its name; `read` gives its bytes, or raises ImageError."""

    name: str
    read: Callable[[], bytes]


def find_photos(places: Sequence[str], stdin: BinaryIO | None) -> list[Photo]:
    """The photos at files, folders (with all below them), globs, s3:// addresses of an image or a prefix, and `-`
    (a photo on `stdin`, or a place a line). Raises UserError for a place where there is none.

    Of folders, globs and prefixes hidden files are left out, such as the ._NAME that macOS adds to each photo.
    """
    photos: list[Photo] = []
    for place in places:
        found = _from_stdin(stdin) if place == "-" else _at(place)
        if not found:
            what = (
                "neither a photo nor a name on stdin" if place == "-" else "no such file, or no photo in it"
            )
            raise UserError(f"{what}: {place!r}", "name photos (JPEG, PNG, WebP, TIFF, AVIF or HEIC)")
        photos += found
    return photos


def _from_stdin(stdin: BinaryIO | None) -> list[Photo]:
    if stdin is None:
        raise UserError("-: stdin is closed", "give a photo or names there, or name photos in its place")
    content = stdin.read()
    names = _names(content)
    if names is None:
        return [Photo("-", lambda: content)]
    wanted = [name for name in names if name and not PurePath(name).name.startswith("._")]
    return [photo for name in wanted for photo in _at(name) or [_local(Path(name))]]


def _names(content: bytes) -> list[str] | None:
    """The places that a list names, one a line, or as `find -print0` and as Windows write it; None for what is no
    list: a photo of any kind, or something else that only the decoder can tell."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode()
    content = content.removeprefix(codecs.BOM_UTF8)
    lines = [line.strip() for line in (content.split(b"\0") if b"\0" in content else content.splitlines())]
    if NOT_OF_NAMES.search(content) or max(map(len, lines), default=0) > LONGEST_NAME:
        return None
    return [os.fsdecode(line) for line in lines]


def _at(place: str) -> list[Photo]:
    if place.startswith("s3://"):
        return _in_bucket(place)
    path = Path(place)
    if not place:
        return []
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return [_local(path)]
        return [_local(file) for file in sorted(_below(path)) if _is_photo(file, path)]
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):  # reading it says so
            return [_local(path)]
    try:
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except (OSError, ValueError):  # no pattern, and too long for a name; `**` beside other letters
        return []
    return [_local(file) for file in found if file.is_file() and not _is_hidden(file, path)]


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder, also through links, as sweeps read it. Raises UserError for a part that cannot be
    read: a few photos less would go unseen."""

    def refuse(error: OSError) -> None:
        where = printable(str(error.filename or folder))
        raise UserError(f"{where}: {error.strerror}", "name places that you may read") from error

    seen: set[str] = set()  # links may lead round in circles
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not is_hidden(name)]
        yield from () if real in seen else (Path(place) / file for file in files)
        seen.add(real)


def _is_photo(file: PurePath, place: PurePath) -> bool:
    """Whether a sweep, too, would take it for a photo, and it is not hidden below `place`."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(file, place)


def _is_hidden(file: PurePath, place: PurePath) -> bool:
    """Whether a part of its path is one that sweeps leave out, and none of `place` asks for that."""
    asked = [part for part in place.parts if is_hidden(part)]
    return any(is_hidden(part) and not any(fnmatchcase(part, one) for one in asked) for part in file.parts)


def _local(path: Path) -> Photo:
    return Photo(printable(str(path)), partial(read, path))


def _in_bucket(uri: str) -> list[Photo]:
    from binsweep.data.s3.bucket import (
        SCHEME,
        Bucket,
        ObjectError,
        open_bucket,
        parse_place,
    )  # boto3 takes a second to import

    folder, _, name = uri.rpartition("/")
    if name.lower().endswith(IMAGE_SUFFIXES):
        bucket, names = open_bucket(parse_place(folder)), [name]
    else:
        bucket = open_bucket(parse_place(uri))
        names = [one.name for one in bucket.list() if _is_photo(PurePosixPath(one.name), PurePosixPath())]

    def content(bucket: Bucket, name: str) -> bytes:
        try:
            return bucket.get(name).data
        except ObjectError as error:
            raise ImageError(str(error)) from error

    prefix = f"{SCHEME}{bucket.place.bucket}/{bucket.place.prefix}"
    return [Photo(f"{prefix}{name}", partial(content, bucket, name)) for name in names]


def predict_images(
    places: Sequence[str], url: str | None, model_uri: str, home: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each photo with its answer: count, expected_count, confidence, probabilities, model_version, error.

    Asks the server at `url`, or the model `model_uri` loaded here, a batch at a time, and yields as it goes.
    """
    photos = find_photos(places, None if sys.stdin is None else sys.stdin.buffer)
    with ExitStack() as stack:
        progress = stack.enter_context(ProgressBar("counting")) if len(photos) > ROWS else None
        pool = stack.enter_context(ThreadPoolExecutor(READERS))
        answer: Callable[[Sequence[bytes]], list[dict[str, Any]]]
        if url is not None:
            answer = partial(ask, url, timeout=ANSWER_SECONDS)
        else:
            answer = open_model(model_uri, stack.enter_context(tracking_server(home)))
        for start in range(0, len(photos), ROWS):
            batch = photos[start : start + ROWS]
            yield from zip([photo.name for photo in batch], _rows(batch, answer, pool), strict=True)
            if progress is not None:
                progress(start + len(batch), len(photos))


def _rows(
    batch: Sequence[Photo],
    answer: Callable[[Sequence[bytes]], list[dict[str, Any]]],
    pool: ThreadPoolExecutor,
) -> list[dict[str, Any]]:
    """The answers about a batch; what cannot be read has its reason in `error`, and costs no other its answer."""
    contents = list(pool.map(_content, batch))
    good = [content for content in contents if isinstance(content, bytes)]
    try:
        said = answer(good) if good else []
    except UserError:
        # A model refuses a request without any photo; whoever sent a batch of such wants to know each one's fault.
        errors = [_fault(content) for content in good]
        if not all(errors):
            raise
        said = [_unanswered(error) for error in errors]
    rows = iter(said)
    return [next(rows) if isinstance(content, bytes) else _unanswered(content) for content in contents]


def _content(photo: Photo) -> bytes | str:
    """A photo's bytes, or why they cannot be had."""
    try:
        return photo.read()
    except ImageError as error:
        return str(error)


def _fault(content: bytes) -> str:
    try:
        decode(content)
    except ImageError as error:
        return str(error)
    return ""


def _unanswered(error: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("count", "expected_count", "confidence", "probabilities", "model_version"))
    return {**nothing, "error": error}
