"""Small files that are always whole, and places that will take what a command is about to work out."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from binsweep.data.errors import UserError


def write_json(file: Path, what: Any) -> None:
    """Write beside, then rename: whoever reads, and whenever this process dies, there is the old file or the new."""
    write_bytes(file, json.dumps(what, indent=1).encode())


def write_bytes(file: Path, content: bytes) -> None:
    """The same for a file of any kind."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # else a power cut may leave the new name with nothing in it
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk has better uses
        raise


def require_page(out: Path) -> None:
    """Raise UserError, before any work, where no page can be written to --out."""
    if out.suffix != ".html":
        raise UserError(f"--out {out}: not a page", "a name that ends in .html")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder", "the name of the page, such as report.html in it")
    require_folder(out, out.parent)


def require_folder(out: Path, folder: Path | None = None) -> None:
    """Raise UserError, before any work, where --out (or `folder`, for what is in it) is no folder that can be written.

    One that does not exist must be possible to make; it is left to whoever writes there.
    """
    there = folder or out
    try:
        while not os.path.lexists(there):
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = f"{there}: {error.strerror}" if there != out else error.strerror
        raise UserError(f"--out {out}: {reason}", "a place where you may write") from error
