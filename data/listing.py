"""What a pull wants and what a bucket has: the listing, written into the ledger."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.bucket import Bucket
from data.errors import UserError
from data.layout import LAYOUTS, Layout, named, unusable
from data.ledger import Ledger

STATE = ".binsweep"  # the folder beside the data where the ledger and half-written files lie
FEW = 200  # so many ids are looked up one by one; for more, the bucket is listed
# (what is being done, how many are done, of how many; 0 when nobody knows)
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which images: those of some classes, at most so many in all and of each class, in a seed's order; or by id."""

    classes: tuple[int, ...] | None = None
    limit: int | None = None
    per_class: int | None = None
    ids: tuple[str, ...] | None = None
    seed: int = 0


def list_bucket(bucket: Bucket, ledger: Ledger, wanted: Wanted, report: Report) -> None:
    """Write down what the bucket has, and what of that cannot be used."""
    prefixes = [""]
    if wanted.ids is not None:
        ledger.fill("asked", ((id,) for id in wanted.ids), 1)
        if len(wanted.ids) <= FEW:
            both = ((f"bin-images/{id}.", f"metadata/{id}.json") for id in wanted.ids)
            prefixes = [prefix for pair in both for prefix in pair]
            prefixes += [f"{id}." for id in wanted.ids if "/" in id]
    seen = 0
    rows: list[tuple[Any, ...]] = []
    for prefix in prefixes:
        for one in bucket.list(prefix):
            seen += 1
            place = named(one.name)
            if place is not None:
                reason = unusable(one.name)
                if reason:
                    ledger.problem(one.name, reason)
                else:
                    rows.append(
                        (
                            one.name,
                            place.layout,
                            place.kind,
                            place.id,
                            place.label,
                            place.split,
                            one.size,
                            one.etag,
                        )
                    )
            if len(rows) >= 1000:
                ledger.fill("listed", rows, 8)
                rows.clear()
                report("listing", seen, 0)
    ledger.fill("listed", rows, 8)
    report("listing", seen, seen)


def layout_of(bucket: Bucket, ledger: Ledger) -> Layout:
    """The first layout of which the bucket has images, and the doubts about it."""
    for layout in LAYOUTS:
        if ledger.number(
            "select exists (select 1 from listed where layout = ? and kind = 'image')", (layout,)
        ):
            break
    else:
        raise UserError(
            f"{bucket.place.uri} has none of the images that were asked for, in no layout that is known",
            "bin-images/ID.jpg with metadata/ID.json, COUNT/NAME.jpg, or train/COUNT/NAME.jpg",
        )
    ledger.write(
        "insert or ignore into problems select a.id, 'is not in the bucket' from asked a "
        "where not exists (select 1 from listed l where l.layout = ? and l.kind = 'image' and l.id = a.id)",
        (layout,),
    )
    ledger.write(
        "insert or ignore into problems select max(name), 'has the same id as ' || min(name) from listed "
        "where layout = ? and kind = 'image' group by id having count(*) > 1",
        (layout,),
    )
    return layout


def remove_gone(root: Path, ledger: Ledger) -> None:
    """Take away what an earlier run fetched and the bucket no longer has."""
    for (name,) in list(ledger.rows("select name from images where name not in (select name from listed)")):
        (root / name).unlink(missing_ok=True)
        ledger.write("delete from images where name = ?", (name,))
    gone = "select id from documents where 'metadata/' || id || '.json' not in (select name from listed)"
    for (id,) in list(ledger.rows(gone)):
        (root / "metadata" / f"{id}.json").unlink(missing_ok=True)
        ledger.write("delete from documents where id = ?", (id,))
