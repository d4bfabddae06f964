"""Where photos are found: files, folders, globs, stdin and buckets."""

import base64
import io
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from binsweep.data.decode import ImageError, decode
from binsweep.data.errors import UserError
from binsweep.search.terminal import progress
from binsweep.search.workflows import photo_list
from binsweep.search.workflows.photo_list import Photo
from binsweep.search.workflows.predict import READ_AHEAD, answer_photos
from binsweep.tracking.serving.model_server import BATCH_PHOTOS

KINDS: dict[str, Any] = {
    "jpg": {"format": "JPEG"},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP"},
    "tif": {"format": "TIFF"},
    "big.tif": {"format": "TIFF", "big_tiff": True},
    "avif": {"format": "AVIF"},
    "gif": {"format": "GIF"},
    "bmp": {"format": "BMP"},
    "ico": {"format": "ICO"},
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "deep/b.png", "deep/er/c.webp"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


def find_photos(places: list[str], stdin: io.BytesIO | None) -> list[Photo]:
    return list(photo_list.find_photos(places, stdin))


def names(places: list[str], stdin: bytes = b"") -> list[str]:
    return [Path(photo.name).name for photo in find_photos(places, io.BytesIO(stdin))]


def test_files_folders_and_globs(photos: Path) -> None:
    assert names([str(photos / "a.jpg")]) == ["a.jpg"]
    assert names([str(photos)]) == ["a.jpg", "b.png", "c.webp"]
    assert names([f"{photos}/**/*.png", f"{photos}/*.jpg"]) == ["b.png", "a.jpg"]


def test_stdin_is_a_photo_or_names(photos: Path) -> None:
    content = (photos / "a.jpg").read_bytes()
    (one,) = find_photos(["-"], io.BytesIO(content))
    assert one.read() == content
    listed = f"{photos}/a.jpg\n\n{photos}/deep\n{photos}/gone.jpg\n".encode()
    found = find_photos(["-"], io.BytesIO(listed))
    assert [Path(photo.name).name for photo in found] == ["a.jpg", "b.png", "c.webp", "gone.jpg"]
    with pytest.raises(ImageError, match="no such file"):
        found[-1].read()


def test_hidden_files_are_left_out_as_sweeps_leave_them_out(photos: Path, tmp_path: Path) -> None:
    for name in ("._a.jpg", "deep/._b.png", ".trash/d.jpg", "__MACOSX/deep/._b.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"\0\5\26\7")
    whole = ["a.jpg", "b.png", "c.webp"]
    assert names([str(photos)]) == whole
    assert sorted(names([f"{photos}/**/*.*g", f"{photos}/deep/er/*"])) == whole
    assert names([f"{photos}/.trash"]) == names([f"{photos}/.tr*/*.jpg"]) == ["d.jpg"]
    assert names([str(photos / "._a.jpg")]) == ["._a.jpg"]  # whoever names it means it
    found = "\n".join(
        str(file) for file in sorted(photos.rglob("*")) if file.is_file() and "a.jpg" in file.name
    )
    assert names(["-"], found.encode()) == ["a.jpg"]


def test_lists_of_names_as_programs_write_them(photos: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.jpg")
    (photos / odd).write_bytes((photos / "a.jpg").read_bytes())
    a, b = str(photos / "a.jpg"), str(photos / "deep" / "b.png")
    for text in (f"{a}\r\n{b}\r\n", f"{a}\0{b}\0", f"\ufeff{a}\n{b}"):
        assert names(["-"], text.encode()) == ["a.jpg", "b.png"]
    assert names(["-"], f"{a}\r\n{b}\r\n".encode("utf-16")) == ["a.jpg", "b.png"]
    (one,) = find_photos(["-"], io.BytesIO(os.fsencode(photos / odd)))
    assert one.read() and one.name.endswith(r"caf\xe9.jpg")
    with pytest.raises(UserError, match="stdin is closed"):
        find_photos(["-"], None)
    assert len(find_photos([a], None)) == 1


def test_a_place_without_a_photo(photos: Path) -> None:
    empty = photos / "empty"
    empty.mkdir()
    for place in ("", str(empty), f"{photos}/*.gif", str(photos / "none.jpg")):
        with pytest.raises(UserError, match="no such file"):
            find_photos([place], io.BytesIO())
    with pytest.raises(UserError, match="neither a photo nor a name on stdin"):
        find_photos(["-"], io.BytesIO())
    for place in (
        f"{photos}/**a.jpg",
        "a" * 5000,
        f"{photos}/{'*' * 300}",
    ):  # what no pattern and no name can be
        with pytest.raises(UserError, match="no such file"):
            find_photos([place], io.BytesIO())


@pytest.mark.parametrize(
    "kind", ["jpg", "png", "webp", "tif", "big.tif", "avif", "heic", "gif", "bmp", "ico"]
)
def test_a_file_on_stdin_is_never_taken_for_names(kind: str, tmp_path: Path) -> None:
    if kind == "heic":
        content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    else:
        Image.new("RGB", (40, 30), "red").save(tmp_path / kind, **KINDS[kind])
        content = (tmp_path / kind).read_bytes()
    (one,) = find_photos(["-"], io.BytesIO(content))
    assert (one.name, one.read()) == ("-", content)
    if kind not in ("heic", "gif", "bmp", "ico"):
        assert decode(one.read()).shape == (30, 40, 3)


def test_a_table_names_photos_in_its_order(photos: Path, s3: Any, tmp_path: Path) -> None:
    bucket = s3.bucket(photos)
    paths = ["deep/b.png", "a.jpg", "none.jpg", str(photos / "a.jpg"), f"s3://{bucket}/deep/er/c.webp"]
    pd.DataFrame({"path": paths, "label": None}).to_csv(photos / "t.csv", index=False)
    pd.DataFrame({"note": 1, "path": paths}).to_parquet(photos / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        found = find_photos([str(photos / name)], None)
        assert [photo.name for photo in found] == [str(photos / path) for path in paths[:4]] + paths[4:]
        with pytest.raises(ImageError, match="no such file"):
            found[2].read()
        assert [found[row].read() for row in (1, 4)] == [
            (photos / path).read_bytes() for path in ("a.jpg", "deep/er/c.webp")
        ]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "t.csv").write_text("path\nb.png\ner/c.webp\n")
    (photos / "deep" / "t.csv").write_bytes((tmp_path / "x" / "t.csv").read_bytes())
    bucket = s3.bucket(photos)
    found = find_photos([f"s3://{bucket}/deep/t.csv"], None)
    assert [photo.name for photo in found] == [
        f"s3://{bucket}/deep/{name}" for name in ("b.png", "er/c.webp")
    ]
    assert found[1].read() == (photos / "deep" / "er" / "c.webp").read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file\na.jpg\n", "has no column 'path'; it has 'file'"),
        ("path,x\na.jpg,1\n,2\n", "has 1 mistake: row 3 has no path"),
        ("path\n", "has no rows"),
        ("path\ns3://bucket\n", "row 2 has the path 's3://bucket', which names no object"),
    ],
)
def test_a_table_with_a_mistake(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=re.escape(said)) as mistake:
        find_photos([str(tmp_path / "t.csv")], None)
    assert "data.source" not in str(mistake.value)


def test_a_list_of_photos_is_the_same_each_time(photos: Path) -> None:
    def listed() -> photo_list.PhotoList:
        return photo_list.PhotoList(photo_list.find_photos([str(photos), str(photos / "a.jpg")], None))

    first = listed()
    assert len(first) == 4 and first.digest == listed().digest
    assert [Path(photo.name).name for photo in first.after(1)] == ["b.png", "c.webp", "a.jpg"]
    assert next(first.after(3)).read() == (photos / "a.jpg").read_bytes()
    (photos / "deep" / "0.jpg").write_bytes(b"new")
    assert listed().digest != first.digest


def test_answers_keep_the_order_and_few_photos_are_in_memory(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:03d}.jpg").write_bytes(bytes(number))
    taken, most, lock = 0, 0, threading.Lock()

    def photos() -> Iterator[Photo]:
        def read(address: str) -> bytes:
            nonlocal taken
            with lock:
                taken += 1
            return Path(address).read_bytes()

        for photo in photo_list.find_photos([str(tmp_path)], None):
            yield replace(photo, reader=read)

    def answer(images: Sequence[bytes]) -> list[dict[str, Any]]:
        time.sleep(0.05 if len(images[0]) % 3 else 0.001)  # the later batch is ready first
        return [{"count": len(image), "error": ""} for image in images]

    counts = []
    for _, row in answer_photos(photo_list.PhotoList(photos()), [answer, answer], done=40):
        most = max(most, taken - len(counts))
        counts.append(row["count"])
    assert counts == list(range(40, 300))
    assert most <= READ_AHEAD + 2 * 2 * BATCH_PHOTOS + 1


def test_a_long_step_says_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    with progress.ProgressBar("predicting") as bar:
        bar(40, 100)
        assert capsys.readouterr().err == ""  # no rate is known yet
        for done in (50, 60):
            time.sleep(0.03)
            bar(done, 100)
        bar(100, 100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" images")[0] for line in lines] == [
        *("predicting: 50 of 100", "predicting: 60 of 100"),
        "predicting: 100",
    ]
    assert all(re.search(r" images, [0-9.,]+/s, .+ left$", line) for line in lines[:2])


def test_large_photos_are_asked_in_small_batches(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(bytes(15_000_000))
    batches: list[int] = []

    def answer(images: Sequence[bytes]) -> list[dict[str, Any]]:
        batches.append(len(images))
        return [{"count": 1, "error": ""} for _ in images]

    found = photo_list.PhotoList(photo_list.find_photos([str(tmp_path)], None))
    assert len(list(answer_photos(found, [answer]))) == 8
    assert batches == [3, 3, 2]


def test_text_on_stdin_that_is_no_list_is_one_thing(photos: Path) -> None:
    (one,) = find_photos(["-"], io.BytesIO(base64.b64encode(bytes(9000))))
    with pytest.raises(ImageError, match="not a JPEG"):
        decode(one.read())


def test_folders_are_read_as_sweeps_read_them(photos: Path, tmp_path: Path) -> None:
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.jpg").write_bytes((photos / "a.jpg").read_bytes())
    (photos / "round").symlink_to(photos)
    assert names([str(photos)]) == ["a.jpg", "b.png", "c.webp", "d.jpg"]


def test_a_place_that_one_may_not_read_is_named() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to everybody else
        shut = Path(folder) / "photos" / "shut"
        shut.mkdir(parents=True)
        (shut / "c.jpg").write_bytes(b"")
        Path(folder).chmod(0o755)
        shut.chmod(0)
        try:
            os.seteuid(65534 if user == 0 else user)  # nothing is shut to root
            for place in (shut.parent, shut):
                with pytest.raises(UserError, match=f"{shut}: Permission denied"):
                    find_photos([str(place)], None)
            (one,) = find_photos([str(shut / "c.jpg")], None)
            with pytest.raises(ImageError, match="Permission denied"):
                one.read()
        finally:
            os.seteuid(user)
            shut.chmod(0o755)


def test_a_bucket(s3: Any, photos: Path) -> None:
    (photos / "deep" / "._b.png").write_bytes(b"\0\5\26\7")
    bucket = s3.bucket(photos)
    content = (photos / "deep" / "b.png").read_bytes()
    found = find_photos([f"s3://{bucket}/deep", f"s3://{bucket}/deep/b.png"], io.BytesIO())
    whole = [f"s3://{bucket}/deep/{name}" for name in ("b.png", "er/c.webp", "b.png")]
    assert [photo.name for photo in found] == whole
    assert found[0].read() == content and found[2].read() == content
