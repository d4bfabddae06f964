"""Files that are written whole or not at all: into a temporary file in the same folder, which is then renamed.

A process that is killed may leave NAME.PID.tmp behind; the readers of a folder skip `*.tmp`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(file: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `file` when the block ends, and is removed when it raises.

    `folder` holds the temporary file instead of `file`'s own; it must be on the same file system.
    """
    temporary = (folder or file.parent) / f"{file.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        temporary.replace(file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_bytes(file: Path, content: bytes, durable: bool = True) -> None:
    """Replace a file's content; with `durable`, it is on the disk when this returns, and a power cut at any moment
    leaves the old content or the new one."""
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        stream.write(content)
        if durable:  # otherwise a power cut may leave an empty file
            stream.flush()
            os.fsync(stream.fileno())
    if durable:
        sync_folder(file.parent)


def end_line(file: Path) -> None:
    """Let what is appended to a file begin on a line of its own: the last one may be cut off, by a full disk or a power
    cut."""
    if file.exists() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        with file.open("ab") as stream:
            stream.write(b"\n")


def sync_file(file: Path) -> None:
    """Wait until the disk has what was written to a file."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder: those of new files, and what was renamed or removed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(file: Path, value: Any) -> None:
    """Replace a file's content durably by a value as JSON."""
    write_bytes(file, json.dumps(value, indent=1).encode())
