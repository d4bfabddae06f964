"""What a file's name says about it: whether it is a photo, its id, and its label and split where folders say them.

These are the rules for files on a disk and for objects in a bucket.
"""

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, get_args

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
# What people and other tools call the three splits, in any case.
_SPLIT_NAMES: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "validate", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Folders that macOS and network storage put beside everybody's files.
_DROPPINGS = ("__MACOSX", "@eaDir")
NO_COUNT = "not a folder named by a count (0, 1, 2, ...)"
NO_SPLIT = "not a folder named train, validation or test (val, valid, training, ... are understood, too)"
NO_PHOTO = f"not named as one of {', '.join(IMAGE_SUFFIXES)}"
# Names that no file system of ours refuses and that cannot lead out of a folder.
_SAFE = re.compile(r"[^\x00-\x1f\x7f/\\]{1,200}")

Kind = Literal["image", "document"]
# bucket: bin-images/ID.jpg and metadata/ID.json; classes: COUNT/NAME.jpg; splits: train/COUNT/NAME.jpg. In the
# latter two, more folders may lie between COUNT and NAME. The first of which there are photos is a source's.
Layout = Literal["bucket", "classes", "splits"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
LAYOUT_EXAMPLES: dict[Layout, str] = {
    "bucket": "bin-images/ID",
    "classes": "COUNT/NAME",
    "splits": "train/COUNT/NAME",
}


@dataclass(frozen=True, slots=True)
class ParsedName:
    """One file of a layout. `label` and `split` are None where the name does not say them."""

    layout: Layout
    kind: Kind
    id: str
    label: int | None = None
    split: SplitName | None = None


def is_hidden(name: str) -> bool:
    """Whether everybody leaves out a file or folder of this name (without its folders), such as `._photo.jpg`."""
    return name.startswith(".") or name in _DROPPINGS


def is_photo(name: str) -> bool:
    """Whether a file of this name (with or without its folders) counts as a photo: by its suffix, and not hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(map(is_hidden, path.parts))


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are not UTF-8, and control characters, escaped
    (caf\\xe9)."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs") else c for c in text
    )


def count_of(name: str) -> int | None:
    """The count that a folder's name says: plain decimal digits, such as 3 or 03."""
    return int(name) if name.isascii() and name.isdigit() and len(name) < 10 else None


def split_of(name: str) -> SplitName | None:
    """The split that a folder's name says."""
    return _SPLIT_NAMES.get(name.lower())


def unclear(folder: str, label: int) -> str:
    """Why the photos of a folder inside the folder of class `label` are not taken; empty where they are."""
    if split_of(folder) is not None:
        return f"a folder of a split inside that of a class: write {folder}/{label}/ instead of {label}/{folder}/"
    count = count_of(folder)
    # Longer numbers are dates, as 2024 and 20240131.
    if count not in (None, label) and len(folder) < 4:
        return (
            f"a folder named by a count inside that of another one: are its photos of {label} or of {count}?"
        )
    return ""


def id_of(name: str, above: str = "") -> str:
    """The id of an image by its path without the layout's own folders: without its suffix, escaped."""
    return above + printable(str(PurePosixPath(name).with_suffix("")))


def split_key(id: str, name: str) -> str:
    """The id by which an image is given a split: two of one name and two suffixes belong together.

    The second of them is named by its suffix, too.
    """
    file = printable(PurePosixPath(name).name)
    return id.removesuffix(PurePosixPath(name).suffix) if PurePosixPath(id).name == file else id


def name_problem(name: str) -> str:
    """Why a name cannot become a file inside a folder; empty when it can."""
    for part in name.split("/"):
        if part in ("", ".", "..") or not _SAFE.fullmatch(part):
            return "its name cannot be a file's: it has a part that is empty, dots, too long or not printable"
        try:
            part.encode()
        except UnicodeEncodeError:
            return "its name is not Unicode text"
    return ""


def parse_name(name: str) -> ParsedName | str:
    """The place of a file, named by its path with slashes, in one of the layouts; or why it is in none.

    The reason is empty for what nobody takes for a photo of the data set: hidden files and empty folders' names.
    """
    path = PurePosixPath(name)
    parts = path.parts
    if any(map(is_hidden, parts)) or name.endswith("/"):
        return ""
    if len(parts) == 2 and parts[0] == "metadata" and path.suffix == ".json":
        return ParsedName("bucket", "document", path.stem)
    if not is_photo(name):
        return NO_PHOTO
    if len(parts) == 2 and parts[0] == "bin-images":
        return ParsedName("bucket", "image", path.stem)
    split = split_of(parts[0]) if len(parts) > 2 else None
    folders = parts[1:-1] if split else parts[:-1]
    label = count_of(folders[0]) if folders else None
    if label is None:
        return NO_COUNT
    for folder in folders[1:]:
        if reason := unclear(folder, label):
            return reason
    return ParsedName("splits" if split else "classes", "image", id_of(name), label, split)
