"""`binsweep serve` and `binsweep monitor` as real processes: what callers send is counted, compared and judged."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import requests
from click.testing import CliRunner
from mlflow.tracking import MlflowClient
from prometheus_client.parser import text_string_to_metric_families

from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest
from binsweep.search.cli.main import cli
from binsweep.tracking.monitoring.reference import build_reference, load_reference, store_reference
from binsweep.tracking.monitoring.store import WatchStore, store_path
from binsweep.tracking.processes import free_port
from binsweep.tracking.serving.model_server import predict

PATIENCE = 90.0
NAME = "watched"


@pytest.fixture(scope="module")
def client(server: str, manifest: Manifest) -> MlflowClient:
    """A model of two versions that counts the bytes of a photo; version 1 is champion and has a reference."""
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment(NAME)
    with mlflow.start_run():
        made = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).parent / "echo_model.py"),
            registered_model_name=NAME,
            pip_requirements=["mlflow"],
        )
    mlflow.register_model(made.model_uri, NAME)
    client = MlflowClient(server)
    client.set_registered_model_alias(NAME, "champion", "1")
    items = manifest.split("validation")
    answers = [(item.path.stat().st_size, 0.5) for item in items]
    version = client.get_model_version(NAME, "1")
    store_reference(server, version, build_reference(items, answers))
    assert load_reference(server, version) == build_reference(items, answers)
    return client


@contextmanager
def served(server: str, home: Path, *options: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "binsweep", "serve", NAME, "--port", str(port), *options]
    environment = {**os.environ, "BINSWEEP_HOME": str(home), "MLFLOW_TRACKING_URI": server}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            assert said.startswith("serving") and said.endswith(f"http://127.0.0.1:{port}"), said
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def metric(url: str, name: str, **labels: str) -> float:
    """The value of a metric; 0 if it is not there."""
    reply = requests.get(f"{url}/metrics", timeout=30)
    assert reply.status_code == 200 and reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


def run(server: str, home: Path, *words: str) -> str:
    environment = {"BINSWEEP_HOME": str(home), "MLFLOW_TRACKING_URI": server}
    done = CliRunner(env=environment).invoke(cli, ["monitor", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_a_server_sees_is_counted_compared_and_judged(
    server: str, client: MlflowClient, manifest: Manifest, tmp_path: Path
) -> None:
    photos = [item.path.read_bytes() for item in manifest.split("validation")]
    with served(server, tmp_path) as url:
        assert [row["count"] for row in predict(url, photos, 60)] == [len(photo) for photo in photos]
        assert requests.get(f"{url}/ping", timeout=30).headers["Model-Version"] == "1"
        with pytest.raises(UserError, match="no readable image"):
            predict(url, [b"bad"], 60)
        assert requests.post(f"{url}/invocations", data=b"{", timeout=30).status_code >= 400
        assert metric(url, "binsweep_photos_total", state="measured") == len(photos)
        assert metric(url, "binsweep_photos_total", state="error") == 1
        assert metric(url, "binsweep_requests_total", code="200") == 1
        assert metric(url, "binsweep_request_seconds_count") == 3
        assert metric(url, "binsweep_population_stability_index", figure="brightness") == 0.0
        rows = [
            {"sha256": hashlib.sha256(photo).hexdigest(), "count": len(photo) + (place == 0)}
            for place, photo in enumerate(photos[:4])
        ]
        reply = requests.post(f"{url}/feedback", json=[*rows, {"sha256": "0" * 64, "count": 1}], timeout=30)
        assert (reply.status_code, reply.json()) == (200, {"kept": 5, "answered": 4})
        assert metric(url, "binsweep_feedback_right_photos") == 3
        reply = requests.post(f"{url}/feedback", data=b"photo", timeout=30)
        assert reply.status_code == 400 and "not JSON" in reply.json()["error"]
        assert requests.post(f"{url}/feedback", data=b" " * 3_000_000, timeout=30).status_code == 413
        predict(url, [photos[0]], 60)
    # What was answered last is there, too, although the server ended at once.
    store = WatchStore(store_path(tmp_path, NAME))
    assert store.totals("1")["photos"]["answered"] == (len(photos) + 1, 0.0)
    truths = tmp_path / "truths.csv"
    truths.write_text(f"sha256,count\n{hashlib.sha256(photos[5]).hexdigest()},{len(photos[5])}\n")
    found = json.loads(run(server, tmp_path, NAME, "--truths", str(truths), "--json"))
    assert found["photos"]["answered"] == len(photos) + 1 and found["reference_photos"] == len(photos)
    assert (found["live"]["right"], found["live"]["photos"]) == (4, 5)
    assert found["truths"] == {"given": 1, "answered": 1} and not found["notes"]
    assert found["figures"]["sharpness"]["reading"] == "too few photos"
    version = client.get_model_version(NAME, "1")
    assert version.tags["monitor"].startswith("no verdict yet")
    assert version.tags["monitor.accuracy"].endswith("on 5 photos")
    assert [file.path for file in client.list_artifacts(version.run_id, "watch/version-1")] == [
        "watch/version-1/monitor-1.html"
    ]
    text = run(server, tmp_path, NAME)
    assert "accuracy 80.0% (37.6% to 96.4%)" in text and "brightness" in text
    with pytest.raises(UserError, match=f"version 2 of {NAME} was not watched") as mistake:
        run(server, tmp_path, f"{NAME}/2")
    assert mistake.value.hint == f"watched: {NAME}/1"
    with pytest.raises(UserError, match=f"no server of {NAME} has counted anything"):
        run(server, tmp_path / "elsewhere", NAME)


@pytest.mark.integration  # three versions are served, one after another
def test_versions_are_watched_apart_while_the_champion_changes(
    server: str, client: MlflowClient, manifest: Manifest, tmp_path: Path
) -> None:
    photo = manifest.split("test")[0].path.read_bytes()
    client.set_registered_model_alias(NAME, "champion", "1")
    with served(server, tmp_path, "--follow") as url:
        predict(url, [photo], 60)
        client.set_registered_model_alias(NAME, "champion", "2")
        deadline = time.monotonic() + PATIENCE
        while requests.get(f"{url}/ping", timeout=30).headers["Model-Version"] != "2":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        predict(url, [photo, photo], 60)
        assert metric(url, "binsweep_photos_total", version="2", state="answered") == 2
    store = WatchStore(store_path(tmp_path, NAME))
    assert store.totals("1")["photos"]["answered"][0] == 1  # photos of the warm-up are not counted
    found = json.loads(run(server, tmp_path, NAME, "--json"))
    assert found["version"] == "2" and found["figures"] == {}
    assert found["notes"] == ["nothing to compare with: the version does not record its data"]
    client.set_registered_model_alias(NAME, "champion", "1")


@pytest.mark.integration  # two versions are served
def test_a_challenger_in_the_shadow_is_asked_and_compared(
    server: str, client: MlflowClient, manifest: Manifest, tmp_path: Path
) -> None:
    photos = [item.path.read_bytes() for item in manifest.split("test")]
    with served(server, tmp_path, "--shadow", "2", "--shadow-share", "1") as url:
        store, deadline = WatchStore(store_path(tmp_path, NAME)), time.monotonic() + PATIENCE
        predict(url, photos, 60)
        while not store.challengers("1"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert len(store.shadowed("1", "2")) == len(photos)
    # Both are the same model: here one answers otherwise, and a person knows which of them is right.
    first, _ = store.shadowed("1", "2")[0]
    store.add_shadowed("1", "2", [replace(first, other="7")])
    store.add_truths([(first.sha256, "7")])
    environment = {"BINSWEEP_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": server}
    done = CliRunner(env=environment).invoke(
        cli, ["shadow", "report", NAME, "--json"], catch_exceptions=False
    )
    found = json.loads(done.stdout)
    assert (found["every"]["photos"], found["every"]["differing"]) == (len(photos), 1)
    assert found["pairs"] == [[json.loads(first.answer), 7, 1]]
    assert found["judged"]["only_challenger"] == found["judged"]["challenger_right"] == 1
    assert found["judged"]["only_served"] == 0 and found["judged"]["p"] == 0.25
    version = client.get_model_version(NAME, "2")
    assert version.tags["shadow"] == found["line"] and f"1 of {len(photos)} photos" in found["line"]
    done = CliRunner(env=environment).invoke(cli, ["shadow", "report", NAME], catch_exceptions=False)
    assert "commonest differences: " in done.stdout and "by the confidence of version 1" in done.stdout
    with pytest.raises(UserError, match=f"version 9 was not asked in the shadow of {NAME} version 1"):
        CliRunner(env=environment).invoke(
            cli, ["shadow", "report", NAME, "--challenger", "9"], catch_exceptions=False
        )


@pytest.mark.parametrize("words", [["--follow"], ["--check"], ["--no-watch"]])
def test_a_challenger_is_only_asked_next_to_one_watched_version(words: list[str]) -> None:
    with pytest.raises(UserError, match=f"--shadow with {words[0]}"):
        cli.main(["serve", "counter", "--shadow", "challenger", *words], standalone_mode=False)


@pytest.mark.integration
def test_a_home_that_cannot_be_written_leaves_the_model_served(
    server: str, client: MlflowClient, manifest: Manifest, tmp_path: Path
) -> None:
    photo = manifest.split("test")[0].path.read_bytes()
    store_path(tmp_path, NAME).parent.mkdir(parents=True)
    store_path(tmp_path, NAME).write_bytes(b"not a database" * 100)
    for options in ([], ["--no-watch"]):
        with served(server, tmp_path, *options) as url:
            assert predict(url, [photo], 60)[0]["count"] == len(photo)
            assert requests.get(f"{url}/metrics", timeout=30).status_code == 404
