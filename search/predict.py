"""Counting the items in photos, by a server or in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from tracking.server import tracking_server
from tracking.serving import load_and_predict
from tracking.serving import predict as ask

ROWS = 32  # photos a request


def predict_images(
    images: Sequence[Path], url: str | None, model_uri: str, home: Path
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each image with its answer: count, expected_count, confidence, probabilities, error."""
    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        raise UserError(f"no such file: {', '.join(missing[:5])}", "name photos (JPEG, PNG or WebP)")
    for start in range(0, len(images), ROWS):
        paths = images[start : start + ROWS]
        contents = [path.read_bytes() for path in paths]
        if url is not None:
            rows = ask(url, contents, timeout=60)
        else:
            with tracking_server(home) as uri:
                rows = load_and_predict(model_uri, contents, uri)
        yield from zip(paths, rows, strict=True)
