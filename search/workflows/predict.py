"""Ask a model about photos from files, folders, buckets or stdin, with a server or in this process."""

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
from binsweep.tracking.serving.model_server import BATCH_PHOTOS, open_model
from binsweep.tracking.serving.model_server import predict as ask

MAX_ANSWER_SECONDS = 60.0
N_READERS = 8
# Image files contain such bytes. A list of names contains none of them, no two zero bytes in a row, and no longer name.
BINARY_BYTES = re.compile(rb"[\x01-\x08\x0e-\x1f\x7f]|\0\0")
MAX_NAME_BYTES = 4096
Answer = Callable[
    [Sequence[bytes]], list[dict[str, Any]]
]  # the answers to the bytes of photos' files, in order


@dataclass(frozen=True)
class Photo:
    """A photo; `read` returns its bytes, or raises ImageError."""

    name: str
    read: Callable[[], bytes]


def find_photos(places: Sequence[str], stdin: BinaryIO | None) -> list[Photo]:
    """The photos at files, folders (recursively), globs, s3:// URLs of an image or a prefix, and `-` (a photo on
    `stdin`, or one place per line). Raises UserError for a place without photos.

    In folders, globs and prefixes, hidden files are left out, such as the ._NAME files of macOS.
    """
    photos: list[Photo] = []
    for place in places:
        found = _from_stdin(stdin) if place == "-" else _photos_at(place)
        if not found:
            what = (
                "neither a photo nor a name on stdin" if place == "-" else "no such file, or no photo in it"
            )
            raise UserError(f"{what}: {place!r}", "give photos (JPEG, PNG, WebP, TIFF, AVIF or HEIC)")
        photos += found
    return photos


def _from_stdin(stdin: BinaryIO | None) -> list[Photo]:
    if stdin is None:
        raise UserError("-: stdin is closed", "pipe in a photo or names, or give photos as arguments")
    content = stdin.read()
    names = _names(content)
    if names is None:
        return [Photo("-", lambda: content)]
    wanted = [name for name in names if name and not PurePath(name).name.startswith("._")]
    return [photo for name in wanted for photo in _photos_at(name) or [_local(Path(name))]]


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


def _photos_at(place: str) -> list[Photo]:
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
        if error.errno in (errno.EACCES, errno.EPERM):  # reading it reports the error
            return [_local(path)]
    try:
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except (OSError, ValueError):  # not a pattern and too long for a name, or `**` next to other characters
        return []
    return [_local(file) for file in found if file.is_file() and not _is_hidden(file, path)]


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder, following links, like the folder source of a sweep. Raises UserError if a folder in it
    cannot be read: missing photos would go unnoticed."""

    def refuse(error: OSError) -> None:
        where = printable(str(error.filename or folder))
        raise UserError(f"{where}: {error.strerror}", "give readable places") from error

    seen: set[str] = set()  # links may form a cycle
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not is_hidden(name)]
        yield from () if real in seen else (Path(place) / file for file in files)
        seen.add(real)


def _is_photo(file: PurePath, place: PurePath) -> bool:
    """Whether it has the suffix of a photo, like in sweeps, and is not hidden below `place`."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(file, place)


def _is_hidden(file: PurePath, place: PurePath) -> bool:
    """Whether a part of its path is hidden, and `place` does not name that part."""
    asked = [part for part in place.parts if is_hidden(part)]
    return any(is_hidden(part) and not any(fnmatchcase(part, one) for one in asked) for part in file.parts)


def _local(path: Path) -> Photo:
    return Photo(printable(str(path)), partial(read, path))


def _in_bucket(uri: str) -> list[Photo]:
    from binsweep.data.s3.address import SCHEME, parse_address
    from binsweep.data.s3.bucket import Bucket, open_bucket  # boto3 takes a second to import
    from binsweep.data.s3.errors import ObjectError

    folder, _, name = uri.rpartition("/")
    if name.lower().endswith(IMAGE_SUFFIXES):
        bucket, names = open_bucket(parse_address(folder)), [name]
    else:
        bucket = open_bucket(parse_address(uri))
        names = [one.name for one in bucket.list() if _is_photo(PurePosixPath(one.name), PurePosixPath())]

    def content(bucket: Bucket, name: str) -> bytes:
        try:
            return bucket.get(name).data
        except ObjectError as error:
            raise ImageError(str(error)) from error

    prefix = f"{SCHEME}{bucket.address.bucket}/{bucket.address.prefix}"
    return [Photo(f"{prefix}{name}", partial(content, bucket, name)) for name in names]


def predict_images(
    places: Sequence[str], url: str | None, model_uri: str, home: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each photo's name and answer: count and expected_count, or label; confidence, probabilities, model_version,
    error. A photo without an answer has the keys of both.

    Asks the server at `url`, or loads the model `model_uri`, and predicts one batch at a time.
    """
    photos = find_photos(places, None if sys.stdin is None else sys.stdin.buffer)
    answer = load_answer(model_uri, home) if url is None else partial(ask, url, timeout=MAX_ANSWER_SECONDS)
    yield from answer_photos(photos, answer)


def load_answer(model_uri: str, home: Path) -> Answer:
    """Load a model into this process. Raises UserError if it does not exist."""
    with tracking_server(home) as uri:
        return open_model(model_uri, uri)


def answer_photos(photos: Sequence[Photo], answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each photo's name and answer, as `predict_images` does."""
    with ExitStack() as stack:
        progress = stack.enter_context(ProgressBar("predicting")) if len(photos) > BATCH_PHOTOS else None
        pool = stack.enter_context(ThreadPoolExecutor(N_READERS))
        for start in range(0, len(photos), BATCH_PHOTOS):
            batch = photos[start : start + BATCH_PHOTOS]
            yield from zip([photo.name for photo in batch], _rows(batch, answer, pool), strict=True)
            if progress is not None:
                progress(start + len(batch), len(photos))


def _rows(batch: Sequence[Photo], answer: Answer, pool: ThreadPoolExecutor) -> list[dict[str, Any]]:
    """The answers for a batch. A photo that cannot be read has the reason in `error`; the others are answered."""
    contents = list(pool.map(_content, batch))
    good = [content for content in contents if isinstance(content, bytes)]
    try:
        answers = answer(good) if good else []
    except UserError:
        # A model refuses a request without any readable photo; report the error of each one.
        errors = [_fault(content) for content in good]
        if not all(errors):
            raise
        answers = [_unanswered(error) for error in errors]
    rows = iter(answers)
    return [next(rows) if isinstance(content, bytes) else _unanswered(content) for content in contents]


def _content(photo: Photo) -> bytes | str:
    """A photo's bytes, or the reason why it cannot be read."""
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
