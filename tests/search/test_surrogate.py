"""The reader of learning-curve surrogates, on a tiny one made up here: other names, categories, conditions."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the surrogate reader needs onnxruntime")

from benchmarks.surrogate import Columns, Surrogate, SurrogateTask

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = ["booster", "dataset"]
NUMBERS = ["eta", "depth", "trainsize"]
OUTPUTS = ["seconds", "logloss"]
COLUMNS = Columns("logloss", "minimize", "seconds", "trainsize", "dataset")
# One row per input column (categories first), one column per output.
WEIGHTS = np.array([[0, 0.5], [0, 1.0], [0, 2.0], [0, 0.1], [10, -1.0]], np.float32)
SPACE = {
    "hyperparameters": [
        {"name": "dataset", "type": "categorical", "choices": ["a", "b"]},
        {"name": "booster", "type": "categorical", "choices": ["tree", "line"]},
        {"name": "eta", "type": "uniform_float", "lower": 0.1, "upper": 1.0, "log": True},
        {"name": "depth", "type": "uniform_int", "lower": 1, "upper": 8, "log": False},
        {"name": "trainsize", "type": "uniform_float", "lower": 0.1, "upper": 1.0, "log": False},
    ],
    "conditions": [{"child": "depth", "parent": "booster", "type": "EQ", "value": "tree"}],
}
ENCODING = {"booster": {"#na#": 0, "line": 1, "tree": 2}, "dataset": {"#na#": 0, "a": 1, "b": 2}}


def field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protocol buffer: a whole number, or text and messages with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def value_info(name: str, kind: int, width: int) -> bytes:
    shape = field(1, field(2, "n")) + field(1, field(1, width))
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, shape)))


def node(kind: str, inputs: list[str], output: str, **attributes: int) -> bytes:
    parts = b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, kind)
    for name, value in attributes.items():
        parts += field(5, field(1, name) + field(3, value) + field(20, 2))
    return parts


def linear_model() -> bytes:
    """An ONNX model: both inputs side by side, times WEIGHTS."""
    raw = struct.pack(f"<{WEIGHTS.size}f", *WEIGHTS.ravel())
    weights = b"".join(field(1, size) for size in WEIGHTS.shape) + field(2, 1) + field(8, "w") + field(9, raw)
    nodes = [
        node("Cast", ["x_cat"], "codes", to=1),
        node("Concat", ["codes", "x_cont"], "x", axis=1),
        node("MatMul", ["x", "w"], "y"),
    ]
    graph = b"".join(field(1, n) for n in nodes) + field(2, "linear") + field(5, weights)
    graph += field(11, value_info("x_cat", 6, len(CATEGORIES)))
    graph += field(11, value_info("x_cont", 1, len(NUMBERS))) + field(12, value_info("y", 1, len(OUTPUTS)))
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(linear_model())
    inputs = {"x_cat": CATEGORIES, "x_cont": NUMBERS}
    parts: dict[str, Any] = {
        "config_space": SPACE,
        "encoding": ENCODING,
        "inputs": inputs,
        "outputs": OUTPUTS,
    }
    for name, part in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    return tmp_path


def test_curves_come_from_the_named_columns(folder: Path) -> None:
    task = SurrogateTask(Surrogate(folder, COLUMNS), "b")
    assert sorted(task.space) == ["booster", "depth", "eta"], (
        "what is neither instance nor fidelity is searched"
    )
    assert task.goal == "minimize"
    values, seconds = task.curve({"booster": "tree", "eta": 0.5, "depth": 4})
    sizes = np.linspace(0.1, 1.0, task.max_epochs)
    assert values == pytest.approx(0.5 * 2 + 1.0 * 2 + 2.0 * 0.5 + 0.1 * 4 - sizes, abs=1e-5)
    assert seconds == pytest.approx(10 * sizes, abs=1e-5)


def test_an_inactive_parameter_does_not_count(folder: Path) -> None:
    task = SurrogateTask(Surrogate(folder, COLUMNS), "a")
    curves = [task.curve({"booster": "line", "eta": 0.5, "depth": depth})[0] for depth in (1, 8)]
    assert curves[0] == curves[1]


def test_an_unknown_column_is_named(folder: Path) -> None:
    with pytest.raises(SystemExit, match=r"--cost time: .* seconds, logloss"):
        Surrogate(folder, Columns("logloss", "minimize", "time", "trainsize", "dataset"))


@pytest.mark.integration
def test_the_command_line_reads_another_surrogate(folder: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "search.py", "--surrogate", folder, "--seeds", "5"]
    command += ["--strategies", "random,auto", "--budgets", "2,6", "--workers", "1,4", "--value", "logloss"]
    command += ["--goal", "minimize", "--cost", "seconds", "--fidelity", "trainsize"]
    command += ["--instance-column", "dataset", "--json", folder / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = json.loads((folder / "out.json").read_text())
    assert len(rows) == 2 * 2 * 2 * 2 * 5
    assert {row["instance"] for row in rows} == {"a", "b"}
    regret = {
        name: np.mean([row["regret"] for row in rows if row["strategy"] == name and row["budget"] == 6])
        for name in ("random", "auto")
    }
    assert 0 <= regret["auto"] < regret["random"]
