"""Folders named after classes: which sources are read so, what their labels are, and what is refused."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from binsweep.data.errors import UserError
from binsweep.data.labels import LabelKind
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.report.data_report import build_data_report, write_report
from binsweep.data.split import Split

NAMES = ("caf\u00e9 cr\u00e8me", "ok", "\u7834\u308c <b>&")  # in their order: by their characters


def load(root: Path, home: Path, labels: LabelKind | None = None, **options: object) -> Manifest:
    return load_manifest(str(root), None, Split(), home, labels=labels, **options)  # type: ignore[arg-type]


@pytest.fixture
def named(bins: ModuleType, tmp_path: Path) -> Path:
    """Twenty photos of each class, some of them deeper."""
    for place, name in enumerate(NAMES):
        for number in range(20):
            below = "2024/shelf 3" if number % 2 else "."
            bins.paint(tmp_path / "named" / name / below / f"{number}.png", 100 * place + number)
    return tmp_path / "named"


def test_classes_are_the_folders(named: Path, home: Path) -> None:
    manifest = load(named, home)
    assert manifest.classes == NAMES and manifest.kind == "names" and not manifest.skipped
    assert {item.label for item in manifest.items if item.id.startswith("ok/")} == {"ok"}
    assert all(
        sum(manifest.class_counts(split)[name] for split in manifest.summary()["splits"]) == 20
        for name in NAMES
    )
    assert load(named, home) == manifest


def test_a_subset_of_the_names(named: Path, home: Path) -> None:
    some = load_manifest(str(named), [NAMES[2], "ok"], Split(), home)
    assert some.classes == NAMES[1:] and {item.label for item in some.items} == set(NAMES[1:])
    with pytest.raises(UserError, match="no readable image of class worn") as caught:
        load_manifest(str(named), ["ok", "worn"], Split(), home)
    assert f"the classes that occur there: {', '.join(NAMES)}" in caught.value.hint
    with pytest.raises(UserError, match=r"data.classes: 1, 2 are counts, and the classes of .* are names"):
        load_manifest(str(named), [1, 2], Split(), home)


def test_an_accent_is_the_same_letter_however_it_is_written(
    bins: ModuleType, tmp_path: Path, home: Path
) -> None:
    """macOS writes e and an accent; a photo of each of the two folders belongs to one class."""
    for number in range(30):
        bins.paint(tmp_path / "x" / ("caf\u00e9" if number % 2 else "cafe\u0301") / f"{number}.png", number)
        bins.paint(tmp_path / "x" / "ok" / f"{number}.png", 100 + number)
    assert load(tmp_path / "x", home).classes == ("caf\u00e9", "ok")


def test_whole_numbers_are_counts_unless_names_are_asked_for(
    bins: ModuleType, tmp_path: Path, home: Path
) -> None:
    root = bins.write_folders(tmp_path / "bins", bins.COUNTS)
    counts, names = load(root, home), load(root, home, "names")
    assert counts.classes == (0, 1, 2) and names.classes == ("0", "1", "2")
    assert counts.fingerprint != names.fingerprint
    assert load(root, home, "counts").fingerprint == counts.fingerprint
    # A list of numbers means the names, where labels are names.
    some = load_manifest(str(root), [1, 2], Split(), home, labels="names")
    assert some.classes == ("1", "2")


def test_a_number_among_names_makes_counts_and_says_so(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    for number in range(20):
        for name in ("911", "beetle"):
            bins.paint(tmp_path / "cars" / name / f"{number}.png", number)
    with pytest.raises(UserError, match="images of 1 class") as caught:
        load(tmp_path / "cars", home)
    assert "data.labels: names" in caught.value.hint
    assert load(tmp_path / "cars", home, "names").classes == ("911", "beetle")


def test_names_in_folders_of_splits(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    for split in ("train", "val", "test"):
        for place, name in enumerate(NAMES):
            for number in range(3):
                bins.paint(tmp_path / "s" / split / name / f"{number}.png", 100 * place + number)
    manifest = load_manifest(str(tmp_path / "s"), None, Split(by="folder"), home)
    assert manifest.classes == NAMES
    assert {len(manifest.split(name)) for name in ("train", "validation", "test")} == {9}


def test_folders_that_are_sources_are_no_classes(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    for name in ("monday", "tuesday"):
        bins.write_folders(tmp_path / "week" / name, bins.COUNTS)
    with pytest.raises(UserError, match="none of the layouts") as caught:
        load(tmp_path / "week", home)
    assert "data.labels: names" in caught.value.hint
    assert load(tmp_path / "week", home, "names").classes == ("monday", "tuesday")


def test_train_also_is_for_counts(named: Path, home: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train_also teaches other counts"):
        load_manifest(str(named), ["ok", NAMES[0]], Split(), home, train_also="others")


def test_too_many_names_are_refused_at_once(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    table = tmp_path / "photos.csv"
    table.write_text("path,label\n" + "".join(f"{n}.png,name-{n}\n" for n in range(10_000)))
    with pytest.raises(UserError, match=r"has 10,000 different labels .*at most 1,000 classes") as caught:
        load(table, home)
    assert "one for each photo" in caught.value.hint


def test_a_class_with_one_photo_is_warned_of(bins: ModuleType, named: Path, home: Path) -> None:
    bins.paint(named / "rare" / "one.png", 999)
    manifest = load(named, home)
    (gap,) = manifest.warnings()
    assert gap.startswith("class rare has no photo in") and "data.split" in gap


def test_the_page_escapes_names_and_speaks_of_no_items(named: Path, home: Path, tmp_path: Path) -> None:
    report = build_data_report(load(named, home), home)
    page, _ = write_report(report, tmp_path / "report.html")
    text = page.read_text()
    assert "&lt;b&gt;&amp;" in text and "<b>&" not in text
    words = re.sub(r"<style>.*?</style>|base64,[^\"]*", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(items?|counts?|bins?)\b", words)
    assert list(report.facts["classes"]) == list(NAMES)
