"""Upload a data set to a bucket, in its own layout or by splits, with its manifest."""

import hashlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from binsweep.data.decode import ImageError, dimensions, read
from binsweep.data.errors import UserError
from binsweep.data.manifest import Item, Manifest
from binsweep.data.s3.bucket import Bucket
from binsweep.data.s3.download import map_ordered
from binsweep.data.s3.listing import PhaseProgress
from binsweep.data.s3.parquet_manifest import write_table
from binsweep.data.sources.folder import PULL_OUTPUTS
from binsweep.data.sources.metadata import parse_metadata
from binsweep.data.sources.object_names import name_problem, parse_split, printable, split_key
from binsweep.data.sources.table import is_table

Arrangement = Literal["same", "splits"]


@dataclass(frozen=True, slots=True)
class PushResult:
    """The result of a push: `sent` of the `objects` were uploaded; the bucket had the others already."""

    images: int
    objects: int
    sent: int


def push(
    manifest: Manifest, bucket: Bucket, arrangement: Arrangement, progress: PhaseProgress, workers: int = 32
) -> PushResult:
    """Upload the images of a manifest, their metadata files and manifest.parquet, which comes last.

    `arrangement` is `same` for the source's layout, or `splits` for SPLIT/LABEL/NAME. Objects that the bucket has
    already, by size and checksum, are not sent again. Raises UserError if the bucket cannot be written or a file
    cannot be read.
    """
    if arrangement == "same" and is_table(manifest.source):
        raise UserError(
            f"{manifest.source} is a table: its photos have no layout to keep", "data push --layout splits"
        )
    files = [pair for item in manifest.items for pair in _files(item, arrangement)]
    duplicates = len(files) - len({name for name, _ in files})
    if duplicates:
        raise UserError(
            f"{duplicates} of the files would get the name of another one", "data push --layout same"
        )
    for name, _ in files if manifest.kind == "names" else ():
        if problem := name_problem(name):
            raise UserError(f"{name}: {problem}", "other names of classes or files")
    existing = {one.name: (one.size, one.etag) for one in bucket.list()}

    def send(pair: tuple[str, Path]) -> bool:
        name, path = pair
        data = path.read_bytes()
        if existing.get(name) == (len(data), hashlib.md5(data, usedforsecurity=False).hexdigest()):
            return False
        bucket.put(name, path)
        return True

    sent = 0
    try:
        with ThreadPoolExecutor(workers, "push") as pool:
            for done, is_sent in enumerate(map_ordered(pool, 4 * workers, send, files), 1):
                sent += is_sent
                progress("sending", done, len(files))
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / PULL_OUTPUTS[0]
            write_table(table, _rows(manifest, bucket, arrangement), manifest.kind)
            bucket.put(table.name, table)
    except OSError as error:
        name = printable(str(error.filename))
        raise UserError(f"cannot read {name}: {error.strerror}", "an unchanged source") from error
    except ImageError as error:
        raise UserError(f"cannot read an image any more: {error}", "an unchanged source") from error
    return PushResult(len(manifest.items), len(files), sent)


def _files(item: Item, arrangement: Arrangement) -> list[tuple[str, Path]]:
    """The names and files of an item's objects, the image first."""
    path = item.path
    if arrangement == "splits":
        return [(f"{item.split}/{item.label}/{_path_in_class(item)}", path)]
    document = _document(item)
    if document is not None:
        return [(f"bin-images/{path.name}", path), (f"metadata/{document.name}", document)]
    return [(_relative_path(item), path)]


def _relative_path(item: Item) -> str:
    """The path of an item's file in its source, without characters that keys must not have."""
    has_twin = split_key(item.id, item.path.name) != item.id
    return (item.id if has_twin else f"{item.id}{item.path.suffix}").replace("\\", "_")


def _path_in_class(item: Item) -> str:
    """The path of an item's file below the folder of its class."""
    parts = _relative_path(item).split("/")
    folders = parts[1:] if parse_split(parts[0]) and len(parts) > 2 else parts
    return "/".join(folders[1:]) if len(folders) > 1 else folders[0]


def _document(item: Item) -> Path | None:
    path = item.path.parents[1] / "metadata" / f"{item.path.stem}.json"
    return path if item.path.parent.name == "bin-images" else None


def _rows(manifest: Manifest, bucket: Bucket, arrangement: Arrangement) -> Iterator[tuple[Any, ...]]:
    for item in manifest.items:
        data = read(item.path)
        document = _document(item)
        metadata = parse_metadata(document.read_bytes() if document else b"")
        name = _files(item, arrangement)[0][0]
        uri = f"{bucket.address.uri}/{name}"
        facts = (item.id, uri, item.label, item.split, item.sha256, *dimensions(data), len(data))
        yield (*facts, metadata.names, metadata.quantities)
