"""A bucket as the source of a sweep: kept on this machine, shared by its processes, checked each time."""

import hashlib
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.data.parallel import Progress
from binsweep.data.s3.address import parse_address
from binsweep.data.s3.bucket import DEFAULT_WORKERS, open_bucket
from binsweep.data.s3.download import fetch
from binsweep.data.s3.listing import Selection
from binsweep.data.s3.pull import open_pull_state
from binsweep.data.sources.folder import Skipped


def fetch_source(
    source: str, classes: tuple[int, ...] | None, home: Path, progress: Progress | None = None
) -> tuple[Path, list[Skipped]]:
    """The folder under `home`/datasets with a bucket's images of some classes, and what it lacks, with reasons.

    The bucket is listed each time; what is new, or has another size or ETag than here, is fetched, what is
    gone is removed. Processes that ask for the same at once wait for the one that fetches. Raises UserError
    when the bucket cannot be read or has no such image.
    """
    bucket = open_bucket(parse_address(source))
    name = hashlib.sha256(f"{bucket.endpoint} {bucket.address.uri}".encode()).hexdigest()[:12]
    root = home / "datasets" / f"s3-{bucket.address.bucket}-{name}"

    def report(phase: str, done: int, total: int) -> None:
        if progress is not None and phase == "images":
            progress(done, total)

    with open_pull_state(root, wait=True) as ledger:
        fetch(bucket, root, ledger, Selection(classes), report, DEFAULT_WORKERS)
        if not ledger.number("select count(*) from chosen"):
            which = f" of class {', '.join(map(str, classes))}" if classes else ""
            raise UserError(f"data.source: {source} has no image{which} with a label", "other data.classes")
        # What lies here and cannot be read is found again by whoever reads the folder.
        absent = ledger.rows(
            "select p.id, p.reason from problems p where p.id not in "
            "(select l.id from listed l join images i on i.name = l.name where i.reason != '')"
        )
        return root, [Skipped(id, reason) for id, reason in absent]
