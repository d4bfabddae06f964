"""A sweep of own code on two nodes that share no disk: its code and the files that its params name are shipped."""

import subprocess
import textwrap
from pathlib import Path

import pytest
from mlflow import MlflowClient
from own_sweeps import EPOCHS, METRICS, TRAIN, code_spec
from real_sweeps import assert_whole, command, curves, run_here, runs_of
from two_nodes import two_nodes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

# Where it runs is reported; what a trial needs, it reads from the files of its params.
SHIPPED = (
    textwrap.dedent(TRAIN)
    .replace(
        "    saved = trial.checkpoint()\n",
        "    import helper\n    saved = trial.checkpoint()\n    size = helper.size_of(trial.params['inputs'])\n",
    )
    .replace(
        '1 / (1 + state["score"])}',
        '1 / (1 + state["score"]), "size": size, "elsewhere": "/inputs/" in __file__}',
    )
)
SHIPPED += "    open('note.txt', 'w').write('the end')\n    trial.artifact('note.txt')\n"
HELPER = """
from pathlib import Path

def size_of(inputs):
    return len(Path(inputs["table"]).read_text()) + sum(f.stat().st_size for f in Path(inputs["images"]).iterdir())
"""


def shipped_spec(folder: Path, name: str) -> Path:
    inputs = {"table": "./table.csv", "images": "./images"}
    params = {"seconds": 0.2, "inputs": inputs}
    spec = code_spec(folder, name, 6, SHIPPED, params=params)
    (folder / "helper.py").write_text(HELPER)
    (folder / "unrelated.py").write_text("PASSWORD = 'secret'")
    (folder / ".env").write_text("PASSWORD=secret")
    (folder / "table.csv").write_text("1,2,3")
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "1.bin").write_bytes(b"xy")
    return spec


def test_code_and_its_files_reach_a_node_without_a_shared_disk(server: str, tmp_path: Path) -> None:
    name = "own-nodes"
    with two_nodes(tmp_path, server) as cluster:
        spec = shipped_spec(cluster.hidden / "code", name)
        words = command(spec, "ray", "--address", cluster.address)
        done = subprocess.run(words, env=cluster.env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert "code copied to 1 other node" in done.stderr
        home = cluster.hidden / "home"
        assert_whole(server, home, name, 6, EPOCHS, METRICS)
        for trial in home.glob(f"sweeps/{name}-1/trial-*"):
            assert len(list(trial.glob("checkpoint-*"))) <= 1, "the best one, of the trials that are kept"
        (inputs,) = (path for path in (cluster.node_home / "inputs").iterdir() if path.is_dir())
        copied = {str(file.relative_to(inputs)) for file in inputs.rglob("*") if file.is_file()}
        copied = {file for file in copied if "__pycache__" not in file}
        code, params = {"code/train.py", "code/helper.py"}, "params/inputs"
        assert copied == code | {f"{params}.table/table.csv", f"{params}.images/images/1.bin"}
        assert not list(cluster.node_home.glob("trials/trial-*"))
    trials = runs_of(server, name)[1]
    assert {run.data.metrics["elsewhere"] for run in trials.values()} == {0.0, 1.0}, "both nodes trained"
    assert {run.data.metrics["size"] for run in trials.values()} == {7.0}
    client = MlflowClient(server)
    for run in trials.values():
        note = client.download_artifacts(run.info.run_id, "artifacts/note.txt")
        assert Path(note).read_text() == "the end"
    alone = shipped_spec(tmp_path / "alone", "own-one-node")
    where = {"BINSWEEP_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": server}
    assert run_here("sweep", alone, "--runner", "local", **where).returncode == 0
    assert curves(server, name, METRICS) == curves(server, "own-one-node", METRICS)
