"""The layouts in which bins lie on a disk, and the label of each image in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.documents import parse_document
from data.errors import UserError
from data.layout import IMAGE_SUFFIXES, count_of
from data.readonce import Finding, FindingCache, read_all
from data.split import SPLITS, SplitName

BESIDE = ("manifest.parquet", "problems.csv")  # what a pull writes beside the images
LAYOUTS = (
    "either bin-images/ID.jpg with metadata/ID.json (EXPECTED_QUANTITY), "
    "or a folder for each count (1/, 2/, ...) with images, or such folders in train/, validation/ and test/"
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image whose label is known and whose file nobody has opened yet; `split` where the folders say it."""

    id: str
    label: int
    path: Path
    split: SplitName | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, and why: `id` is the image's, or the file's path inside the source."""

    id: str
    reason: str


def scan(root: Path, cache: FindingCache) -> tuple[list[Candidate], list[Skipped]]:
    """All labelled images under `root`, and what else is there (except names with a leading dot).

    Raises UserError when `root` is not a folder, is empty, or has none of the layouts.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.source {what}: {root}", f"a folder that holds {LAYOUTS}")
    names = {entry.name for entry in _entries(root) if entry.is_dir()}
    if {"bin-images", "metadata"} <= names:
        return _scan_bucket(root, cache)
    if any(count_of(name) is not None for name in names):
        return _scan_folders(root)
    if names & set(SPLITS):
        return _scan_splits(root)
    what = "has none of the layouts" if any(root.iterdir()) else "is empty"
    raise UserError(f"data.source {what}: {root}", f"a folder that holds {LAYOUTS}")


def _scan_bucket(root: Path, cache: FindingCache) -> tuple[list[Candidate], list[Skipped]]:
    """The layout of the public bucket: bin-images/ID.jpg and metadata/ID.json."""
    images, skipped = _images(root / "bin-images", prefix="")
    documents = sorted(path for path in _entries(root / "metadata") if path.suffix == ".json")
    findings = dict(
        zip([path.stem for path in documents], read_all(documents, _quantity, cache), strict=True)
    )
    candidates = []
    for id, (label, reason) in findings.items():
        if isinstance(label, int):
            candidates.append(Candidate(id, label, images.get(id, root / "bin-images" / f"{id}.jpg")))
        else:
            skipped.append(Skipped(id, f"metadata/{id}.json: {reason}"))
    skipped += [Skipped(id, f"metadata/{id}.json: no such file") for id in images if id not in findings]
    return candidates, skipped


def _scan_splits(root: Path) -> tuple[list[Candidate], list[Skipped]]:
    """train/, validation/ and test/, each with a folder for each class."""
    candidates, skipped = [], []
    for folder in _entries(root):
        if folder.name in SPLITS and folder.is_dir():
            some, others = _scan_folders(folder, folder.name)
            candidates += some
            skipped += others
        elif folder.name not in BESIDE:
            skipped.append(Skipped(folder.name, "not a folder named train, validation or test"))
    return candidates, skipped


def _scan_folders(root: Path, split: SplitName | None = None) -> tuple[list[Candidate], list[Skipped]]:
    """A folder for each class, named by its count."""
    candidates: list[Candidate] = []
    skipped = []
    above = f"{split}/" if split else ""
    for folder in _entries(root):
        label = count_of(folder.name)
        if label is not None and folder.is_dir():
            images, others = _images(folder, prefix=f"{above}{label}/")
            candidates += [Candidate(id, label, path, split) for id, path in images.items()]
            skipped += others
        elif split or folder.name not in BESIDE:
            reason = "not a folder named by a count (0, 1, 2, ...)"
            skipped.append(Skipped(f"{above}{folder.name}", reason))
    return candidates, skipped


def _images(folder: Path, prefix: str) -> tuple[dict[str, Path], list[Skipped]]:
    """The image files of a folder by id (prefix and stem), and its other files."""
    images: dict[str, Path] = {}
    skipped = []
    for path in _entries(folder):
        id = prefix + path.stem
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.append(
                Skipped(f"{folder.name}/{path.name}", f"not named as one of {', '.join(IMAGE_SUFFIXES)}")
            )
        elif id in images:
            skipped.append(Skipped(f"{folder.name}/{path.name}", f"has the same id as {images[id].name}"))
        else:
            images[id] = path
    return images, skipped


def _quantity(document: Path) -> Finding:
    """The label in a bin's metadata, or why there is none."""
    try:
        found = parse_document(document.read_bytes())
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    return found.label, found.reason


def _entries(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
