"""Near-duplicate images by perceptual hashes, found without comparing every pair."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from imagehash import phash
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from binsweep.data.decode import decode
from binsweep.data.image_quality import THUMBNAIL_SIZE
from binsweep.data.sources.scan_cache import ScanResult

# Bits of 64. Photos of different bins differ in more, copies of a photo that were saved or scaled again in fewer.
MAX_HASH_DISTANCE = 3


def hash_image(path: Path) -> ScanResult:
    """The 64-bit perceptual hash of an image file in hexadecimal digits.

    Source: the DCT hash of Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010).
    """
    return perceptual_hash(decode(path, THUMBNAIL_SIZE)), ""


def perceptual_hash(pixels: np.ndarray) -> str:
    """The perceptual hash of uint8 RGB [H, W, 3]."""
    return str(phash(Image.fromarray(pixels)))


def near_duplicate_pairs(hashes: Sequence[str]) -> np.ndarray:
    """Pairs of indices into `hashes`, int64 [P, 2], which connect all hashes that differ in at most NEAR bits.

    Equal hashes form a chain. Two hashes that differ in at most 3 bits have at least one of their 4 quarters of 16
    bits in common, so only hashes with an equal quarter are compared: Manku, Jain and Das Sarma,
    "Detecting near-duplicates for web crawling" (2007).
    """
    if not hashes:
        return np.empty((0, 2), np.int64)
    values = np.array([int(text, 16) for text in hashes], np.uint64)
    order = np.argsort(values, kind="stable")
    equal = values[order][1:] == values[order][:-1]
    pairs = [np.stack([order[:-1][equal], order[1:][equal]], axis=1)]
    distinct, first = np.unique(values, return_index=True)
    for quarter in range(MAX_HASH_DISTANCE + 1):
        part = (distinct >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        ranks = np.argsort(part, kind="stable")
        for block in np.split(ranks, np.flatnonzero(np.diff(part[ranks])) + 1):
            if len(block) > 1:
                pairs += [first[pair] for pair in _close(distinct, block)]
    return np.concatenate(pairs).astype(np.int64)


def _close(values: np.ndarray, block: np.ndarray) -> list[np.ndarray]:
    """The pairs within a block that differ in at most NEAR bits."""
    if len(block) <= 4:  # most are this small, where numpy costs more than it saves
        numbers = [(int(values[index]), index) for index in block]
        near = [
            (a, b) for (x, a), (y, b) in combinations(numbers, 2) if (x ^ y).bit_count() <= MAX_HASH_DISTANCE
        ]
        return [np.array(near)] if near else []
    found = []
    for place, index in enumerate(block[:-1]):
        others = block[place + 1 :]
        near_ones = others[np.bitwise_count(values[others] ^ values[index]) <= MAX_HASH_DISTANCE]
        if len(near_ones):
            found.append(np.stack([np.full(len(near_ones), index), near_ones], axis=1))
    return found


def components(count: int, pairs: np.ndarray) -> np.ndarray:
    """The connected component, int32 [count], of each of `count` nodes with the edges `pairs`."""
    ones = np.ones(len(pairs), bool)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    labels: np.ndarray = connected_components(graph, directed=False)[1]
    return labels
