"""A bucket as a source equals a folder: same split and fingerprint; it is fetched once, and changes are noticed."""

import json
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.s3.address import parse_address
from binsweep.data.s3.bucket import open_bucket
from binsweep.data.s3.listing import Selection
from binsweep.data.s3.pull import pull
from binsweep.data.s3.push import Arrangement, PushResult, push
from binsweep.data.split import SPLITS, Split


def load(source: object, home: Path, classes: list[int] | None = None, by: Any = "id") -> Manifest:
    return load_manifest(str(source), classes, Split(by=by), home)


def send(manifest: Manifest, uri: str, arrangement: Arrangement = "same") -> PushResult:
    return push(manifest, open_bucket(parse_address(uri), allow_empty=True), arrangement, lambda *_: None, 8)


@pytest.mark.parametrize("layout", ["bucket", "folders"])
def test_same_as_the_folder(s3: Any, bins: ModuleType, tmp_path: Path, home: Path, layout: str) -> None:
    write = bins.write_bucket if layout == "bucket" else bins.write_folders
    root = write(tmp_path / "bins", bins.COUNTS)
    source = f"s3://{s3.bucket(root, 'a/')}/a"
    local, remote = load(root, home), load(source, home)
    assert remote.fingerprint == local.fingerprint and remote.source == source
    assert [item.split for item in remote.items] == [item.split for item in local.items]
    asked = s3.gets()
    assert load(source, home) == remote
    assert s3.gets() == asked


def test_classes_share_one_cache(s3: Any, bucket: Path, home: Path) -> None:
    source = f"s3://{s3.bucket(bucket)}"
    asked = s3.gets()
    few = load(source, home, [0, 1])
    assert s3.gets() - asked == 45 + 29
    assert load(source, home).fingerprint == load(bucket, home).fingerprint
    assert s3.gets() - asked == 45 + 16 + 45  # the documents of class 2 were read, not kept
    assert load(source, home, [0, 1]).fingerprint == few.fingerprint == load(bucket, home, [0, 1]).fingerprint


def test_changes_are_noticed(s3: Any, bins: ModuleType, bucket: Path, home: Path) -> None:
    name = s3.bucket(bucket)
    prints = [load(f"s3://{name}", home, [0, 1]).fingerprint]
    bins.paint(bucket / "bin-images" / "00001.jpg", 321)
    (bucket / "metadata" / "00002.json").write_text('{"EXPECTED_QUANTITY": 2}')
    (bucket / "metadata" / "00003.json").write_text('{"EXPECTED_QUANTITY": 1}')
    for key in ("bin-images/00001.jpg", "metadata/00002.json", "metadata/00003.json"):
        s3.put(name, key, (bucket / key).read_bytes())
        prints.append(load(f"s3://{name}", home, [0, 1]).fingerprint)
    s3.client.delete_object(Bucket=name, Key="bin-images/00004.jpg")
    s3.client.delete_object(Bucket=name, Key="metadata/00005.json")
    (bucket / "bin-images" / "00004.jpg").unlink()
    (bucket / "metadata" / "00005.json").unlink()
    last = load(f"s3://{name}", home, [0, 1])
    assert len({*prints, last.fingerprint}) == 5
    assert last.fingerprint == load(bucket, home, [0, 1]).fingerprint


def test_what_cannot_be_used_is_listed(s3: Any, bucket: Path, home: Path) -> None:
    (bucket / "metadata" / "00001.json").write_text("{")
    (bucket / "bin-images" / "00002.jpg").write_bytes(b"")
    (bucket / "bin-images" / "00003.jpg").unlink()
    remote = load(f"s3://{s3.bucket(bucket)}", home)
    assert [one.id for one in remote.skipped] == [one.id for one in load(bucket, home).skipped]
    assert len(remote.items) == 42


def test_processes_that_ask_at_once_fetch_once(s3: Any, bucket: Path, home: Path) -> None:
    source, asked = f"s3://{s3.bucket(bucket)}", s3.gets()
    s3.faults(latency=0.02)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(load(source, home).fingerprint)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3 and len(set(found)) == 1
    assert s3.gets() - asked == 90


def test_no_image_of_a_class(s3: Any, bucket: Path, home: Path) -> None:
    with pytest.raises(UserError, match="has no image of class 7, 8"):
        load(f"s3://{s3.bucket(bucket)}", home, [7, 8])
    with pytest.raises(UserError, match="no bucket"):
        load("s3://nobody-has-this", home)


def test_push_and_back(s3: Any, bucket: Path, home: Path) -> None:
    local, uri = load(bucket, home), f"s3://{s3.bucket()}/deep"
    assert send(local, uri) == PushResult(45, 90, 90)
    assert load(uri, home).fingerprint == local.fingerprint
    (bucket / "metadata" / "00004.json").write_text('{"EXPECTED_QUANTITY": 1}')
    local = load(bucket, home)
    assert send(local, uri).sent == 1
    key = "deep/manifest.parquet"
    (home / "table").write_bytes(s3.client.get_object(Bucket=uri[5:-5], Key=key)["Body"].read())
    rows = pq.read_table(home / "table").to_pylist()
    assert [(r["id"], r["split"], r["sha256"]) for r in rows] == [
        (i.id, i.split, i.sha256) for i in local.items
    ]
    assert rows[0]["uri"] == f"{uri}/bin-images/00000.jpg"


def test_push_by_splits_and_read_by_folder(s3: Any, bucket: Path, home: Path, tmp_path: Path) -> None:
    local, uri = load(bucket, home), f"s3://{s3.bucket()}"
    assert send(local, uri, "splits").objects == 45
    remote = load(uri, home, by="folder")
    for name in SPLITS:
        assert sorted(i.sha256 for i in remote.split(name)) == sorted(i.sha256 for i in local.split(name))
    with pytest.raises(UserError, match=r"data\.split\.by is id, and .* is already divided"):
        load(uri, home)
    with pytest.raises(UserError, match=r"data\.split\.by is folder, and .* is not divided"):
        load(bucket, home, by="folder")


def test_groups_stay_on_one_side(bins: ModuleType, bucket: Path, home: Path) -> None:
    """The same products and near duplicates stay together; all others are split as by id."""
    same = [f"{index:05d}" for index in range(14, 28)]
    for id in same:
        document = {"BIN_FCSKU_DATA": {"B": {"quantity": 1}, "A": {"quantity": 2}}, "EXPECTED_QUANTITY": 1}
        (bucket / "metadata" / f"{id}.json").write_text(json.dumps(document))
    alike = [f"{index:05d}" for index in range(29, 45, 2)]
    for index, id in enumerate(alike):
        path = bucket / "bin-images" / f"{id}.jpg"
        path.write_bytes((bucket / "bin-images" / "00029.jpg").read_bytes() + b"\0" * index)
    by_id = {item.id: item.split for item in load(bucket, home).items}
    by_group = {item.id: item.split for item in load(bucket, home, by="group").items}
    for together in (same, alike):
        assert len({by_id[id] for id in together}) > 1
        assert {by_group[id] for id in together} == {by_id[together[0]]}
    assert all(by_group[id] == by_id[id] for id in by_id if id not in same + alike)
    assert {item.id: item.split for item in load(bucket, home, by="group").items} == by_group


def test_folders_of_names_and_their_splits(s3: Any, bins: ModuleType, tmp_path: Path, home: Path) -> None:
    """The kind of labels is found in a bucket as in a folder, also where the names are digits."""
    for number in range(20):
        for place, name in enumerate(("ok", "zer br\u00f6selt")):
            bins.paint(tmp_path / "named" / name / "2024" / f"{number}.png", 100 * place + number)
            bins.paint(tmp_path / "digits" / str(7 * place) / f"{number}.png", 100 * place + number)
            split = ("train", "val", "test")[number % 3]
            bins.paint(tmp_path / "splits" / split / name / f"{number}.png", 100 * place + number)
    cases = (("named", None, "id"), ("digits", "names", "id"), ("splits", None, "folder"))
    for folder, labels, by in cases:
        source = f"s3://{s3.bucket(tmp_path / folder, 'a/')}/a"
        local, remote = (
            load_manifest(str(place), None, Split(by=by), home, labels=labels)  # type: ignore[arg-type]
            for place in (tmp_path / folder, source)
        )
        assert remote.kind == "names" and remote.fingerprint == local.fingerprint, folder
        assert {type(item.label) for item in remote.items} == {str}


def test_a_table_in_a_bucket(s3: Any, bins: ModuleType, tmp_path: Path, home: Path) -> None:
    """Only the photos that it names are fetched, once; a changed table and a missing photo are noticed."""
    root = tmp_path / "shop"
    for number in range(60):
        bins.paint(root / "images" / "new" / f"{number}.png", number)
    rows = [
        f"images/new/{n}.png,{('ok', 'torn')[n % 2]},{('train', 'validation', 'test')[n // 2 % 3]}"
        for n in range(50)
    ]
    (root / "photos.csv").write_text("\n".join(["path,label,split", *rows]))
    name = s3.bucket(root, "a/")
    source = f"s3://{name}/a/photos.csv"
    asked = s3.gets()
    local, remote = load(root / "photos.csv", home), load(source, home)
    assert s3.gets() - asked == 51
    assert remote.classes == ("ok", "torn") and len(remote.items) == 50
    assert remote.fingerprint == local.fingerprint and remote.source == source
    assert load(source, home) == remote and s3.gets() - asked == 52
    rows = [*rows[1:], f"s3://{name}/a/images/new/55.png,ok,train", "images/new/99.png,ok,train"]
    s3.put(name, "a/photos.csv", "\n".join(["path,label,split", *rows]).encode())
    changed = load(source, home)
    ids = {item.id for item in changed.items}
    assert "images/new/55" in ids and "images/new/0" not in ids and len(ids) == 50
    assert [one.reason for one in changed.skipped] == ["images/new/99.png: no such file"]
    some = load_manifest(source, ["ok", "torn"], Split(), home)
    assert some.fingerprint == changed.fingerprint


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("path,label\n../b/1.png,ok\n", "has no image with a label"),
        ("path,label\n/tmp/1.png,ok\n", "row 2 has the path '/tmp/1.png', which is not below s3://"),
        ("path,label\ns3://other/1.png,ok\n", "row 2 has the path 's3://other/1.png', which is not below"),
        ("path\n1.png\n", "has no column 'label'"),
        (None, "cannot read s3://.*photos.csv: the bucket answers 404"),
    ],
)
def test_wrong_tables_in_a_bucket(
    s3: Any, bins: ModuleType, tmp_path: Path, home: Path, content: str | None, says: str
) -> None:
    bins.paint(tmp_path / "x" / "1.png", 1)
    name = s3.bucket(tmp_path / "x")
    if content is not None:
        s3.put(name, "photos.csv", content.encode())
    with pytest.raises(UserError, match=says):
        load(f"s3://{name}/photos.csv", home)


def test_names_are_pushed_and_pulled(s3: Any, bins: ModuleType, tmp_path: Path, home: Path) -> None:
    for number in range(40):
        bins.paint(tmp_path / "in" / ("ok", "to rn")[number % 2] / f"{number}.png", number)
    manifest = load(tmp_path / "in", home)
    name = s3.bucket()
    assert send(manifest, f"s3://{name}/splits", "splits").images == 40
    again = load_manifest(f"s3://{name}/splits", None, Split(by="folder"), home)
    assert {(item.sha256, item.label, item.split) for item in again.items} == {
        (item.sha256, item.label, item.split) for item in manifest.items
    }
    bucket = open_bucket(parse_address(f"s3://{name}/splits"))
    pulled = pull(bucket, tmp_path / "out", Selection(("to rn",), labels="names"), lambda *_: None)
    assert pulled.classes == {"to rn": 20}
    assert set(pq.read_table(tmp_path / "out" / "manifest.parquet")["label"].to_pylist()) == {"to rn"}
    table = tmp_path / "in" / "photos.csv"
    table.write_text("path,label\nok/0.png,ok\nto rn/1.png,to rn\n")
    listed = load_manifest(str(table), None, Split(), home, allow_untrainable=True)
    with pytest.raises(UserError, match="is a table: its photos have no layout to keep"):
        send(listed, f"s3://{name}/same")
