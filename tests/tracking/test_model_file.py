"""The served model needs nothing of this project, runs no pickle, and answers as the counter it was made from."""

import ast
import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.engines.choice import choose_engine
from binsweep.models.engines.names import EngineName
from binsweep.models.network import HEADS, CountingModel, CountingModelConfig
from binsweep.models.predictor import Predictor
from binsweep.tracking.registry.model_source import model_source
from binsweep.tracking.registry.registration import register
from binsweep.tracking.registry.versions import image_rows

# Loads a model in a process where the project's packages cannot be imported.
ALONE = """
import importlib.abc, json, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("binsweep", *sys.argv[3:]):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Refuse())
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(pandas.DataFrame({"image": json.loads(sys.argv[2])}))
print("ANSWER" + answer.to_json(orient="records"))
"""


# Serves a model as MLflow's scoring server does, and asks it while its network and its decoder fail.
FAILING = """
import json, sys
import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server as server
model = mlflow.pyfunc.load_model(sys.argv[1])
served = model.unwrap_python_model()
schema = model.metadata.get_input_schema()
def ask(body, kind="application/json"):
    try:
        answer = server.invocations(body.encode(), kind, model, schema)
        print(json.dumps([answer.status, json.loads(answer.response)["predictions"][0]["count"]]))
    except MlflowException as error:
        print(json.dumps([error.get_http_status_code(), error.message, error.serialize_as_json()]))
good = json.dumps({"instances": [{"image": sys.argv[2]}]})
ask(good)
ask("\\ufeff" + good)
ask("\\ufeffimage\\r\\n" + sys.argv[2] + "\\r\\n", "text/csv")
def fail(*anything):
    raise failure
network = served.network
for failure in (MemoryError("no memory\\nat all"), RuntimeError("out of threads"), OSError(24, "Too many open files")):
    served.network = fail
    ask(good)
served.network = network
ask(good)
for bad in ("no JSON", "{}", json.dumps({"instances": [{"picture": "x"}]}), json.dumps({"inputs": 5})):
    ask(bad)
"""


def photo(seed: int, size: int = 96) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


ENGINES = get_args(EngineName)
TORCH_PACKAGES = ("torch", "torchvision", "timm")


def registered(
    server: str, name: str, head: str = "classify", engine: EngineName = "torch"
) -> tuple[CountingModel, str, str]:
    """A counter with random weights, registered as a model of its own; its URI and its run."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES["mobilenet_v2"]
    config = CountingModelConfig("mobilenet_v2", head, (0, 2, 3), 64, architecture.mean, architecture.std)
    counter = CountingModel(config).eval()
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("model-file")
    run = client.create_run(
        experiment.experiment_id if experiment else client.create_experiment("model-file")
    )
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment("of somebody else")  # what else a process does must not matter
    predictor = Predictor([counter])
    taken = choose_engine(engine, predictor, np.zeros((2, 64, 64, 3), np.uint8))
    assert taken.name == engine, taken.reason
    version = register(server, run.info.run_id, name, predictor, {"note": "test"}, taken)
    assert version.tags["engine"] == engine and version.tags["engine.reason"] == taken.reason
    return counter, f"models:/{name}/{version.version}", run.info.run_id


@pytest.mark.parametrize("engine", ENGINES)
def test_the_source_imports_nothing_of_the_project(engine: EngineName) -> None:
    tree = ast.parse(model_source(engine))
    modules = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {module.split(".")[0] for module in modules}
    assert "binsweep" not in packages
    assert packages.isdisjoint(TORCH_PACKAGES) == (engine != "torch")


@pytest.mark.parametrize(
    "head, engine",
    [
        *(pytest.param(h, "torch", marks=pytest.mark.night if h != "classify" else ()) for h in HEADS),
        ("classify", "openvino"),
        ("ordinal", "onnxruntime"),
    ],
)
def test_it_answers_alone_as_the_counter_does(
    server: str, tmp_path: Path, head: str, engine: EngineName
) -> None:
    counter, uri, _ = registered(server, f"alone-{head}-{engine}", head, engine)
    images = [photo(seed, size=64) for seed in range(3)]
    text = json.dumps([base64.b64encode(image).decode() for image in images])
    done = subprocess.run(
        [sys.executable, "-c", ALONE, uri, text, *(() if engine == "torch" else TORCH_PACKAGES)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": server},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.split("ANSWER")[1])
    with torch.inference_mode():
        pixels = np.stack([np.array(Image.open(io.BytesIO(image))) for image in images])
        wanted = counter(torch.from_numpy(pixels)).exp().numpy()
    for row, probabilities in zip(rows, wanted, strict=True):
        said = [row["probabilities"][count] for count in ("0", "2", "3")]
        np.testing.assert_allclose(said, probabilities, atol=1e-5)
        assert row["count"] == (0, 2, 3)[probabilities.argmax()]
        assert row["expected_count"] == pytest.approx(float(probabilities @ [0, 2, 3]), abs=1e-4)
        assert row["error"] == "" and row["model_version"] == "1"


@pytest.mark.parametrize("engine", ENGINES)
def test_bad_rows_are_told_apart_and_an_all_bad_request_is_refused(server: str, engine: EngineName) -> None:
    _, uri, _ = registered(server, f"rows-{engine}", engine=engine)
    mlflow.set_tracking_uri(server)
    model = mlflow.pyfunc.load_model(uri)
    rows = image_rows([photo(1), b"no photo", b""])
    rows.loc[3] = ["%%% not base64"]
    answers = model.predict(rows)
    assert answers["error"][0] == "" and all(answers["error"][1:])
    assert answers["count"][0] in (0, 2, 3)
    with pytest.raises(mlflow.exceptions.MlflowException, match="no readable image"):
        model.predict(rows.iloc[1:].reset_index(drop=True))
    with pytest.raises(mlflow.exceptions.MlflowException, match="rows; at most"):
        model.predict(image_rows([b"x"] * 300))


def test_base64_is_read_as_clients_write_it(server: str) -> None:
    _, uri, _ = registered(server, "forms")
    mlflow.set_tracking_uri(server)
    model = mlflow.pyfunc.load_model(uri)
    content = next(one for one in map(photo, range(20)) if len(one) % 3)
    plain = base64.b64encode(content).decode()
    lines = base64.encodebytes(content).decode()
    assert plain.endswith("=") and len(lines.splitlines()) > 10
    forms = {
        "plain": plain,
        "in lines": lines,
        "lines of mail": lines.replace("\n", "\r\n"),
        "indented": "\t" + lines.replace("\n", "\n  "),
        "data address": f"data:image/png;base64,{plain}",
        "another data address": f" DATA:image/png;name=a.png; base64,{lines}",
        "escaped data address": f"data:;base64,{urllib.parse.quote(plain, safe='')}",
        "URL-safe": base64.urlsafe_b64encode(content).decode(),
        "without padding": plain.rstrip("="),
        "URL-safe without padding": base64.urlsafe_b64encode(content).decode().rstrip("="),
    }
    answers = model.predict(pd.DataFrame({"image": list(forms.values())}))
    assert dict(zip(forms, answers["error"], strict=True)) == dict.fromkeys(forms, "")
    assert len({json.dumps(row) for row in answers["probabilities"]}) == 1
    refused = ["data:image/png,notbase64", plain[:-4] + "!", plain[:-3], "aGVsbG8=aGVsbG8="]
    answers = model.predict(pd.DataFrame({"image": [plain, *refused]}))
    assert all(answers["error"][1:])


@pytest.mark.parametrize(
    "engine", [pytest.param(e, marks=pytest.mark.night if e != "onnxruntime" else ()) for e in ENGINES]
)
def test_a_server_that_fails_says_so_and_a_bad_request_is_one(server: str, engine: EngineName) -> None:
    _, uri, _ = registered(server, f"failing-{engine}", engine=engine)
    done = subprocess.run(
        [sys.executable, "-c", FAILING, uri, base64.b64encode(photo(1)).decode()],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "MLFLOW_TRACKING_URI": server},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    good, marked, marked_csv, memory, runtime, files, again, *bad = map(json.loads, done.stdout.splitlines())
    assert good[0] == 200 and good == marked == marked_csv == again
    for (status, message, told), said in (
        (memory, "MemoryError: no memory"),
        (runtime, "RuntimeError: out of threads"),
        (files, "Too many open files"),
    ):
        assert status == 500 and said in message and "\n" not in message and "stack_trace" not in told
    assert "Traceback" in done.stderr  # the log has what the answer does not say
    for status, message, told in bad:
        assert status == 400 and message and "stack_trace" not in told


@pytest.mark.parametrize("engine", ENGINES)
def test_requests_at_once_are_computed_together_and_each_gets_its_own_answer(
    server: str, monkeypatch: pytest.MonkeyPatch, engine: EngineName
) -> None:
    counter, uri, _ = registered(server, f"at-once-{engine}", engine=engine)
    mlflow.set_tracking_uri(server)
    model = mlflow.pyfunc.load_model(uri)
    served = model.unwrap_python_model()
    monkeypatch.setattr(served, "chunk", 4)
    images = [photo(seed, size=64) for seed in range(8)]
    with torch.inference_mode():
        pixels = np.stack([np.array(Image.open(io.BytesIO(image))) for image in images])
        wanted = counter(torch.from_numpy(pixels)).exp().numpy()
    passes: list[int] = []
    broken = threading.Event()
    network: Callable[[np.ndarray], np.ndarray] = served.network

    def noted(pixels: np.ndarray) -> np.ndarray:
        passes.append(len(pixels))
        if broken.is_set():
            broken.clear()
            raise MemoryError("as if")
        return network(pixels)

    def probabilities(places: list[int]) -> list[list[float]]:
        answers = model.predict(image_rows([images[place] for place in places]))
        return [list(one.values()) for one in answers["probabilities"]]

    def ask_at_once(*requests: list[int]) -> list[Future[list[list[float]]]]:
        """They wait in this order until all are there."""
        passes.clear()
        go = threading.Event()
        served.counting.submit(go.wait, 60)
        answers = []
        for number, places in enumerate(requests, 1):
            answers.append(clients.submit(probabilities, places))
            latest = time.monotonic() + 60
            while len(served.waiting) < number and time.monotonic() < latest:
                time.sleep(0.01)
        go.set()
        return answers

    monkeypatch.setattr(served, "network", noted)
    with ThreadPoolExecutor(4) as clients:
        requests: list[list[int]] = [[0], [1, 2], [3, 4, 5], [6]]
        for places, answer in zip(requests, ask_at_once(*requests), strict=True):
            np.testing.assert_allclose(answer.result(60), wanted[places], atol=1e-5)
        assert passes == [3, 4]
        # A request of many photos lets others go before its next chunk.
        many, one = ask_at_once(list(range(8)), [7])
        np.testing.assert_allclose(many.result(60), wanted, atol=1e-5)
        np.testing.assert_allclose(one.result(60), wanted[[7]], atol=1e-5)
        assert passes == [4, 1, 4]
        # A pass that fails is told to those whose photos were in it, and to nobody else.
        broken.set()
        *failed, fine = ask_at_once([0], [1, 2], [3, 4, 5])
        for answer in failed:
            with pytest.raises(MemoryError, match="as if"):
                answer.result(60)
        np.testing.assert_allclose(fine.result(60), wanted[[3, 4, 5]], atol=1e-5)


def test_the_version_has_signature_example_and_no_pickle(server: str, tmp_path: Path) -> None:
    _, uri, _ = registered(server, "stored")
    mlflow.set_tracking_uri(server)
    info = mlflow.models.get_model_info(uri)
    assert info.signature is not None and info.signature.inputs.input_names() == ["image"]
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path)))
    assert (folder / "input_example.json").exists()
    assert not list(folder.rglob("*.pkl"))
    (weights,) = folder.rglob("weights.pt")
    assert torch.load(weights, weights_only=True)
    assert not list(folder.rglob("*.onnx"))


def test_a_version_with_an_engine_has_its_network_and_needs_no_torch(server: str, tmp_path: Path) -> None:
    _, uri, _ = registered(server, "stored-network", engine="onnxruntime")
    mlflow.set_tracking_uri(server)
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path)))
    assert list(folder.rglob("network.onnx")) and list(folder.rglob("weights.pt"))
    needed = (folder / "requirements.txt").read_text().splitlines()
    packages = {line.split("==")[0] for line in needed}
    assert packages.isdisjoint(TORCH_PACKAGES) and f"onnxruntime=={onnxruntime.__version__}" in needed
    assert all("==" in line for line in needed), needed
