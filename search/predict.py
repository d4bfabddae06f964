"""Counting the items in photos, by a server or in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
    if url is None:
        with tracking_server(home) as uri:
            contents = [path.read_bytes() for path in images]
            yield from zip(images, load_and_predict(model_uri, contents, uri), strict=True)
        return
    for start in range(0, len(images), ROWS):
        paths = images[start : start + ROWS]
        yield from zip(paths, ask(url, [path.read_bytes() for path in paths], timeout=60), strict=True)
