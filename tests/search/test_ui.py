"""The page's server: who may ask it, what it tells, and that its buttons leave durable requests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from mlflow import MlflowClient
from recorded_sweeps import Recorded, random_sweep
from ui_server import TOKEN, Page, served

from binsweep.search.history.run_log_reader import RunLogReader, read_history
from binsweep.search.steering.inbox import waiting_requests
from binsweep.search.ui.guard import ticket
from binsweep.search.ui.live_sweep import LiveSweep
from binsweep.search.ui.views import Home
from binsweep.tracking.processes import free_port

ODD = "a <img src=x onerror=alert(1)> & ünï'code-1"
PARAMS = {"backbone": "resnet18", "lr": 0.01, "weight_decay": 0.1, "epochs": 9}


@dataclass
class Opened:
    page: Page
    home: Path
    live: Recorded  # runs, as far as its files tell: this process owns its run log


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[Opened]:
    home = tmp_path_factory.mktemp("ui") / "home"
    for name, trials in (("wide-1", 30), ("wide-2", 20), (ODD, 12)):
        random_sweep(home / "sweeps" / name, trials, seed=trials)
    (home / "sweeps" / "broken-1").mkdir()
    (home / "sweeps" / "broken-1" / "sweep.json").write_text("{")
    live = Recorded(home / "sweeps" / "live-1", "running")
    live.at = time.time()
    live.start(0, **PARAMS)
    live.epoch(0, 1, 0.4)
    live.start(1, **{**PARAMS, "lr": 0.02})
    live.tags(1, state="stopped", ended_because="<img src=x onerror=alert(1)>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        with served(home) as page:
            while page.mlflow.url is None:
                assert not page.mlflow.problem
                time.sleep(0.05)
            yield Opened(page, home, live)
    live.close()


GETS = [
    "/api/session",
    "/api/sweeps",
    "/api/sweeps/wide-1",
    "/api/sweeps/wide-1/links",
    "/api/sweeps/wide-1/log",
    "/api/sweeps/wide-1/conclusions",
    "/api/sweeps/wide-1/trials/3",
    "/api/sweeps/wide-1/promotion",
    "/api/compare?sweep=wide-1&sweep=wide-2",
    "/api/models",
]
POSTS: list[tuple[str, Any]] = [
    ("/api/sweeps/live-1/ask", {"kind": "pause", "check": True}),
    ("/api/sweeps/live-1/promotion", {"dry_run": True}),
    ("/api/sweeps/live-1/promotion/interrupt", {}),
    ("/api/models/none/rollback", {"reason": "a test"}),
]


@pytest.mark.parametrize("path", GETS)
def test_all_that_is_told_needs_the_token_and_the_own_host(path: str, opened: Opened) -> None:
    page, port = opened.page, opened.page.base.rsplit(":", 1)[1]
    assert page.get(path).status_code == 200
    assert page.get(path, Host=f"localhost:{port}").status_code == 200
    assert requests.get(page.base + path, timeout=20).status_code == 401
    assert page.get(path, X_Binsweep_Token="another").status_code == 401
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}"):
        assert page.get(path, Host=host).status_code == 403, host  # a name that was rebound to this machine
    assert page.get(path, Sec_Fetch_Site="cross-site").status_code == 403
    assert page.get(path, Sec_Fetch_Site="same-site").status_code == 403  # another port of this machine


@pytest.mark.parametrize(("path", "body"), POSTS)
def test_only_a_page_of_its_own_origin_may_act(path: str, body: Any, opened: Opened) -> None:
    page, port = opened.page, opened.page.base.rsplit(":", 1)[1]
    for origin in (
        "http://evil.example",
        "null",
        f"http://localhost:{port}",
        f"https://127.0.0.1:{port}",
        "",
    ):
        assert page.post(path, body, Origin=origin).status_code == 403, origin
    assert page.post(path, body, Host="evil.example").status_code == 403
    assert page.post(path, body, X_Binsweep_Token="").status_code == 401
    assert page.post(path, body, Content_Type="text/plain").status_code == 415  # what a form could send
    large = page.post(path, {**body, "reason": "x" * 100_000})
    assert large.status_code == 413
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = requests.request(method, page.base + path, headers={"Origin": page.base}, timeout=20)
        assert answer.status_code in (401, 405, 413, 415)
        assert "access-control-allow-origin" not in answer.headers
    assert not waiting_requests(opened.home / "sweeps" / "live-1")


def routes(page: Page) -> dict[str, set[str]]:
    """The methods of each path, as the running application has them."""
    from fastapi.routing import APIRoute

    found: dict[str, set[str]] = {}
    for route in page.routes:
        if isinstance(route, APIRoute):
            found.setdefault(route.path, set()).update(route.methods)
    return found


def test_no_get_changes_anything(opened: Opened) -> None:
    page, home = opened.page, opened.home
    known = routes(page)
    assert {path for path, methods in known.items() if methods - {"GET"}} == {
        "/api/sweeps/{sweep}/ask",
        "/api/sweeps/{sweep}/promotion",
        "/api/sweeps/{sweep}/promotion/interrupt",
        "/api/models/{model}/rollback",
    }
    values = {"sweep": "live-1", "number": "0", "name": "app.js", "path": "x.png", "model": "none"}

    def files() -> dict[Path, tuple[int, int]]:
        folders = [home / "sweeps"]
        return {
            file: (file.stat().st_size, file.stat().st_mtime_ns)
            for folder in folders
            for file in folder.rglob("*")
        }

    before = files()
    for path in known:
        address = path.replace(":path", "").format(**values)
        query = f"?ticket={ticket(TOKEN, address)}" if not address.startswith(("/api", "/static")) else ""
        query = "?sweep=wide-1&sweep=wide-2" if address == "/api/compare" else query
        assert page.get(address + query).status_code in (200, 302, 404, 405), path
    assert files() == before
    assert not list((home / "sweeps").rglob("requests/*"))


def test_the_page_itself_allows_nothing_but_its_own_files(opened: Opened) -> None:
    page = opened.page
    for path in ("/", "/static/app.js", "/static/app.css", "/static/icon.svg"):
        answer = requests.get(page.base + path, timeout=20)
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == 200 and TOKEN not in answer.text
        assert (
            "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not set(answer.headers) & {"set-cookie", "access-control-allow-origin"}
        # Nothing comes from the network, and no text of a sweep becomes markup.
        assert "https://" not in answer.text and "innerHTML" not in answer.text
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/nothing.js",
        "/docs",
        "/openapi.json",
    ):
        assert requests.get(page.base + path, timeout=20).status_code == 404, path


def test_every_sweep_is_listed_and_a_damaged_one_says_why(opened: Opened) -> None:
    lines = {line["id"]: line for line in opened.page.json("/api/sweeps")}
    assert lines.keys() == {"wide-1", "wide-2", ODD, "broken-1", "live-1"}
    assert "damaged" in lines["broken-1"]["error"]
    assert lines["live-1"]["status"] == "running" and lines["live-1"]["trials"] == 2
    assert lines["live-1"]["best"] == 0.4
    assert lines[ODD]["status"] == "finished"
    assert "damaged" in opened.page.json("/api/sweeps/broken-1")["refused"]
    for name in ("none-1", "..", "%2e%2e", "..%2fsweeps%2fwide-1"):
        answer = opened.page.get(f"/api/sweeps/{name}")
        assert answer.status_code == 404 or "there is no sweep" in answer.json()["refused"]
    assert opened.page.json(f"/api/sweeps/{requests.utils.quote(ODD)}")["sweep"]["id"] == ODD


def test_an_empty_home_has_no_sweeps(tmp_path: Path) -> None:
    assert Home(tmp_path / "not there").sweeps() == []


def test_a_sweep_is_told_as_its_history_has_it(opened: Opened) -> None:
    told, history = opened.page.json("/api/sweeps/wide-1"), read_history(opened.home / "sweeps" / "wide-1")
    trials = {trial["number"]: trial for trial in told["trials"]}
    assert told["share"] == 1 and told["all"] and trials.keys() == {trial.number for trial in history.trials}
    for trial in history.trials:
        one = trials[trial.number]
        assert (one["state"], one["done"], one["epochs"]) == (trial.state, trial.epochs_done, trial.epochs)
        assert one["curve"] == [[epoch, pytest.approx(value)] for epoch, value in trial.curve.items()]
        assert one["params"] == trial.params
    facts = told["sweep"]
    assert (facts["metric"], facts["goal"], facts["seconds"]) == ("val_accuracy", "maximize", history.seconds)
    again = opened.page.json(f"/api/sweeps/wide-1?since={told['version']}")
    assert again == {"version": told["version"], "share": 1.0, "same": True}
    assert len(opened.page.json("/api/sweeps/wide-1?since=of-another-process-7")["trials"]) == len(trials)


def test_an_epoch_is_told_alone_and_at_once(opened: Opened) -> None:
    page, live = opened.page, opened.live
    before = page.json("/api/sweeps/live-1")
    epoch = read_history(live.folder).trials[0].epochs_done + 1
    live.at = time.time()
    live.epoch(0, epoch, 0.5)
    after = page.json(f"/api/sweeps/live-1?since={before['version']}")
    (trial,) = after["trials"]
    assert not after["all"] and trial["number"] == 0 and trial["curve"][-1] == [epoch, 0.5]
    assert trial["spans"][-1][2] is None  # it has its worker still


def test_a_long_log_is_told_in_parts_that_add_up(tmp_path: Path) -> None:
    folder = random_sweep(tmp_path / "long-1", 60)
    reader, whole = RunLogReader(folder), read_history(folder)
    parts = 0
    while True:
        history = reader.read(seconds=0.0)  # a record at a time
        parts += 1
        assert len(reader.changed) <= 1
        if reader.share == 1:
            break
    assert parts > 500 and history.trials == whole.trials and history.cost == whole.cost
    trial = whole.trials[3]
    assert {
        epoch: found["val_accuracy"] for epoch, found in reader.epochs_of(3, "val_accuracy").items()
    } == trial.curve


def test_a_half_written_record_is_read_when_it_is_whole(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "torn-1", "running")
    sweep.start(0, **PARAMS)
    live = LiveSweep(sweep.folder)
    live.state()
    (spool,) = (sweep.folder / "spool").glob("*.spool")
    size = spool.stat().st_size
    sweep.epoch(0, 1, 0.7)
    whole = spool.read_bytes()
    os.truncate(spool, size + 20)
    assert json.loads(live.state())["trials"][0]["curve"] == []
    with spool.open("ab") as stream:
        stream.write(whole[size + 20 :])
    assert json.loads(live.state())["trials"][0]["curve"] == [[1, 0.7]]
    sweep.close()


def test_a_trial_that_lost_its_process_is_told_as_interrupted(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "lost-1", "running")
    sweep.start(0, **PARAMS)
    sweep.epoch(0, 1, 0.7)
    live = LiveSweep(sweep.folder)
    first = json.loads(live.state())
    assert first["trials"][0]["state"] == "running"
    sweep.close()  # nobody owns the run log any more, and no record says so
    second = json.loads(live.state(first["version"]))
    assert second["sweep"]["status"] == "unfinished" and second["trials"][0]["state"] == "interrupted"


def test_a_trial_has_its_figures_reasons_and_files(opened: Opened) -> None:
    page, folder = opened.page, opened.live.folder
    own = folder / "trial-0001" / "validation"
    own.mkdir(parents=True, exist_ok=True)
    picture, script = own / "mistakes <1>.svg", own / "notes.txt"
    picture.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    script.write_text("<script>alert(1)</script>")
    (own / "weights.pt").write_bytes(b"0")
    (own / "outside.txt").symlink_to("/etc/hostname")
    told = page.json("/api/sweeps/live-1/trials/1")
    assert told["suggested_because"] == "a guess" and told["ended_because"] == "<img src=x onerror=alert(1)>"
    files = {file["name"]: file["url"] for file in told["files"]}
    assert files.keys() == {"validation/mistakes <1>.svg", "validation/notes.txt"}
    for name, kind in (
        ("validation/mistakes <1>.svg", "image/svg+xml"),
        ("validation/notes.txt", "text/plain"),
    ):
        answer = requests.get(page.base + files[name], timeout=20)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    address = files["validation/notes.txt"]
    for other in (address.replace("notes.txt", "weights.pt"), address[:-1] + "g", address.split("?")[0]):
        assert requests.get(page.base + other, timeout=20).status_code == 401, other
    for path in ("/files/live-1/1/validation/outside.txt", "/files/live-1/1/../../sweep.json"):
        answer = requests.get(f"{page.base}{path}?ticket={ticket(TOKEN, path)}", timeout=20)
        assert answer.status_code in (401, 404)
    assert "has no trial 77" in page.json("/api/sweeps/live-1/trials/77")["refused"]


def test_the_report_is_shown_without_any_power(opened: Opened) -> None:
    links = opened.page.json("/api/sweeps/wide-1/links")
    answer = requests.get(opened.page.base + links["report"], timeout=30)
    assert "<h2>Learning curves</h2>" in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts;") and "allow-same-origin" not in policy
    assert "default-src 'none'" in policy and "connect-src" not in policy
    assert not (opened.home / "sweeps" / "wide-1" / "report.html").exists()
    missing = requests.get(opened.page.base + links["mlflow"], timeout=30)
    assert missing.status_code == 404 and "no such run yet" in missing.text


def test_sweeps_side_by_side(opened: Opened) -> None:
    told = opened.page.json("/api/compare?sweep=wide-1&sweep=wide-2")
    assert told["metric"] == "val_accuracy" and "trials" in told["axes"] and told["courses"]
    for query in ("sweep=wide-1", "sweep=wide-1&sweep=wide-1", "sweep=wide-1&sweep=none"):
        assert opened.page.json(f"/api/compare?{query}")["refused"]


REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "stop-trial", "trial": 0}, "stop-trial 0"),
    ({"kind": "pin", "trial": 0}, "pin 0"),
    ({"kind": "pause"}, "pause"),
    ({"kind": "budget", "values": {"trials": "+5", "minutes": "90"}}, "budget trials=+5 minutes=90"),
    ({"kind": "narrow", "values": {"lr": ["1e-3", "1e-2"]}}, "narrow lr=0.001..0.01"),
    ({"kind": "narrow", "values": {"backbone": ["resnet18"]}}, "narrow backbone=resnet18"),
    ({"kind": "enqueue", "trial": 0, "values": {"lr": "0.005"}}, "enqueue --like 0 lr=0.005"),
    (
        {"kind": "enqueue", "values": {name: str(value) for name, value in PARAMS.items()}},
        "enqueue backbone=resnet18 lr=0.01 weight_decay=0.1 epochs=9",
    ),
]


@pytest.mark.parametrize(("asked", "text"), REQUESTS)
def test_a_button_shows_what_would_happen_and_then_leaves_a_durable_request(
    asked: dict[str, Any], text: str, opened: Opened
) -> None:
    folder = opened.live.folder
    checked = opened.page.post("/api/sweeps/live-1/ask", {**asked, "check": True})
    assert "answer" in checked.json(), checked.text
    assert not waiting_requests(folder)
    began = time.monotonic()
    sent = opened.page.post("/api/sweeps/live-1/ask", {**asked, "check": False})
    seconds = time.monotonic() - began
    (kept,) = waiting_requests(folder)
    try:
        assert sent.ok and str(kept) == text and sent.json()["request"] == kept.id
        assert checked.json()["answer"] in sent.json()["answer"] and not sent.json()["happened"]
        (line,) = opened.page.json("/api/sweeps/live-1")["sweep"]["requests"]
        assert line["asked"] == text and line["status"] == "kept"
        assert seconds < 5
    finally:
        (folder / "requests" / f"{kept.id}.json").unlink()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"kind": "stop-trial", "trial": 1}, "trial 1 has ended"),
        ({"kind": "stop-trial", "trial": 9}, "there is no trial 9"),
        ({"kind": "resume"}, "the sweep is not paused"),
        ({"kind": "pause", "values": {"lr": "1"}}, "pause takes no values"),
        ({"kind": "budget", "values": {"minuts": "3"}}, "there is no such limit (did you mean" ),
        ({"kind": "narrow", "values": {"lr": ["1", "2"]}}, "would be wider than it is"),
        ({"kind": "narrow", "values": {"lr": "0.1"}}, "must be two ends"),
        ({"kind": "enqueue", "values": {"lr": "much"}}, "lies outside of the space, but got 'much'"),
        ({"kind": "delete"}, "Input should be"),
        ({"kind": "pause", "who": "root"}, "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_a_request_that_breaks_the_rules_is_answered_with_its_reason(
    asked: dict[str, Any], reason: str, opened: Opened
) -> None:
    for check in (True, False):
        answer = opened.page.post("/api/sweeps/live-1/ask", {**asked, "check": check})
        told = answer.json()
        assert reason.partition(" (did")[0] in told["refused"], told
    assert not waiting_requests(opened.live.folder)
    finished = opened.page.post("/api/sweeps/wide-1/ask", {"kind": "pause", "check": False})
    assert "has finished" in finished.json()["refused"]


def test_a_promotion_needs_its_dry_run_and_shows_the_commands_output(opened: Opened) -> None:
    page, path = opened.page, "/api/sweeps/wide-2/promotion"
    assert page.json(path) is None
    early = page.post(path, {"dry_run": False})
    assert "no dry run" in early.json()["refused"] and "make a dry run first" in early.json()["hint"]
    assert "no promotion" in page.post(f"{path}/interrupt", {}).json()["refused"]
    started = page.post(path, {"dry_run": True})
    assert started.ok and started.json()["code"] is None
    second = page.post(path, {"dry_run": True})
    assert "runs already" in second.json()["refused"]
    deadline = time.monotonic() + 120
    while (told := page.json(path))["code"] is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert told["code"] == 2 and not told["may_follow"]  # its data is nowhere
    assert any("somewhere" in line for line in told["lines"]), told["lines"]
    assert "no dry run" in page.post(path, {"dry_run": False}).json()["refused"]


def test_a_promotion_that_runs_when_the_server_ends_is_interrupted(opened: Opened) -> None:
    page, path = opened.page, "/api/sweeps/wide-1/promotion"
    assert page.post(path, {"dry_run": True}).ok
    assert page.promotions.end() == ["wide-1"]
    told = page.json(path)
    assert told["interrupted"] and told["code"] not in (None, 0)


def test_models_with_their_decisions_and_the_way_back(opened: Opened, server: str) -> None:
    client, name = MlflowClient(server), f"model <img src=x> {time.time_ns()}"
    client.create_registered_model(name)
    for tags in ({"decision": "promoted"}, {"decision": "promoted", "champion.before": "1"}):
        client.create_model_version(name, "s3://nowhere/model", tags=tags)
    client.set_registered_model_alias(name, "champion", "2")
    told = opened.page.json("/api/models")
    (model,) = [one for one in told["models"] if one["name"] == name]
    assert model["aliases"] == {"champion": "2"} and [one["version"] for one in model["versions"]] == [
        "2",
        "1",
    ]
    assert model["versions"][0]["tags"]["champion.before"] == "1"
    address = f"/api/models/{requests.utils.quote(name, safe='')}/rollback"
    assert "reason" in opened.page.post(address, {"reason": ""}).json()["refused"]


def test_rolling_back(opened: Opened, server: str) -> None:
    client, name = MlflowClient(server), f"counter-{time.time_ns()}"
    client.create_registered_model(name)
    for tags in ({}, {"champion.before": "1"}):
        client.create_model_version(name, "s3://nowhere/model", tags=tags)
    client.set_registered_model_alias(name, "champion", "2")
    done = opened.page.post(f"/api/models/{name}/rollback", {"reason": "worse at night"})
    assert done.json() == {"answer": f"{name}: version 1 is champion again, instead of version 2"}
    assert client.get_model_version_by_alias(name, "champion").version == "1"
    again = opened.page.post(f"/api/models/{name}/rollback", {"reason": "again"})
    assert "followed no other champion" in again.json()["refused"]


def test_the_page_goes_on_without_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    random_sweep(tmp_path / "sweeps" / "small-1", 12)
    with served(tmp_path) as page:
        deadline = time.monotonic() + 60
        while not page.mlflow.problem and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "127.0.0.1:9" in page.json("/api/session")["mlflow_problem"]
        assert page.json("/api/models")["problem"] and len(page.json("/api/sweeps")) == 1
        links = page.json("/api/sweeps/small-1/links")
        assert requests.get(page.base + links["mlflow"], timeout=20).status_code == 503
        refused = page.post("/api/models/m/rollback", {"reason": "a test"}).json()["refused"]
        assert "MLflow is not there" in refused


@pytest.mark.parametrize("seconds", [0.0, 3.0])
def test_the_command_ends_in_order_even_while_mlflow_starts(tmp_path: Path, seconds: float) -> None:
    command = [sys.executable, "-m", "binsweep", "ui", "--port", str(free_port())]
    environment = {**os.environ, "BINSWEEP_HOME": str(tmp_path / "home")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None and "#token=" in ui.stdout.readline()
        time.sleep(seconds)
        family = psutil.Process(ui.pid).children(recursive=True)
        ui.send_signal(signal.SIGTERM)
        assert ui.wait(90) == 130
    _, left = psutil.wait_procs(family, timeout=10)
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
    assert str(tmp_path) not in " ".join(
        " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])
    )
