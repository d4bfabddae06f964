"""What an object's name says about it: which layout it belongs to, and its label where that is in the name."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, get_args

from data.split import SPLITS, SplitName

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Names that no file system of ours refuses and that cannot lead out of a folder.
_SAFE = re.compile(r"[^\x00-\x1f\x7f/\\]{1,200}")

Kind = Literal["image", "document"]
# bucket: bin-images/ID.jpg and metadata/ID.json; classes: COUNT/NAME.jpg; splits: train/COUNT/NAME.jpg.
Layout = Literal["bucket", "splits", "classes"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True, slots=True)
class Named:
    """One file of a layout. `label` and `split` are None where the name does not say them."""

    layout: Layout
    kind: Kind
    id: str
    label: int | None = None
    split: SplitName | None = None


def count_of(name: str) -> int | None:
    """The count that a folder's name says: plain decimal digits without leading zeros."""
    if not (name.isascii() and name.isdigit() and len(name) < 10):
        return None
    return int(name) if str(int(name)) == name else None


def unusable(name: str) -> str:
    """Why a name cannot become a file inside a folder; empty when it can."""
    for part in name.split("/"):
        if part in ("", ".", "..") or not _SAFE.fullmatch(part):
            return "its name cannot be a file's: it has a part that is empty, dots, too long or not printable"
        try:
            part.encode()
        except UnicodeEncodeError:
            return "its name is not Unicode text"
    return ""


def named(name: str) -> Named | None:
    """The place of a file, named by its path with slashes, in one of the layouts; None when it is in none."""
    path = PurePosixPath(name)
    parts, stem = path.parts, path.stem
    if path.name.startswith("."):
        return None
    if len(parts) == 2 and parts[0] == "metadata" and path.suffix == ".json":
        return Named("bucket", "document", stem)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    if len(parts) == 2 and parts[0] == "bin-images":
        return Named("bucket", "image", stem)
    label = count_of(parts[-2]) if len(parts) > 1 else None
    if label is None:
        return None
    if len(parts) == 2:
        return Named("classes", "image", f"{label}/{stem}", label)
    if len(parts) == 3 and parts[0] in SPLITS:
        return Named("splits", "image", f"{parts[0]}/{label}/{stem}", label, parts[0])
    return None
