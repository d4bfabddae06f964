"""Groups of images that belong in one split: near duplicates, and photos of the same products."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from binsweep.data.near_duplicates import components, hash_image, near_duplicate_pairs
from binsweep.data.sources.folder import FoundPhoto
from binsweep.data.sources.metadata import parse_metadata
from binsweep.data.sources.scan_cache import ScanCache, ScanResult, scan_files


class _Divided(Protocol):
    @property
    def path(self) -> Path: ...
    @property
    def split(self) -> str | None: ...


_Photo = TypeVar("_Photo", bound=_Divided)


def duplicates_across_splits(photos: Sequence[_Photo], root: Path, home: Path) -> list[tuple[_Photo, _Photo]]:
    """For each photo that is near one of another split, the two; each photo is the first of a pair at most once."""
    pairs = near_duplicate_pairs(_hashes([photo.path for photo in photos], root, home))
    found: dict[int, tuple[_Photo, _Photo]] = {}
    members: dict[int, list[int]] = {}
    for index, group in enumerate(components(len(photos), pairs).tolist()):
        members.setdefault(group, []).append(index)
    for group in members.values():
        first = photos[group[0]]
        for index in group[1:]:
            if photos[index].split != first.split:
                found[index] = (photos[index], first)
    return list(found.values())


def group_representatives(candidates: Sequence[FoundPhoto], root: Path, home: Path) -> list[FoundPhoto]:
    """The representative of each candidate's group: the member with the smallest id.

    Groups are the connected components of images whose perceptual hashes are near, or whose metadata name the same
    non-empty set of products, whatever the quantities. A single image represents itself, so its split is the same
    as in a split by ids.
    """
    pairs = np.concatenate(
        [
            near_duplicate_pairs(_hashes([one.path for one in candidates], root, home)),
            _same_product_pairs(candidates, root, home),
        ]
    )
    groups = components(len(candidates), pairs)
    representatives: dict[int, FoundPhoto] = {}
    for group, candidate in zip(groups.tolist(), candidates, strict=True):
        representative = representatives.setdefault(group, candidate)
        if candidate.id < representative.id:
            representatives[group] = candidate
    return [representatives[group] for group in groups.tolist()]


def _hashes(files: Sequence[Path], root: Path, home: Path) -> list[str]:
    """Hexadecimal hashes of readable photos; the pixel bank finds files that have changed since."""
    found = scan_files(files, hash_image, ScanCache(root, home, "hashes"))
    return [str(value or "0" * 16) for value, _ in found]


def _same_product_pairs(candidates: Sequence[FoundPhoto], root: Path, home: Path) -> np.ndarray:
    """Pairs [P, 2] of candidates whose metadata name the same products."""
    documents = [root / "metadata" / f"{candidate.path.stem}.json" for candidate in candidates]
    if not (root / "metadata").is_dir():
        return np.empty((0, 2), np.int64)
    first: dict[str, int] = {}
    pairs = []
    for index, (codes, _) in enumerate(scan_files(documents, _product_codes, ScanCache(root, home, "goods"))):
        if codes:
            pairs.append((first.setdefault(str(codes), index), index))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _product_codes(document: Path) -> ScanResult:
    return "\n".join(sorted(parse_metadata(document.read_bytes()).codes)), ""
