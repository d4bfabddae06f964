"""Checks of --out before a command does any work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from binsweep.data.errors import UserError


def require_page(out: Path) -> None:
    """Raise UserError unless an HTML page can be written to --out."""
    if out.suffix != ".html":
        raise UserError(f"--out {out}: not a page", "a name that ends in .html")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder", "the name of the page, such as report.html in it")
    require_folder(out, out.parent)


def require_folder(out: Path, folder: Path | None = None) -> None:
    """Raise UserError unless --out (or `folder`, which will hold it) is a writable folder or can become one.

    A folder that does not exist is not created.
    """
    nearest = folder or out
    try:
        while not os.path.lexists(nearest):
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = f"{nearest}: {error.strerror}" if nearest != out else error.strerror
        raise UserError(f"--out {out}: {reason}", "a place where you may write") from error
