"""The folder of the banks: each built once and whole, the oldest removed for room, in memory if it is read-only.

A bank is a folder `KIND-HASH`. Beside it lie `.lock`, held by whoever builds it, and `.use`, held in common by
every process that has opened it; both are let go by the system when their process ends, however it ends.
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
_IN_MEMORY = "binsweep-banks-"
# Other errors of the system (too many open files, no memory, a file server that is away) are no damage.
_DAMAGE = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
)
_held: dict[Path, int] = {}
_folders: dict[Path, Path] = {}

Bank = TypeVar("Bank")


def open_bank(path: Path, name: str, load: Callable[[Path], Bank], build: Callable[[Path], None]) -> Bank:
    """The bank in the folder `path`, loaded, or built there first; only one process builds.

    `load` raises ValueError, KeyError, TypeError, EOFError or FileNotFoundError for a bank that is damaged or of
    another version: it is built again, with one line in the log. `build` fills an empty folder, which is renamed once
    it is on the disk. `name` is what people call the bank. Raises UserError when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(f"{path}.lock")):
            _hold(path)
            reason = "a process was killed while building it" if _partial(path).exists() else ""
            if path.exists():
                try:
                    return load(path)
                except _DAMAGE as error:
                    reason = str(error) or type(error).__name__
                except OSError as error:
                    raise UserError(
                        f"cannot read the {name} {path}: {error.strerror or error}",
                        "run it again when the machine can read files again: the bank stays as it is",
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
    beside = _partial(path)
    _remove(beside)
    beside.mkdir()
    try:
        build(beside)
        for file in beside.iterdir():  # on the disk before the name is: a bank that exists is whole
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        _remove(path)
        beside.replace(path)
    finally:
        _remove(beside)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _hold(path: Path) -> None:
    """Keep a bank from being removed for room until this process ends, and remember that it was wanted now."""
    if path not in _held:
        fd = open_lock(Path(f"{path}.use"))
        lock_shared(fd)
        _held[path] = fd
    os.utime(_held[path])


def banks_in_use(folder: Path) -> list[Path]:
    """The banks of a folder that this process has opened."""
    return sorted(path for path in _held if path.parent == folder)


def size_limit() -> int:
    """Bytes that the banks of a home may take, from BINSWEEP_BANKS_GIB; raises UserError for no such number."""
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
    """The banks of a folder, whole ones only, the one that was opened longest ago first."""
    found = [path for kind in ("pixels-", "features-") for path in folder.glob(f"{kind}*") if path.is_dir()]
    return sorted(found, key=_opened)


def _opened(path: Path) -> float:
    with contextlib.suppress(OSError):
        return Path(f"{path}.use").stat().st_mtime
    return 0.0


def bank_size(path: Path) -> int:
    """Bytes of a bank; files that vanish meanwhile are left out."""
    total = 0
    for file in path.iterdir() if path.is_dir() else ():
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total


def evict_banks(folder: Path, wanted: int) -> None:
    """Remove what killed builders left, then the banks opened longest ago until `wanted` more bytes fit the limit.

    A bank that a living process has opened stays, also when the limit is then exceeded.
    """
    for partial in folder.glob(".*.partial"):
        lock = folder / f"{partial.name.removeprefix('.').removesuffix('.partial')}.lock"
        with contextlib.suppress(LockTimeout), locked(lock, timeout=0):
            _remove(partial)
    banks = banks_in(folder)
    total = sum(map(bank_size, banks)) + wanted
    for path in banks:
        if total <= size_limit():
            return
        with _unused(path) as unused:
            if unused:
                size = bank_size(path)
                _remove(path)
                total -= size
                log.info("the bank %s gave way: %.2f GiB", path, size / GIB)


@contextlib.contextmanager
def _unused(path: Path) -> Iterator[bool]:
    fd = open_lock(Path(f"{path}.use"))
    try:
        yield try_lock(fd)
    finally:
        os.close(fd)


def bank_folder(home: Path) -> Path:
    """Where a home's banks lie: `home`/banks, or a folder in memory of this process where that is read-only.

    The banks that the read-only folder has are linked from there. It is the same for all calls of a process;
    hand it to workers, who would make their own.
    """
    folder = (home / "banks").absolute()
    if folder not in _folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            _folders[folder] = folder
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                return folder  # whoever builds there says what is wrong
            memory = _folders[folder] = _memory_folder()
            for bank in banks_in(folder):
                (memory / bank.name).symlink_to(bank)
            log.warning(
                "%s cannot be written: new banks lie in memory (%s) and go with this process", folder, memory
            )
    return _folders[folder]


def _memory_folder() -> Path:
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    for old in place.glob(f"{_IN_MEMORY}*"):  # of processes that were killed
        with contextlib.suppress(OSError, ValueError):
            if not _alive(int(old.name.split("-")[2])):
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_IN_MEMORY}{os.getpid()}-", dir=place))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
