"""The manifest lists every image, or the reason why it is left out; its fingerprint covers all of them."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.split import SPLITS, Split, assign


def load(root: Path, home: Path, classes: list[int] | None = None, split: Split | None = None) -> Manifest:
    return load_manifest(str(root), classes, split or Split(), home)


def reasons(manifest: Manifest) -> dict[str, str]:
    return {one.id: one.reason for one in manifest.skipped}


_opened: list[str] | None = None


def _listen(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(args[0], str | bytes | os.PathLike):
        _opened.append(os.fsdecode(args[0]))


sys.addaudithook(_listen)


@contextmanager
def files_opened() -> Iterator[list[str]]:
    """The names of the files that this process opens within the block."""
    global _opened
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


def test_bucket_layout(bucket: Path, home: Path) -> None:
    manifest = load(bucket, home)
    assert manifest.classes == (0, 1, 2)
    assert manifest.skipped == ()
    assert [item.id for item in manifest.items] == [f"{index:05d}" for index in range(45)]
    assert sum(sum(manifest.class_counts(name).values()) for name in SPLITS) == 45
    for name in SPLITS:
        assert {item.split for item in manifest.split(name)} == {name}
    item = manifest.items[14]
    assert (item.label, item.path) == (1, bucket / "bin-images" / "00014.jpg")
    assert len(item.sha256) == 64


def test_folder_layout(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    root = bins.write_folders(tmp_path / "folders", bins.COUNTS)
    manifest = load(root, home)
    assert manifest.classes == (0, 1, 2)
    assert manifest.items[0].id == "0/00000"
    assert [item.label for item in manifest.items] == sorted(item.label for item in manifest.items)
    assert len(manifest.items) == 45


def test_items_are_sorted_by_id(bins: ModuleType, bucket: Path, home: Path) -> None:
    """Not by file name, which includes the dot of the suffix."""
    bins.write_bin(bucket, "a", 1, 50)
    bins.write_bin(bucket, "a-b", 1, 51)
    ids = [item.id for item in load(bucket, home).items]
    assert ids[-2:] == ["a", "a-b"]
    assert ids == sorted(ids)


def test_summary_is_json(bucket: Path, home: Path) -> None:
    (bucket / "bin-images" / "00003.jpg").write_bytes(b"")
    summary = json.loads(json.dumps(load(bucket, home).summary()))
    assert summary["images"] == 44
    assert summary["skipped"] == 1
    assert sum(summary["splits"][name]["0"] for name in SPLITS) == 13


def test_classes_choose_and_order(bucket: Path, home: Path) -> None:
    manifest = load(bucket, home, [2, 0])
    assert manifest.classes == (0, 2)
    assert len(manifest.items) == 30


def test_only_wanted_images_are_opened(bucket: Path, home: Path) -> None:
    with files_opened() as opened:
        load(bucket, home, [0, 1])
    images = [name for name in opened if name.endswith(".jpg")]
    assert len(images) == 29
    assert len(set(images)) == 29


def test_a_second_load_opens_nothing(bucket: Path, home: Path) -> None:
    first = load(bucket, home)
    with files_opened() as opened:
        second = load(bucket, home)
    assert not [name for name in opened if name.startswith(str(bucket)) and not Path(name).is_dir()]
    assert second == first


def test_only_what_changed_is_read_again(bins: ModuleType, bucket: Path, home: Path) -> None:
    """Even if the file has the same size and date, as copies do."""
    image = bucket / "bin-images" / "00007.jpg"
    image.write_bytes(image.read_bytes().ljust(4000, b"\0"))
    first = load(bucket, home)
    old = image.stat()
    bins.paint(image, 1000)
    image.write_bytes(image.read_bytes().ljust(4000, b"\0"))
    os.utime(image, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    with files_opened() as opened:
        second = load(bucket, home)
    assert [name for name in opened if name.startswith(f"{bucket}/") and Path(name).is_file()] == [str(image)]
    assert second.fingerprint != first.fingerprint


def test_a_damaged_cache_is_read_over(bucket: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = load(bucket, home)
    (cache,) = (home / "cache").iterdir()
    for damage in (b"", b"{", b"[]", b'{"files": {}}', cache.read_bytes()[:-30]):
        cache.write_bytes(damage)
        assert load(bucket, home) == first
    assert "is damaged" in caplog.text


def test_a_cache_of_another_decoder_is_not_used(bucket: Path, home: Path) -> None:
    first = load(bucket, home)
    (cache,) = (home / "cache").iterdir()
    content = cache.read_text().replace('"format": "', '"format": "0')
    for item in first.items:
        content = content.replace(item.sha256, "0" * 64)
    cache.write_text(content)
    assert load(bucket, home) == first


def test_a_home_that_cannot_be_written_costs_only_time(
    bucket: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "file"
    home.write_text("in the way")
    assert len(load(bucket, home).items) == 45
    assert "cannot write the scan cache" in caplog.text


def test_an_interrupted_load_keeps_what_it_read(bucket: Path, home: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_manifest(str(bucket), None, Split(), home, interrupt)
    with files_opened() as opened:
        load(bucket, home)
    assert not [name for name in opened if name.endswith(".jpg")]


def test_progress_counts_images(bucket: Path, home: Path) -> None:
    steps: list[tuple[int, int]] = []
    for _ in range(2):
        load_manifest(str(bucket), None, Split(), home, lambda done, total: steps.append((done, total)))
    assert steps == [(0, 45), (45, 45), (45, 45)]


def test_fingerprint_knows_place_and_order_not(bucket: Path, tmp_path: Path, home: Path) -> None:
    first = load(bucket, home)
    elsewhere = tmp_path / "elsewhere"
    for folder in ("metadata", "bin-images"):
        (elsewhere / folder).mkdir(parents=True)
        for path in sorted((bucket / folder).iterdir(), reverse=True):
            shutil.copyfile(path, elsewhere / folder / path.name)
    assert load(elsewhere, home).fingerprint == first.fingerprint
    assert load(bucket, home, [2, 1, 0]).fingerprint == first.fingerprint


def test_fingerprint_knows_everything_else(bins: ModuleType, bucket: Path, home: Path) -> None:
    prints = [load(bucket, home).fingerprint]
    prints.append(load(bucket, home, [0, 1]).fingerprint)
    prints.append(load(bucket, home, split=Split(seed=1)).fingerprint)
    bins.paint(bucket / "bin-images" / "00020.jpg", 999)
    prints.append(load(bucket, home).fingerprint)
    bins.write_bin(bucket, "00021", 2, 21)
    prints.append(load(bucket, home).fingerprint)
    (bucket / "bin-images" / "00022.jpg").unlink()
    prints.append(load(bucket, home).fingerprint)
    assert len(set(prints)) == len(prints)


def test_added_images_move_no_old_one(bins: ModuleType, bucket: Path, home: Path) -> None:
    before = {item.id: item.split for item in load(bucket, home).items}
    for index in range(100, 140):
        bins.write_bin(bucket, f"{index:05d}", index % 3, index)
    after = {item.id: item.split for item in load(bucket, home).items}
    assert len(after) == 85
    assert {id: after[id] for id in before} == before


def test_bad_files_of_a_bucket_are_listed(bucket: Path, home: Path) -> None:
    images, metadata = bucket / "bin-images", bucket / "metadata"
    (images / "00000.jpg").write_bytes(b"")
    (images / "00001.jpg").write_text("not a picture")
    whole = (images / "00002.jpg").read_bytes()
    (images / "00002.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "00003.jpg").unlink()
    (metadata / "00004.json").unlink()
    (metadata / "00005.json").write_text("{")
    (metadata / "00006.json").write_text('{"quantity": 3}')
    (metadata / "00007.json").write_text('{"EXPECTED_QUANTITY": "3"}')
    (metadata / "00008.json").write_text('{"EXPECTED_QUANTITY": -1}')
    (metadata / "00009.json").write_bytes(b"\xff\xfe\x00")
    (metadata / "00010.json").write_text("[" * 100_000)
    (metadata / "00011.json").write_text('{"EXPECTED_QUANTITY": true}')
    (images / "notes.txt").write_text("hello")
    (images / ".hidden").write_text("")
    manifest = load(bucket, home)
    assert len(manifest.items) == 33
    expected = {
        "00000": "bin-images/00000.jpg: empty file",
        "00001": "bin-images/00001.jpg: not a JPEG",
        "00002": "bin-images/00002.jpg: broken JPEG",
        "00003": "bin-images/00003.jpg: no such file",
        "00004": "metadata/00004.json: no such file",
        "00005": "metadata/00005.json: not JSON",
        "00006": "metadata/00006.json: has no EXPECTED_QUANTITY",
        "00007": "must be a whole number from 0, and is '3'",
        "00008": "must be a whole number from 0, and is '-1'",
        "00009": "metadata/00009.json: not JSON",
        "00010": "metadata/00010.json: not JSON",
        "00011": "must be a whole number from 0, and is 'True'",
        "bin-images/notes.txt": "not named as one of .jpg",
    }
    assert reasons(manifest).keys() == expected.keys()
    for id, reason in expected.items():
        assert reason in reasons(manifest)[id]
    assert load(bucket, home) == manifest  # from the cache


def test_bad_files_of_folders_are_listed(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    root = bins.write_folders(tmp_path / "folders", bins.COUNTS)
    (root / "readme.txt").write_text("hello")
    bins.paint(root / "many" / "a.jpg", 1)
    bins.paint(root / "01" / "a.jpg", 1)
    shutil.copy(root / "1" / "00014.jpg", root / "1" / "00014.png")
    (root / "1" / "list.csv").write_text("a")
    (root / "2" / "00030.jpg").write_bytes(b"text")
    manifest = load(root, home)
    assert len(manifest.items) == 46
    assert {"01/a": 1, "1/00014.png": 1}.items() <= {one.id: one.label for one in manifest.items}.items()
    expected = {"readme.txt", "many/", "1/list.csv", "2/00030"}
    assert reasons(manifest).keys() == expected


def test_an_image_is_absent_only_when_it_is_wanted(bucket: Path, home: Path) -> None:
    (bucket / "bin-images" / "00044.jpg").unlink()
    assert load(bucket, home, [0, 1]).skipped == ()
    assert reasons(load(bucket, home)).keys() == {"00044"}


def test_manifests_travel_between_processes(bucket: Path, home: Path) -> None:
    manifest = load(bucket, home)
    assert pickle.loads(pickle.dumps(manifest)) == manifest


@pytest.mark.parametrize("case", ["absent", "file", "empty", "neither", "half a bucket", "scheme", "unset"])
def test_sources_that_are_none(bins: ModuleType, case: str, tmp_path: Path, home: Path) -> None:
    root = tmp_path / "source"
    if case == "file":
        root.write_text("x")
    elif case != "absent":
        root.mkdir()
    if case == "neither":
        bins.paint(root / "cats" / "1.jpg", 0)
    elif case == "half a bucket":
        bins.paint(root / "bin-images" / "1.jpg", 0)
    source = {"scheme": "ftp://host/bins", "unset": ""}.get(case, str(root))
    says = {
        "absent": "does not exist",
        "file": "is not a folder",
        "empty": "is empty",
        "neither": "none of the layouts",
        "half a bucket": "none of the layouts",
        "scheme": "nothing reads ftp://",
        "unset": "an empty name",
    }[case]
    with pytest.raises(UserError, match=says) as caught:
        load_manifest(source, None, Split(), home)
    assert source in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ([0, 1, 7, 9], "no readable image of class 7, 9"),
        ([1], "at least two different counts"),
        ([], "at least two different counts"),
        ([1, 1, 2], "each once"),
    ],
)
def test_invalid_classes(classes: list[int], says: str, bucket: Path, home: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load(bucket, home, classes)
    assert caught.value.hint


def test_a_class_of_unreadable_images_is_named_with_the_reason(bucket: Path, home: Path) -> None:
    for index in range(14):
        (bucket / "bin-images" / f"{index:05d}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"class 0 .*skipped: .*00000.*0 bytes.*and 4 more"):
        load(bucket, home, [0, 1])


def test_one_class_only(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    with pytest.raises(UserError, match="has images of 1 class"):
        load(bins.write_folders(tmp_path / "one", {3: 10}), home)


def test_nothing_readable(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    root = bins.write_bucket(tmp_path / "bucket", {1: 2, 2: 2})
    for image in (root / "bin-images").iterdir():
        image.write_bytes(b"")
    with pytest.raises(UserError, match=r"has no readable image.*skipped: .*; .*; .*; .*0 bytes"):
        load(root, home)


def test_an_empty_split(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    root = bins.write_folders(tmp_path / "few", {1: 2, 2: 2})
    with pytest.raises(UserError, match=r"falls into (train|validation|test) \(4 images in all\)"):
        load(root, home, split=Split(0.98, 0.01, 0.01))


@pytest.mark.integration
def test_real_bins(home: Path) -> None:
    real = os.environ.get("BINSWEEP_REAL_BINS")
    if not real:
        pytest.skip("BINSWEEP_REAL_BINS names no folder of real bins")
    manifest = load(Path(real), home, [1, 2, 3, 4, 5])
    again = load(Path(real), home, [1, 2, 3, 4, 5])
    assert again == manifest
    assert len(manifest.items) > 100
    for name, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(manifest.split(name)) / len(manifest.items) - share) < 0.1


def test_a_class_without_a_photo_in_some_split_is_reported(
    bins: ModuleType, tmp_path: Path, home: Path
) -> None:
    root = bins.write_folders(tmp_path / "folders", {1: 40, 2: 40})
    assert load(root, home).warnings() == []
    for number in range(1000):  # three photos that fall into test
        if assign(Split(), f"7/{number}", 7) == "test" and len(list(root.glob("7/*"))) < 3:
            bins.paint(root / "7" / f"{number}.jpg", number)
    [gap] = load(root, home).warnings()
    assert gap.startswith(
        "class 7 has no photo in train and validation (3 in test): no model can learn it, and "
    )
    assert "leave it out of data.classes" in gap


def test_train_with_photos_of_one_class(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    for index in range(12):
        name = ("train", "val", "test")[index % 3]
        bins.paint(
            tmp_path / "bins" / name / ("1" if name == "train" else str(1 + index % 2)) / f"{index}.jpg",
            index,
        )
    with pytest.raises(UserError, match=r"all images of .* that fall into train are of class 1"):
        load(tmp_path / "bins", home, split=Split(by="folder"))


def test_two_images_in_all(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    with pytest.raises(UserError, match=r"falls into \w+ \(2 images in all\)") as caught:
        load(bins.write_folders(tmp_path / "folders", {1: 1, 2: 1}), home)
    assert "more images" in caught.value.hint


def test_any_photos_are_accepted_if_no_model_is_trained(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    """Evaluations, reports and pushes need neither all splits nor all classes."""
    root = bins.write_folders(tmp_path / "folders", {3: 2})
    few = load_manifest(str(root), None, Split(), home, allow_untrainable=True)
    assert [(item.label, item.path.parent.name) for item in few.items] == [(3, "3"), (3, "3")]
    for classes in ([3], [1, 2, 3]):
        some = load_manifest(str(root), classes, Split(), home, allow_untrainable=True)
        assert [item.sha256 for item in some.items] == [item.sha256 for item in few.items]
        assert some.classes == tuple(classes)
    with pytest.raises(UserError, match="no readable image of class 1, 2 in"):
        load_manifest(str(root), [1, 2], Split(), home, allow_untrainable=True)

    bins.paint(tmp_path / "divided" / "val" / "1" / "a.jpg", 7)
    divided = load_manifest(str(tmp_path / "divided"), None, Split(), home, allow_untrainable=True)
    assert [item.split for item in divided.items] == ["validation"]
    with pytest.raises(UserError, match="is not divided"):
        load_manifest(str(root), None, Split(by="folder"), home, allow_untrainable=True)
