"""Scan each file of a source once: results are cached until the file changes."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from binsweep.data.atomic_write import write_bytes
from binsweep.data.decode import VERSION as DECODER_VERSION
from binsweep.data.decode import ImageError, ReadFailed
from binsweep.data.errors import UserError
from binsweep.data.parallel import Progress
from binsweep.data.resource_limits import cores
from binsweep.data.sources.object_names import printable

log = logging.getLogger(__name__)

# (value, "") for a good file, (None, reason) for a bad one.
ScanResult = tuple[int | str | None, str]
# Size, modification and change time. A file replaced by a copy with the same date has another change time.
FileStamp = tuple[int, int, int]

_FORMAT = f"2.{DECODER_VERSION}"
_BATCH = 256
# Seconds between tries of a file that cannot be read for now: too many open files, no memory, a failing disk or file
# server.
RETRY_DELAYS = (0.05, 0.3, 1.5)


class ScanCache:
    """Results of one kind of scan of the files under a root: a JSON file in `home`/cache, keyed by path and stamp."""

    def __init__(self, root: Path, home: Path, kind: str = "source") -> None:
        name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        self._path = home / "cache" / f"{kind}-{name}.json"
        self._root = root
        self._known: dict[str, tuple[FileStamp, ScanResult]] = {}
        try:
            stored = json.loads(self._path.read_bytes())
            if stored["format"] == _FORMAT:
                self._known = {key: (tuple(a), tuple(b)) for key, (a, b) in stored["files"].items()}
        except OSError:
            pass  # there is no cache yet
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("%s is damaged: the source is read again", self._path)

    def get(self, file: Path, stamp: FileStamp) -> ScanResult | None:
        known = self._known.get(self._key(file))
        return known[1] if known is not None and known[0] == stamp else None

    def put(self, file: Path, stamp: FileStamp, result: ScanResult) -> None:
        self._known[self._key(file)] = (stamp, result)

    def save(self) -> None:
        """Write the cache. It only saves time, so a failure is logged rather than raised."""
        content = json.dumps({"format": _FORMAT, "files": self._known}).encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, content, durable=False)
        except OSError as error:
            log.warning("cannot write the scan cache %s: %s", self._path, error.strerror)

    def _key(self, file: Path) -> str:
        # The photos of a table may lie outside of its folder.
        inside = file.is_relative_to(self._root)
        return (file.relative_to(self._root) if inside else file).as_posix()


def scan_files(
    files: Sequence[Path],
    read: Callable[[Path], ScanResult],
    cache: ScanCache,
    progress: Progress | None = None,
) -> list[ScanResult]:
    """The results of `read` for each file, in their order; files unchanged since the last scan are not opened.

    `read` returns a result, or raises ImageError for a bad file, or ReadFailed or OSError. Failures that are not the
    file's are retried, then raised as UserError and never cached: a sweep without an existing photo would be another
    sweep. `read` runs in threads because hashing and decoding release the GIL. Results are kept after an
    interruption.
    """
    stamps = [_stamp(file) for file in files]
    results = [
        None if stamp is None else cache.get(file, stamp) for file, stamp in zip(files, stamps, strict=True)
    ]
    missing = [index for index, result in enumerate(results) if result is None]
    known = len(files) - len(missing)
    if progress is not None:
        progress(known, len(files))
    try:
        with ThreadPoolExecutor(cores()) as pool:
            try:
                # In batches, so that the queue stays short whatever the number of files.
                for start in range(0, len(missing), _BATCH):
                    batch = missing[start : start + _BATCH]
                    found = pool.map(partial(_scan, read), [files[i] for i in batch])
                    for index, (result, cacheable) in zip(batch, found, strict=True):
                        results[index] = result
                        stamp = stamps[index]
                        if cacheable and stamp is not None:
                            cache.put(files[index], stamp, result)
                    if progress is not None:
                        progress(known + start + len(batch), len(files))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        if missing:
            cache.save()
    return [result for result in results if result is not None]


def _scan(read: Callable[[Path], ScanResult], file: Path) -> tuple[ScanResult, bool]:
    """A file's result, and whether it holds until the file changes."""
    pauses = iter(RETRY_DELAYS)
    while True:
        try:
            return read(file), True
        except ReadFailed as error:
            reason, transient = str(error), error.is_transient
        except ImageError as error:
            return (None, str(error)), True
        except FileNotFoundError:
            return (None, "no such file"), False
        except PermissionError as error:
            return (None, f"cannot be read: {error.strerror}"), False
        except (OSError, MemoryError) as error:
            reason, transient = f"cannot be read: {getattr(error, 'strerror', None) or repr(error)}", True
        if not transient:
            return (None, reason), False
        pause = next(pauses, None)
        if pause is None:
            raise UserError(
                f"{printable(str(file))}: {reason}",
                "run the same command again when the disk, the file server or the memory is available again: "
                "finished work is kept. A file that stays unreadable must be removed from the source",
            )
        time.sleep(pause)


def _stamp(file: Path) -> FileStamp | None:
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return None
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
