"""The whole way, from a sweep to its served champion, on MLflow servers as others run them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from nginx import PASSWORD, TOKEN, USER, nginx
from PIL import Image
from real_sweeps import RAW, run_here, runs_of

from binsweep.tracking.mlflow_server.embedded import tracking_server
from binsweep.tracking.processes import Server, end, free_port, started_at, wait_until_answers
from binsweep.tracking.promotion.registry_run import EXPERIMENT, REGISTERED, SOURCE_RUN
from binsweep.tracking.registry.versions import versions_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos whose colour says their count, so that the first model becomes champion."""
    folder = tmp_path_factory.mktemp("colours")
    draw = np.random.default_rng(0)
    for count, colour in enumerate([(230, 30, 30), (30, 230, 30), (30, 30, 230)]):
        (folder / str(count)).mkdir()
        for number in range(50):
            pixels = np.clip(np.array(colour) + draw.integers(-25, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(count) / f"{count}-{number}.jpg")
    return folder


def sweep_file(folder: Path, colours: Path, name: str) -> Path:
    spec = {
        **RAW,
        "name": name,
        "data": {"source": str(colours), "image_size": 64},
        "model": {**RAW["model"], "weights": "none"},
        "space": {"lr": {"low": 1e-2, "high": 0.03, "log": True}, "epochs": [8]},
        "budget": {"trials": 2},
        "register": {"model": name, "finalists": 0},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


def succeed(*words: str | Path, **settings: str) -> str:
    done = run_here(*words, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def whole_way(folder: Path, colours: Path, name: str, settings: dict[str, str]) -> dict[str, str]:
    """A sweep, its promotion and its served champion; returns the settings with the home."""
    settings = {**settings, "BINSWEEP_HOME": str(folder / "home")}
    succeed("sweep", sweep_file(folder, colours, name), "--runner", "local", **settings)
    assert "2 completed" in succeed("status", f"{name}-1", **settings)
    assert json.loads(succeed("promote", f"{name}-1", "--json", **settings))["promoted"]
    assert json.loads(succeed("serve", "--check", name, "--json", **settings))["rule"]["passed"]
    return settings


def files_with(folder: Path, secret: str) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


def test_through_nginx_with_tls_a_login_a_path_and_without_health(
    server: str, server_home: Path, tmp_path: Path, colours: Path
) -> None:
    (tmp_path / "nginx").mkdir()
    with nginx(server, tmp_path / "nginx") as addresses:
        settings = {
            "MLFLOW_TRACKING_URI": addresses["all"].replace("//", f"//{USER}:{quote(PASSWORD, safe='')}@"),
            "MLFLOW_TRACKING_SERVER_CERT_PATH": addresses["authority"],
        }
        whole_way(tmp_path, colours, "nginx-all", settings)
        small = {**settings, "MLFLOW_TRACKING_URI": addresses["small"]}
        done = run_here("promote", "nginx-all-1", BINSWEEP_HOME=str(tmp_path / "home"), **small)
        assert done.returncode == 2 and "client_max_body_size" in done.stderr, done.stderr
    assert MlflowClient(server).get_model_version_by_alias("nginx-all", "champion").version == "1"
    assert len(versions_of(server, "nginx-all")) == 1
    assert not files_with(tmp_path / "home", PASSWORD) and not files_with(server_home, PASSWORD)


@pytest.fixture
def second(tmp_path: Path) -> Iterator[str]:
    """Another MLflow server, of another home."""
    with tracking_server(tmp_path / "second") as uri:
        yield uri


def test_a_registry_on_another_server_has_the_models_and_not_the_runs(
    server: str, second: str, tmp_path: Path, colours: Path
) -> None:
    settings = {"MLFLOW_TRACKING_URI": server, "MLFLOW_REGISTRY_URI": second}
    settings = whole_way(tmp_path, colours, "elsewhere", settings)
    here, there = MlflowClient(server, registry_uri=server), MlflowClient(second, registry_uri=second)
    assert not [model for model in here.search_registered_models() if model.name == "elsewhere"]
    champion = there.get_model_version_by_alias("elsewhere", "champion")
    _, trials = runs_of(server, "elsewhere")
    (source,) = [run for run in trials.values() if REGISTERED in run.data.tags]
    assert source.data.tags[REGISTERED] == f"{second}/#/models/elsewhere/versions/1"
    held = there.get_run(champion.run_id)
    assert held.data.tags[SOURCE_RUN] == source.info.run_id
    assert {"lr": held.data.params["lr"]}.items() <= source.data.params.items()
    # A second promotion has a second champion's rights judged, from the same run there.
    succeed("promote", "elsewhere-1", **settings)
    place = there.get_experiment_by_name(EXPERIMENT)
    assert place is not None and len(there.search_runs([place.experiment_id])) == 1
    there.set_model_version_tag("elsewhere", "2", "champion.before", "1")
    there.set_registered_model_alias("elsewhere", "champion", "2")
    assert "version 1 is champion again" in succeed("rollback", "elsewhere", **settings)
    assert there.get_model_version_by_alias("elsewhere", "champion").version == "1"
    succeed("evaluate", "elsewhere", colours, **settings)
    assert '"count": 1' in succeed("predict", colours / "1", "--model", "elsewhere", "--json", **settings)
    succeed("export", "elsewhere", "--format", "onnx", "--out", tmp_path / "onnx", **settings)
    # Where the model is served, the registry's server is enough.
    alone = {"MLFLOW_TRACKING_URI": second, "BINSWEEP_HOME": str(tmp_path / "home")}
    assert json.loads(succeed("serve", "--check", "elsewhere", "--json", **alone))["rule"]["passed"]


@contextmanager
def other_mlflow(requirement: str, folder: Path) -> Iterator[str]:
    """A server of another version of MLflow, installed into an environment of its own."""
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=300)
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", requirement], capture_output=True, text=True, timeout=1200
    )
    if done.returncode != 0:
        pytest.skip(f"{requirement} cannot be installed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    port, data = free_port(), folder / "mlflow"
    data.mkdir()
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{data / 'mlflow.db'}"]
    words += ["--artifacts-destination", (data / "artifacts").as_uri()]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PYTHON"))}
    environment = {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(
            [python, "-m", "mlflow", *words], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    server = Server(child.pid, started_at(psutil.Process(child.pid)), port)
    try:
        assert wait_until_answers(server, "/health", 300), (folder / "log").read_text()[-2000:]
        yield server.url
    finally:
        end(server)


@pytest.mark.night  # an environment for each
@pytest.mark.parametrize("requirement", ["mlflow==3.16.*", "mlflow==3.18.*"])
def test_a_server_one_minor_version_older_or_newer(requirement: str, tmp_path: Path, colours: Path) -> None:
    with other_mlflow(requirement, tmp_path) as uri:
        whole_way(tmp_path, colours, "other-version", {"MLFLOW_TRACKING_URI": uri})
        assert MlflowClient(uri).get_model_version_by_alias("other-version", "champion").version == "1"


def test_what_nginx_refuses_is_said_before_a_sweep_begins(server: str, tmp_path: Path, colours: Path) -> None:
    (tmp_path / "nginx").mkdir()
    home = {"BINSWEEP_HOME": str(tmp_path / "home")}
    file = sweep_file(tmp_path, colours, "refused")
    with nginx(server, tmp_path / "nginx") as addresses:
        for kind, more, text in (
            ("basic", {}, "set MLFLOW_TRACKING_USERNAME"),
            (
                "basic",
                {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": "no"},
                "it does not accept",
            ),
            (
                "token",
                {"MLFLOW_TRACKING_TOKEN": f"{TOKEN}-old"},
                "it does not accept what MLFLOW_TRACKING_TOKEN",
            ),
            ("tls", {}, "MLFLOW_TRACKING_SERVER_CERT_PATH"),
            ("path", {"MLFLOW_TRACKING_URI": addresses["path"].removesuffix("/mlflow")}, "a wrong path?"),
        ):
            done = run_here(
                "sweep", file, "--runner", "local", **{**home, "MLFLOW_TRACKING_URI": addresses[kind], **more}
            )
            assert done.returncode == 2 and text in done.stderr, done.stderr
            assert "<" not in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "sweeps").exists()
