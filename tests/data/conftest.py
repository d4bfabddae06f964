"""Small sources of images for the tests of data/."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def bins() -> ModuleType:
    """The functions of this file: test modules cannot import their neighbours."""
    return sys.modules[__name__]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """45 bins with 0, 1 and 2 items in the bucket's layout."""
    return write_bucket(tmp_path / "bucket", COUNTS)


COUNTS = {0: 14, 1: 15, 2: 16}


def paint(path: Path, value: int) -> None:
    """A small JPEG whose content depends on `value`."""
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((32, 24)).save(path)


def write_bin(root: Path, id: str, quantity: int, value: int) -> None:
    """One bin in the bucket's layout."""
    paint(root / "bin-images" / f"{id}.jpg", value)
    document = root / "metadata" / f"{id}.json"
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(json.dumps({"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": quantity}))


def write_bucket(root: Path, counts: Mapping[int, int]) -> Path:
    """A source in the bucket's layout with `counts` bins of each label; ids are 00000, 00001, ..."""
    labels = [label for label, number in counts.items() for _ in range(number)]
    for index, label in enumerate(labels):
        write_bin(root, f"{index:05d}", label, index)
    return root


def write_folders(root: Path, counts: Mapping[int, int]) -> Path:
    """The same images as `write_bucket` in a folder for each class."""
    labels = [label for label, number in counts.items() for _ in range(number)]
    for index, label in enumerate(labels):
        paint(root / str(label) / f"{index:05d}.jpg", index)
    return root
