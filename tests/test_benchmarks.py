"""Benchmarks whose figures `make integration` prints; they are shown, never asserted: machines differ."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from binsweep.data.synthetic.dataset import write_synthetic

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run_benchmark(
    figure: Callable[[str], None], name: str, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, BENCHMARKS / name, *arguments]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=240)
    for line in done.stdout.splitlines():
        figure(line)
    return done


@pytest.mark.night
def test_what_the_run_log_costs(tmp_path: Path, figure: Callable[[str], None]) -> None:
    out = tmp_path / "runlog.json"
    done = run_benchmark(figure, "runlog.py", "--epochs", "400", "--json", out)
    for line in done.stderr.splitlines():  # why there is no PostgreSQL, where there is none
        figure(line)
    assert "SQLite" in json.loads(out.read_text())


@pytest.mark.night
def test_what_serving_costs(figure: Callable[[str], None]) -> None:
    assert " 0 errors" in run_benchmark(figure, "serve.py", "--minutes", "0.5").stdout


@pytest.mark.night
def test_where_the_time_of_a_step_goes(tmp_path: Path, figure: Callable[[str], None]) -> None:
    bins, out = tmp_path / "bins", tmp_path / "steps.json"
    write_synthetic(bins, 80, 0, 64, [1, 2, 3, 4, 5])
    run_benchmark(figure, "steps.py", "--data", bins, "--batch-size", "8", "--steps", "4", "--json", out)
    assert set(json.loads(out.read_text())) == {"head", "last_stage", "all"}
