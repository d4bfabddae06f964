"""A table of answers: its rows, its kinds, and that it goes on after an interruption."""

import base64
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image

from binsweep.data.errors import UserError
from binsweep.data.locks import try_lock
from binsweep.data.resource_limits import cores
from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.engines.choice import choose_engine
from binsweep.models.network import CountingModel, CountingModelConfig
from binsweep.models.predictor import Predictor
from binsweep.search.workflows.predict import FEW_PHOTOS, models_for, predict_images
from binsweep.search.workflows.predict_file import AnswerFile, predict_to_file
from binsweep.tracking.registry.registration import saved_model
from binsweep.tracking.registry.versions import CODE_FINGERPRINT, image_rows
from binsweep.tracking.serving.model_server import BATCH_PHOTOS

N_PHOTOS = 3 * BATCH_PHOTOS + 4
HALF = N_PHOTOS // 2


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of photos, of which a model that only looks at bytes answers something else about each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(N_PHOTOS):
        Image.new("RGB", (8, 8)).save(folder / f"{number:03d}.jpg")
        with (folder / f"{number:03d}.jpg").open("ab") as file:
            file.write(bytes(number))
    return folder


@pytest.fixture(scope="module")
def echo(server: str) -> str:
    """A registered model that counts bytes, versions 1 (champion) and 2; version 3 is of own training code."""
    client = MlflowClient(server)
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment("echo-file")
    with mlflow.start_run() as run:
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).parents[1] / "tracking" / "echo_model.py"),
            pip_requirements=["mlflow"],
        )
    client.create_registered_model("echo-file")
    for tags in ({}, {}, {CODE_FINGERPRINT: "0"}):
        client.create_model_version(
            "echo-file", info.model_uri, run.info.run_id, tags, model_id=info.model_id
        )
    client.set_registered_model_alias("echo-file", "champion", "1")
    return "models:/echo-file@champion"


@pytest.fixture(autouse=True)
def _at_the_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)


def ask(photos: Path, out: Path, model: str, there: int = 0) -> AnswerFile:
    """The whole file; `there` are the answers of earlier calls."""
    told: list[tuple[int, int]] = []
    written = predict_to_file(
        [str(photos)], out, None, model, out.parent / "home", lambda *done: told.append(done)
    )
    assert told == ([(there, written.photos)] if there else []) and written.there == there
    return written


@contextlib.contextmanager
def refused_in_the_middle(photos: Path, match: str = "refuses") -> Iterator[None]:
    """For the block, a photo in the middle is one that the model refuses, so that the answers end there."""
    file = photos / f"{HALF:03d}.jpg"
    content = file.read_bytes()
    file.write_bytes(b"bad")
    with pytest.raises(UserError, match=match):
        yield
    file.write_bytes(content)


def sizes(photos: Path) -> list[int]:
    return [file.stat().st_size for file in sorted(photos.iterdir())]


def test_it_goes_on_where_it_stopped_and_writes_each_row_once(
    photos: Path, tmp_path: Path, echo: str
) -> None:
    out = tmp_path / "new" / "answers.csv"
    with refused_in_the_middle(photos):
        ask(photos, out, echo)
    journal = out.with_name("answers.csv.partial")
    assert list(out.parent.iterdir()) == [journal]  # nothing under the final name
    assert len(journal.read_bytes().splitlines()) == 1 + BATCH_PHOTOS
    with journal.open("ab") as file:
        file.write(b'{"image": "torn')  # as after kill -9
    written = ask(photos, out, echo, there=BATCH_PHOTOS)
    assert written == AnswerFile(str(out), N_PHOTOS, 0, BATCH_PHOTOS)
    assert list(out.parent.iterdir()) == [out]
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == [str(file) for file in sorted(photos.iterdir())]
    assert [int(row["count"]) for row in rows] == sizes(photos)
    assert rows[0] | {"image": "", "count": ""} == {
        **dict.fromkeys(("image", "count", "expected_count", "model_version", "error"), ""),
        **{"confidence": "0.5", "p1": "0.5"},
    }
    with pytest.raises(UserError, match="exists"):
        ask(photos, out, echo)


def test_other_questions_are_refused_and_nothing_is_lost(photos: Path, tmp_path: Path, echo: str) -> None:
    out = tmp_path / "answers.parquet"
    with refused_in_the_middle(photos):
        ask(photos, out, echo)
    journal = tmp_path / "answers.parquet.partial"
    before = journal.read_bytes()
    with pytest.raises(UserError, match="has answers of echo-file/1, and now echo-file/2 is asked"):
        ask(photos, out, "models:/echo-file/2")
    (photos / "more.jpg").write_bytes(b"more")
    with pytest.raises(
        UserError, match=rf"another list of photos \({N_PHOTOS} photos then, {N_PHOTOS + 1} now"
    ):
        ask(photos, out, echo)
    (photos / "more.jpg").unlink()
    with journal.open("rb") as other:
        assert try_lock(other.fileno())
        with pytest.raises(UserError, match="is being written by another process"):
            ask(photos, out, echo)
    assert journal.read_bytes() == before and not out.exists()
    ask(photos, out, "models:/echo-file/1", there=BATCH_PHOTOS)  # what the alias named
    table = pd.read_parquet(out)
    assert table["count"].dtype == np.int64 and list(table["count"]) == sizes(photos)


def test_what_cannot_be_written_is_said_before_the_work(photos: Path, tmp_path: Path, echo: str) -> None:
    with pytest.raises(UserError, match=r"answers\.txt: not a table"):
        ask(photos, tmp_path / "answers.txt", echo)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="Not a directory"):
        ask(photos, tmp_path / "file" / "answers.csv", echo)
    (tmp_path / "answers.csv.partial").write_text("mine")
    with pytest.raises(UserError, match="was not written by"):
        ask(photos, tmp_path / "answers.csv", echo)
    assert (tmp_path / "answers.csv.partial").read_text() == "mine"
    for model, said in (
        ("echo-file/3", "echo-file version 3 is a model of own training code"),
        ("none/1", "none"),
    ):
        with pytest.raises(UserError, match=said):
            ask(photos, tmp_path / "other.csv", f"models:/{model}")
        with pytest.raises(UserError, match=said):
            next(predict_images([str(photos)], None, f"models:/{model}", tmp_path))
    assert not list(tmp_path.glob("other*"))


def test_a_server_that_changed_its_model_is_noticed(photos: Path, tmp_path: Path) -> None:
    version = "1"

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            images = [base64.b64decode(text) for (text,) in body["dataframe_split"]["data"]]
            rows = [{"count": len(one), "model_version": version, "error": ""} for one in images]
            self.send_response(400 if b"bad" in images else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"predictions": rows}).encode())

        def log_message(self, *_: object) -> None: ...

    out = tmp_path / "answers.jsonl"
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://user:secret@127.0.0.1:{server.server_port}"

        def answered() -> AnswerFile:
            return predict_to_file([str(photos)], out, url, "", tmp_path, lambda *_: None)

        with refused_in_the_middle(photos, "answered 400"):
            answered()
        assert "secret" not in (tmp_path / "answers.jsonl.partial").read_text()
        version = "2"
        with pytest.raises(UserError, match="has answers of version 1, and the model is now version 2"):
            answered()
        version = "1"
        assert answered() == AnswerFile(str(out), N_PHOTOS, 0, BATCH_PHOTOS)
        server.shutdown()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["count"] for row in rows] == sizes(photos)


@pytest.fixture(scope="module", params=["counts", "names"])
def real_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model with random weights as it is registered, computed by ONNX Runtime."""
    torch.manual_seed(0)
    stats = ARCHITECTURES["mobilenet_v2"]
    classes = (0, 1, 2) if request.param == "counts" else ("ok", "torn")
    config = CountingModelConfig("mobilenet_v2", "classify", classes, 64, stats.mean, stats.std)
    predictor = Predictor([CountingModel(config)]).eval()
    engine = choose_engine("onnxruntime", predictor, np.zeros((2, 64, 64, 3), np.uint8))
    with saved_model(predictor, engine) as folder:
        yield folder


def test_answers_are_those_of_the_served_model(real_model: Path, bins: Path, tmp_path: Path) -> None:
    files = sorted((bins / "bin-images").iterdir())
    assert len(files) > FEW_PHOTOS and models_for(len(files)) == min(4, cores())
    (tmp_path / "torn.jpg").write_bytes(files[0].read_bytes()[:500])
    named = [*files[:40], tmp_path / "torn.jpg", *files[40:], tmp_path / "gone.jpg"]
    table = tmp_path / "photos.csv"
    table.write_text("".join(f"{path}\n" for path in ["path", *named]))
    served = mlflow.pyfunc.load_model(str(real_model))
    expected = served.predict(image_rows([file.read_bytes() for file in named[:-1]])).to_dict("records")
    threads = os.environ.get("OMP_NUM_THREADS")
    out = tmp_path / "answers.jsonl"
    written = predict_to_file([str(table)], out, None, f"file:{real_model}", tmp_path, lambda *_: None)
    assert (written.photos, written.unanswered) == (92, 2) and os.environ.get("OMP_NUM_THREADS") == threads
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.pop("image") for row in rows] == list(map(str, named))
    assert rows[-1]["error"] == "no such file" and rows[40]["error"] == expected[40]["error"] != ""
    for row, other in zip(rows, expected, strict=False):
        # A batch of another size may differ in the last bits.
        assert row.pop("probabilities") == pytest.approx(other.pop("probabilities"), abs=1e-6)
        for key in ("confidence", "expected_count"):
            assert row.pop(key, None) == pytest.approx(other.pop(key, None), abs=1e-5)
        assert row == other  # the count or the label, the version, the error


@pytest.mark.integration  # a process that is killed, and two that go on
@pytest.mark.timeout(300)
def test_killed_and_interrupted_it_goes_on(bins: Path, tmp_path: Path, echo: str) -> None:
    (tmp_path / "many").mkdir()
    for number in range(40):  # "slow" takes 5 s: time to be killed in
        (tmp_path / "many" / f"{number:02d}.jpg").write_bytes(b"slow" if number == 35 else bytes(number + 1))
    out = tmp_path / "answers.csv"
    command = [sys.executable, "-m", "binsweep", "predict", str(tmp_path / "many"), "--out", str(out)]
    command += ["--model", "echo-file"]
    journal = tmp_path / "answers.csv.partial"
    env = {**os.environ, "BINSWEEP_HOME": str(tmp_path / "home")}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    with start() as process:
        until = time.monotonic() + 120
        while not (journal.exists() and journal.read_bytes().count(b"\n") > BATCH_PHOTOS):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.kill()
    assert journal.exists() and not out.exists()
    with start() as process:
        assert process.stderr is not None
        assert "32 of 40 were there already" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and "the same command goes on" in said
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "32 of 40 were there already" in done.stderr, done.stderr
    assert done.stdout == f"{out}: 40 photos\n"
    assert len(pd.read_csv(out)) == 40 and not journal.exists()
