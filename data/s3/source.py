"""A bucket as the source of a sweep: a copy on this machine, shared by its processes and updated each time."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from binsweep.data.atomic_write import write_bytes
from binsweep.data.errors import UserError
from binsweep.data.labels import Label, LabelKind
from binsweep.data.parallel import Progress
from binsweep.data.s3.address import parse_address
from binsweep.data.s3.bucket import DEFAULT_WORKERS, Bucket, open_bucket
from binsweep.data.s3.download import download
from binsweep.data.s3.errors import ObjectError
from binsweep.data.s3.listing import Selection
from binsweep.data.s3.pull import open_pull_state
from binsweep.data.sources.folder import FoundPhoto, Skipped
from binsweep.data.sources.object_names import detect_labels
from binsweep.data.sources.table import bucket_path, is_table, table_photos


def fetch_source(
    source: str,
    classes: tuple[Label, ...] | None,
    home: Path,
    labels: LabelKind | None = None,
    progress: Progress | None = None,
) -> tuple[Path, list[Skipped]]:
    """The folder under `home`/datasets with a bucket's images of some classes, and the images left out.

    Of a table in a bucket, it is the table's file there, with its photos at their places. `labels` is what folders or
    the table name. The bucket is listed each time: new objects, and those with another size or ETag, are fetched, and
    deleted ones are removed. Concurrent processes wait for the one that fetches. Raises UserError if the bucket cannot
    be read or has no such image.
    """
    if is_table(source):
        return _fetch_table(source, classes, home, labels, progress)
    bucket = open_bucket(parse_address(source))
    kind = labels or detect_labels(bucket.folders(), lambda folder: bucket.folders(f"{folder}/"))
    return _fetch(bucket, bucket.address.uri, Selection(classes, labels=kind), home, progress)


def _fetch_table(
    source: str,
    classes: tuple[Label, ...] | None,
    home: Path,
    labels: LabelKind | None,
    progress: Progress | None,
) -> tuple[Path, list[Skipped]]:
    folder, _, name = source.rpartition("/")
    bucket = open_bucket(parse_address(folder))
    try:
        content = bucket.get(name).data
    except ObjectError as error:
        raise UserError(
            f"data.source: cannot read {source}: {error}", "the address of a CSV or Parquet file"
        ) from error
    relative = partial(bucket_path, prefix=f"{bucket.address.uri}/")
    photos = {str(one.path): one for one in table_photos(source, content, labels, relative)[0]}
    root, absent = _fetch(bucket, source, Selection(classes), home, progress, photos)
    write_bytes(root / name, content)
    return root / name, absent


def _fetch(
    bucket: Bucket,
    uri: str,
    selection: Selection,
    home: Path,
    progress: Progress | None,
    table: Mapping[str, FoundPhoto] | None = None,
) -> tuple[Path, list[Skipped]]:
    name = hashlib.sha256(f"{bucket.endpoint} {uri}".encode()).hexdigest()[:12]
    root = home / "datasets" / f"s3-{bucket.address.bucket}-{name}"

    def report(phase: str, done: int, total: int) -> None:
        if progress is not None and phase == "images":
            progress(done, total)

    with open_pull_state(root, wait=True) as state:
        download(bucket, root, state, selection, report, DEFAULT_WORKERS, table)
        if not state.scalar("select count(*) from chosen"):
            classes = selection.classes
            of_class = f" of class {', '.join(map(str, classes))}" if classes else ""
            raise UserError(f"data.source: {uri} has no image{of_class} with a label", "other data.classes")
        # Images here that cannot be read are found when the folder is scanned.
        absent = state.rows(
            "select p.id, p.reason from problems p where p.id not in "
            "(select l.id from listed l join images i on i.name = l.name where i.reason != '')"
        )
        return root, [Skipped(id, reason) for id, reason in absent]
