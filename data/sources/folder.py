"""Scanning a folder: its layout, and the images in it with their labels."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.data.labels import Label, LabelKind, parse_count, parse_label
from binsweep.data.sources.metadata import parse_metadata
from binsweep.data.sources.object_names import (
    NOT_A_CLASS,
    NOT_A_COUNT,
    NOT_A_PHOTO,
    NOT_A_SPLIT,
    Layout,
    detect_labels,
    image_id,
    is_hidden,
    is_photo,
    nested_folder_problem,
    parse_split,
    printable,
)
from binsweep.data.sources.scan_cache import ScanCache, ScanResult, scan_files
from binsweep.data.split import SplitName

PULL_OUTPUTS = ("manifest.parquet", "problems.csv")  # files that a pull writes next to the images
LAYOUTS = (
    "either bin-images/ID.jpg with metadata/ID.json (EXPECTED_QUANTITY), "
    "or a folder for each count (1/, 2/, ...) or each named class (ok/, scratched/, ...) with images, "
    "or such folders in train/, validation/ and test/"
)
EMPTY_CLASS_FOLDER = "a folder of a class without any photo"


@dataclass(frozen=True, slots=True)
class FoundPhoto:
    """An image with its label, not opened yet; `split` is set if the source itself is divided."""

    id: str
    label: Label
    path: Path
    split: SplitName | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, with the reason; `id` is the image's, or the file's path in the source."""

    id: str
    reason: str


def scan(
    root: Path, cache: ScanCache, labels: LabelKind | None = None
) -> tuple[list[FoundPhoto], list[Skipped]]:
    """All labelled images under `root`, and the other files except hidden ones.

    `labels` is what its folders are named by; None: see `detect_labels`. Raises UserError if `root` is not a folder, is
    empty, cannot be listed completely, or has none of the layouts.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.source {what}: {root}", f"a folder that holds {LAYOUTS}")
    try:
        kind = labels or detect_labels(_folders(root), lambda name: _folders(root / name))
        layout = _layout(root, kind)
        if layout == "bucket":
            return _scan_bucket(root, cache)
        if layout is not None:
            found, skipped = _scan_splits(root, kind) if layout == "splits" else _scan_folders(root, kind)
            # One folder with photos is no division into classes, unless somebody says so.
            if kind == "counts" or len({photo.label for photo in found}) > (1 if labels is None else 0):
                return found, skipped
        folders = [f"{printable(path.name)}/" for path in _entries(root) if path.is_dir()]
        inside = [path for path in _entries(root) if _has_layout(path)]
    except OSError as error:
        place = printable(str(error.filename or root))
        raise UserError(
            f"data.source: cannot list {place}: {error.strerror}",
            "a folder that can be read as a whole: without a part of it, it would be another data set",
        ) from error
    if not any(root.iterdir()):
        raise UserError(f"data.source is empty: {root}", f"a folder that holds {LAYOUTS}")
    there = f", only {', '.join(folders[:10])}{' ...' if len(folders) > 10 else ''}" if folders else ""
    hint = f"a folder that holds {LAYOUTS}"
    if inside and labels is None:
        hint += "; if its folders are the classes, set data.labels: names"
    if len(inside) == 1:
        hint = f"perhaps {inside[0]}, which does"
    raise UserError(f"data.source has none of the layouts: {root}{there}", hint)


def _has_layout(path: Path) -> bool:
    try:
        return path.is_dir() and _layout(path, "counts") is not None
    except OSError:  # a folder of another user
        return False


def _folders(root: Path) -> set[str]:
    try:
        return {entry.name for entry in _entries(root) if entry.is_dir()}
    except PermissionError:  # scanning it reports the error
        return set()


def _layout(root: Path, kind: LabelKind) -> Layout | None:
    names = {entry.name for entry in _entries(root) if entry.is_dir()}
    if kind == "names":
        return "splits" if any(map(parse_split, names)) else "classes" if names else None
    if {"bin-images", "metadata"} <= names:
        return "bucket"
    if any(parse_count(name) is not None for name in names):
        return "classes"
    return "splits" if any(map(parse_split, names)) else None


def _scan_bucket(root: Path, cache: ScanCache) -> tuple[list[FoundPhoto], list[Skipped]]:
    """The layout of the public bucket: bin-images/ID.jpg and metadata/ID.json."""
    images, skipped = _scan_flat(root / "bin-images")
    documents = sorted(path for path in _entries(root / "metadata") if path.suffix == ".json")
    ids = [printable(path.stem) for path in documents]
    findings = dict(zip(ids, scan_files(documents, _read_label, cache), strict=True))
    candidates = []
    for id, (label, reason) in findings.items():
        if isinstance(label, int):
            candidates.append(FoundPhoto(id, label, images.get(id, root / "bin-images" / f"{id}.jpg")))
        else:
            skipped.append(Skipped(id, f"metadata/{id}.json: {reason}"))
    skipped += [Skipped(id, f"metadata/{id}.json: no such file") for id in images if id not in findings]
    return candidates, skipped


def _scan_flat(folder: Path) -> tuple[dict[str, Path], list[Skipped]]:
    """The image files of a folder by id, and its other entries."""
    images: dict[str, Path] = {}
    skipped = []
    for path in _entries(folder):
        id, place = printable(path.stem), f"{folder.name}/{printable(path.name)}"
        if not is_photo(path.name):
            skipped.append(Skipped(place, NOT_A_PHOTO))
        elif id in images:
            skipped.append(Skipped(place, f"has the same id as {printable(images[id].name)}"))
        else:
            images[id] = path
    return images, skipped


def _scan_splits(root: Path, kind: LabelKind) -> tuple[list[FoundPhoto], list[Skipped]]:
    """Folders of splits (train/, val/, ...), each with a folder for each class."""
    candidates, skipped = [], []
    for folder in _entries(root):
        split = parse_split(folder.name)
        if split is not None and folder.is_dir():
            some, others = _scan_folders(folder, kind, split)
            candidates += some
            skipped += others
        elif folder.name not in PULL_OUTPUTS:
            skipped.append(_left_out(folder, "", NOT_A_SPLIT))
    return candidates, skipped


def _scan_folders(
    root: Path, kind: LabelKind, split: SplitName | None = None
) -> tuple[list[FoundPhoto], list[Skipped]]:
    """Folders of classes, named by their count or name, with all the images below them."""
    candidates: list[FoundPhoto] = []
    skipped = []
    above = f"{root.name}/" if split else ""
    for folder in _entries(root):
        label = parse_label(printable(folder.name), kind)
        if label is not None and folder.is_dir():
            images, others = _scan_class_folder(folder, above, label)
            candidates += [FoundPhoto(id, label, path, split) for id, path in images.items()]
            skipped += others
            if not images and not others:
                skipped.append(Skipped(f"{above}{printable(folder.name)}/", EMPTY_CLASS_FOLDER))
        elif split or folder.name not in PULL_OUTPUTS:
            skipped.append(_left_out(folder, above, NOT_A_COUNT if kind == "counts" else NOT_A_CLASS))
    return candidates, skipped


def _scan_class_folder(root: Path, above: str, label: Label) -> tuple[dict[str, Path], list[Skipped]]:
    """The image files below the folder of a class by id, and its other entries; `above` is the split's folder.

    An id is a file's path without its suffix. If several files differ in their suffix only, the ids of all but the
    first include it.
    """
    images: dict[str, Path] = {}
    skipped = []
    waiting = [root]
    seen = {root.resolve(), *root.resolve().parents}  # links may form a cycle
    while waiting:
        folder = waiting.pop()
        for path in _entries(folder):
            name = f"{above}{path.relative_to(root.parent).as_posix()}"
            if path.is_dir():
                real = path.resolve()
                reason = "a link to a folder that has been read already" if real in seen else ""
                if reason := reason or nested_folder_problem(path.name, label):
                    skipped.append(_left_out(path, name.removesuffix(path.name), reason))
                else:
                    seen.add(real)
                    waiting.append(path)
                continue
            id = image_id(name)
            if id in images and printable(name) not in images:
                id = printable(name)
            if not is_photo(path.name):
                skipped.append(Skipped(printable(name), NOT_A_PHOTO))
            elif id in images:
                skipped.append(Skipped(printable(name), f"has the same id as {printable(images[id].name)}"))
            else:
                images[id] = path
    return images, skipped


def _left_out(path: Path, above: str, reason: str) -> Skipped:
    """A file that is left out, or a folder with the number of its photos."""
    photos = (
        sum(is_photo(name) for _, _, names in os.walk(path) for name in names)
        if path.is_dir() and not path.is_symlink()
        else 0
    )
    lost = f"; its {photos:,} photos are left out" if photos > 1 else ""
    return Skipped(f"{above}{printable(path.name)}{'/' if path.is_dir() else ''}", f"{reason}{lost}")


def _read_label(document: Path) -> ScanResult:
    """The label in a metadata file, or the reason why it has none."""
    found = parse_metadata(document.read_bytes())
    return found.label, found.reason


def _entries(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if not is_hidden(path.name))
