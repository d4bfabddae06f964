"""The listing of a bucket, written into the pull state, and the layout of its images."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from binsweep.data.errors import UserError
from binsweep.data.labels import Label, LabelKind
from binsweep.data.s3.bucket import Bucket
from binsweep.data.s3.pull_state import PullState
from binsweep.data.sources.folder import PULL_OUTPUTS, FoundPhoto
from binsweep.data.sources.object_names import (
    LAYOUT_EXAMPLES,
    LAYOUTS,
    Layout,
    is_photo,
    name_problem,
    parse_name,
)

STATE = ".binsweep"  # the subfolder of a pull's database, lock and partial files
PARTIAL = f"{STATE}/partial"  # files that are being written; emptied by the next pull
_MAX_PROBLEM_FOLDERS = 1000  # folders in no layout that are reported one by one
MAX_SINGLE_LOOKUPS = 200  # for more ids, the whole bucket is listed
_ROWS = 1000  # written to the pull state at once
# (phase, number done, total), where a total of 0 is unknown
PhaseProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Selection:
    """The images to pull: by class, with a limit in all and for each class, in the order of a seed; or by id.

    `labels` is what folders of classes are named by.
    """

    classes: tuple[Label, ...] | None = None
    limit: int | None = None
    per_class: int | None = None
    ids: tuple[str, ...] | None = None
    seed: int = 0
    labels: LabelKind = "counts"


def list_bucket(bucket: Bucket, state: PullState, selection: Selection, progress: PhaseProgress) -> None:
    """Write the bucket's listing into the pull state, with the objects that cannot be used as problems."""
    if selection.ids is not None:
        state.fill("asked", ((id,) for id in selection.ids), 1)
    n_seen = 0
    rows: list[tuple[Any, ...]] = []
    unplaced: Counter[tuple[str, str]] = Counter()
    for prefix in _prefixes(selection):
        for found in bucket.list(prefix):
            n_seen += 1
            parsed = parse_name(found.name, selection.labels)
            if isinstance(parsed, str):
                if parsed and found.name not in PULL_OUTPUTS:
                    unplaced[_problem_name(found.name, unplaced), parsed] += 1
            elif problem := name_problem(found.name):
                state.problem(found.name, problem)
            else:
                of_name = (found.name, parsed.layout, parsed.kind, parsed.id, parsed.label, parsed.split)
                rows.append((*of_name, found.size, found.etag))
            if len(rows) >= _ROWS:
                state.fill("listed", rows, 8)
                rows.clear()
                progress("listing", n_seen, 0)
    state.fill("listed", rows, 8)
    for (name, problem), count in unplaced.items():
        objects = f" ({count:,} object{'s' if count > 1 else ''})" if name.endswith("/") else ""
        state.problem(name, f"{problem}{objects}")
    progress("listing", n_seen, n_seen)


def list_table(
    bucket: Bucket, state: PullState, photos: Mapping[str, FoundPhoto], progress: PhaseProgress
) -> Layout:
    """Write the objects that are photos of a table, by their names, into the pull state."""
    rows: list[tuple[Any, ...]] = []
    for n_seen, found in enumerate(bucket.list(), 1):
        if (photo := photos.get(found.name)) is not None and not name_problem(found.name):
            of_name = (found.name, "classes", "image", photo.id, photo.label, photo.split)
            rows.append((*of_name, found.size, found.etag))
        if n_seen % _ROWS == 0:
            progress("listing", n_seen, 0)
    state.fill("listed", rows, 8)
    return "classes"


def _prefixes(selection: Selection) -> list[str]:
    """The prefixes to list: those of a few ids, or the whole bucket."""
    if selection.ids is None or len(selection.ids) > MAX_SINGLE_LOOKUPS:
        return [""]
    prefixes = [prefix for id in selection.ids for prefix in (f"bin-images/{id}.", f"metadata/{id}.json")]
    stems = {id.removesuffix(PurePosixPath(id).suffix) if is_photo(id) else id for id in selection.ids}
    return prefixes + [f"{stem}." for stem in sorted(stems) if "/" in stem]


def _problem_name(name: str, unplaced: Counter[tuple[str, str]]) -> str:
    """The name under which an object in no layout is reported: its folder, or its top folder if there are many."""
    folder, slash, _ = name.rpartition("/")
    if len(unplaced) > _MAX_PROBLEM_FOLDERS:
        folder, slash, _ = name.partition("/")
    return f"{folder}/" if slash else name


def layout_of(bucket: Bucket, state: PullState) -> Layout:
    """The first of LAYOUTS of which the bucket has images; what does not fit it becomes a problem.

    If the names of several images differ in their suffix only, the ids of all but the first include it; in the
    bucket's layout they share one metadata file, and the first is used.
    """
    kinds = set(state.rows("select distinct layout, kind from listed"))
    images = {layout for layout, kind in kinds if kind == "image"}
    if len(images) > 1 and ("bucket", "document") not in kinds:
        images.discard("bucket")
    if not images:
        problems = [
            f"{id}: {reason}"
            for id, reason in state.rows("select id, reason from problems order by id limit 3")
        ]
        raise UserError(
            f"{bucket.address.uri} has none of the requested images in a known layout"
            + (f" ({'; '.join(problems)})" if problems else ""),
            "bin-images/ID.jpg with metadata/ID.json, COUNT/NAME.jpg, or train/COUNT/NAME.jpg",
        )
    layout = next(layout for layout in LAYOUTS if layout in images)
    for other in images - {layout}:
        count = state.scalar("select count(*) from listed where layout = ? and kind = 'image'", (other,))
        reason = f"{count:,} images have this layout, but the source's is {LAYOUT_EXAMPLES[layout]}"
        state.problem(LAYOUT_EXAMPLES[other], reason)
    if layout != "bucket":
        state.write(
            "update listed set id = name where kind = 'image' and name > "
            "(select min(name) from listed l where l.id = listed.id and l.layout = listed.layout)"
        )
    state.write(
        "insert or ignore into problems select a.id, 'is not in the bucket' from asked a "
        "where not exists (select 1 from listed l where l.layout = ? and l.kind = 'image' and l.id = a.id)",
        (layout,),
    )
    state.write(
        "insert or ignore into problems select max(name), 'has the same id as ' || min(name) from listed "
        "where layout = ? and kind = 'image' group by id having count(*) > 1",
        (layout,),
    )
    return layout


def remove_gone(root: Path, state: PullState) -> None:
    """Remove files of earlier pulls that the bucket no longer has."""
    for (name,) in list(state.rows("select name from images where name not in (select name from listed)")):
        (root / name).unlink(missing_ok=True)
        state.write("delete from images where name = ?", (name,))
    gone = "select id from documents where 'metadata/' || id || '.json' not in (select name from listed)"
    for (id,) in list(state.rows(gone)):
        (root / "metadata" / f"{id}.json").unlink(missing_ok=True)
        state.write("delete from documents where id = ?", (id,))
