"""What a pull wants and what a bucket has: the listing, written into the ledger."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from binsweep.data.errors import UserError
from binsweep.data.s3.bucket import Bucket
from binsweep.data.s3.pull_state import PullState
from binsweep.data.sources.folder import PULL_OUTPUTS
from binsweep.data.sources.object_names import LAYOUTS, SHAPES, Layout, is_photo, parse_name, unusable

STATE = ".binsweep"  # the folder in the data's with the pull's database, its lock and PARTIAL
PARTIAL = f"{STATE}/partial"  # files that are being written; emptied by the next pull
_FOLDERS = 1000  # of what is in no layout, named one by one
FEW = 200  # so many ids are looked up one by one; for more, the bucket is listed
# (what is being done, how many are done, of how many; 0 when nobody knows)
PhaseProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images: those of some classes, at most so many in all and of each class, in a seed's order; or by id."""

    classes: tuple[int, ...] | None = None
    limit: int | None = None
    per_class: int | None = None
    ids: tuple[str, ...] | None = None
    seed: int = 0


def list_bucket(bucket: Bucket, ledger: PullState, wanted: Selection, report: PhaseProgress) -> None:
    """Write down what the bucket has, and what of that cannot be used."""
    prefixes = [""]
    if wanted.ids is not None:
        ledger.fill("asked", ((id,) for id in wanted.ids), 1)
        if len(wanted.ids) <= FEW:
            both = ((f"bin-images/{id}.", f"metadata/{id}.json") for id in wanted.ids)
            prefixes = [prefix for pair in both for prefix in pair]
            stems = {id.removesuffix(PurePosixPath(id).suffix) if is_photo(id) else id for id in wanted.ids}
            prefixes += [f"{stem}." for stem in sorted(stems) if "/" in stem]
    seen = 0
    rows: list[tuple[Any, ...]] = []
    outside: Counter[tuple[str, str]] = Counter()
    for prefix in prefixes:
        for one in bucket.list(prefix):
            seen += 1
            place = parse_name(one.name)
            if isinstance(place, str):
                if place and one.name not in PULL_OUTPUTS:
                    outside[_folder(one.name, outside), place] += 1
            else:
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
    for (folder, reason), many in outside.items():
        ledger.problem(folder, reason if many == 1 else f"{reason} ({many:,} objects)")
    report("listing", seen, seen)


def _folder(name: str, known: Counter[tuple[str, str]]) -> str:
    """Under which name an object in no layout is counted: its folder, or where these are many, the topmost."""
    folder, slash, _ = name.rpartition("/")
    if len(known) > _FOLDERS:
        folder, slash, _ = name.partition("/")
    return f"{folder}/" if slash else name


def layout_of(bucket: Bucket, ledger: PullState) -> Layout:
    """The first layout of which the bucket has images, and the doubts about it.

    Of several images whose names differ in the suffix alone, all but the first get it as a part of their ids; in the
    bucket's layout they share one metadata file, and the first is taken.
    """
    kinds = set(ledger.rows("select distinct layout, kind from listed"))
    images = {layout for layout, kind in kinds if kind == "image"}
    if len(images) > 1 and ("bucket", "document") not in kinds:
        images.discard("bucket")
    if not images:
        found = [
            f"{id}: {why}" for id, why in ledger.rows("select id, reason from problems order by id limit 3")
        ]
        raise UserError(
            f"{bucket.address.uri} has none of the images that were asked for, in no layout that is known"
            + (f" ({'; '.join(found)})" if found else ""),
            "bin-images/ID.jpg with metadata/ID.json, COUNT/NAME.jpg, or train/COUNT/NAME.jpg",
        )
    layout = next(layout for layout in LAYOUTS if layout in images)
    for other in images - {layout}:
        many = ledger.number("select count(*) from listed where layout = ? and kind = 'image'", (other,))
        where, taken = SHAPES[other], SHAPES[layout]
        ledger.problem(where, f"{many:,} images lie there, but the source's layout is {taken}")
    if layout != "bucket":
        ledger.write(
            "update listed set id = name where kind = 'image' and name > "
            "(select min(name) from listed l where l.id = listed.id and l.layout = listed.layout)"
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


def remove_gone(root: Path, ledger: PullState) -> None:
    """Take away what an earlier run fetched and the bucket no longer has."""
    for (name,) in list(ledger.rows("select name from images where name not in (select name from listed)")):
        (root / name).unlink(missing_ok=True)
        ledger.write("delete from images where name = ?", (name,))
    gone = "select id from documents where 'metadata/' || id || '.json' not in (select name from listed)"
    for (id,) in list(ledger.rows(gone)):
        (root / "metadata" / f"{id}.json").unlink(missing_ok=True)
        ledger.write("delete from documents where id = ?", (id,))
