"""The home, the folder of all files of the product, and a registered model by the name that a person gives."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import unquote

from binsweep.data.errors import UserError

HOME_HINT = "set BINSWEEP_HOME to a folder where you may write"


def home_folder(given: str | Path | None = None) -> Path:
    """The home, which holds all files of the product: the `given` one, BINSWEEP_HOME, or .binsweep in the working
    directory.

    Raises UserError if that is not a folder. A home that does not exist yet is created when it is first written.
    """
    value = given or os.environ.get("BINSWEEP_HOME") or ".binsweep"
    name = "home" if given else "BINSWEEP_HOME"
    try:
        home = Path(value).expanduser().absolute()
    except RuntimeError as error:  # ~NAME of an unknown user, or ~ without HOME
        raise UserError(f"{name}: the home directory in {value} is not known", HOME_HINT) from error
    if home.exists() and not home.is_dir():
        raise UserError(f"{name}: {home} is not a folder", HOME_HINT)
    if "?" in str(home):  # in a database URL, the query starts there
        raise UserError(f"{name}: {home} has a question mark, which a database URL cannot contain", HOME_HINT)
    if unquote(str(home)) != str(home):  # SQLAlchemy would decode it, and open a database in another folder
        raise UserError(
            f"{name}: {home} has a percent sign with two hexadecimal digits, which a database URL decodes",
            HOME_HINT,
        )
    return home


def require_writable(home: Path) -> None:
    """Raise UserError if sweeps cannot be written, before minutes are spent on the data."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        sweeps = home / "sweeps"
        with tempfile.TemporaryFile(dir=sweeps if sweeps.exists() else home):
            pass
    except OSError as error:
        raise UserError(f"{home} cannot be written: {error.strerror}", HOME_HINT) from error


def model_uri(model: str) -> str:
    """The URI of NAME (its champion), NAME@alias or NAME/version; a URI is returned as it is."""
    if ":/" in model:
        return model
    return f"models:/{model}" if "@" in model or "/" in model else f"models:/{model}@champion"
