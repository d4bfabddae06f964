"""The folder of the banks: each is built once, the least recently opened are evicted.

A bank is a folder `KIND-HASH`. Next to it are two lock files: `.lock`, held exclusively by the process that builds it,
and `.use`, shared by all processes that have opened it. The banks of a read-only home are built in memory.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from binsweep.data.errors import UserError
from binsweep.data.locks import LockTimeout, lock_shared, locked, open_lock, try_lock

log = logging.getLogger(__name__)

BANKS_LIMIT = "BINSWEEP_BANKS_GIB"
GIB = 2**30
_DEFAULT_GIB = 50.0
_MEMORY_PREFIX = "binsweep-banks-"
# Errors that mean a damaged bank; others (too many open files, no memory, an unreachable file server) do not.
_DAMAGE_ERRORS = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
)
_use_locks: dict[Path, int] = {}
_bank_folders: dict[Path, Path] = {}

Bank = TypeVar("Bank")


def open_bank(path: Path, name: str, load: Callable[[Path], Bank], build: Callable[[Path], None]) -> Bank:
    """Load the bank in the folder `path`; if it does not exist, one process builds it first.

    `load` raises ValueError, KeyError, TypeError, EOFError or FileNotFoundError for a damaged bank or one of another
    version, which is built again with a warning. `build` fills an empty folder, which is renamed once its files are
    on the disk. `name` is used in messages. Raises UserError if the bank cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(f"{path}.lock")):
            _mark_in_use(path)
            reason = "a process was killed while building it" if _partial(path).exists() else ""
            if path.exists():
                try:
                    return load(path)
                except _DAMAGE_ERRORS as error:
                    reason = str(error) or type(error).__name__
                except OSError as error:
                    raise UserError(
                        f"cannot read the {name} {path}: {error.strerror or error}",
                        "run it again when the machine can read files again: the bank is kept",
                    ) from error
            if reason:
                log.warning("the bank %s is built again: %s", path, reason)
            _build(path, build)
            return load(path)
    except OSError as error:
        raise UserError(
            f"cannot build the {name} in {path.parent}: {error.strerror or error}",
            "an unchanged source and a place with enough room where you may write (BINSWEEP_HOME names it); "
            "then run it again",
        ) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _build(path: Path, build: Callable[[Path], None]) -> None:
    partial = _partial(path)
    _remove(partial)
    partial.mkdir()
    try:
        build(partial)
        for file in partial.iterdir():  # on the disk before the rename: an existing bank is complete
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        _remove(path)
        partial.replace(path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _mark_in_use(path: Path) -> None:
    """Protect a bank from eviction until this process ends, and record the time."""
    if path not in _use_locks:
        fd = open_lock(Path(f"{path}.use"))
        lock_shared(fd)
        _use_locks[path] = fd
    os.utime(_use_locks[path])


def banks_in_use(folder: Path) -> list[Path]:
    """The banks of a folder that this process has opened."""
    return sorted(path for path in _use_locks if path.parent == folder)


def size_limit() -> int:
    """The limit of the banks of a home in bytes, from BINSWEEP_BANKS_GIB; raises UserError for an invalid value."""
    text = os.environ.get(BANKS_LIMIT, "") or str(_DEFAULT_GIB)
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < float("inf"):
        raise UserError(
            f"{BANKS_LIMIT}: must be a number of GiB, at least 0, not {text!r}",
            f"for example {BANKS_LIMIT}=50",
        )
    return int(gib * GIB)


def banks_in(folder: Path) -> list[Path]:
    """The complete banks of a folder, the least recently opened first."""
    found = [path for kind in ("pixels-", "features-") for path in folder.glob(f"{kind}*") if path.is_dir()]
    return sorted(found, key=_last_opened)


def _last_opened(path: Path) -> float:
    with contextlib.suppress(OSError):
        return Path(f"{path}.use").stat().st_mtime
    return 0.0


def bank_size(path: Path) -> int:
    """The size of a bank in bytes; files that are removed meanwhile do not count."""
    total = 0
    for file in path.iterdir() if path.is_dir() else ():
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total


def evict_banks(folder: Path, needed: int) -> None:
    """Remove partial banks of killed processes, then evict banks until `needed` more bytes fit the limit.

    The least recently opened bank goes first. Banks that a living process has opened are kept even if the limit is
    exceeded.
    """
    for partial in folder.glob(".*.partial"):
        lock = folder / f"{partial.name.removeprefix('.').removesuffix('.partial')}.lock"
        with contextlib.suppress(LockTimeout), locked(lock, timeout=0):
            _remove(partial)
    banks = banks_in(folder)
    total = sum(map(bank_size, banks)) + needed
    for path in banks:
        if total <= size_limit():
            return
        with _try_exclusive(path) as is_unused:
            if is_unused:
                size = bank_size(path)
                _remove(path)
                total -= size
                log.info("the bank %s was evicted: %.2f GiB", path, size / GIB)


@contextlib.contextmanager
def _try_exclusive(path: Path) -> Iterator[bool]:
    """Whether no other process uses the bank; none can open it within the block."""
    fd = open_lock(Path(f"{path}.use"))
    try:
        yield try_lock(fd)
    finally:
        os.close(fd)


def bank_folder(home: Path) -> Path:
    """The folder of a home's banks: `home`/banks, or if that is read-only, a folder in memory of this process.

    The folder in memory links to the banks of the read-only one. It is the same for all calls of a process; pass it
    to worker processes, which would create their own.
    """
    folder = (home / "banks").absolute()
    if folder not in _bank_folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            _bank_folders[folder] = folder
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                return folder  # building a bank there reports the error
            memory_folder = _bank_folders[folder] = _memory_folder()
            for bank in banks_in(folder):
                (memory_folder / bank.name).symlink_to(bank)
            log.warning(
                "%s cannot be written: new banks are in memory (%s) until this process ends",
                folder,
                memory_folder,
            )
    return _bank_folders[folder]


def _memory_folder() -> Path:
    parent = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    for old in parent.glob(f"{_MEMORY_PREFIX}*"):  # of killed processes
        with contextlib.suppress(OSError, ValueError):
            if not _is_alive(int(old.name.split("-")[2])):
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_MEMORY_PREFIX}{os.getpid()}-", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
