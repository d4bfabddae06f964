"""All near duplicates are found, without comparing every pair."""

import numpy as np
from PIL import Image

from binsweep.data.near_duplicates import MAX_HASH_DISTANCE, components, near_duplicate_pairs, perceptual_hash
from binsweep.data.synthetic.scene import render


def test_every_near_pair_is_joined_and_no_other() -> None:
    rng = np.random.default_rng(0)
    base = [int(x) for x in rng.integers(0, 2**63, 60, dtype=np.uint64)]
    values = list(base)
    for value in base:
        for flips in range(6):
            bits = rng.choice(64, flips, replace=False)
            values.append(value ^ sum(1 << int(bit) for bit in bits))
    found = components(len(values), near_duplicate_pairs([f"{value:016x}" for value in values]))
    naive = [
        (a, b)
        for a in range(len(values))
        for b in range(a)
        if (values[a] ^ values[b]).bit_count() <= MAX_HASH_DISTANCE
    ]
    wanted = components(len(values), np.array(naive))
    assert len(set(found)) == len(set(wanted)) and len(set(zip(found, wanted, strict=True))) == len(
        set(wanted)
    )


def test_a_hundred_thousand_are_not_compared_pair_by_pair() -> None:
    """Five thousand million pairs would outlast the test's time-out."""
    rng = np.random.default_rng(0)
    near_duplicate_pairs([f"{x:016x}" for x in rng.integers(0, 2**63, 100_000, dtype=np.uint64)])
    assert len(near_duplicate_pairs(["00000000000000ff"] * 100_000)) == 99_999
    assert len(near_duplicate_pairs([])) == 0


def test_a_photo_saved_again_is_near_and_another_is_not() -> None:
    first, second = (render(0, index, 224, [2])[0] for index in (0, 1))
    again = first.resize((180, 180), Image.Resampling.BILINEAR)
    hashes = [perceptual_hash(np.asarray(image)) for image in (first, second, again)]
    assert len(set(components(3, near_duplicate_pairs(hashes)).tolist())) == 2
    assert len(set(components(2, near_duplicate_pairs(hashes[::2])).tolist())) == 1
