"""`binsweep export`: the written file computes what the registered version computes, and its README says how."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient

from binsweep.data.errors import UserError
from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.engines.choice import choose_engine
from binsweep.models.engines.names import EngineChoice
from binsweep.models.network import CountingModel, CountingModelConfig
from binsweep.models.predictor import Predictor
from binsweep.search.cli.main import cli
from binsweep.search.workflows.export import ExportFormat, export_model
from binsweep.tracking.registry.registration import register

SIZE = 64


def registered(server: str, name: str, engine: EngineChoice) -> Predictor:
    """A mean over two networks and mirror images, as version 1 of `name`."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES["mobilenet_v2"]
    config = CountingModelConfig(
        "mobilenet_v2", "ordinal", (0, 2, 3), SIZE, architecture.mean, architecture.std
    )
    networks = [CountingModel(config), CountingModel(config)]
    predictor = Predictor(networks, flip=True, decoding="median", temperature=1.3).eval()
    client = MlflowClient(server)
    run = client.create_run(client.create_experiment(f"export-{name}"))
    taken = choose_engine(engine, predictor, np.zeros((1, SIZE, SIZE, 3), np.uint8))
    register(server, run.info.run_id, name, predictor, {}, taken)
    return predictor


@pytest.mark.parametrize(
    ("engine", "file_format"),
    [
        ("torch", "onnx"),
        ("onnxruntime", "openvino"),
        pytest.param("torch", "openvino", marks=pytest.mark.night),
        pytest.param("onnxruntime", "onnx", marks=pytest.mark.night),
    ],
)
def test_the_readme_runs_the_file_and_its_test_vector(
    server: str, tmp_path: Path, file_format: ExportFormat, engine: EngineChoice
) -> None:
    name = f"exported-{engine}-{file_format}"
    predictor = registered(server, name, engine)
    folder, error = export_model(f"models:/{name}/1", file_format, tmp_path / "new" / "files", server)
    assert error <= 1e-5
    assert not list(folder.parent.glob(".binsweep*"))
    vector = np.load(folder / "test_vector.npz")
    with torch.inference_mode():
        expected = predictor(torch.from_numpy(vector["images"])).numpy()
    np.testing.assert_allclose(vector["probabilities"], expected, atol=1e-6)
    labels = json.loads((folder / "labels.json").read_text())
    expected = {"classes": [0, 2, 3], "count": "median", "image_size": SIZE, "interpolation": "bilinear"}
    assert labels == expected
    # The README's own lines, in a process of their own, with the test vector in place of photos.
    readme = (folder / "README.md").read_text()
    run = re.search(r"## Run it\n\n(.*?)\nFor photos", readme, re.DOTALL)
    test = re.search(r"is an error:\n\n(.*)", readme, re.DOTALL)
    assert run is not None and test is not None
    lines = [line[4:] for line in (run[1] + test[1]).splitlines()]
    call = next(line for line in lines if line.startswith(("probabilities =", "(probabilities,) =")))
    lines.remove(call)
    lines[lines.index("...  # run it, as above")] = call
    script = "\n".join([*lines, "assert images.shape[0] == 4"])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, script + done.stderr


def test_nothing_is_overwritten_and_what_is_not_a_model_is_refused(server: str, tmp_path: Path) -> None:
    registered(server, "exported-once", "torch")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists already, and nothing is overwritten"):
        export_model("models:/exported-once/1", "onnx", tmp_path / "there", server)
    with pytest.raises(UserError, match="has no version '2'"):
        export_model("models:/exported-once/2", "onnx", tmp_path / "new", server)
    with pytest.raises(UserError, match="is not a registered version"):
        export_model(f"file://{tmp_path}", "onnx", tmp_path / "new", server)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file: Not a directory"):
        export_model("models:/exported-once/1", "onnx", tmp_path / "file" / "new", server)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


def test_the_command_writes_next_to_where_it_is_called(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(server, "exported-here", "torch")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("BINSWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["export", "exported-here/1", "--format", "onnx"], catch_exceptions=False)
    assert done.exit_code == 0 and "exported-here-1-onnx" in done.output
    files = {file.name for file in (tmp_path / "exported-here-1-onnx").iterdir()}
    assert files == {"network.onnx", "test_vector.npz", "labels.json", "README.md"}
