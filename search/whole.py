"""Small JSON files that are always whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(file: Path, what: Any) -> None:
    """Write beside, then rename: whoever reads, and whenever this process dies, there is the old file or the new."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(what, indent=1))
    temporary.replace(file)
