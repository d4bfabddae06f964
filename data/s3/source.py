"""A bucket as the source of a sweep: a copy on this machine, shared by its processes and updated each time."""

import hashlib
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.data.parallel import Progress
from binsweep.data.s3.address import parse_address
from binsweep.data.s3.bucket import DEFAULT_WORKERS, open_bucket
from binsweep.data.s3.download import download
from binsweep.data.s3.listing import Selection
from binsweep.data.s3.pull import open_pull_state
from binsweep.data.sources.folder import Skipped


def fetch_source(
    source: str, classes: tuple[int, ...] | None, home: Path, progress: Progress | None = None
) -> tuple[Path, list[Skipped]]:
    """The folder under `home`/datasets with a bucket's images of some classes, and the images left out.

    The bucket is listed each time: new objects, and those with another size or ETag, are fetched, and deleted ones
    are removed. Concurrent processes wait for the one that fetches. Raises UserError if the bucket cannot be read
    or has no such image.
    """
    bucket = open_bucket(parse_address(source))
    name = hashlib.sha256(f"{bucket.endpoint} {bucket.address.uri}".encode()).hexdigest()[:12]
    root = home / "datasets" / f"s3-{bucket.address.bucket}-{name}"

    def report(phase: str, done: int, total: int) -> None:
        if progress is not None and phase == "images":
            progress(done, total)

    with open_pull_state(root, wait=True) as state:
        download(bucket, root, state, Selection(classes), report, DEFAULT_WORKERS)
        if not state.scalar("select count(*) from chosen"):
            of_class = f" of class {', '.join(map(str, classes))}" if classes else ""
            raise UserError(
                f"data.source: {source} has no image{of_class} with a label", "other data.classes"
            )
        # Images here that cannot be read are found when the folder is scanned.
        absent = state.rows(
            "select p.id, p.reason from problems p where p.id not in "
            "(select l.id from listed l join images i on i.name = l.name where i.reason != '')"
        )
        return root, [Skipped(id, reason) for id, reason in absent]
