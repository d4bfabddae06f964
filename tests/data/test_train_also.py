"""Photos of other counts teach, and never give a held-out photo away."""

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from binsweep.data.banks.pixels import open_pixel_bank
from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, TrainAlso, load_manifest
from binsweep.data.report.data_report import build_data_report, write_report
from binsweep.data.split import Split
from binsweep.tracking.registry.photo_splits import new_test_photos, seen_contents

COUNTS = {0: 6, 1: 20, 2: 20, 3: 5, 9: 3}


@pytest.fixture
def source(bins: ModuleType, tmp_path: Path) -> Path:
    folder: Path = bins.write_bucket(tmp_path / "many", COUNTS)
    return folder


def load(source: Path, home: Path, also: TrainAlso, by: str = "id") -> Manifest:
    return load_manifest(str(source), [1, 2], Split(by=by), home, train_also=also)  # type: ignore[arg-type]


def test_the_classes_keep_their_splits(source: Path, home: Path) -> None:
    without, others, some = (load(source, home, also) for also in (None, "others", [0, 3]))
    assert others.items == some.items == without.items
    assert not without.train_also and without.head_classes == (1, 2)
    assert {item.split for item in others.train_also} == {"train"}
    assert [item.id for item in others.train_also] == sorted(item.id for item in others.train_also)
    assert others.summary()["train_also"] == {"0": 6, "3": 5, "9": 3}
    assert [item.label for item in some.train_also] == [0] * 6 + [3] * 5
    assert len({one.fingerprint for one in (without, others, some)}) == 3
    assert "train_also" not in without.summary()


def test_counts_far_from_the_classes_share_one(source: Path, home: Path) -> None:
    manifest = load(source, home, "others")
    assert manifest.head_classes == (0, 1, 2, 3, 7)
    bank = open_pixel_bank(manifest, "train_also", 16, home)
    learned = np.array(manifest.head_classes)[bank.labels]
    assert learned.tolist() == [min(item.label, 7) for item in manifest.train_also]
    assert bank.ids == tuple(item.id for item in manifest.train_also)


def test_copies_of_held_out_photos_do_not_teach(source: Path, home: Path) -> None:
    held = [item for item in load(source, home, None).items if item.split != "train"][:2]
    for number, item in enumerate(held):
        shutil.copy(item.path, source / "bin-images" / f"{number:05d}.jpg")  # of a bin with 0 items
    manifest = load(source, home, "others")
    assert not {item.sha256 for item in held} & {item.sha256 for item in manifest.train_also}
    assert [one.id for one in manifest.skipped] == ["00000", "00001"]
    assert "belongs to a photo of validation or test" in manifest.skipped[0].reason


def test_members_of_a_held_out_group_do_not_teach(bins: ModuleType, source: Path, home: Path) -> None:
    """The same products as in a bin of the test split, in another quantity."""
    test = load(source, home, None, "group").split("test")[0]
    for id, quantity in ((test.id, test.label), ("00000", 0), ("00045", 0)):
        document = {
            "BIN_FCSKU_DATA": {"B1": {"asin": "B1", "quantity": quantity}} if id != "00045" else {},
            "EXPECTED_QUANTITY": quantity,
        }
        (source / "metadata" / f"{id}.json").write_text(bins.json.dumps(document))
    manifest = load(source, home, "others", "group")
    assert test in manifest.items and test.id not in {item.id for item in manifest.train_also}
    assert "00000" in {one.id for one in manifest.skipped}


def test_only_the_train_folder_teaches(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    number = 0
    for split in ("train", "validation", "test"):
        for count in (0, 1, 2):
            for _ in range(4):
                bins.paint(tmp_path / "divided" / split / str(count) / f"{number}.jpg", number)
                number += 1
    manifest = load(tmp_path / "divided", home, [0], "folder")
    assert [item.path.parts[-3] for item in manifest.train_also] == ["train"] * 4
    assert len(manifest.items) == 24


def test_the_data_report_counts_them(source: Path, home: Path, tmp_path: Path) -> None:
    report = build_data_report(load(source, home, "others"), home)
    assert report.facts["images"] == 40 and report.facts["train_also"] == {"0": 6, "3": 5, "9": 3}
    page, _ = write_report(report, tmp_path / "report.html")
    assert "6 of 0, 5 of 3, 3 of 9." in page.read_text()
    page, _ = write_report(build_data_report(load(source, home, None), home), tmp_path / "report.html")
    assert "other counts" not in page.read_text()


def test_the_model_has_seen_what_taught_it(source: Path, home: Path) -> None:
    manifest = load(source, home, "others")
    assert {item.sha256 for item in manifest.train_also} <= seen_contents(manifest)
    assert set(new_test_photos(manifest)) == set(manifest.split("test"))
    excluded = manifest.train_also[0]
    less = manifest.without({excluded.id}, "a file")
    assert excluded not in less.train_also and less.skipped[-1].reason == "excluded by a file"
    assert less.full_fingerprint == manifest.fingerprint != less.fingerprint


@pytest.mark.parametrize(
    ("classes", "also", "message"),
    [
        ([1, 2], [4], "has no photo to train on of 4 items"),
        ([0, 1, 2, 3, 9], "others", "has no photo to train on of another count"),
    ],
)
def test_no_photo_of_another_count(
    source: Path, home: Path, classes: list[int], also: TrainAlso, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_manifest(str(source), classes, Split(), home, train_also=also)
