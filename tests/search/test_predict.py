"""Where photos are found: files, folders, globs, stdin and buckets."""

import base64
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from binsweep.data.decode import ImageError, decode
from binsweep.data.errors import UserError
from binsweep.search.workflows import photo_list
from binsweep.search.workflows.photo_list import Photo

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
