"""Small files that are always whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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
