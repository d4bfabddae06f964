"""Checks of what a source holds, against what a specification asks for: one message for each mistake."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from binsweep.data.errors import UserError
from binsweep.data.labels import MAX_NAMES, Label, LabelKind, kind_of, sorted_labels
from binsweep.data.sources.folder import FoundPhoto, Skipped
from binsweep.data.sources.table import is_table
from binsweep.data.split import SPLITS, Split, SplitName


class Labelled(Protocol):
    """A readable photo."""

    @property
    def label(self) -> Label: ...
    @property
    def split(self) -> SplitName: ...


def check_kind(
    source: str,
    labels: LabelKind | None,
    wanted: Sequence[Label] | None,
    train_also: object,
    candidates: Sequence[FoundPhoto],
) -> None:
    """Raise UserError if the source's labels are not what the rest of the specification takes them for."""
    found = kind_of([candidate.label for candidate in candidates])
    if found == "counts" and labels != "names":
        return
    if train_also is not None:
        raise UserError(
            f"data.train_also teaches other counts, and the classes of {source} are names",
            "leave it out, and name the classes in data.classes",
        )
    names = sorted_labels({candidate.label for candidate in candidates})
    if wanted is not None and kind_of(wanted) != found:
        raise UserError(
            f"data.classes: {', '.join(map(str, wanted))} are counts, and the classes of {source} are names",
            f"the classes that occur there: {_some(names)}",
        )
    if wanted is None and len(names) > MAX_NAMES:
        raise UserError(
            f"data.source: {source} has {len(names):,} different labels ({_some(names, 3)}), and at most "
            f"{MAX_NAMES:,} classes can be told apart",
            "labels that many photos share rather than one for each photo, or data.classes with those that are wanted",
        )


def _some(labels: Sequence[Label], most: int = 20) -> str:
    """Labels for a message, the first ones of many."""
    return ", ".join(map(str, labels[:most])) + (", ..." if len(labels) > most else "") or "none"


def check_split_folders(
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


def format_skipped(skipped: Sequence[Skipped], max_names: int = 10) -> str:
    """The left-out files and reasons for a message: `max_names` by name, the others as a number."""
    parts = [one.reason if one.id in one.reason else f"{one.id}: {one.reason}" for one in skipped[:max_names]]
    return "; ".join(parts) + (f"; and {len(skipped) - max_names:,} more" if len(skipped) > max_names else "")


def check_labels(
    source: str,
    classes: Sequence[Label],
    items: Sequence[Labelled],
    candidates: Sequence[FoundPhoto],
    skipped: Sequence[Skipped],
) -> None:
    present = {item.label for item in items}
    missing = [label for label in classes if label not in present]
    note = f"; skipped: {format_skipped(skipped)}" if skipped else ""
    if missing:
        found = sorted_labels({candidate.label for candidate in candidates})
        raise UserError(
            f"data.classes: no readable image of class {', '.join(map(str, missing))} in {source}{note}",
            f"the classes that occur there: {_some(found, MAX_NAMES)}",
        )
    if not classes:
        raise UserError(
            f"data.source has no readable image: {source}{note}",
            "folders named by the count or the class of what their photos show, for example 1/, 2/ and 3/",
        )
    if len(classes) < 2:
        raise UserError(
            f"data.source has images of {len(classes)} class, and at least 2 are needed: {source}{note}",
            "images of several counts, for example bins with 1, 2 and 3 items, or of several named classes (with "
            "data.labels: names, if one of them is named by a number)",
        )


def check_splits(source: str, split: Split, items: Sequence[Labelled], skipped: Sequence[Skipped]) -> None:
    counts = Counter(item.split for item in items)
    for name in SPLITS:
        note = f"; skipped: {format_skipped(skipped)}" if skipped else ""
        have = ", ".join(f"{counts[one]} in {one}" for one in SPLITS)
        if not counts[name] and split.by == "folder" and is_table(source):
            raise UserError(
                f"data.source: no readable image of {source} has the split {name} ({have}){note}",
                "rows of all three splits, or no column split: then data.split divides the photos",
            )
        if not counts[name] and split.by == "folder":
            raise UserError(
                f"data.split.by is folder, and no image of {source} is in a folder for {name} ({have}){note}",
                f"a folder {name}/ (val/, valid/, training/, testing/ ... are understood, too) with a folder for "
                "each class",
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
