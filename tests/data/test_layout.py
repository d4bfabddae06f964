"""Usual folder names are accepted on a disk and in a bucket; other folders are reported."""

import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.report.data_report import build_data_report, write_report
from binsweep.data.s3.address import parse_address
from binsweep.data.s3.bucket import open_bucket
from binsweep.data.s3.listing import Selection
from binsweep.data.s3.pull import pull
from binsweep.data.s3.push import push
from binsweep.data.sources.object_names import is_photo, parse_name, printable
from binsweep.data.split import Split


def load(source: object, home: Path, by: Any = "id") -> Manifest:
    return load_manifest(str(source), None, Split(by=by), home)


def reasons(manifest: Manifest) -> dict[str, str]:
    return {one.id: one.reason for one in manifest.skipped}


def divide(bins: ModuleType, root: Path, names: tuple[str, str, str]) -> Path:
    """15 photos of two classes in each of three folders."""
    for index in range(90):
        bins.paint(root / names[index % 3] / str(1 + index % 2) / f"{index:03d}.jpg", index)
    return root


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("training", "valid", "testing"),
        ("Train", "Validation", "TEST"),
        ("train", "dev", "test"),
    ],
)
def test_the_usual_names_of_splits(
    bins: ModuleType, tmp_path: Path, home: Path, names: tuple[str, str, str]
) -> None:
    manifest = load(divide(bins, tmp_path / "bins", names), home, "folder")
    assert [len(manifest.split(name)) for name in ("train", "validation", "test")] == [30, 30, 30]
    assert manifest.skipped == ()
    assert f"{names[1]}/2/001" in {item.id for item in manifest.split("validation")}
    with pytest.raises(UserError, match="already divided") as caught:
        load(tmp_path / "bins", home)
    assert caught.value.hint == "data.split.by: folder"


def test_a_split_of_another_name_is_named(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    root = divide(bins, tmp_path / "bins", ("train", "judge", "test"))
    with pytest.raises(UserError) as caught:
        load(root, home, "folder")
    assert "no image of" in caught.value.message and "for validation (30 in train, 0 in validation" in str(
        caught.value
    )
    assert "judge/: not a folder named train, validation or test" in caught.value.message
    assert "its 30 photos are left out" in caught.value.message
    assert "val/, valid/" in caught.value.hint and "larger" not in caught.value.hint


def odd_folders(bins: ModuleType, root: Path) -> Path:
    """Class folders of several spellings; 40 photos whose class is clear."""
    for index in range(20):
        bins.paint(root / "01" / f"{index}.jpg", index)
        deeper = ("", "day1/", "2024-01-31/morning/", "20240131/")[index % 4]
        bins.paint(root / "2" / f"{deeper}{index}.jpg", 100 + index)
        bins.paint(root / "three" / f"{index}.jpg", 200 + index)
    bins.paint(root / "2" / "1" / "which.jpg", 300)
    bins.paint(root / "2" / "val" / "which.jpg", 301)
    bins.paint(root / "2" / "@eaDir" / "thumb.jpg", 302)
    bins.paint(root / "2" / "._0.jpg", 303)
    bins.paint(root / "__MACOSX" / "2" / "x.jpg", 303)
    return root


def test_class_folders_as_people_name_them(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    root = odd_folders(bins, tmp_path / "bins")
    (root / "4").mkdir()
    manifest = load(root, home)
    assert manifest.classes == (1, 2) and len(manifest.items) == 40
    assert {"01/0", "2/day1/1", "2/2024-01-31/morning/2", "2/20240131/3"} <= {
        item.id for item in manifest.items
    }
    said = reasons(manifest)
    assert said.keys() == {"three/", "2/1/", "2/val/", "4/"}
    assert "without any photo" in said["4/"] and "its 20 photos are left out" in said["three/"]
    assert "of 2 or of 1?" in said["2/1/"] and "val/2/" in said["2/val/"]


def test_a_bucket_is_read_like_the_folder(s3: Any, bins: ModuleType, tmp_path: Path, home: Path) -> None:
    root = odd_folders(bins, tmp_path / "bins")
    shutil.copy(root / "01" / "1.jpg", root / "01" / "0.png")
    local, remote = load(root, home), load(f"s3://{s3.bucket(root)}", home)
    assert remote.fingerprint == local.fingerprint
    assert reasons(remote).keys() == reasons(local).keys()
    assert "(20 objects)" in reasons(remote)["three/"]
    divided = divide(bins, tmp_path / "divided", ("train", "val", "judge"))
    source = f"s3://{s3.bucket(divided)}"
    with pytest.raises(UserError, match=r"for test .*judge/1/: not a folder named"):
        load(source, home, "folder")
    wanted = pull(open_bucket(parse_address(source)), tmp_path / "pulled", Selection(), lambda *_: None, 8)
    assert wanted.images == 60 and wanted.problems == 2


def test_links_that_form_a_cycle(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    root = bins.write_folders(tmp_path / "bins", bins.COUNTS)
    (root / "1" / "loop").symlink_to(root)
    (root / "1" / "self").symlink_to(root / "1")
    (root / "1" / "a").mkdir()
    (root / "1" / "a" / "b").symlink_to(root / "1" / "c")
    (root / "1" / "c").mkdir()
    (root / "1" / "c" / "d").symlink_to(root / "1" / "a")
    manifest = load(root, home)
    assert len(manifest.items) == 45
    assert set(reasons(manifest).values()) == {"a link to a folder that has been read already"}


def test_a_folder_without_a_layout_is_reported_with_its_contents(
    bins: ModuleType, tmp_path: Path, home: Path
) -> None:
    for folder in ("one", "two"):
        (tmp_path / "names" / folder).mkdir(parents=True)
        (tmp_path / "names" / folder / "notes.txt").write_text("no photo")
    with pytest.raises(UserError, match=r"none of the layouts: .*, only one/, two/"):
        load(tmp_path / "names", home)
    bins.write_folders(tmp_path / "outer" / "inner", bins.COUNTS)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "outer", home)
    assert caught.value.hint == f"perhaps {tmp_path / 'outer' / 'inner'}, which does"


def test_photos_of_one_name_and_two_suffixes(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    """Both are read and belong to one split; if one is broken, the other is kept."""
    root = bins.write_folders(tmp_path / "bins", bins.COUNTS)
    before = {item.id: item.split for item in load(root, home).items}
    for path in list((root / "1").iterdir()):
        bins.paint(path.with_suffix(".png"), 1000 + int(path.stem))
    manifest = load(root, home)
    assert len(manifest.items) == 60 and manifest.skipped == ()
    splits = {item.id: item.split for item in manifest.items}
    assert {**splits, **before} == splits
    assert all(splits[f"{id}.png"] == split for id, split in before.items() if id.startswith("1/"))
    (root / "1" / "00014.jpg").write_bytes(b"")
    manifest = load(root, home)
    assert len(manifest.items) == 59 and reasons(manifest).keys() == {"1/00014"}


LATIN = os.fsdecode(b"caf\xe9")


def test_names_that_are_not_utf8(s3: Any, bins: ModuleType, tmp_path: Path, home: Path) -> None:
    """A photo, a skipped file, a broken photo: escaped wherever they are written."""
    root = bins.write_folders(tmp_path / "bins", bins.COUNTS)
    bins.paint(root / "1" / f"{LATIN}.jpg", 99)
    bins.paint(root / "1" / "new\nline.jpg", 98)
    (root / "1" / f"{LATIN}.txt").write_text("")
    (root / "1" / f"bad{LATIN}.jpg").write_text("")
    (root / LATIN).mkdir()
    manifest = load(root, home)
    assert {r"1/caf\xe9", r"1/new\nline"} <= {item.id for item in manifest.items}
    assert len(manifest.items) == 47
    assert reasons(manifest).keys() == {r"1/caf\xe9.txt", r"1/badcaf\xe9", r"caf\xe9/"}
    for item in manifest.items:
        item.id.encode()
    for one in manifest.skipped:
        f"{one.id} {one.reason}".encode()
    assert load(root, home).fingerprint == manifest.fingerprint
    assert len(load(root, home, "group").items) == 47
    page, facts = write_report(build_data_report(manifest, home), tmp_path / "report.html")
    assert r"caf\xe9" in page.read_text() and r"caf\\xe9" in facts.read_text()
    uri = f"s3://{s3.bucket()}"
    assert (
        push(manifest, open_bucket(parse_address(uri), allow_empty=True), "same", lambda *_: None, 8).images
        == 47
    )
    assert len(load(uri, home).items) == 47


def test_names_in_the_buckets_layout_that_are_not_utf8(bins: ModuleType, bucket: Path, home: Path) -> None:
    bins.write_bin(bucket, LATIN, 2, 99)
    manifest = load(bucket, home)
    assert {item.id: item.label for item in manifest.items}[r"caf\xe9"] == 2
    assert build_data_report(manifest, home).facts["label_disagreements"][-1]["id"] == r"caf\xe9"


def test_a_source_that_is_not_utf8(tmp_path: Path, home: Path) -> None:
    with pytest.raises(UserError, match=r"not printable UTF-8 text: .*caf\\xe9"):
        load(tmp_path / LATIN, home)


def test_the_rule_of_what_is_a_photo() -> None:
    for name in ("a.jpg", "1/A.JPEG", "x.heic", "x.tif", "x.avif", "b.jfif"):
        assert is_photo(name)
    for name in ("._a.jpg", "1/.hidden.jpg", "__MACOSX/1/a.jpg", "@eaDir/a.jpg", "a.txt", "jpg", ".jpg"):
        assert not is_photo(name)
    assert parse_name("readme.md") == parse_name("1/notes.txt") != ""
    assert parse_name("1/") == parse_name("1/._a.jpg") == ""
    assert printable("plain ü 日本 😀.jpg") == "plain ü 日本 😀.jpg"
