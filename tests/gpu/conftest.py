"""Fixtures of the GPU tests. They do not use tests/conftest.py, which imports packages that a GPU machine may lack:

python -m pytest tests/gpu --confcutdir tests/gpu -s
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from binsweep.data.banks.pixels import PixelBank
from binsweep.models.trial_data import TrialData

CLASSES = (1, 2, 3)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip("no GPU that PyTorch can use is here"))


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Takes a line of what was measured."""
    return lambda line: print(f"\n    {line}", end="", flush=True)


def write_bank(folder: Path, photos: int, size: int, seed: int) -> PixelBank:
    """A bank of noise whose brightness depends on its class: quick to make, and learnable."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), photos)
    coarse = random.integers(0, 120, (photos, size // 8, size // 8, 3)) + 60 * labels[:, None, None, None]
    pixels = np.kron(coarse, np.ones((1, 8, 8, 1), np.int64)).astype(np.uint8)
    np.save(folder / "pixels.npy", pixels)
    ids = [f"{row:05d}" for row in range(photos)]
    index = {"key": f"noise {photos} {size} {seed}", "ids": ids, "labels": labels.tolist()}
    (folder / "index.json").write_text(json.dumps(index))
    return PixelBank(folder)


def write_data(folder: Path, photos: int, validation: int, size: int) -> TrialData:
    train_bank, validation_bank = (
        write_bank(folder / name, number, size, seed)
        for seed, (name, number) in enumerate((("train", photos), ("validation", validation)))
    )
    return TrialData(CLASSES, size, train_bank, validation_bank, folder / "banks")


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> TrialData:
    """Small enough for a CPU to train on in seconds."""
    return write_data(tmp_path_factory.mktemp("little"), 200, 80, 64)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> TrialData:
    """30 steps of 64."""
    return write_data(tmp_path_factory.mktemp("many"), 1920, 300, 64)
