"""Synthetic bins match their labels, are the same on every machine, and are written once."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from binsweep.data.errors import UserError
from binsweep.data.manifest import load_manifest
from binsweep.data.split import Split
from binsweep.data.synthetic.dataset import parse_source, render, render_source, write_synthetic
from binsweep.data.synthetic.products import make_product
from binsweep.data.synthetic.scene import _arrange
from binsweep.data.synthetic.shelf import make_shelf


def tree(root: Path) -> dict[str, str]:
    """The digest of every file under a folder."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def start_writing(dest: Path, images: int, size: int) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from binsweep.data.synthetic.dataset import write_synthetic; "
    )
    code += "write_synthetic(Path(sys.argv[1]), int(sys.argv[2]), size=int(sys.argv[3]))"
    return subprocess.Popen([sys.executable, "-c", code, str(dest), str(images), str(size)])


def test_the_label_is_the_number_of_products() -> None:
    for index in range(12):
        image, label, goods = render(0, index, size=64)
        assert label == index % 6 == len(goods)
        assert (image.mode, image.size) == ("RGB", (64, 64))


def test_classes_are_taken_in_turn() -> None:
    assert [render(0, index, 32, (3, 1))[1] for index in range(4)] == [3, 1, 3, 1]


@pytest.mark.parametrize("count", [12, 30])
def test_many_products_fit(count: int) -> None:
    assert len(render(0, 0, 96, (count,))[2]) == count


@pytest.mark.parametrize(
    ("count", "side", "share"), [(5, 224, 0.25), (12, 224, 0.2), (30, 224, 0.15), (30, 64, 0.1)]
)
def test_every_product_is_visible(count: int, side: int, share: float) -> None:
    """A part of every outline is neither behind another product nor behind the frame."""
    for seed in range(8):
        rng = Random(seed)
        shelf = make_shelf(rng, side)
        placed = _arrange(rng, shelf, [make_product(rng) for _ in range(count)])
        owner = Image.new("L", (side, side), 0)
        for number, one in enumerate(placed, start=1):
            owner.paste(number, (one.x, one.y), one.patch.getchannel("A").point(lambda v: 255 * (v > 127)))
        seen = np.bincount(np.asarray(owner)[shelf.top : shelf.floor].ravel(), minlength=count + 1)[1:]
        whole = [(np.asarray(one.patch.getchannel("A")) > 127).sum() for one in placed]
        assert len(placed) == count
        assert min(seen / whole) > share


def test_the_same_bin_everywhere() -> None:
    """Pinned, because a sweep's fingerprint and its results depend on it: raise scene.VERSION to change it."""
    image, _, goods = render(7, 5)
    assert [good.kind for good in goods] == ["bottle", "bottle", "can", "box", "book"]
    assert goods[0].code == "B0S2PGFKEJ"
    thumbnail = np.asarray(image.convert("L").reduce(56), int)
    np.testing.assert_allclose(
        thumbnail, [[58, 57, 61, 59], [43, 40, 40, 41], [44, 50, 59, 66], [63, 76, 77, 80]], atol=3
    )


def test_seed_and_index_make_another_picture() -> None:
    pictures = {render(seed, index, 48)[0].tobytes() for seed in (0, 1) for index in (3, 9)}
    assert len(pictures) == 4


def test_products_change_the_image_where_they_are() -> None:
    """Bins with more products differ more from the empty fabric."""

    def edges(index: int) -> float:
        gray = np.asarray(render(0, index, 96)[0].convert("L").reduce(4), float)
        return float(np.abs(np.diff(gray, axis=1)).mean() / gray.mean())

    empty = np.mean([edges(index) for index in range(0, 60, 6)])
    full = np.mean([edges(index) for index in range(5, 60, 6)])
    assert full > 1.5 * empty


def test_written_bins_are_the_rendered_ones(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "bins", 20, seed=4, size=48, classes=(0, 2, 5))
    files = tree(tmp_path / "bins")
    assert len(files) == 41
    repeated = 0
    for index in range(20):
        image, label, goods = render(4, index, 48, (0, 2, 5))
        image.save(tmp_path / "again.jpg", quality=92)
        assert (
            files[f"bin-images/{index:05d}.jpg"]
            == hashlib.sha256((tmp_path / "again.jpg").read_bytes()).hexdigest()
        )
        document = json.loads((tmp_path / "bins" / "metadata" / f"{index:05d}.json").read_text())
        assert document["EXPECTED_QUANTITY"] == label
        quantities = {code: item["quantity"] for code, item in document["BIN_FCSKU_DATA"].items()}
        assert quantities == Counter(good.code for good in goods)
        assert sum(quantities.values()) == label
        repeated += len(quantities) < label
    assert repeated


def test_a_finished_source_is_left_alone(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "bins", 8, size=32)
    image = tmp_path / "bins" / "bin-images" / "00003.jpg"
    image.unlink()
    steps: list[int] = []
    write_synthetic(tmp_path / "bins", 8, size=32, progress=lambda done, total: steps.append(done))
    assert not steps
    assert not image.exists()


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_synthetic(tmp_path / "bins", 24, size=32, progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (24, 24)
    assert steps == sorted(steps)


def test_a_killed_rendering_is_resumed(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_synthetic(whole, 60, size=64)
    process = start_writing(tmp_path / "cut", 60, 64)
    images = tmp_path / ".cut.partial" / "bin-images"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (not images.exists() or len(list(images.glob("*.jpg"))) < 10):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    assert not (tmp_path / "cut").exists()
    (images / "00059.1.tmp").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in images.glob("*.jpg")}
    assert 10 <= len(kept) < 60
    write_synthetic(tmp_path / "cut", 60, size=64)
    assert tree(tmp_path / "cut") == tree(whole)
    for path, written in kept.items():
        assert (tmp_path / "cut" / "bin-images" / path.name).stat().st_mtime_ns == written


def test_leftovers_of_another_rendering_are_not_mixed_in(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "other", 16, seed=1, size=32)
    (tmp_path / "other").rename(tmp_path / ".bins.partial")
    write_synthetic(tmp_path / "bins", 16, seed=2, size=32)
    write_synthetic(tmp_path / "expected", 16, seed=2, size=32)
    assert tree(tmp_path / "bins") == tree(tmp_path / "expected")


def test_two_at_once_make_one(tmp_path: Path) -> None:
    processes = [start_writing(tmp_path / "bins", 16, 32) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert len(tree(tmp_path / "bins")) == 33


def test_relative_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_synthetic(Path("sub/bins"), 8, size=32)
    assert len(tree(tmp_path / "sub" / "bins")) == 17


def test_other_content_is_not_overwritten(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "bins", 8, size=32)
    with pytest.raises(UserError, match="holds something else"):
        write_synthetic(tmp_path / "bins", 9, size=32)
    assert len(tree(tmp_path / "bins")) == 17


def test_a_worker_that_cannot_write_is_reported(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "bins", 8, size=32)
    broken = tmp_path / ".copy.partial"
    (tmp_path / "bins").rename(broken)
    for path in (broken / "bin-images").iterdir():
        path.unlink()
    (broken / "bin-images").rmdir()
    (broken / "bin-images").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write synthetic bins to .*copy: Not a directory"):
        write_synthetic(tmp_path / "copy", 8, size=32)
    assert not (tmp_path / "copy").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write synthetic bins"):
        write_synthetic(tmp_path / "file" / "bins", 8, size=32)


def test_as_a_source(home: Path) -> None:
    source = "synthetic://?images=60&seed=3&size=32&classes=0-2"
    first = load_manifest(source, None, Split(), home)
    second = load_manifest(source, [1, 2], Split(), home)
    assert (first.source, first.classes, len(first.items)) == (source, (0, 1, 2), 60)
    assert len(second.items) == 40
    assert first.skipped == ()
    assert render_source(source, home) == first.items[0].path.parent.parent
    assert len(list((home / "datasets").glob("synthetic-*"))) == 1


def test_parts_of_a_source_may_be_left_out() -> None:
    wanted = parse_source("synthetic://")
    assert (wanted.images, wanted.seed, wanted.size, wanted.classes) == (600, 0, 224, (0, 1, 2, 3, 4, 5))
    assert parse_source("synthetic://?classes=4,1&images=50").classes == (4, 1)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("synthetic://?image=5", "unknown part 'image'"),
        ("synthetic://?images=five", "images is 'five'"),
        ("synthetic://?images=0", "images must be from 1 to"),
        ("synthetic://?images=", "images is ''"),
        ("synthetic://?size=8", "size must be from 32"),
        ("synthetic://?seed=-1", "seed must be from 0"),
        ("synthetic://?classes=0-99", "counts from 0 to 30"),
        ("synthetic://?classes=3-1", "counts from 0 to 30"),
        ("synthetic://?classes=1,1", "must differ"),
        ("synthetic://?classes=a", "classes is 'a'"),
        ("synthetic://?images=5&images=6", "repeated part 'images'"),
        ("synthetic://bins?images=5", "nothing may stand between"),
    ],
)
def test_sources_with_mistakes(source: str, says: str, home: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_manifest(source, None, Split(), home)
    assert "synthetic://?images=600" in caught.value.hint
    assert not (home / "datasets").exists()


def test_rendering_imports_little(tmp_path: Path) -> None:
    """A worker starts once per core: it must not pay for torch."""
    code = "import sys, data.synthetic; print(sorted({'torch', 'pandas', 'ray'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert result.stdout.strip() == "[]"
