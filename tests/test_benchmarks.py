"""Benchmarks whose figures `make integration` prints; they are shown, never asserted: machines differ."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.integration
def test_what_the_run_log_costs(tmp_path: Path, figure: Callable[[str], None]) -> None:
    out = tmp_path / "runlog.json"
    words = [sys.executable, BENCHMARKS / "runlog.py", "--epochs", "400", "--json", out]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=240)
    assert "SQLite" in json.loads(out.read_text())
    for line in (done.stdout + done.stderr).splitlines():
        figure(line)
