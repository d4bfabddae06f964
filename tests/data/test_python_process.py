"""Subprocesses import our modules and Python's, whatever is in the working folder."""

import importlib
import subprocess
from pathlib import Path

import pytest

from binsweep.data import parallel
from binsweep.data.python_process import python_module, subprocess_environment

STEP = """
def step(job, part, parts):
    for number in range(part, job, parts):
        yield
"""


@pytest.fixture
def _hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with modules named as ours, as Python's, and as those of libraries."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("data", "models", "tracking", "search", "random", "numpy", "mlflow"):
        (folder / f"{name}.py").write_text("raise SystemExit('mine')\n")
    monkeypatch.chdir(folder)


@pytest.mark.usefixtures("_hostile")
def test_parallel_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "steps_of_this_test.py").write_text(STEP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    done: list[int] = []
    step = importlib.import_module("steps_of_this_test").step
    parallel.run(step, 4, 4, min_units=1, progress=lambda count, total: done.append(count))
    assert done[-1] == 4


@pytest.mark.usefixtures("_hostile")
@pytest.mark.parametrize("words", [("binsweep.tracking.evaluation.predictions",), ("mlflow", "--version")])
def test_the_modules_that_we_run(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        python_module(*words), env=subprocess_environment(), capture_output=True, text=True, timeout=60
    )
    assert "mine" not in done.stderr
    # The evaluation gets no arguments here, and fails in its own code.
    assert done.returncode == 0 if words[0] == "mlflow" else "IndexError" in done.stderr


def test_every_start_of_python_goes_through_one_place() -> None:
    """Another one would import from the working folder again."""
    project = Path(__file__).parents[2]
    for package in ("data", "models", "tracking", "search"):
        for file in (project / package).rglob("*.py"):
            if file != project / "data" / "python_process.py":
                assert "sys.executable, " not in file.read_text(), file
