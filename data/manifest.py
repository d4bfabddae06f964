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
from binsweep.data.parallel import Progress
from binsweep.data.sources.folder import FoundPhoto, Skipped, scan
from binsweep.data.sources.object_names import printable, split_key
from binsweep.data.sources.scan_cache import ScanCache, ScanResult, scan_files
from binsweep.data.split import SPLITS, Split, SplitName, assign
from binsweep.data.synthetic.dataset import is_synthetic, render_source

# Which other counts teach, too: their list, every other count of the source, or none.
TrainAlso = Sequence[int] | Literal["others"] | None
# A count further than this from the classes is learned as "so many or more" (or fewer): each has too few photos.
_MAX_DISTANCE = 5


@dataclass(frozen=True, slots=True)
class Item:
    """One readable image: `label` is the number of items in the bin, `sha256` the hex digest of its file."""

    id: str
    path: Path
    label: int
    split: SplitName
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The images of a source, sorted by id, and those that were left out, with the reason.

    `fingerprint` is the sha256 hex digest of the classes and of every item's id, label, split and content; it depends
    neither on the location of the files nor on the order of reading. `full_fingerprint` is the fingerprint before
    items were excluded; "" if none were. `train_also` holds the photos of other counts, for training only; they are
    part of the fingerprint.
    """

    source: str
    classes: tuple[int, ...]
    items: tuple[Item, ...]
    skipped: tuple[Skipped, ...]
    fingerprint: str
    full_fingerprint: str = ""
    train_also: tuple[Item, ...] = ()

    @property
    def head_classes(self) -> tuple[int, ...]:
        """The counts that a head tells apart in training, ascending: the classes, and those of `train_also`."""
        return tuple(sorted({*self.classes, *(self.head_class(item.label) for item in self.train_also)}))

    def head_class(self, label: int) -> int:
        """The count as which a photo with this label is learned."""
        return min(max(label, self.classes[0] - _MAX_DISTANCE), self.classes[-1] + _MAX_DISTANCE)

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

    def class_counts(self, name: SplitName) -> dict[int, int]:
        """The number of items of each class in a split, including classes without any."""
        counts = Counter(item.label for item in self.split(name))
        return {label: counts[label] for label in self.classes}

    def other_counts(self) -> dict[int, int]:
        """The number of photos of each count in `train_also`, by ascending count."""
        counts = Counter(item.label for item in self.train_also)
        return {label: counts[label] for label in sorted(counts)}

    def coverage_warnings(self) -> list[str]:
        """A warning for each class without a photo in some split: the consequences, and what to do."""
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
        return warnings

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
    classes: Sequence[int] | None,
    split: Split,
    home: Path,
    progress: Progress | None = None,
    *,
    train_also: TrainAlso = None,
    allow_untrainable: bool = False,
) -> Manifest:
    """Find the images and labels of a source, check and hash every image of the given classes.

    `source` is a folder or an s3:// address with one of the layouts of `data.sources`, or
    synthetic://?images=600&seed=0. `classes` are the labels to keep; None keeps all. `train_also` are further labels
    whose photos are for training only. Downloads and scans are cached under `home`, so that a second load only
    compares dates or a listing. `progress(done, total)` counts images.

    Raises UserError for a source that does not exist, is empty, has none of the layouts, or has no readable image of
    the classes. Unless `allow_untrainable`, it also raises for a class without a readable image, fewer than two
    classes, an empty split, or no photo of `train_also`. If the folders divide the source and `split` does not, it
    raises or, with `allow_untrainable`, uses the folders.
    """
    wanted = None if classes is None else _sorted_classes(classes, 1 if allow_untrainable else 2)
    all_counts = wanted is None or train_also == "others"
    to_read = None if all_counts else tuple(sorted({*(wanted or ()), *(train_also or ())}))
    root, missing = _local_folder(source, to_read, home, progress)
    cache = ScanCache(root, home)
    candidates, skipped = scan(root, cache)
    skipped += missing
    _check_split_folders(source, split, candidates, allow_untrainable)
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
    kept = wanted or tuple(sorted({item.label for item in items}))
    if not items or not allow_untrainable:
        _check_labels(source, kept, items, candidates, skipped)
    if not allow_untrainable:
        _check_splits(source, split, items, skipped)
        if train_also is not None and not teaching:
            counts = "another count" if train_also == "others" else f"{', '.join(map(str, train_also))} items"
            raise UserError(
                f"data.train_also: {source} has no photo to train on of {counts}",
                "leave it out, or name counts that occur there",
            )
    fingerprint = _fingerprint(kept, items, teaching)
    return Manifest(source, kept, tuple(items), tuple(skipped), fingerprint, train_also=tuple(teaching))


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


def _sorted_classes(classes: Sequence[int], min_count: int) -> tuple[int, ...]:
    """The classes in ascending order: the position of a class is its index in models and banks."""
    if len(set(classes)) < max(min_count, len(classes)):
        raise UserError(
            f"data.classes must name at least two different counts, each once, and is {list(classes)}",
            "for example [0, 1, 2, 3, 4, 5]",
        )
    return tuple(sorted(classes))


def _local_folder(
    source: str, classes: tuple[int, ...] | None, home: Path, progress: Progress | None
) -> tuple[Path, list[Skipped]]:
    """The local folder of a source, and the images that could not be fetched."""
    if not source.strip():  # Path("") is the working folder
        raise UserError("data.source is an empty name", "a folder, or s3://BUCKET/PREFIX")
    scheme, separator, _ = source.partition("://")
    if is_synthetic(source):
        return render_source(source, home, progress, classes), []
    if scheme == "s3" and separator:
        # Importing boto3 takes a second, and a bare GPU machine may lack it.
        from binsweep.data.s3.source import fetch_source

        return fetch_source(source, classes, home, progress)
    if separator:
        raise UserError(
            f"data.source: nothing reads {scheme}://, received {source}",
            "a folder, s3://BUCKET/PREFIX, or synthetic://?images=600",
        )
    if printable(source) != source:
        raise UserError(
            f"data.source is not printable UTF-8 text: {printable(source)}",
            "another name for the folder, or a link to it: reports and MLflow accept text only",
        )
    return Path(source).expanduser(), []


def _check_split_folders(
    source: str, split: Split, candidates: Sequence[FoundPhoto], allow_untrainable: bool
) -> None:
    divided = any(candidate.split for candidate in candidates)
    if divided and split.by != "folder" and not allow_untrainable:
        raise UserError(
            f"data.split.by is {split.by}, and {source} is already divided into train/, validation/ and test/",
            "data.split.by: folder",
        )
    if split.by == "folder" and not divided and candidates:
        raise UserError(
            f"data.split.by is folder, and {source} is not divided into train/, validation/ and test/",
            "data.split.by: id or group",
        )


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


def format_skipped(skipped: Sequence[Skipped], max_names: int = 10) -> str:
    """The left-out files and reasons for a message: `max_names` by name, the others as a number."""
    parts = [one.reason if one.id in one.reason else f"{one.id}: {one.reason}" for one in skipped[:max_names]]
    return "; ".join(parts) + (f"; and {len(skipped) - max_names:,} more" if len(skipped) > max_names else "")


def _check_labels(
    source: str,
    classes: Sequence[int],
    items: Sequence[Item],
    candidates: Sequence[FoundPhoto],
    skipped: Sequence[Skipped],
) -> None:
    present = {item.label for item in items}
    missing = [label for label in classes if label not in present]
    note = f"; skipped: {format_skipped(skipped)}" if skipped else ""
    if missing:
        found = sorted({candidate.label for candidate in candidates})
        raise UserError(
            f"data.classes: no readable image of class {', '.join(map(str, missing))} in {source}{note}",
            f"the classes that occur there: {', '.join(map(str, found)) or 'none'}",
        )
    if not classes:
        raise UserError(
            f"data.source has no readable image: {source}{note}",
            "folders named by the count of what their photos show, for example 1/, 2/ and 3/",
        )
    if len(classes) < 2:
        raise UserError(
            f"data.source has images of {len(classes)} class, and at least 2 are needed: {source}{note}",
            "images of several counts, for example bins with 1, 2 and 3 items",
        )


def _check_splits(source: str, split: Split, items: Sequence[Item], skipped: Sequence[Skipped]) -> None:
    counts = Counter(item.split for item in items)
    for name in SPLITS:
        if not counts[name] and split.by == "folder":
            note = f"; skipped: {format_skipped(skipped)}" if skipped else ""
            raise UserError(
                f"data.split.by is folder, and no image of {source} is in a folder for {name} "
                f"({', '.join(f'{counts[one]} in {one}' for one in SPLITS)}){note}",
                f"a folder {name}/ (val/, valid/, training/, testing/ ... are understood, too) with a folder for "
                "each count",
            )
        if not counts[name]:
            raise UserError(
                f"data.split: no image of {source} falls into {name} ({len(items)} images in all)",
                f"more images, or a larger data.split.{name}",
            )
    train_labels = {item.label for item in items if item.split == "train"}
    if len(train_labels) < 2:
        raise UserError(
            f"data.split: all images of {source} that fall into train are of class {train_labels.pop()} "
            f"({len(items)} images in all)",
            "more images, a larger data.split.train, or another data.split.seed",
        )


def _fingerprint(classes: Sequence[int], items: Sequence[Item], train_also: Sequence[Item] = ()) -> str:
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for item in items:
        digest.update(json.dumps([item.id, item.label, item.split, item.sha256]).encode())
    for item in train_also:
        digest.update(json.dumps([item.id, item.label, "train_also", item.sha256]).encode())
    return digest.hexdigest()
