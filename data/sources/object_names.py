"""What can be read from a file's name: whether it is a photo, its id, and its label and split from its folders.

The rules are the same for files on a disk and for objects in a bucket.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, get_args

from binsweep.data.labels import Label, LabelKind, parse_count, parse_label
from binsweep.data.split import SplitName

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
)
# Usual folder names of the three splits, in lower case.
_SPLIT_NAMES: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "validate", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Folders that macOS and network storage create next to the user's files.
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")
NOT_A_COUNT = "not a folder named by a count (0, 1, 2, ...)"
NOT_A_CLASS = "not in a folder named after a class"
_MAX_LOOKED_INTO = 20  # folders of a source, to see whether they are sources themselves
NOT_A_SPLIT = "not a folder named train, validation or test (val, valid, training, ... are understood, too)"
NOT_A_PHOTO = f"not named as one of {', '.join(IMAGE_SUFFIXES)}"
# Names that all file systems accept and that cannot lead out of a folder.
_MAX_NAME = 200
_SAFE_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]+")

Kind = Literal["image", "document"]
# bucket: bin-images/ID.jpg and metadata/ID.json; classes: COUNT/NAME.jpg; splits: train/COUNT/NAME.jpg. In the
# latter two, there may be more folders between COUNT and NAME, and where classes have names, COUNT is any name. A
# source has the first layout of which it has photos.
Layout = Literal["bucket", "classes", "splits"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
LAYOUT_EXAMPLES: dict[Layout, str] = {
    "bucket": "bin-images/ID",
    "classes": "COUNT/NAME",
    "splits": "train/COUNT/NAME",
}


@dataclass(frozen=True, slots=True)
class ParsedName:
    """A file's place in a layout; `label` and `split` are None if the name does not contain them."""

    layout: Layout
    kind: Kind
    id: str
    label: Label | None = None
    split: SplitName | None = None


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name (without its folders) is always ignored, such as `._photo.jpg`."""
    return (name.startswith(".") and name not in (".", "..")) or name in _SYSTEM_FOLDERS


def is_photo(name: str) -> bool:
    """Whether a file of this name (with or without its folders) counts as a photo: by its suffix, and not hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(map(is_hidden, path.parts))


def printable(name: str) -> str:
    """A file's name as text, with control characters and bytes that are not UTF-8 escaped (caf\\xe9)."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs") else c for c in text
    )


def parse_split(name: str) -> SplitName | None:
    """The split that a folder's name stands for; None for other names."""
    return _SPLIT_NAMES.get(name.lower())


def detect_labels(folders: Collection[str], below: Callable[[str], Collection[str]]) -> LabelKind:
    """The kind of labels of a source with these folders; `below` returns the names of the folders inside of one.

    Names, if it has folders of classes and none of them is named by a number. Folders that hold counts or splits
    themselves are no classes, but sources.
    """
    if _holds_counts(folders) or {"bin-images", "metadata"} <= set(folders):
        return "counts"
    if splits := [folder for folder in folders if parse_split(folder)]:
        inside = [folder for split in splits for folder in below(split)]
        return "names" if inside and not _holds_counts(inside) else "counts"
    for folder in sorted(folders)[:_MAX_LOOKED_INTO]:
        inside = list(below(folder))
        # Longer numbers are dates.
        if any((len(one) < 4 and parse_count(one) is not None) or parse_split(one) for one in inside):
            return "counts"
        if {"bin-images", "metadata"} <= set(inside):
            return "counts"
    return "names" if folders else "counts"


def _holds_counts(folders: Collection[str]) -> bool:
    return any(parse_count(folder) is not None for folder in folders)


def nested_folder_problem(folder: str, label: Label) -> str:
    """Why a folder inside the folder of class `label` is left out; empty if it is scanned."""
    if parse_split(folder) is not None:
        return f"a folder of a split inside that of a class: write {folder}/{label}/ instead of {label}/{folder}/"
    if isinstance(label, str):
        return ""
    count = parse_count(folder)
    # Longer numbers are dates, such as 2024 and 20240131.
    if count not in (None, label) and len(folder) < 4:
        return (
            f"a folder named by a count inside that of another one: are its photos of {label} or of {count}?"
        )
    return ""


def image_id(name: str, above: str = "") -> str:
    """The id of an image: its path without the layout's own folders and without its suffix, escaped."""
    return above + printable(str(PurePosixPath(name).with_suffix("")))


def split_key(id: str, name: str) -> str:
    """The id by which an image is assigned to a split, equal for images whose names differ in their suffix only.

    The id of the second of such images includes its suffix.
    """
    file = printable(PurePosixPath(name).name)
    return id.removesuffix(PurePosixPath(name).suffix) if PurePosixPath(id).name == file else id


def name_problem(name: str) -> str:
    """Why a name cannot become a file inside a folder; empty if it can."""
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return f"its name cannot be a file's: it has {'an empty part (//)' if not part else f'a part {part}'}"
        if len(part) > _MAX_NAME:
            return f"its name cannot be a file's: a part has {len(part)} characters, {_MAX_NAME} are allowed"
        if not _SAFE_NAME.fullmatch(part):
            return "its name cannot be a file's: it has a backslash or a control character"
        try:
            part.encode()
        except UnicodeEncodeError:
            return "its name is not Unicode text"
    return ""


def parse_name(name: str, kind: LabelKind = "counts") -> ParsedName | str:
    """The place in one of the layouts of a file, given by its path with slashes; or the reason why it has none.

    `kind` is what the folders of classes are named by.

    The reason is empty for names that are always ignored: hidden files, and keys that stand for folders.
    """
    path = PurePosixPath(name)
    parts = path.parts
    if any(map(is_hidden, parts)) or name.endswith("/"):
        return ""
    if kind == "counts" and len(parts) == 2 and parts[0] == "metadata" and path.suffix == ".json":
        return ParsedName("bucket", "document", path.stem)
    if not is_photo(name):
        return NOT_A_PHOTO
    if kind == "counts" and len(parts) == 2 and parts[0] == "bin-images":
        return ParsedName("bucket", "image", path.stem)
    split = parse_split(parts[0]) if len(parts) > 2 else None
    folders = parts[1:-1] if split else parts[:-1]
    label = parse_label(printable(folders[0]), kind) if folders else None
    if label is None and kind == "names":
        return NOT_A_CLASS
    if label is None:
        if folders[0:1] != ("/",) and any(parse_count(folder) is not None for folder in folders[1:]):
            above = f"{printable(folders[0])}/"
            return f"{NOT_A_COUNT}; if the folders in {above} are the classes, add {above} to the source"
        return NOT_A_COUNT
    for folder in folders[1:]:
        if reason := nested_folder_problem(folder, label):
            return reason
    return ParsedName("splits" if split else "classes", "image", image_id(name), label, split)
