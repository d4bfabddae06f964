"""The data report finds problems of a data set, and its page is self-contained."""

import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageFilter

from binsweep.data.errors import UserError
from binsweep.data.manifest import load_manifest
from binsweep.data.report.data_report import build_data_report, write_report
from binsweep.data.report.image_stats import measure_image
from binsweep.data.split import Split
from binsweep.data.synthetic.scene import render
from binsweep.search.cli.main import cli


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """60 rendered bins of 1 or 2 items without near duplicates."""
    root = tmp_path / "bins"
    for index in range(60):
        image, label, _ = render(0, index, 128, [1, 2])
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(root / str(label) / f"{index:03d}.jpg")
    return root


def facts_of(source: Path, home: Path) -> dict[str, Any]:
    return build_data_report(load_manifest(str(source), None, Split(), home), home).facts


def test_a_clean_source_has_nothing_to_complain_of(source: Path, home: Path) -> None:
    facts = facts_of(source, home)
    assert facts["images"] == 60 and facts["sizes"] == {"128 x 128": 60}
    for name in ("exact_duplicates", "near_duplicates", "unreadable", "label_disagreements"):
        assert facts[name] == []
    assert facts["across_splits"] == 0
    totals = [sum(row.values()) for row in facts["classes"].values()]
    assert sum(totals) == 60 and facts["imbalance"] == round(max(totals) / min(totals), 2)
    for name in ("brightness", "sharpness", "bytes"):
        assert sum(facts[name]["counts"]) == 60
        assert facts[name]["min"] <= facts[name]["median"] <= facts[name]["max"]


def test_what_is_wrong_is_found(source: Path, home: Path) -> None:
    first, second = sorted((source / "1").iterdir())[:2]
    for index in range(8):  # so many that not all fall into one split
        shutil.copy(first, source / "2" / f"copy-{index}.jpg")
    Image.open(second).resize((100, 100)).save(source / "1" / "scaled.jpg")
    Image.new("RGB", (50, 40)).save(source / "1" / "black.png")
    Image.open(second).filter(ImageFilter.GaussianBlur(20)).save(source / "2" / "blurred.jpg")
    (source / "2" / "broken.jpg").write_bytes(first.read_bytes()[:500])
    facts = facts_of(source, home)
    (exact,) = facts["exact_duplicates"]
    assert exact["ids"] == sorted([f"1/{first.stem}", *(f"2/copy-{index}" for index in range(8))])
    assert exact["labels"] == [1, 2] and exact["across_splits"] and facts["across_splits"] >= 1
    assert [f"1/{second.stem}", "1/scaled"] in [cluster["ids"] for cluster in facts["near_duplicates"]]
    assert facts["darkest"][0] == {"id": "1/black", "label": 1, "brightness": 0.0}
    assert "2/blurred" in [row["id"] for row in facts["most_blurred"][:3]]
    assert [row["id"] for row in facts["unreadable"]] == ["2/broken"]
    assert facts["sizes"]["50 x 40"] == 1


def test_labels_that_the_items_contradict(bucket: Path, home: Path) -> None:
    document = {"BIN_FCSKU_DATA": {"A": {"quantity": 3}}, "EXPECTED_QUANTITY": 1}
    (bucket / "metadata" / "00020.json").write_text(json.dumps(document))
    found = {row["id"]: row["reason"] for row in facts_of(bucket, home)["label_disagreements"]}
    assert found["00020"] == "EXPECTED_QUANTITY is 1, and the quantities of the items add up to 3"
    assert "00000" not in found  # 0 items, none listed


def test_brightness_and_sharpness_are_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "gray.png"
    Image.new("RGB", (300, 200), (90, 90, 90)).save(path)
    look = json.loads(str(measure_image(path)[0]))
    assert (look["width"], look["height"], look["brightness"], look["sharpness"]) == (300, 200, 90.0, 0.0)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    noise.save(path)
    sharp = json.loads(str(measure_image(path)[0]))["sharpness"]
    noise.filter(ImageFilter.GaussianBlur(2)).save(path)
    assert json.loads(str(measure_image(path)[0]))["sharpness"] < sharp / 20


def test_the_page_needs_nothing_and_trusts_no_name(source: Path, home: Path, tmp_path: Path) -> None:
    one = next((source / "1").iterdir())
    shutil.copy(one, source / "1" / "<script>alert(1)<|script>.jpg")
    manifest = load_manifest(str(source), None, Split(), home)
    page, facts = write_report(build_data_report(manifest, home), tmp_path / "new" / "page.html")
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "http" not in text
    assert text.count("data:image/jpeg;base64,") == 2
    assert json.loads(facts.read_text())["images"] == 61
    assert sorted(path.name for path in page.parent.iterdir()) == ["page.html", "page.json"]


def test_the_command(bins: ModuleType, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINSWEEP_HOME", str(tmp_path / "home"))
    command = ["data", "report", str(bucket), "--classes", "0,2", "--out"]
    done = CliRunner().invoke(cli, [*command, str(tmp_path / "page.html")], catch_exceptions=False)
    assert done.exit_code == 0 and "label disagreements" in done.output
    assert json.loads((tmp_path / "page.json").read_text())["images"] == 30
    few = bins.write_folders(tmp_path / "few", {4: 2})
    page = tmp_path / "few.html"
    done = CliRunner().invoke(cli, ["data", "report", str(few), "--classes", "4,5", "--out", str(page)])
    assert done.exit_code == 0 and "class 5 has no photo in train and validation and test" in done.output
    facts = json.loads(page.with_suffix(".json").read_text())
    assert facts["images"] == 2 and facts["classes"]["5"] == {"train": 0, "validation": 0, "test": 0}
    with pytest.raises(UserError, match="not a page"):
        CliRunner().invoke(cli, [*command, "page.pdf"], catch_exceptions=False)
