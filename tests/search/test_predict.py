"""Where photos are found: files, folders, globs, stdin and buckets."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.decode import ImageError
from data.errors import UserError
from search.predict import find_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "deep/b.png", "deep/er/c.webp"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


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


def test_names_that_are_not_utf8(photos: Path) -> None:
    latin = photos / os.fsdecode(b"caf\xe9.jpg")
    latin.write_bytes((photos / "a.jpg").read_bytes())
    for place, stdin in ((str(latin), b""), ("-", os.fsencode(latin))):
        (photo,) = find_photos([place], io.BytesIO(stdin))
        assert photo.name == f"{photos}/caf\\xe9.jpg" and photo.read()


def test_a_place_without_a_photo(photos: Path) -> None:
    empty = photos / "empty"
    empty.mkdir()
    for place in (str(empty), f"{photos}/*.gif", str(photos / "none.jpg")):
        with pytest.raises(UserError, match="no such file"):
            find_photos([place], io.BytesIO())
    with pytest.raises(UserError, match="no such file"):
        find_photos(["-"], io.BytesIO())


def test_a_bucket(s3: Any, photos: Path) -> None:
    bucket = s3.bucket(photos)
    content = (photos / "deep" / "b.png").read_bytes()
    found = find_photos([f"s3://{bucket}/deep", f"s3://{bucket}/deep/b.png"], io.BytesIO())
    whole = [f"s3://{bucket}/deep/{name}" for name in ("b.png", "er/c.webp", "b.png")]
    assert [photo.name for photo in found] == whole
    assert found[0].read() == content and found[2].read() == content
