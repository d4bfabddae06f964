"""The manifest: the images of a sweep with their labels, splits and content hashes."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from binsweep.data.decode import decode, read
from binsweep.data.errors import UserError
from binsweep.data.labels import Label, LabelKind, kind_of, of_kind, sorted_labels
from binsweep.data.parallel import Progress
from binsweep.data.source_checks import (
    check_kind,
    check_labels,
    check_split_folders,
    check_splits,
)
from binsweep.data.sources.folder import FoundPhoto, Skipped, scan
from binsweep.data.sources.object_names import printable, split_key
from binsweep.data.sources.scan_cache import ScanCache, ScanResult, scan_files
from binsweep.data.sources.table import TABLE_SUFFIXES, is_table, scan_table
from binsweep.data.split import SPLITS, Split, SplitName, assign
from binsweep.data.synthetic.dataset import is_synthetic, render_source

# Which other counts teach, too: their list, every other count of the source, or none.
TrainAlso = Sequence[int] | Literal["others"] | None
MAX_GAPS = 20  # warnings about classes that are given one by one
# A count further than this from the classes is learned as "so many or more" (or fewer): each has too few photos.
_MAX_DISTANCE = 5


@dataclass(frozen=True, slots=True)
class Item:
    """One readable image: `label` is what it shows (`data.labels`), `sha256` the hex digest of its file."""

    id: str
    path: Path
    label: Label
    split: SplitName
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The images of a source, sorted by id, and those that were left out, with the reason.

    `fingerprint` is the sha256 hex digest of the classes and of every item's id, label, split and content; it depends
    neither on the location of the files nor on the order of reading. `full_fingerprint` is the fingerprint before
    items were excluded; "" if none were. `train_also` holds the photos of other counts, for training only; they are
    part of the fingerprint. `leak` warns of near duplicates across the splits that a table gives.
    """

    source: str
    classes: tuple[Label, ...]
    items: tuple[Item, ...]
    skipped: tuple[Skipped, ...]
    fingerprint: str
    full_fingerprint: str = ""
    train_also: tuple[Item, ...] = ()
    leak: str = ""

    @property
    def kind(self) -> LabelKind:
        """Whether the classes are counts or names."""
        return kind_of(self.classes)

    @property
    def head_classes(self) -> tuple[Label, ...]:
        """The classes that a head tells apart in training, in order: the `classes`, and those of `train_also`."""
        also = (self.head_class(item.label) for item in self.train_also)
        return tuple(sorted_labels({*self.classes, *also}))

    def head_class(self, label: Label) -> Label:
        """The class as which a photo with this label is learned."""
        first, last = self.classes[0], self.classes[-1]
        if isinstance(label, str) or isinstance(first, str) or isinstance(last, str):
            return label
        return min(max(label, first - _MAX_DISTANCE), last + _MAX_DISTANCE)

    def split(self, name: SplitName) -> tuple[Item, ...]:
        """The items of one split, sorted by id."""
        return tuple(item for item in self.items if item.split == name)

    def without(self, ids: Collection[str], source: str) -> "Manifest":
        """The manifest without the given ids of the train split; `source` is the origin of the ids, for the reason.

        Validation and test keep all items, so that results with and without remain comparable.
        """
        excluded = [item for item in (*self.split("train"), *self.train_also) if item.id in ids]
        kept = tuple(item for item in self.items if item.split != "train" or item.id not in ids)
        also = tuple(item for item in self.train_also if item.id not in ids)
        return replace(
            self,
            items=kept,
            skipped=(*self.skipped, *(Skipped(item.id, f"excluded by {source}") for item in excluded)),
            fingerprint=_fingerprint(self.classes, kept, also),
            full_fingerprint=self.full_fingerprint or self.fingerprint,
            train_also=also,
        )

    def class_counts(self, name: SplitName) -> dict[Label, int]:
        """The number of items of each class in a split, including classes without any."""
        counts = Counter(item.label for item in self.split(name))
        return {label: counts[label] for label in self.classes}

    def other_counts(self) -> dict[Label, int]:
        """The number of photos of each count in `train_also`, by ascending count."""
        counts = Counter(item.label for item in self.train_also)
        return {label: counts[label] for label in sorted_labels(counts)}

    def warnings(self) -> list[str]:
        """A warning for each class without a photo in some split: the consequences, and what to do; and the leak."""
        warnings = []
        consequences = {
            "train": "no model can learn it",
            "validation": "trials are compared without it",
            "test": "promoted models are not evaluated on it",
        }
        counts = {name: self.class_counts(name) for name in SPLITS}
        for label in self.classes:
            missing = [name for name in SPLITS if not counts[name][label]]
            if missing:
                has = ", ".join(f"{counts[name][label]} in {name}" for name in SPLITS if name not in missing)
                result = ", and ".join(consequences[name] for name in missing)
                warnings.append(
                    f"class {label} has no photo in {' and '.join(missing)} ({has}): {result}; add photos of it, "
                    "divide by another data.split, or leave it out of data.classes"
                )
        if len(warnings) > MAX_GAPS:
            more = f"{len(warnings) - MAX_GAPS} more classes have no photo in some split"
            warnings = [*warnings[:MAX_GAPS], more]
        return [*warnings, *([self.leak] if self.leak else [])]

    def summary(self) -> dict[str, Any]:
        """The manifest in a few numbers, as JSON values."""
        also = self.other_counts()
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "classes": list(self.classes),
            "images": len(self.items),
            "skipped": len(self.skipped),
            "splits": {name: {str(k): n for k, n in self.class_counts(name).items()} for name in SPLITS},
            **({"train_also": {str(label): n for label, n in also.items()}} if also else {}),
        }


def load_manifest(
    source: str,
    classes: Sequence[Label] | None,
    split: Split,
    home: Path,
    progress: Progress | None = None,
    *,
    labels: LabelKind | None = None,
    train_also: TrainAlso = None,
    allow_untrainable: bool = False,
) -> Manifest:
    """Find the images and labels of a source, check and hash every image of the given classes.

    `source` is a folder or an s3:// address with one of the layouts of `data.sources`, a table of photos (.csv or
    .parquet, also in a bucket), or synthetic://?images=600&seed=0. `labels` says what its labels are; None: counts, if
    all of them are whole numbers. `classes` are the labels to keep; None keeps all. `train_also` are further counts
    whose photos are for training only. Downloads and scans are cached under `home`, so that a second load only
    compares dates or a listing. `progress(done, total)` counts images.

    Raises UserError for a source that does not exist, is empty, has none of the layouts, or has no readable image of
    the classes, for labels that are not of the kind that is asked for, and for too many names. Unless
    `allow_untrainable`, it also raises for a class without a readable image, fewer than two classes, an empty split, or
    no photo of `train_also`. If the folders divide the source and `split` does not, it raises or, with
    `allow_untrainable`, uses the folders.
    """
    if labels is None and kind_of(classes or ()) == "names":
        labels = "names"
    if labels == "names" and classes is not None:
        classes = of_kind(classes, labels)
    wanted = None if classes is None else _sorted_classes(classes, 1 if allow_untrainable else 2)
    all_counts = wanted is None or train_also == "others"
    to_read = None if all_counts else tuple(sorted_labels({*(wanted or ()), *(train_also or ())}))
    place, missing = _local_place(source, to_read, home, labels, progress)
    in_table = is_table(str(place))
    root = place.absolute().parent if in_table else place
    cache = ScanCache(root, home)
    address = source[: source.rindex("/") + 1] if "://" in source else ""
    candidates, skipped = scan_table(place, labels, address) if in_table else scan(root, cache, labels)
    skipped += missing
    check_kind(source, labels, wanted, train_also, candidates)
    # The splits of a table are always taken as they are given.
    split = replace(split, by="folder") if in_table and any(one.split for one in candidates) else split
    check_split_folders(source, split, candidates, allow_untrainable)
    selected = [c for c in candidates if to_read is None or c.label in to_read]
    readable, unreadable = _verify(selected, root, cache, progress)
    skipped += unreadable
    others = [] if wanted is None else [pair for pair in readable if pair[0].label not in wanted]
    readable = [pair for pair in readable if wanted is None or pair[0].label in wanted]
    splits = _splits(split, [photo for photo, _ in readable], root, home)
    items = [
        Item(photo.id, photo.path, photo.label, name, sha256)
        for (photo, sha256), name in zip(readable, splits, strict=True)
    ]
    items.sort(key=lambda item: item.id)
    teaching, held_out = _without_held_out(others, items, [photo for photo, _ in readable], split, root, home)
    skipped += held_out
    skipped.sort(key=lambda file: (file.id, file.reason))
    kept = wanted or tuple(sorted_labels({item.label for item in items}))
    if not items or not allow_untrainable:
        check_labels(source, kept, items, candidates, skipped)
    if not allow_untrainable:
        check_splits(source, split, items, skipped)
        if train_also is not None and not teaching:
            counts = "another count" if train_also == "others" else f"{', '.join(map(str, train_also))} items"
            raise UserError(
                f"data.train_also: {source} has no photo to train on of {counts}",
                "leave it out, or name counts that occur there",
            )
    fingerprint = _fingerprint(kept, items, teaching)
    leak = _leak(source, items, root, home) if in_table and split.by == "folder" else ""
    return Manifest(source, kept, tuple(items), tuple(skipped), fingerprint, "", tuple(teaching), leak)


def _verify(
    photos: Sequence[FoundPhoto], root: Path, cache: ScanCache, progress: Progress | None
) -> tuple[list[tuple[FoundPhoto, str]], list[Skipped]]:
    """The photos that decode, with their sha256, and the others with the reason."""
    readable, unreadable = [], []
    results = scan_files([photo.path for photo in photos], _verified_sha256, cache, progress)
    for photo, (sha256, reason) in zip(photos, results, strict=True):
        if isinstance(sha256, str):
            readable.append((photo, sha256))
        else:
            path = printable(str(photo.path.relative_to(root)))
            unreadable.append(Skipped(photo.id, f"{path}: {reason}"))
    return readable, unreadable


def _without_held_out(
    others: Sequence[tuple[FoundPhoto, str]],
    items: Sequence[Item],
    photos: Sequence[FoundPhoto],
    split: Split,
    root: Path,
    home: Path,
) -> tuple[list[Item], list[Skipped]]:
    """The photos of other counts that may teach, sorted by id, and those that would give away held-out photos.

    These are copies of validation or test photos, members of their groups, and the photos of such a folder.
    `photos` are the photos of `items`.
    """
    held_ids = {item.id for item in items if item.split != "train"}
    held_contents = {item.sha256 for item in items if item.split != "train"}
    together: set[str] = set()  # ids in a group with a held-out photo
    if split.by == "group" and others:
        from binsweep.data.split_groups import group_representatives

        every = [*photos, *(photo for photo, _ in others)]
        groups = [one.id for one in group_representatives(every, root, home)]
        held_groups = {group for photo, group in zip(every, groups, strict=True) if photo.id in held_ids}
        together = {photo.id for photo, group in zip(every, groups, strict=True) if group in held_groups}
    teaching, left_out = [], []
    for photo, sha256 in others:
        if sha256 in held_contents or photo.id in together:
            reason = "data.train_also leaves it out, as it belongs to a photo of validation or test"
            left_out.append(Skipped(photo.id, reason))
        elif photo.split in (None, "train"):
            teaching.append(Item(photo.id, photo.path, photo.label, "train", sha256))
    teaching.sort(key=lambda item: item.id)
    return teaching, left_out


def _leak(source: str, items: Sequence[Item], root: Path, home: Path) -> str:
    """A warning if photos of different splits are copies of each other, byte for byte or nearly; "" if none are."""
    from binsweep.data.split_groups import duplicates_across_splits  # its libraries take a second to import

    pairs = duplicates_across_splits(items, root, home)
    if not pairs:
        return ""
    examples = ", ".join(f"{one.id} ({one.split}) and {other.id} ({other.split})" for one, other in pairs[:3])
    return (
        f"{len(pairs)} photo{'s' if len(pairs) > 1 else ''} of {source} have a near duplicate in another split: "
        f"{examples}; scores on that split are too good. Give such photos the same split, or leave out the column "
        "split and set data.split.by: group"
    )


def _sorted_classes(classes: Sequence[Label], min_count: int) -> tuple[Label, ...]:
    """The classes in their order: the position of a class is its index in models and banks."""
    if len(set(classes)) < max(min_count, len(classes)):
        raise UserError(
            f"data.classes must name at least two different counts or names, each once, and is {list(classes)}",
            "for example [0, 1, 2, 3, 4, 5], or [ok, scratched]",
        )
    return tuple(sorted_labels(classes))


def _local_place(
    source: str,
    classes: tuple[Label, ...] | None,
    home: Path,
    labels: LabelKind | None,
    progress: Progress | None,
) -> tuple[Path, list[Skipped]]:
    """The local folder or table of a source, and the images that could not be fetched."""
    if not source.strip():  # Path("") is the working folder
        raise UserError("data.source is an empty name", "a folder, or s3://BUCKET/PREFIX")
    scheme, separator, _ = source.partition("://")
    if is_synthetic(source):
        counts = None if classes is None else tuple(one for one in classes if isinstance(one, int))
        return render_source(source, home, progress, counts), []
    if scheme == "s3" and separator:
        # Importing boto3 takes a second, and a bare GPU machine may lack it.
        from binsweep.data.s3.source import fetch_source

        return fetch_source(source, classes, home, labels, progress)
    if separator:
        raise UserError(
            f"data.source: nothing reads {scheme}://, received {source}",
            "a folder or a table, s3://BUCKET/PREFIX, or synthetic://?images=600",
        )
    if printable(source) != source:
        raise UserError(
            f"data.source is not printable UTF-8 text: {printable(source)}",
            "another name for the folder, or a link to it: reports and MLflow accept text only",
        )
    place = Path(source).expanduser()
    if is_table(source) and not place.exists():
        raise UserError(
            f"data.source does not exist: {place}", f"a file that ends in {' or '.join(TABLE_SUFFIXES)}"
        )
    return place, []


def _splits(split: Split, candidates: Sequence[FoundPhoto], root: Path, home: Path) -> list[SplitName]:
    if split.by == "group":
        from binsweep.data.split_groups import group_representatives  # its libraries take a second to import

        representatives = group_representatives(candidates, root, home)
    else:
        representatives = list(candidates)
    return [
        image.split or assign(split, split_key(image.id, image.path.name), image.label)
        for image in representatives
    ]


def _verified_sha256(path: Path) -> ScanResult:
    """The sha256 of a file that decodes completely."""
    data = read(path)
    decode(data)
    return hashlib.sha256(data).hexdigest(), ""


def _fingerprint(classes: Sequence[Label], items: Sequence[Item], train_also: Sequence[Item] = ()) -> str:
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for item in items:
        digest.update(json.dumps([item.id, item.label, item.split, item.sha256]).encode())
    for item in train_also:
        digest.update(json.dumps([item.id, item.label, "train_also", item.sha256]).encode())
    return digest.hexdigest()
