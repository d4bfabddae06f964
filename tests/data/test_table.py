"""A table of photos as a source: its columns, its mistakes, splits that it gives, and any bytes."""

import random
import re
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from binsweep.data.errors import UserError
from binsweep.data.labels import LabelKind
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.split import Split

LABELS = ("ok", "scratched")


def load(table: Path, home: Path, labels: LabelKind | None = None, split: Split | None = None) -> Manifest:
    return load_manifest(str(table), None, split or Split(), home, labels=labels)


def rows_of(folder: Path, bins: ModuleType, photos: int = 60) -> list[dict[str, object]]:
    """Photos in a folder of their own, and a row for each."""
    for number in range(photos):
        bins.paint(folder / "images" / f"{number:03}.png", number)
    return [{"path": f"images/{n:03}.png", "label": LABELS[n % 2]} for n in range(photos)]


def write(table: Path, rows: list[dict[str, object]], separator: str = ",") -> Path:
    if table.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    else:
        lines = [separator.join(map(str, row.values())) for row in rows]
        table.write_text("\n".join([separator.join(rows[0]), *lines]) + "\n", encoding="utf-8-sig")
    return table


@pytest.mark.parametrize("name", ["photos.csv", "photos.parquet", "Photos.CSV"])
def test_a_table_is_its_photos(bins: ModuleType, tmp_path: Path, home: Path, name: str) -> None:
    rows = rows_of(tmp_path, bins)
    for row in rows:
        row["weather"] = "dry"
    manifest = load(write(tmp_path / name, rows), home)
    assert manifest.classes == LABELS and len(manifest.items) == 60 and not manifest.skipped
    assert {item.id: item.label for item in manifest.items} == {
        str(row["path"]).removesuffix(".png"): row["label"] for row in rows
    }
    # The same photos in folders of their classes are other ids, but the same contents and labels.
    assert {item.sha256 for item in manifest.items if item.label == "ok"}


def test_places_of_photos(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    """Relative to the table, also above it, and absolute; one inside is the same photo however it is written."""
    rows = rows_of(tmp_path / "in", bins)
    for number in range(10):
        bins.paint(tmp_path / "out" / f"{number}.png", 1000 + number)
    rows += [{"path": f"../out/{n}.png", "label": "ok"} for n in range(5)]
    rows += [{"path": tmp_path / "out" / f"{n}.png", "label": "scratched"} for n in range(5, 10)]
    rows += [
        {"path": tmp_path / "in" / "images" / "000.png", "label": "ok"},
        {"path": "./images/001.png", "label": "scratched"},
    ]
    manifest = load(write(tmp_path / "in" / "photos.csv", rows, ";"), home)
    assert len(manifest.items) == 70
    assert [one.reason for one in manifest.skipped] == ["repeats row 2", "repeats row 3"]


def test_counts_stay_counts(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    rows = rows_of(tmp_path, bins)
    for place, row in enumerate(rows):
        row["label"] = place % 3
    table = write(tmp_path / "photos.csv", rows)
    assert load(table, home).classes == (0, 1, 2)
    assert load(table, home, "names").classes == ("0", "1", "2")
    for row in rows:
        row["label"] = float(row["label"])  # type: ignore[arg-type]
    assert load(write(tmp_path / "photos.parquet", rows), home).classes == (0, 1, 2)
    assert load(write(tmp_path / "photos.csv", rows), home).classes == (0, 1, 2)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_all_mistakes_are_told_at_once(bins: ModuleType, tmp_path: Path, home: Path, suffix: str) -> None:
    rows = [{**row, "split": "train"} for row in rows_of(tmp_path, bins)]
    rows[3]["path"] = ""
    rows[4]["label"] = float("nan")
    rows[5]["label"] = ""
    rows[6]["split"] = "tset"
    rows[7]["split"] = ""
    rows.append({"path": "images/000.png", "label": "scratched", "split": "train"})
    rows.append({"path": "images/001.png", "label": "scratched", "split": "test"})
    if suffix == ".parquet":
        rows[4]["label"] = None
    with pytest.raises(UserError) as caught:
        load(write(tmp_path / f"photos{suffix}", rows), home)
    first = 2 if suffix == ".csv" else 1
    said = caught.value.message
    assert "has 7 mistakes" in said
    for text in (
        f"row {first + 3} has no path",
        f"row {first + 4} has no label",
        f"row {first + 5} has no label",
        f"row {first + 6} has the unknown split 'tset': train, validation, test are known",
        f"row {first + 7} has no split",
        f"row {first + 60} gives 'images/000.png' the label scratched, and ok in row {first}",
        f"row {first + 61} gives 'images/001.png' the split test, and train in row {first + 1}",
    ):
        assert text in said, said


def test_a_photo_that_is_missing_or_broken_is_left_out_with_its_reason(
    bins: ModuleType, tmp_path: Path, home: Path
) -> None:
    rows = rows_of(tmp_path, bins)
    (tmp_path / "images" / "004.png").unlink()
    (tmp_path / "images" / "005.png").write_bytes(b"no picture")
    (tmp_path / "images" / "006.png").unlink()
    (tmp_path / "images" / "006.png").mkdir()
    manifest = load(write(tmp_path / "photos.csv", rows), home)
    reasons = {one.id: one.reason for one in manifest.skipped}
    assert reasons.keys() == {"images/004", "images/005", "images/006"}
    assert "no such file" in reasons["images/004"] and "not a regular file" in reasons["images/006"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\na.png,ok\n", r"has no column 'path'; it has 'file', 'label'"),
        ("image,class\na.png,ok\n", "has no column 'path' and no column 'label'"),
        ("path,label,label\na.png,ok,ok\n", "has 2 columns 'label'"),
        ("path,label\n", "has no rows"),
        ("", "has no column 'path'"),
        ("path,label\na,b.png,ok\n", "row 2 has 3 cells, and the header has 2"),
        ("path,label\n.,ok\n", "row 2 has the path '.', which names no file"),
        ('path,label\n"a.png,ok\n', "row 2 has 1 cells|row 3 has 1 cells"),
    ],
)
def test_one_message_for_each_wrong_table(tmp_path: Path, home: Path, text: str, says: str) -> None:
    (tmp_path / "photos.csv").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load(tmp_path / "photos.csv", home)
    assert caught.value.hint and "\n" not in caught.value.message
    assert not (home / "banks").exists()


def test_no_such_table(tmp_path: Path, home: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist: .*photos.csv"):
        load(tmp_path / "photos.csv", home)


def test_a_label_that_is_no_count(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    table = write(tmp_path / "photos.csv", rows_of(tmp_path, bins))
    with pytest.raises(UserError, match="row 2 has the label 'ok', which is not a count"):
        load(table, home, "counts")


def test_given_splits_are_kept_and_leaks_are_told(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    rows = rows_of(tmp_path, bins)
    for place, row in enumerate(rows):
        row["split"] = ("train", "val", "testing")[place // 2 % 3]
    manifest = load(write(tmp_path / "photos.csv", rows), home)
    given = {str(row["path"]).removesuffix(".png"): str(row["split"])[:4] for row in rows}
    assert {item.id: item.split[:4].replace("vali", "val") for item in manifest.items} == given
    assert not manifest.warnings()
    # The same picture in another file: its splits stay as they are, and somebody is told.
    bins.paint(tmp_path / "images" / "copy.png", 0)
    rows.append({"path": "images/copy.png", "label": "ok", "split": "test"})
    for split in (Split(), Split(by="group")):
        manifest = load(write(tmp_path / "photos.csv", rows), home, split=split)
        (leak,) = manifest.warnings()
        assert "images/copy (test)" in leak and "images/000 (train)" in leak
    assert next(item for item in manifest.items if item.id == "images/copy").split == "test"


def test_a_split_without_photos(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    rows = [{**row, "split": "train"} for row in rows_of(tmp_path, bins)]
    with pytest.raises(
        UserError, match=r"no readable image of .* has the split validation \(60 in train, 0 in"
    ):
        load(write(tmp_path / "photos.csv", rows), home)


def test_without_splits_copies_stay_together(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    rows = rows_of(tmp_path, bins)
    for number in range(60):
        bins.paint(tmp_path / "again" / f"{number}.png", number)
        rows.append({"path": f"again/{number}.png", "label": rows[number]["label"]})
    manifest = load(write(tmp_path / "photos.csv", rows), home, split=Split(by="group"))
    splits: dict[str, set[str]] = {}
    for item in manifest.items:
        splits.setdefault(item.sha256, set()).add(item.split)
    assert len(splits) == 60 and all(len(some) == 1 for some in splits.values())


def test_any_bytes_give_a_table_or_one_message(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    rows = rows_of(tmp_path, bins, 12)
    good = {name: write(tmp_path / name, rows).read_bytes() for name in ("a.csv", "a.parquet")}
    rng = random.Random(0)
    for turn in range(300):
        name = rng.choice(list(good))
        content = bytearray(good[name])
        for _ in range(rng.randint(1, 12)):
            place = rng.randrange(len(content))
            change = rng.randrange(4)
            if change == 0:
                content[place] = rng.randrange(256)
            elif change == 1:
                del content[place : place + rng.randint(1, 30)]
            elif change == 2:
                content[place:place] = rng.randbytes(rng.randint(1, 8))
            else:
                content[place:place] = rng.choice([b",", b"\n", b'"', b"\0", b"nan", b"\xff", b"../", b"\r"])
            content = content or bytearray(b"x")
        table = tmp_path / f"fuzz{turn % 7}.{'csv' if rng.random() < 0.5 else 'parquet'}"
        table.write_bytes(bytes(content))
        try:
            load(table, home)
        except UserError as error:
            assert error.message and error.hint and not re.search(r"Traceback|\n", error.message), (
                error.message
            )
