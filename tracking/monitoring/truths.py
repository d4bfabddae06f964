"""True labels of photos that a model has answered, as callers and files give them, and the accuracy that follows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from binsweep.data.decode import ImageError, read
from binsweep.data.errors import UserError
from binsweep.data.labels import class_name, parse_count

MAX_ROWS = 10_000  # of one request
MAX_LISTED = 5  # mistakes that are named one by one
HINT = "rows with the photo's sha256 (of its file) and its true count, or label for a model of named classes"
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def parse_feedback(body: bytes, answer: str | None) -> list[tuple[bytes, str]]:
    """The rows of a request's JSON, objects {"sha256": ..., "count" or "label": ...}, as (sha256, label as JSON).

    `answer` is what the model answers with, count or label; None: either. Raises UserError for anything else.
    """
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError("the body is not JSON", HINT) from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError("the body is not a list of objects", HINT)
    if len(rows) > MAX_ROWS:
        raise UserError(f"{len(rows)} rows; at most {MAX_ROWS} per request", "send several requests")
    return _parsed([(f"row {number}", row) for number, row in enumerate(rows, 1)], answer, None)


def read_truths(file: Path, answer: str | None) -> list[tuple[bytes, str]]:
    """The rows of a CSV file: `sha256` of the photo's file, or `path` of the file itself (relative to the table's
    folder), and `count` or `label`.

    Raises UserError if the file cannot be read, lacks a column, or has mistakes.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--truths {file}: {error.strerror}", "a CSV file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--truths {file}: not UTF-8 text", "a CSV file") from error
    table = csv.DictReader(io.StringIO(text))
    columns = table.fieldnames or []
    if not ({"sha256", "path"} & set(columns) and {"count", "label"} & set(columns)):
        found = ", ".join(columns) or "nothing"
        raise UserError(
            f"--truths {file}: its columns are {found}", "needed: sha256 or path, and count or label"
        )
    rows = [(f"{file}:{table.line_num}", row) for row in table]
    if not rows:
        raise UserError(f"--truths {file}: no row", HINT)
    return _parsed(rows, answer, file.absolute().parent)


def _parsed(
    rows: Sequence[tuple[str, Mapping[str, Any]]], answer: str | None, folder: Path | None
) -> list[tuple[bytes, str]]:
    parsed, mistakes = [], []
    for place, row in rows:
        try:
            parsed.append((_photo(row, folder), json.dumps(_truth(row, answer))))
        except ValueError as error:
            mistakes.append(f"{place}: {error}")
    if mistakes:
        more = len(mistakes) - MAX_LISTED
        listed = [*mistakes[:MAX_LISTED], *([f"and {more} more"] if more > 0 else [])]
        raise UserError("; ".join(listed), HINT)
    return parsed


def _photo(row: Mapping[str, Any], folder: Path | None) -> bytes:
    """The sha256 of a row's photo. Raises ValueError if it names none."""
    digest = row.get("sha256")
    if isinstance(digest, str) and _SHA256.fullmatch(digest.strip()):
        return bytes.fromhex(digest.strip())
    if folder is not None and not digest and (path := row.get("path")):
        try:
            return hashlib.sha256(read(folder / path)).digest()
        except ImageError as error:
            raise ValueError(f"{path}: {error}") from error
    raise ValueError(f"sha256 is {digest!r}, not 64 hexadecimal digits")


def _truth(row: Mapping[str, Any], answer: str | None) -> int | str:
    """The true count or label. Raises ValueError for anything that the model could not answer."""
    given = [name for name in ("count", "label") if row.get(name) not in (None, "")]
    if len(given) != 1:
        raise ValueError(f"{'both count and label' if given else 'neither count nor label'}")
    (name,), value = given, row[given[0]]
    if answer is not None and name != answer:
        raise ValueError(f"a {name}, and the model answers with a {answer}")
    if name == "label":
        if not isinstance(value, str) or not class_name(value):
            raise ValueError(f"label is {value!r}, not a name")
        return class_name(value)
    count = parse_count(value.strip()) if isinstance(value, str) else value
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 10**9:
        raise ValueError(f"count is {value!r}, not a whole number from 0 on")
    return count


def wilson_interval(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, Probable inference, JASA 22, 1927): sensible for few photos, too, and
    where all or none of them are right."""
    if not total:
        return 0.0, 1.0
    share, spread = hits / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / total / 4)
    return max(0.0, middle - half), min(1.0, middle + half)
