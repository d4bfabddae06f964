"""Groups that a split must not tear apart: what looks alike, and what shows the same items."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from binsweep.data.near_duplicates import components, hash_image, near_duplicate_pairs
from binsweep.data.sources.folder import FoundPhoto
from binsweep.data.sources.metadata import parse_metadata
from binsweep.data.sources.scan_cache import ScanCache, ScanResult, scan_files


def group_heads(candidates: Sequence[FoundPhoto], root: Path, home: Path) -> list[FoundPhoto]:
    """For each candidate the one that stands for its group: the member with the smallest id.

    Two images are in one group when their perceptual hashes are near, when they show the same non-empty set
    of products whatever the quantities, or when a third one joins them so. An image alone stands for itself;
    a split by heads therefore equals the split by ids for all that is alone.
    """
    pairs = np.concatenate(
        [near_duplicate_pairs(_hashes(candidates, root, home)), _same_goods(candidates, root, home)]
    )
    groups = components(len(candidates), pairs)
    heads: dict[int, FoundPhoto] = {}
    for group, candidate in zip(groups.tolist(), candidates, strict=True):
        head = heads.setdefault(group, candidate)
        if candidate.id < head.id:
            heads[group] = candidate
    return [heads[group] for group in groups.tolist()]


def _hashes(candidates: Sequence[FoundPhoto], root: Path, home: Path) -> list[str]:
    """Hexadecimal hashes. The candidates are readable; one that breaks meanwhile is found by the pixel bank."""
    found = scan_files([c.path for c in candidates], hash_image, ScanCache(root, home, "hashes"))
    return [str(value or "0" * 16) for value, _ in found]


def _same_goods(candidates: Sequence[FoundPhoto], root: Path, home: Path) -> np.ndarray:
    """Pairs [P, 2] of candidates whose metadata name the same products."""
    documents = [root / "metadata" / f"{candidate.path.stem}.json" for candidate in candidates]
    if not (root / "metadata").is_dir():
        return np.empty((0, 2), np.int64)
    first: dict[str, int] = {}
    pairs = []
    for index, (goods, _) in enumerate(scan_files(documents, _goods, ScanCache(root, home, "goods"))):
        if goods:
            pairs.append((first.setdefault(str(goods), index), index))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _goods(document: Path) -> ScanResult:
    return "\n".join(sorted(parse_metadata(document.read_bytes()).codes)), ""
