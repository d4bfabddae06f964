"""A notebook, executed by a real Jupyter kernel: what its cells show, an interrupt, and what a kernel cannot do."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from binsweep.data.python_process import current_import_path

pytestmark = pytest.mark.integration  # a kernel, and three sweeps in it

TRAIN = """%%writefile train.py
import time

def train(trial):
    for epoch in trial.epochs():
        time.sleep(0.5)
        trial.report({"val_loss": trial.params["lr"] + 1 / epoch}, save=lambda folder: (folder / "w").touch())
"""
SPEC = """
import binsweep
from train import train

spec = {
    "name": "cells",
    "trainer": train,
    "space": {"lr": [0.1, 0.2]},
    "search": {"sampler": "grid", "stopping": "none"},
    "fidelity": {"epochs": 4},
    "objective": {"metric": "val_loss", "goal": "minimize"},
}
"""
# Jupyter interrupts a cell by SIGINT to the kernel's process group.
INTERRUPTED = """
import os, signal, threading, time
from pathlib import Path

def interrupt():
    while not list(Path(".binsweep/sweeps").glob("cells-1/trial-*/history.jsonl")):
        time.sleep(0.1)
    os.killpg(os.getpgid(0), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    binsweep.sweep(spec)
except KeyboardInterrupt:
    print("state:", binsweep.open("cells").status)
"""
OWN_FUNCTION = """
def mine(trial): ...
try:
    binsweep.sweep(spec, trainer=mine)
except binsweep.UserError as error:
    print(error)
"""
OWN_RAY = """
import ray

assert not ray.is_initialized(), "a sweep has left its Ray running"
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
try:
    binsweep.sweep(spec, new=True)
except binsweep.UserError as error:
    print(error)
ray.shutdown()
"""
PROGRESS = """
from binsweep.search.terminal.progress import ProgressBar

with ProgressBar("reading") as progress:
    for done in range(1001):
        progress(done, 1000)
"""
CELLS = {
    "train": TRAIN,
    "spec": SPEC,
    "interrupted": INTERRUPTED,
    "sweep": "found = binsweep.sweep(spec)\nfound",
    "board": "found.leaderboard",
    "function": OWN_FUNCTION,
    "ray": OWN_RAY,
    "progress": PROGRESS,
}


@pytest.fixture(scope="module")
def outputs(server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outputs of each cell of the executed notebook."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS.values()])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "MLFLOW_TRACKING_URI": server,
            "PYTHONPATH": current_import_path(),
            "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
            "IPYTHONDIR": str(folder / "ipython"),
        }.items():
            patch.setenv(name, value)
        patch.delenv("BINSWEEP_HOME", raising=False)
        client = NotebookClient(
            notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    assert Path(folder / ".binsweep" / "sweeps" / "cells-1" / "report.html").exists()
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)}


def text_of(outputs: list[Any]) -> str:
    """All that a cell shows, as text."""
    return "\n".join(one.get("text") or one["data"]["text/plain"] for one in outputs)


@pytest.mark.timeout(600)
def test_a_sweep_is_one_table_that_changes_in_place(outputs: dict[str, list[Any]]) -> None:
    kinds = ("stream", "display_data", "execute_result")
    notices, (table,), (result,) = (
        [one for one in outputs["sweep"] if one["output_type"] == kind] for kind in kinds
    )
    # A slow MLflow may add a notice of its own.
    assert text_of(notices).startswith("going on with cells-1") and "trial 0" not in text_of(notices)
    assert "<pre" in table["data"]["text/html"]
    assert "2 completed" in table["data"]["text/plain"] and "trial 0 starts" not in text_of([table])
    assert "<table" in result["data"]["text/html"]
    assert "cells-1: finished" in result["data"]["text/plain"]
    (board,) = outputs["board"]
    assert "val_loss" in board["data"]["text/html"]


@pytest.mark.timeout(600)
def test_an_interrupted_cell_leaves_a_sweep_that_goes_on(outputs: dict[str, list[Any]]) -> None:
    text = text_of(outputs["interrupted"])
    assert "state: unfinished" in text and "the same call goes on" in text
    assert "ipywidgets" not in text, "a library recommends what is not needed"
    assert "going on with cells-1" in text_of(outputs["sweep"])


@pytest.mark.timeout(600)
def test_what_a_kernel_cannot_do_is_said(outputs: dict[str, list[Any]]) -> None:
    (function,) = outputs["function"]
    assert "mine is defined in a notebook" in function["text"] and "write it into a file" in function["text"]
    assert "Ray runs already in this process" in text_of(outputs["ray"])
    assert "call ray.shutdown() first" in text_of(outputs["ray"])


@pytest.mark.timeout(600)
def test_a_progress_bar_leaves_one_line(outputs: dict[str, list[Any]]) -> None:
    (bar,) = outputs["progress"]
    assert bar["data"]["text/plain"].startswith("reading: 1,000 images")
