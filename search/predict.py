"""Counting the items in photos, by a server or in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.decode import ImageError, decode
from data.errors import UserError
from tracking.server import tracking_server
from tracking.serving import ROWS, load_and_predict
from tracking.serving import predict as ask


def predict_images(
    images: Sequence[Path], url: str | None, model_uri: str, home: Path
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each image with its answer: count, expected_count, confidence, probabilities, error."""
    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        raise UserError(f"no such file: {', '.join(missing[:5])}", "name photos (JPEG, PNG or WebP)")
    good = [path for path in images if not _error(path)]
    contents = [path.read_bytes() for path in good]
    rows: list[dict[str, Any]] = []
    if url is not None:
        for start in range(0, len(contents), ROWS):
            rows += ask(url, contents[start : start + ROWS], timeout=60)
    elif contents:
        with tracking_server(home) as uri:
            rows = load_and_predict(model_uri, contents, uri)
    answers = dict(zip(good, rows, strict=True))
    nothing = {"count": None, "expected_count": None, "confidence": None, "probabilities": None}
    for path in images:
        yield path, answers.get(path) or {**nothing, "error": _error(path)}


def _error(path: Path) -> str:
    """Why this file is not a photo; empty when it is. Asked here, so that one bad file costs no other its answer."""
    try:
        decode(path)
    except ImageError as error:
        return str(error)
    return ""
