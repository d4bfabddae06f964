"""A pull fetches exactly its selection, whatever the network and the bucket do, and if it is killed."""

import csv
import errno
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from binsweep.data.errors import UserError
from binsweep.data.manifest import load_manifest
from binsweep.data.s3.address import parse_address
from binsweep.data.s3.bucket import open_bucket
from binsweep.data.s3.concurrency_limiter import ConcurrencyLimiter
from binsweep.data.s3.listing import Selection
from binsweep.data.s3.pull import PullResult, open_pull_state, pull
from binsweep.data.sources.object_names import name_problem
from binsweep.data.split import Split
from binsweep.data.synthetic.dataset import write_synthetic

HIDDEN = ".binsweep"


def quiet(phase: str, done: int, total: int) -> None: ...


def get(
    uri: str, dest: Path, wanted: Selection | None = None, report: Any = quiet, **options: Any
) -> PullResult:
    return pull(open_bucket(parse_address(uri), **options), dest, wanted or Selection(), report, 8)


def files(root: Path) -> dict[str, bytes]:
    """Everything in a folder but the pull's own state."""
    names = {path: path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for path, name in names.items() if not name.startswith(HIDDEN)}


def problems(dest: Path) -> dict[str, str]:
    with (dest / "problems.csv").open(newline="") as stream:
        return {row["id"]: row["reason"] for row in csv.DictReader(stream)}


def test_everything_arrives(s3: Any, bucket: Path, tmp_path: Path, home: Path) -> None:
    dest = tmp_path / "dest"
    pulled = get(f"s3://{s3.bucket(bucket, 'some/where/')}/some/where", dest)
    assert (pulled.images, pulled.fetched, pulled.classes) == (45, 90, {0: 14, 1: 15, 2: 16})
    got = files(dest)
    assert {name: data for name, data in got.items() if "/" in name} == files(bucket)
    manifest = load_manifest(str(bucket), None, Split(), home)
    assert load_manifest(str(dest), None, Split(), home).fingerprint == manifest.fingerprint
    rows = pq.read_table(dest / "manifest.parquet").to_pylist()
    assert [(r["id"], r["label"], r["split"], r["sha256"]) for r in rows] == [
        (item.id, item.label, item.split, item.sha256) for item in manifest.items
    ]
    assert {(r["width"], r["height"]) for r in rows} == {(32, 24)}
    for row in rows:
        assert row["uri"].endswith(f"/some/where/bin-images/{row['id']}.jpg")
        assert row["bytes"] == (bucket / "bin-images" / f"{row['id']}.jpg").stat().st_size


def test_items_and_disagreements(s3: Any, bucket: Path, tmp_path: Path) -> None:
    goods = {"A": {"name": "Tea", "quantity": 2}, "B": {"name": "Cup", "quantity": 1}}
    document = bucket / "metadata" / "00020.json"
    document.write_text(json.dumps({"BIN_FCSKU_DATA": goods, "EXPECTED_QUANTITY": 1}))
    pulled = get(f"s3://{s3.bucket(bucket)}", tmp_path / "dest")
    row = pq.read_table(tmp_path / "dest" / "manifest.parquet").to_pylist()[20]
    assert (row["item_names"], row["item_quantities"]) == (["Tea", "Cup"], [2, 1])
    # The other bins of this fixture list no item at all, so that those with a label of 0 agree.
    assert pulled.disagreements == 31
    assert problems(tmp_path / "dest")["00020"] == (
        "EXPECTED_QUANTITY is 1, and the quantities of the items add up to 3"
    )


def test_only_the_wanted_ones_are_fetched(s3: Any, bucket: Path, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket(bucket)}"
    classes = get(uri, tmp_path / "classes", Selection(classes=(0, 2)))
    assert (classes.classes, classes.fetched) == ({0: 14, 2: 16}, 75)
    few = get(uri, tmp_path / "few", Selection(limit=7))
    assert few.images == 7 and few.fetched <= 14 + 32
    each = get(uri, tmp_path / "each", Selection(classes=(0, 1, 2), per_class=3))
    assert each.classes == {0: 3, 1: 3, 2: 3}
    some = get(uri, tmp_path / "some", Selection(ids=("00003", "00044", "nobody", "../x")))
    assert (some.images, some.fetched) == (2, 4)
    assert problems(tmp_path / "some")["nobody"] == "is not in the bucket"


def test_a_seed_chooses_and_growth_moves_little(
    s3: Any, bins: ModuleType, bucket: Path, tmp_path: Path
) -> None:
    name = s3.bucket(bucket)

    def chosen(folder: str, seed: int) -> set[str]:
        get(f"s3://{name}", tmp_path / folder, Selection(limit=12, seed=seed))
        return {path.stem for path in (tmp_path / folder / "bin-images").iterdir()}

    first = chosen("a", 0)
    assert chosen("b", 0) == first
    assert chosen("c", 1) != first
    assert first != {f"{index:05d}" for index in range(12)}
    bins.write_bin(bucket, "new", 1, 77)
    for part in ("bin-images/new.jpg", "metadata/new.json"):
        s3.put(name, part, (bucket / part).read_bytes())
    assert len(chosen("d", 0) & first) >= 11


def test_again_means_only_what_changed(s3: Any, bins: ModuleType, bucket: Path, tmp_path: Path) -> None:
    name, dest = s3.bucket(bucket), tmp_path / "dest"
    get(f"s3://{name}", dest)
    before, asked = files(dest), s3.gets()
    assert get(f"s3://{name}", dest).fetched == 0
    assert s3.gets() == asked and files(dest) == before
    (dest / "bin-images" / "00009.jpg").unlink()
    (dest / "bin-images" / "00010.jpg").write_bytes(b"cut")
    assert get(f"s3://{name}", dest).fetched == 2 and files(dest) == before
    # The same number of bytes: only the ETag tells.
    s3.put(name, "bin-images/00011.jpg", before["bin-images/00011.jpg"][:-1] + b"\0")
    s3.client.delete_object(Bucket=name, Key="bin-images/00012.jpg")
    pulled = get(f"s3://{name}", dest)
    assert (pulled.fetched, pulled.images) == (1, 44)
    assert files(dest)["bin-images/00011.jpg"][-1:] == b"\0"
    assert not (dest / "bin-images" / "00012.jpg").exists()


def test_a_label_that_changes_moves_the_choice(
    s3: Any, bins: ModuleType, bucket: Path, tmp_path: Path
) -> None:
    name, dest = s3.bucket(bucket), tmp_path / "dest"
    get(f"s3://{name}", dest, Selection(classes=(0, 1)))
    s3.put(name, "metadata/00000.json", b'{"EXPECTED_QUANTITY": 2}')
    pulled = get(f"s3://{name}", dest, Selection(classes=(0, 1)))
    assert pulled.classes == {0: 13, 1: 15}
    assert not (dest / "bin-images" / "00000.jpg").exists()
    assert not (dest / "metadata" / "00000.json").exists()


def test_what_changes_between_list_and_get_is_taken_as_it_is_now(
    s3: Any, bins: ModuleType, bucket: Path, tmp_path: Path
) -> None:
    name, dest = s3.bucket(bucket), tmp_path / "dest"
    bins.paint(tmp_path / "other.jpg", 4711)
    other = (tmp_path / "other.jpg").read_bytes()

    def change(phase: str, done: int, total: int) -> None:
        if phase == "metadata" and done == total:
            s3.put(name, "bin-images/00044.jpg", other)
            s3.client.delete_object(Bucket=name, Key="bin-images/00043.jpg")

    pulled = get(f"s3://{name}", dest, report=change)
    assert files(dest)["bin-images/00044.jpg"] == other
    assert pulled.images == 44 and "answers 404" in problems(dest)["00043"]
    assert get(f"s3://{name}", dest).fetched == 0
    assert "00043" not in (row["id"] for row in pq.read_table(dest / "manifest.parquet").to_pylist())


def test_bad_objects_are_listed(s3: Any, bucket: Path, tmp_path: Path) -> None:
    (bucket / "metadata" / "00001.json").write_text("{")
    (bucket / "metadata" / "00002.json").write_text("[" * 100_000)
    (bucket / "bin-images" / "00003.jpg").write_text("no picture")
    (bucket / "bin-images" / "00004.jpg").unlink()
    name = s3.bucket(bucket)
    picture = (bucket / "bin-images" / "00005.jpg").read_bytes()
    for key in ("bin-images/a\x07b.jpg", "bin-images/00005.png", "notes/read.me", "bin-images/.hidden.jpg"):
        s3.put(name, key, picture)
    pulled = get(f"s3://{name}", tmp_path / "dest")
    assert pulled.images == 41
    found = problems(tmp_path / "dest")
    assert "not JSON" in found["00001"] and "not JSON" in found["00002"]
    assert "not a JPEG" in found["00003"] and "no image" in found["00004"]
    assert "a backslash or a control character" in found["bin-images/a\x07b.jpg"]
    assert found["notes/"].endswith("(1 object)")
    assert found["bin-images/00005.png"] == "has the same id as bin-images/00005.jpg"
    assert (tmp_path / "dest" / "bin-images" / "00003.jpg").read_text() == "no picture"


@pytest.mark.parametrize(
    "key",
    [
        "bin-images/../../evil.jpg",
        "../evil.jpg",
        "1/../../evil.jpg",
        "metadata/../../../evil.json",
        "/1/evil.jpg",
    ],
)
def test_no_key_leads_out_of_the_folder(s3: Any, bucket: Path, tmp_path: Path, key: str) -> None:
    name, dest = s3.bucket(bucket), tmp_path / "deep" / "dest"
    s3.put(name, key, (bucket / "bin-images" / "00005.jpg").read_bytes())
    assert get(f"s3://{name}", dest).images == 45
    assert not list(tmp_path.rglob("evil*"))
    left_out = [reason for reason in problems(dest).values() if "the quantities of the items" not in reason]
    assert len(left_out) == 1, "it is named"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("1//a.jpg", "an empty part"),
        ("1/../a.jpg", "a part .."),
        ("1/back\\slash.jpg", "a backslash or a control character"),
        (f"1/{'a' * 300}.jpg", "a part has 304 characters, 200 are allowed"),
        ("1/a b.jpg", ""),
    ],
)
def test_why_a_name_cannot_be_a_files(name: str, reason: str) -> None:
    assert reason in name_problem(name) if reason else not name_problem(name)


def test_folders_of_classes_and_of_splits(s3: Any, bins: ModuleType, tmp_path: Path, home: Path) -> None:
    root = bins.write_folders(tmp_path / "classes", bins.COUNTS)
    get(f"s3://{s3.bucket(root)}", tmp_path / "a")
    local = load_manifest(str(root), None, Split(), home)
    rows = pq.read_table(tmp_path / "a" / "manifest.parquet").to_pylist()
    assert [(r["id"], r["label"], r["split"]) for r in rows] == [
        (i.id, i.label, i.split) for i in local.items
    ]
    name = s3.bucket(root, "train/")
    for path in root.rglob("*.jpg"):
        s3.put(name, f"test/{path.relative_to(root)}", path.read_bytes())
    assert get(f"s3://{name}", tmp_path / "b", Selection(classes=(1,))).images == 30
    rows = pq.read_table(tmp_path / "b" / "manifest.parquet").to_pylist()
    assert [r["split"] for r in rows] == ["test"] * 15 + ["train"] * 15


def test_one_folder_one_selection_one_pull(s3: Any, bucket: Path, tmp_path: Path) -> None:
    uri, dest = f"s3://{s3.bucket(bucket)}", tmp_path / "dest"
    with open_pull_state(dest, wait=False), pytest.raises(UserError, match="another pull is writing"):
        get(uri, dest)
    get(uri, dest, Selection(limit=3))
    with pytest.raises(UserError, match="another selection"):
        get(uri, dest)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        get(uri, tmp_path / "full")


def test_a_damaged_state_costs_only_time(s3: Any, bucket: Path, tmp_path: Path) -> None:
    uri, dest = f"s3://{s3.bucket(bucket)}", tmp_path / "dest"
    get(uri, dest)
    before = files(dest)
    (dest / HIDDEN / "ledger.db").write_bytes(b"x" * 5000)
    assert get(uri, dest).fetched == 90
    assert files(dest) == before


def test_a_place_that_cannot_be_written(s3: Any, bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write to .*: {os.strerror(errno.ENOTDIR)}"):
        get(f"s3://{s3.bucket(bucket)}", tmp_path / "file" / "dest")


def test_a_full_disk(s3: Any, bucket: Path, tmp_path: Path) -> None:
    """A file system of a megabyte, which the state and the images fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        for path in (bucket / "bin-images").iterdir():
            path.write_bytes(path.read_bytes().ljust(20_000, b"\0"))
        uri = f"s3://{s3.bucket(bucket)}"
        with pytest.raises(UserError, match=r"cannot write to .*(No space left|disk is full)") as caught:
            get(uri, disk / "dest")
        assert "continues" in caught.value.hint
        assert not (disk / "dest" / "manifest.parquet").exists()
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert get(uri, disk / "dest").images == 45
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_was_fetched_survives_a_full_disk(s3: Any, bucket: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        uri = f"s3://{s3.bucket(bucket)}"
        assert get(uri, disk / "dest").fetched == 90
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(bytes(1000))
        with pytest.raises(UserError, match=r"cannot write to .*"):
            get(uri, disk / "dest")
        (disk / "filler").unlink()
        assert get(uri, disk / "dest").fetched == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_locked_state_is_kept(tmp_path: Path) -> None:
    """SQLite raises the same class for a lock as for a damaged file."""
    with open_pull_state(tmp_path, wait=False) as ledger:
        ledger.fact("selection", "remembered")
    base = sqlite3.connect(tmp_path / HIDDEN / "ledger.db", isolation_level=None)
    base.execute("begin exclusive")
    with pytest.raises(UserError, match="database is locked"), open_pull_state(tmp_path, wait=False):
        pass
    base.execute("rollback")
    base.close()
    with open_pull_state(tmp_path, wait=False) as ledger:
        assert ledger.fact("selection") == "remembered"


def test_a_state_that_is_damaged_during_a_pull(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"damaged .* is removed"),
        open_pull_state(tmp_path, wait=False) as ledger,
    ):
        ledger.fill("asked", ((f"{index:09d}" * 20,) for index in range(5000)), 1)
        ledger.close()
        file = tmp_path / HIDDEN / "ledger.db"
        content = bytearray(file.read_bytes())
        content[8192:] = b"x" * (len(content) - 8192)
        file.write_bytes(content)
        again = sqlite3.connect(file)
        again.execute("select count(*) from asked where id > '0'").fetchone()
    with open_pull_state(tmp_path, wait=False) as ledger:
        assert ledger.scalar("select count(*) from listed") == 0


@pytest.mark.parametrize("uri", ["s3://", "s3:/bins", "http://bins", "s3://a", "s3://b?d/x", "bins"])
def test_invalid_addresses(uri: str) -> None:
    with pytest.raises(UserError, match="not the address of a bucket"):
        parse_address(uri)


def test_a_folder_above_the_classes(s3: Any, bins: ModuleType, tmp_path: Path) -> None:
    name = s3.bucket(bins.write_folders(tmp_path / "classes", bins.COUNTS), "photos/")
    with pytest.raises(
        UserError, match="if the folders in photos/ are the classes, add photos/ to the source"
    ):
        get(f"s3://{name}", tmp_path / "dest")
    assert get(f"s3://{name}/photos", tmp_path / "dest2").images == 45


def test_buckets_that_cannot_be_read(s3: Any, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = s3.bucket(bucket)
    with pytest.raises(UserError, match="there is no bucket 'no-such-bucket'"):
        open_bucket(parse_address("s3://no-such-bucket"))
    with pytest.raises(UserError, match="nothing/here holds nothing"):
        open_bucket(parse_address(f"s3://{name}/nothing/here"))
    with pytest.raises(UserError, match=f"the folder of the photo instead: s3://{name}/bin-images"):
        open_bucket(parse_address(f"s3://{name}/bin-images/00001.jpg"))
    with pytest.raises(UserError, match="--endpoint localhost:9: not an address"):
        open_bucket(parse_address(f"s3://{name}"), "localhost:9")
    s3.faults(deny=1)
    with pytest.raises(UserError, match="denied") as caught:
        open_bucket(parse_address(f"s3://{name}"))
    assert "AWS_PROFILE" in caught.value.hint


def test_without_credentials_a_public_bucket_is_read(
    s3: Any, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = s3.bucket()
    for path in (bucket / "1", *bucket.rglob("*")):
        if path.is_file():
            key = path.relative_to(bucket).as_posix()
            s3.client.put_object(Bucket=name, Key=key, Body=path.read_bytes(), ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert get(f"s3://{name}", tmp_path / "dest").images == 45


def test_an_endpoint_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(UserError, match="cannot be reached"):
        open_bucket(parse_address("s3://bins"), f"http://127.0.0.1:{port}", timeout=1)


def test_cut_connections_cost_only_time(s3: Any, bucket: Path, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket(bucket)}"
    reader = open_bucket(parse_address(uri))
    s3.faults(cut=0.1)
    pulled = pull(reader, tmp_path / "dest", Selection(), quiet, 8)
    assert pulled.images == 45 and pulled.problems == 31
    assert {name: data for name, data in files(tmp_path / "dest").items() if "/" in name} == files(bucket)


def test_the_limiter_narrows_and_widens() -> None:
    limiter = ConcurrencyLimiter(10)
    for _ in range(3):
        limiter.record(slow_down=True)
    assert 3 < limiter.limit < 4
    for _ in range(1000):
        limiter.record(slow_down=False)
    assert limiter.limit == 10


def killed(command: list[str], after: float) -> bool:
    """Run a command and kill it after some seconds; returns whether it was still running."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return True
    return False


def command(uri: str, dest: Path) -> list[str]:
    return [sys.executable, "-m", "binsweep", "data", "pull", uri, str(dest)]


def test_killed_and_resumed(s3: Any, bucket: Path, tmp_path: Path) -> None:
    uri, dest = f"s3://{s3.bucket(bucket)}", tmp_path / "dest"
    get(uri, tmp_path / "undisturbed")
    s3.faults(latency=0.3)
    with subprocess.Popen(command(uri, dest), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(dest.glob("metadata/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    s3.faults()
    assert not (dest / "manifest.parquet").exists()
    subprocess.run(command(uri, dest), check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert files(dest) == files(tmp_path / "undisturbed")


@pytest.fixture
def many_bins(tmp_path: Path) -> Path:
    """300 real bins if available, otherwise synthetic ones."""
    root = tmp_path / "many"
    real = Path(os.environ.get("BINSWEEP_REAL_BINS", ""), "bin-images")
    if not real.is_dir():
        write_synthetic(root, 300, 0, 64)
        (root / "synthetic.json").unlink()
        return root
    for path in sorted(real.iterdir())[:300]:
        for file in (path, real.parent / "metadata" / f"{path.stem}.json"):
            target = root / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return root


@pytest.mark.night
@pytest.mark.timeout(600)
def test_killed_twenty_times(s3: Any, many_bins: Path, tmp_path: Path) -> None:
    uri, dest = f"s3://{s3.bucket(many_bins)}", tmp_path / "dest"
    get(uri, tmp_path / "undisturbed")
    moments = random.Random(0)
    s3.faults(latency=0.05)
    whole = time.monotonic()
    subprocess.run(command(uri, tmp_path / "timed"), check=True, timeout=120, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - whole
    kills = 0
    for _ in range(100):
        if killed(command(uri, dest), moments.uniform(0.1, 1) * whole):
            kills += 1
        else:  # a resumed pull is shorter, and may outrun its killer: it counts as one to compare
            assert files(dest) == files(tmp_path / "undisturbed")
            shutil.rmtree(dest)
        if kills == 20:
            break
    assert kills == 20
    subprocess.run(command(uri, dest), check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert files(dest) == files(tmp_path / "undisturbed")


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_bad_line(s3: Any, many_bins: Path, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket(many_bins)}"
    get(uri, tmp_path / "good")
    reader = open_bucket(parse_address(uri), timeout=2)
    s3.faults(latency=0.02, cut=0.1, stall=0.02)
    pull(reader, tmp_path / "bad", Selection(), quiet, 16)
    assert files(tmp_path / "bad") == files(tmp_path / "good")


@pytest.mark.integration
def test_an_endpoint_that_never_answers(s3: Any, bucket: Path) -> None:
    name = s3.bucket(bucket)
    s3.faults(stall=1)
    with pytest.raises(UserError, match="cannot be reached"):
        open_bucket(parse_address(f"s3://{name}"), timeout=0.5)
