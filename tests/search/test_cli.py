"""The command line as a person meets it: output and exit codes, of real processes where it does not end at once."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from PIL import Image
from real_sweeps import run_here

from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.search.cli.options import parse_counts
from binsweep.search.cli.sweep import _print_leaderboard, _print_next_commands
from binsweep.search.execution.trial_record import TrialRecord
from binsweep.search.spec.parser import load_spec, parse_spec
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.terminal.streams import redirect_to_null
from binsweep.search.workflows.home import model_uri
from binsweep.search.workflows.sweep import SweepResult

QUICK = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
SPACE = {"lr": {"low": 1e-4, "high": 0.01, "log": True}, "batch_size": [8], "epochs": [3, 4]}


def binsweep(
    *arguments: str | Path, home: Path, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "binsweep", *map(str, arguments)],
        env={**os.environ, "BINSWEEP_HOME": str(home), **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def here(*arguments: str | Path, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return run_here(*arguments, BINSWEEP_HOME=str(home), **env)


def write_spec(folder: Path, source: Path | str, **changes: object) -> Path:
    data = {"source": str(source), "image_size": 64}
    raw = {"name": "cli", "data": data, "space": SPACE, "budget": {"trials": 20}, **changes}
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def mistaken(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """One message with all of `said`, exit code 2, no traceback, nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    for text in said:
        assert text in done.stderr


def test_a_dry_run_checks_and_prints_the_resolved_spec(tmp_path: Path) -> None:
    done = here("sweep", QUICK, "--dry-run", "--set", "budget.trials=3", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["budget"]["trials"] == 3
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("assignments", "warns"),
    [
        (["model.weights=none", "fidelity.trainable=[head, last_stage]"], True),
        (["model.weights=none", "fidelity.trainable=[last_stage, all]"], False),
        (["model.weights=imagenet", "fidelity.trainable=[head, last_stage]"], False),
    ],
)
def test_a_head_on_a_random_network_is_warned_of(tmp_path: Path, assignments: list[str], warns: bool) -> None:
    file = tmp_path / "digits.yaml"
    file.write_text("name: d\ndata: {source: synthetic}\nspace: {lr: [0.1, 0.01]}\nbudget: {trials: 3}\n")
    options = [part for assignment in assignments for part in ("--set", assignment)]
    done = here("sweep", file, "--dry-run", *options, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert ("warning: with weights: none and fidelity.trainable: head" in done.stderr) == warns


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["budgett.trials=3"], ["budgett", "did you mean 'budget'"]),
        (["resources.gpus_per_trial=64"], ["resources.gpus_per_trial", "64", "at most"]),
        (["space.backbone=[resnet50]"], ["resnet50", "efficientnet_lite0"]),
    ],
)
def test_mistakes_in_a_spec(tmp_path: Path, assignments: list[str], said: list[str]) -> None:
    options = [part for assignment in assignments for part in ("--set", assignment)]
    done = here("sweep", QUICK, "--dry-run", *options, home=tmp_path, TORCH_HOME=str(tmp_path))
    mistaken(done, *said)


@pytest.mark.parametrize(
    ("words", "new"),
    [
        (("stop", "abid-1", "--address", "http://127.0.0.1:8265"), "--dashboard"),
        (("status", "--address", "http://127.0.0.1:8265"), "--dashboard"),
        (("data", "report", "bins", "--out", "report.html", "--by", "group"), "--split-by"),
    ],
)
def test_the_former_spelling_of_an_option_is_refused(
    words: tuple[str, ...], new: str, tmp_path: Path
) -> None:
    mistaken(here(*words, home=tmp_path / "home"), f"is now called {new}", f"use {new} {words[-1]}")


def test_mistakes_in_the_data(tmp_path: Path, bins: Path) -> None:
    home = tmp_path / "home"
    empty = tmp_path / "empty"
    empty.mkdir()
    mistaken(here("sweep", write_spec(tmp_path, empty), "--runner", "local", home=home), str(empty))
    mistaken(here("sweep", write_spec(tmp_path, tmp_path / "none"), "--runner", "local", home=home), "none")
    large = write_spec(tmp_path, bins, space={**SPACE, "batch_size": [8, 4096]})
    mistaken(here("sweep", large, "--runner", "local", home=home), "batch_size", "4096")
    assert not (home / "sweeps").exists()


def test_data_of_one_class_or_without_a_readable_image(tmp_path: Path) -> None:
    one = tmp_path / "one"
    (one / "3").mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(one / "3" / "a.jpg")
    mistaken(here("sweep", write_spec(tmp_path, one), "--runner", "local", home=tmp_path), "class", "3")

    broken = tmp_path / "broken"
    (broken / "bin-images").mkdir(parents=True)
    (broken / "metadata").mkdir()
    whole = (one / "3" / "a.jpg").read_bytes()
    contents = {"cut": whole[:200], "empty": b"", "text": b"not a picture", "unlabelled": whole}
    for number, (name, content) in enumerate(contents.items()):
        (broken / "bin-images" / f"{name}.jpg").write_bytes(content)
        label = {} if name == "unlabelled" else {"EXPECTED_QUANTITY": number}
        (broken / "metadata" / f"{name}.json").write_text(json.dumps({"BIN_FCSKU_DATA": {}, **label}))
    said = here("sweep", write_spec(tmp_path, broken), "--runner", "local", home=tmp_path)
    mistaken(said, str(broken), "hint:")
    for name in contents:
        assert name in said.stderr, said.stderr


def test_a_tracking_server_that_is_not_there(tmp_path: Path, bins: Path) -> None:
    done = binsweep(
        "sweep", write_spec(tmp_path, bins), home=tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:9"
    )
    mistaken(done, "http://127.0.0.1:9", "hint:")


def test_a_port_that_is_taken(tmp_path: Path, server: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        mistaken(here("ui", "--port", port, home=tmp_path), port)
        mistaken(here("mlflow", "--port", port, home=tmp_path), port)
        done = here("serve", "--port", port, home=tmp_path, MLFLOW_TRACKING_URI=server)
        mistaken(done, port)


def test_following_waits_for_an_mlflow_that_is_not_there_yet(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with subprocess.Popen(
        [sys.executable, "-m", "binsweep", "serve", "counter", "--follow", "--port", port],
        env={**os.environ, "BINSWEEP_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert said.startswith("not serving: MLflow at http://127.0.0.1:9 cannot be queried: ")
        finally:
            process.terminate()
        assert process.wait(60) == 130
    mistaken(here("serve", "x", "--follow", home=tmp_path, MLFLOW_TRACKING_URI="./mlruns"), "./mlruns")


def test_a_model_that_is_not_registered(tmp_path: Path, server: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    for command in (
        ["serve", "no-such-model"],
        ["predict", str(tmp_path / "photo.jpg"), "--model", "no-such-model"],
    ):
        mistaken(here(*command, home=tmp_path, MLFLOW_TRACKING_URI=server), "no-such-model", "hint:")


def test_only_the_dash_reads_stdin(tmp_path: Path) -> None:
    """Started without one, as by some schedulers and service managers."""
    for place, said in (
        (str(tmp_path / "none.jpg"), "no such file"),
        ("-", "neither a photo nor a name on stdin"),
    ):
        closed = 'exec "$@" <&-'
        done = subprocess.run(
            ["bash", "-c", closed, "bash", sys.executable, "-m", "binsweep", "predict", place],
            env={**os.environ, "BINSWEEP_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        mistaken(done, said)


def without_a_reader(home: Path, *words: str) -> tuple[int, str]:
    """The exit code and stderr of a command whose stdout nobody reads, as after `| head -1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "binsweep", *words],
        env={**os.environ, "BINSWEEP_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        return process.wait(120), said


@pytest.mark.parametrize("words", [["sweep", str(QUICK), "--dry-run"], ["--help"], ["status", "--help"]])
def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path, words: list[str]) -> None:
    assert without_a_reader(tmp_path, *words) == (128 + signal.SIGPIPE, "")


def test_a_mistake_is_told_although_nobody_reads_stdout(tmp_path: Path) -> None:
    code, said = without_a_reader(tmp_path, "report", "nothing")
    assert code == 2 and "no sweep 'nothing'" in said


def test_a_leaderboard_that_nobody_reads_ends_no_promotion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich would end the process with 1, without a word."""
    spec = load_spec(QUICK)
    trial = TrialRecord(
        0, {"lr": 0.1}, spec.levels(spec.settings), tmp_path, "for a test", value=0.5, state="completed"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with contextlib.suppress(BrokenPipeError):
            _print_leaderboard(SweepResult("quick-1", tmp_path, [trial], [], "budget.trials", False, 0), spec)
        redirect_to_null(writer)


def spec_of(model: str) -> SweepSpec:
    raw = {
        "name": "tiny",
        "data": {"source": "./bins"},
        "space": {"lr": [0.1]},
        "budget": {"trials": 1},
        "register": {"model": model},
    }
    return parse_spec(raw)


def test_the_next_commands_are_of_the_sweeps_model_and_can_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _print_next_commands(
        tmp_path, "tiny-1", spec_of("bin-counter"), (1, 2), promoted=False, has_champion=False
    )
    said = capsys.readouterr().out
    assert "  binsweep promote tiny-1          test the best" in said
    assert "  binsweep serve                   serve the champion" in said
    _print_next_commands(tmp_path, "tiny-1", spec_of("a b"), (1, 2), promoted=True, has_champion=True)
    said = capsys.readouterr().out
    assert "promote" not in said and "binsweep serve 'a b'" in said and "PHOTO.jpg --model 'a b'" in said
    _print_next_commands(
        tmp_path, "tiny-1", spec_of("bin-counter"), (1, 2), promoted=True, has_champion=False
    )
    said = capsys.readouterr().out
    assert "binsweep ui" in said and "serve" not in said and "predict" not in said


def test_other_mistakes(tmp_path: Path) -> None:
    mistaken(here("promote", "nothing", home=tmp_path, MLFLOW_TRACKING_URI=""), "no sweep 'nothing'")
    mistaken(here("predict", tmp_path / "none.jpg", home=tmp_path), "no such file")
    mistaken(here("data", "synth", tmp_path / "out", "--classes", "five", home=tmp_path), "five")


@pytest.mark.parametrize(
    "words",
    [("report", "none"), ("evaluate", "none", "none"), ("data", "report", "none"), ("data", "audit", "none")],
)
def test_an_answer_that_cannot_be_written_is_told_before_any_work(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    """Before anybody looks for the sweep, the model or the photos, which do not exist either."""
    (tmp_path / "file").write_text("mine")
    page = "page.html" if "report" in words else ""
    for place in (tmp_path / "file" / page, tmp_path / "file" / "deep" / "er" / page):
        done = here(*words, "--out", place, home=tmp_path / "home")
        mistaken(done, f"--out {place}", "Not a directory")
    if page:
        (tmp_path / page).mkdir()
        mistaken(here(*words, "--out", tmp_path / page, home=tmp_path / "home"), "is a folder")
    mistaken(here(*words, "--out", tmp_path / "new" / page, home=tmp_path / "home"), "none")
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "page.html", "home"}
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.integration
def test_a_sweep_answers_in_json_and_keeps_its_secrets(
    tmp_path: Path, bins: Path, server: str, server_home: Path
) -> None:
    spec = write_spec(tmp_path, bins, budget={"trials": 2}, register={"finalists": 0})
    secret = "planted-8c1f7e2a"
    said = {"home": tmp_path / "home", "MLFLOW_TRACKING_URI": server.replace("//", f"//user:{secret}@")}
    said |= {"AWS_SECRET_ACCESS_KEY": secret, "RAY_AUTH_TOKEN": secret}
    swept = binsweep("sweep", spec, "--runner", "local", "--json", "--promote", **said)
    assert swept.returncode == 0, swept.stderr
    answer = json.loads(swept.stdout)
    assert answer["sweep"] == "cli-1" and len(answer["leaderboard"]) == 2
    assert set(answer["leaderboard"][0]["params"]) == set(SPACE)
    assert "2/2 trials" in swept.stderr
    promotion = answer["promotion"]
    # On 14 photos even a good model may not be better beyond chance.
    assert "as the sweep left it" in promotion["notes"][0]
    assert promotion["version"] == "1" and promotion["promoted"] == (
        "does not beat" not in promotion["reason"]
    )
    if promotion["promoted"]:
        assert answer["proof"]["count"] in (0, 1, 2)

    # One bad photo among good ones costs no other its answer.
    photo = next((bins / "bin-images").iterdir())
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    version = ["--model", "bin-counter/1", "--json"]
    done = binsweep("predict", photo, tmp_path / "bad.jpg", photo, *version, **said)
    assert done.returncode == 1, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["count"] for row in rows] == [rows[0]["count"], None, rows[0]["count"]]
    assert rows[1]["error"] and not rows[0]["error"] and rows[0]["count"] in (0, 1, 2)
    lost = {**said, "MLFLOW_TRACKING_URI": f"http://user:{secret}@127.0.0.1:9"}
    refused = binsweep("predict", photo, *version, **lost)
    assert refused.returncode == 2 and "http://127.0.0.1:9" in refused.stderr

    places = [file for folder in (tmp_path, server_home) for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "mlflow.db" for file in places)
    assert [file for file in places if secret.encode() in file.read_bytes()] == []
    assert all(secret not in text for end in (swept, done, refused) for text in (end.stdout, end.stderr))


@pytest.mark.integration  # six commands, three of which load a model
def test_a_promoted_model_is_checked_evaluated_and_asked(tmp_path: Path, server: str) -> None:
    bins = tmp_path / "bins"
    write_synthetic(bins, 240, 0, 64, [0, 1, 2])
    said: dict[str, Any] = {"home": tmp_path / "home", "MLFLOW_TRACKING_URI": server, "timeout": 280}
    register = {"model": "checked", "finalists": 1, "seeds": 1}
    spec = write_spec(tmp_path, bins, name="checked", budget={"trials": 1}, register=register)
    gone = tmp_path / "exclude.csv"  # its own test split is recognised although training left photos out
    gone.write_text("id\n" + "\n".join(path.stem for path in sorted((bins / "bin-images").iterdir())[:10]))
    exclude = f"data.exclude={gone}"
    done = binsweep("sweep", spec, "--runner", "local", "--set", exclude, **said)
    assert done.returncode == 0 and "excluded by" in done.stderr, done.stderr
    done = binsweep("promote", "checked", **said)
    assert done.returncode == 0 and "checked version 1: champion" in done.stdout, done.stdout + done.stderr
    assert "finalists by mean val_accuracy of 1 fresh seed" in done.stdout

    done = binsweep("serve", "checked", "--check", **said)
    assert done.returncode == 0 and "checked version 1: agrees" in done.stdout, done.stdout + done.stderr
    assert "0 other counts" in done.stdout and "p50" in done.stdout and "p99" in done.stdout

    done = binsweep("evaluate", "checked", bins, "--json", **said)
    assert done.returncode == 0, done.stderr
    own = json.loads(done.stdout)
    assert "the test split" in own["facts"]["photos"] and own["images"] < 80
    files = {file.name for file in Path(own["folder"]).iterdir()}
    wanted = {"report.html", "scores.json", "predictions.parquet", "reliability.png", "mistakes.jpg"}
    assert wanted <= files and not any("tmp" in name for name in files)
    page = (Path(own["folder"]) / "report.html").read_text()
    assert "http://" not in page and "https://" not in page and page.count("data:image/png;") == 2
    assert page.count("data:image/jpeg;") == 1
    assert (
        set(own["scores"]) == {"accuracy", "rmse", "mae", "within_one", "macro_f1"} == set(own["intervals"])
    )
    assert (
        set(own["decodings"]) == {"argmax", "median", "mean", "compromise"}
        and own["scores"] == own["decodings"]["argmax"]
    )

    other = tmp_path / "other"
    write_synthetic(other, 30, 1, 64, [0, 1, 2])
    done = binsweep("evaluate", "checked", other, "--out", tmp_path / "report", **said)
    assert done.returncode == 0 and "on 30 photos: all photos of" in done.stdout, done.stderr
    assert (tmp_path / "report" / "report.html").exists()

    some = sorted((bins / "bin-images").iterdir())[:40]
    command = [sys.executable, "-m", "binsweep", "predict", "-", "--model", "checked"]
    env = {**os.environ, "BINSWEEP_HOME": str(said["home"]), "MLFLOW_TRACKING_URI": server}
    listed = "\n".join(map(str, some)).encode()
    asked = subprocess.run(command, input=listed, env=env, capture_output=True, timeout=300)
    assert asked.returncode == 0, asked.stderr
    lines = asked.stdout.decode().splitlines()
    assert lines[0].split() == ["items", "confidence", "expected", "photo"] and len(lines) == 41
    assert b"predicting: 40 images" in asked.stderr

    # Predictions that are not those of the served model are found out.
    from mlflow import MlflowClient

    client = MlflowClient(server)
    version = client.get_model_version("checked", "1")
    kept = client.download_artifacts(
        version.run_id or "", "test/version-1/predictions.parquet", str(tmp_path)
    )
    table = pd.read_parquet(kept)
    table["predicted"] = (table["predicted"] + 1) % 3
    table.to_parquet(tmp_path / "predictions.parquet", index=False)
    client.log_artifact(version.run_id or "", str(tmp_path / "predictions.parquet"), "test/version-1")
    done = binsweep("serve", "checked", "--check", **said)
    assert done.returncode == 1 and "DOES NOT AGREE" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("number", "runner"),
    [
        (signal.SIGINT, "local"),
        *(
            pytest.param(number, "ray", marks=pytest.mark.integration)
            for number in (signal.SIGTERM, signal.SIGINT)
        ),
        pytest.param(signal.SIGTERM, "local", marks=pytest.mark.integration),
    ],
)
def test_an_interrupted_sweep_ends_with_130_and_leaves_nothing_running(
    tmp_path: Path, bins: Path, server: str, number: signal.Signals, runner: str
) -> None:
    name = f"stopped-{number.name}-{runner}"
    spec = write_spec(tmp_path, bins, name=name, budget={"trials": 500})
    home = tmp_path / "home"
    process = subprocess.Popen(
        [sys.executable, "-m", "binsweep", "sweep", str(spec), "--runner", runner],
        env={**os.environ, "BINSWEEP_HOME": str(home), "MLFLOW_TRACKING_URI": server},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if " completed " in line or " stopped " in line:
            break
    own = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "the same command goes on" in errors
    assert "received at time" not in errors  # Ray's own answer to signals
    _, there = psutil.wait_procs(own, timeout=20)
    # In a container without an init process nobody collects what has ended.
    assert [one for one in there if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    if "did not reach" in errors:  # a slow server may still lack some, as long as the sweep says so
        assert binsweep("sync", home=home, MLFLOW_TRACKING_URI=server).returncode == 0

    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "KILLED"


def test_doctor_has_a_line_for_everything(tmp_path: Path) -> None:
    done = here("doctor", "--json", home=tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    findings = {line["name"]: line for line in json.loads(done.stdout)}
    assert {"python", "versions", "cpu", "gpu", "/dev/shm", "disk", "ray", "mlflow", "weights"} <= set(
        findings
    )
    assert done.returncode == 1 and not findings["mlflow"]["ok"] and findings["mlflow"]["remedy"]
    assert findings["ray"]["ok"] and "efficientnet_lite0" in findings["weights"]["text"]


def test_nothing_to_send_is_said_and_makes_no_home(tmp_path: Path) -> None:
    done = here("sync", home=tmp_path / "home")
    assert done.returncode == 0 and f"no sweep in {tmp_path / 'home'}" in done.stderr
    assert not (tmp_path / "home").exists()


def test_synth_renders_a_data_set(tmp_path: Path) -> None:
    done = here("data", "synth", tmp_path / "out", "--images", "6", "--size", "64", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "bin-images").iterdir())) == 6


def test_short_forms() -> None:
    assert parse_counts("0-3") == [0, 1, 2, 3] and parse_counts("5,1") == [5, 1]
    assert model_uri("m") == "models:/m@champion" and model_uri("m@x") == "models:/m@x"
    assert model_uri("m/3") == "models:/m/3" and model_uri("runs:/a/b") == "runs:/a/b"


def test_the_ui_answers_and_ends_on_interrupt(tmp_path: Path) -> None:
    import requests

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "binsweep", "ui", "--port", str(port)],
        env={**os.environ, "BINSWEEP_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        link = process.stdout.readline().split()[0]
        base, _, token = link.partition("/#token=")
        assert base == f"http://127.0.0.1:{port}" and len(token) > 30
        assert "<title>binsweep" in requests.get(base, timeout=20).text
        told = requests.get(f"{base}/api/session", headers={"X-Binsweep-Token": token}, timeout=20)
        assert told.json()["home"] == str(tmp_path / "home")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.2)
    raise AssertionError("the UI still listens")
