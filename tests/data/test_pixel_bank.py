"""The pixel bank is built once, has exactly the decoder's pixels, and is built again if it is damaged."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from binsweep.data.banks.pixels import PixelBank, open_pixel_bank
from binsweep.data.decode import decode
from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.split import SPLITS, Split

OPEN = """
import sys
from pathlib import Path
from binsweep.data.manifest import load_manifest
from binsweep.data.banks.pixels import open_pixel_bank
from binsweep.data.split import Split
source, home, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
steps = []
manifest = load_manifest(source, None, Split(), home)
bank = open_pixel_bank(manifest, "train", size, home, lambda done, total: steps.append(done))
print(len(bank), len(steps), "torch" in sys.modules)
"""


def start_opening(source: Path | str, home: Path, size: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPEN, str(source), str(home), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def manifest(bucket: Path, home: Path) -> Manifest:
    return load_manifest(str(bucket), None, Split(), home)


def test_a_bank_holds_the_decoders_pixels(manifest: Manifest, home: Path) -> None:
    total = 0
    for name in SPLITS:
        bank = open_pixel_bank(manifest, name, 16, home)
        items = manifest.split(name)
        assert bank.pixels.dtype == np.uint8
        assert bank.pixels.shape == (len(items), 16, 16, 3)
        assert isinstance(bank.pixels, np.memmap) and not bank.pixels.flags.writeable
        assert bank.labels.dtype == np.int64
        assert bank.ids == tuple(item.id for item in items)
        for row, item in enumerate(items):
            np.testing.assert_array_equal(bank.pixels[row], decode(item.path, 16))
        total += len(bank)
    assert total == len(manifest.items)


def test_labels_are_indices_into_the_classes(bucket: Path, home: Path) -> None:
    manifest = load_manifest(str(bucket), [1, 2], Split(), home)
    bank = open_pixel_bank(manifest, "train", 16, home)
    assert [manifest.classes[index] for index in bank.labels] == [i.label for i in manifest.split("train")]
    assert set(bank.labels.tolist()) == {0, 1}


def test_many_images_are_spread_over_processes(home: Path) -> None:
    source = "synthetic://?images=400&size=32"
    manifest = load_manifest(source, None, Split(0.8, 0.1, 0.1), home)
    steps: list[tuple[int, int]] = []
    bank = open_pixel_bank(manifest, "train", 32, home, lambda done, total: steps.append((done, total)))
    assert len(bank) > 200
    assert steps[-1] == (len(bank), len(bank))
    for row, item in enumerate(manifest.split("train")):
        np.testing.assert_array_equal(bank.pixels[row], decode(item.path, 32))


def test_a_bank_is_built_once(manifest: Manifest, bucket: Path, home: Path) -> None:
    first = open_pixel_bank(manifest, "train", 16, home)
    steps: list[int] = []
    second = open_pixel_bank(manifest, "train", 16, home, lambda done, total: steps.append(done))
    assert not steps
    assert (second.path, second.key) == (first.path, first.key)


def test_a_bank_travels_as_its_path(manifest: Manifest, home: Path) -> None:
    bank = open_pixel_bank(manifest, "train", 16, home)
    letter = pickle.dumps(bank)
    assert len(letter) < 500
    again = pickle.loads(letter)
    assert isinstance(again, PixelBank) and isinstance(again.pixels, np.memmap)
    np.testing.assert_array_equal(again.pixels, bank.pixels)
    np.testing.assert_array_equal(PixelBank(bank.path).labels, bank.labels)
    assert again.ids == bank.ids


def test_what_differs_has_a_bank_of_its_own(
    bins: ModuleType, bucket: Path, manifest: Manifest, home: Path
) -> None:
    banks = [open_pixel_bank(manifest, "train", 16, home), open_pixel_bank(manifest, "train", 20, home)]
    banks.append(open_pixel_bank(manifest, "test", 16, home))
    bins.paint(manifest.split("train")[0].path, 999)
    changed = load_manifest(str(bucket), None, Split(), home)
    banks.append(open_pixel_bank(changed, "train", 16, home))
    banks.append(open_pixel_bank(load_manifest(str(bucket), [0, 1], Split(), home), "train", 16, home))
    bicubic = open_pixel_bank(manifest, "test", 16, home, interpolation="bicubic")
    banks.append(bicubic)
    np.testing.assert_array_equal(
        bicubic.pixels[0], decode(manifest.split("test")[0].path, 16, interpolation="bicubic")
    )
    assert not np.array_equal(bicubic.pixels, banks[2].pixels)
    assert len({bank.path for bank in banks}) == len(banks)
    assert len({bank.key for bank in banks}) == len(banks)
    assert not np.array_equal(banks[3].pixels[0], banks[0].pixels[0])


@pytest.mark.parametrize(
    "damage",
    [
        "pixels cut",
        "pixels empty",
        "pixels absent",
        "pixels foreign",
        "index cut",
        "index absent",
        "index other",
    ],
)
def test_a_damaged_bank_is_built_again(
    damage: str, manifest: Manifest, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bank = open_pixel_bank(manifest, "train", 16, home)
    expected = np.array(bank.pixels)
    pixels, index = bank.path / "pixels.npy", bank.path / "index.json"
    file = pixels if damage.startswith("pixels") else index
    if damage.endswith("cut"):
        os.truncate(file, file.stat().st_size - 100)
    elif damage.endswith("empty"):
        os.truncate(file, 0)
    elif damage.endswith("absent"):
        file.unlink()
    elif damage.endswith("foreign"):
        np.save(pixels, np.zeros((len(bank), 8, 8, 3), np.uint8))
    else:
        index.write_text(index.read_text().replace("decoder ", "decoder 0"))
    with caplog.at_level(logging.WARNING):
        again = open_pixel_bank(manifest, "train", 16, home)
    np.testing.assert_array_equal(again.pixels, expected)
    assert len(caplog.records) == 1
    assert "is built again" in caplog.text
    assert str(bank.path) in caplog.text


def test_several_processes_build_one_bank(home: Path) -> None:
    source = "synthetic://?images=400&size=32"
    load_manifest(source, None, Split(), home)  # so that all of them arrive at the bank together
    processes = [start_opening(source, home, 300) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    steps = sorted(int(output.split()[1]) for output, _ in outputs)
    assert steps[:2] == [0, 0] and steps[2] > 0
    assert all(output.split()[2] == "False" for output, _ in outputs)


def test_a_killed_builder_leaves_nothing_that_is_used(home: Path) -> None:
    source = "synthetic://?images=400&size=32"
    manifest = load_manifest(source, None, Split(), home)
    process = start_opening(source, home, 500)
    banks = home / "banks"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not list(banks.glob(".*.partial/pixels.npy")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert list(banks.glob(".*.partial"))
    assert not list(banks.glob("pixels-*/index.json"))
    bank = open_pixel_bank(manifest, "train", 500, home)
    np.testing.assert_array_equal(bank.pixels[-1], decode(manifest.split("train")[-1].path, 500))
    assert not list(banks.glob(".*.partial"))


@pytest.mark.parametrize("images", [45, 400])
def test_an_image_that_changed_meanwhile_is_an_error(
    images: int, bins: ModuleType, tmp_path: Path, home: Path
) -> None:
    root = bins.write_bucket(tmp_path / "bins", {0: images // 2, 1: images // 2})
    manifest = load_manifest(str(root), None, Split(), home)
    bins.paint(manifest.split("train")[-1].path, 999)
    with pytest.raises(UserError, match=r"\.jpg: changed since it was read for the manifest") as caught:
        open_pixel_bank(manifest, "train", 16, home)
    assert "\n" not in caught.value.message
    assert not [path for path in (home / "banks").iterdir() if path.is_dir()]


def test_an_image_that_vanished_is_an_error(manifest: Manifest, home: Path) -> None:
    manifest.split("train")[0].path.unlink()
    with pytest.raises(UserError, match="no such file"):
        open_pixel_bank(manifest, "train", 16, home)


def test_a_place_that_cannot_be_written(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot build the pixel bank") as caught:
        open_pixel_bank(manifest, "train", 16, tmp_path / "file")
    assert caught.value.hint


@pytest.mark.integration
def test_real_bins(home: Path) -> None:
    real = os.environ.get("BINSWEEP_REAL_BINS")
    if not real:
        pytest.skip("BINSWEEP_REAL_BINS names no folder of real bins")
    manifest = load_manifest(real, [1, 2, 3, 4, 5], Split(), home)
    bank = open_pixel_bank(manifest, "validation", 96, home)
    items = manifest.split("validation")
    for row in range(0, len(items), 50):
        np.testing.assert_array_equal(bank.pixels[row], decode(items[row].path, 96))
