"""What `binsweep data report` says of what is left out, before anybody trains on the rest."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from binsweep.data.split import Split, assign
from binsweep.search.cli.main import cli


def paint(file: Path, value: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def test_what_is_left_out_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINSWEEP_HOME", str(tmp_path / "home"))
    root = tmp_path / "bins"
    for number in range(80):
        paint(root / str(1 + number % 2) / f"{number}.png", number)
        paint(root / "three" / f"{number}.png", number)
    only = next(str(n) for n in range(1000) if assign(Split(), f"7/{n}", 7) == "test")
    paint(root / "7" / f"{only}.png", 99)
    (root / "1" / "notes.txt").write_text("")
    done = CliRunner().invoke(cli, ["data", "report", str(root), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    assert "left out 2 files: 1/notes.txt: not named as one of .jpg, " in done.stderr
    assert "three/: not a folder named by a count (0, 1, 2, ...); its 80 photos are left out" in done.stderr
    assert "warning: class 7 has no photo in train and validation (1 in test)" in done.stderr
