"""What docker-compose.yml promises, asked of the running stack; `tests/compose/run` makes the images and calls this.

Every step prints its seconds; the first that fails ends the proof with its reason, and the stack is removed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml

from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.tracking.processes import free_port
from binsweep.tracking.serving.model_server import predict

ROOT = Path(__file__).parents[2]
PROJECT = f"binsweep-proof-{os.getpid()}"
SERVICES = list(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])
ONE_SHOT = ["s3-volume"]
WORKERS = 3
PATIENCE = 240.0  # seconds for anything to come up on two busy cores
SMALL = ["sweeps/quickstart.yaml", "--set", "data.source=synthetic://?images=240&seed=0"]
SWEEP = [*SMALL, "--set", "budget.trials=6", "--set", "register.finalists=1", "--promote"]
LONGER = [*SMALL, "--set", "budget.trials=12"]


@contextmanager
def step(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:7.1f} s  {name}", flush=True)


def until(what: str, holds: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """Wait until `holds`; how long that took."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(1)
    return time.monotonic() - began


def podman(*words: str) -> str:
    done = subprocess.run(["podman", *words], capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr if "logs" in words else done.stdout


class Stack:
    """The compose file's services under podman-compose, with the settings of one .env."""

    def __init__(self, env_file: Path) -> None:
        self.env_file = env_file
        lines = [line for line in env_file.read_text().splitlines() if "=" in line and line[0] != "#"]
        self.env = dict(line.split("=", 1) for line in lines)
        self.mlflow, self.ray, self.model = (
            f"http://127.0.0.1:{self.env[name]}" for name in ("MLFLOW_PORT", "RAY_PORT", "MODEL_PORT")
        )

    @property
    def secrets(self) -> list[str]:
        return [value for name, value in self.env.items() if re.search("PASSWORD|KEY|TOKEN", name)]

    def compose(self, *words: str) -> None:
        command = [sys.executable, "-m", "podman_compose", "-p", PROJECT, "--in-pod", "false"]
        command += ["--env-file", str(self.env_file), *words]
        # A variable of the environment would come before that of the file: tests before this one set some.
        env = {name: value for name, value in os.environ.items() if name not in self.env}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise AssertionError(f"podman-compose {' '.join(words)}:\n{(done.stdout + done.stderr)[-3000:]}")

    def up(self) -> None:
        # --no-deps, all services named: old podman neither waits for health, nor restarts a container that depends
        # on one that is not running, as a one-shot's is. What comes too early must and does try again.
        self.compose("up", "-d", "--no-build", "--no-deps", "--scale", f"ray-worker={WORKERS}", *SERVICES)

    def down(self) -> None:
        """Remove the containers and networks; the volumes stay."""
        scaled = [name for name in self.containers() if not name.endswith("_1")]
        if scaled:
            podman("rm", "-f", "-t", "10", *scaled)  # podman-compose knows of one of each when it removes
        self.compose("down")
        assert not self.containers(), f"still there after down: {self.containers()}"

    def remove(self) -> None:
        """Everything that this proof made, whatever state it is in; images stay."""
        if names := self.containers():
            podman("rm", "-f", "-t", "5", *names)
        label = f"label=io.podman.compose.project={PROJECT}"
        if volumes := podman("volume", "ls", "-q", "--filter", label).split():
            podman("volume", "rm", "-f", *volumes)
        if networks := podman("network", "ls", "-q", "--filter", label).split():
            podman("network", "rm", "-f", *networks)

    def containers(self) -> list[str]:
        label = f"label=io.podman.compose.project={PROJECT}"
        return sorted(podman("ps", "-a", "--filter", label, "--format", "{{.Names}}").split())

    def lasting(self) -> list[str]:
        return [name for name in self.containers() if not any(f"_{one}_" in name for one in ONE_SHOT)]

    def healthy(self, name: str) -> bool:
        """By the container's own health check, run now: podman leaves that to systemd, which may not be there."""
        return subprocess.run(["podman", "healthcheck", "run", name], capture_output=True).returncode == 0

    def wait_healthy(self, name: str) -> float:
        """How many seconds it took."""
        log = podman("logs", "--tail", "20", name)
        return until(f"{name} is healthy; its log:\n{log}", lambda: self.healthy(name))

    def wait_all_healthy(self) -> None:
        for name in self.lasting():
            self.wait_healthy(name)

    # MLflow and Ray, from outside

    def tracking(
        self, path: str, user: str = "", body: dict[str, Any] | None = None, password: str = ""
    ) -> requests.Response:
        """GET of MLflow's API, or POST where there is a body; as nobody, or as `user` with the password of .env."""
        auth = (user, password or self.env[f"MLFLOW_{user.upper()}_PASSWORD"]) if user else None
        method = "GET" if body is None else "POST"
        return requests.request(
            method, f"{self.mlflow}/api/2.0/mlflow/{path}", json=body, auth=auth, timeout=60
        )

    def jobs(self, path: str = "", token: str = "", body: dict[str, Any] | None = None) -> requests.Response:
        """GET of Ray's jobs, or POST where there is a body."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        method = "GET" if body is None else "POST"
        return requests.request(method, f"{self.ray}/api/jobs/{path}", json=body, headers=headers, timeout=60)

    def nodes(self) -> int:
        """How many nodes of the Ray cluster are alive."""
        headers = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        try:
            reply = requests.get(f"{self.ray}/nodes?view=summary", headers=headers, timeout=30).json()
        except (requests.RequestException, ValueError):
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in reply["data"]["summary"])

    def binsweep(self, *words: str) -> str:
        """A command of the person outside, who has the cluster's token; what it answers."""
        command = [sys.executable, "-m", "binsweep", *words, "--dashboard", self.ray]
        env = {**os.environ, "RAY_AUTH_TOKEN": self.env["RAY_AUTH_TOKEN"]}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"binsweep {' '.join(words)}:\n{done.stderr}"
        return done.stdout

    def job_log(self, name: str) -> str:
        """What a job has said, once it has succeeded."""
        token = self.env["RAY_AUTH_TOKEN"]
        ended = ("SUCCEEDED", "FAILED", "STOPPED")
        until(f"job {name} ends", lambda: self.jobs(name, token).json()["status"] in ended, 600)
        assert self.jobs(name, token).json()["status"] == "SUCCEEDED", self.said(name)[-3000:]
        return self.said(name)

    def said(self, name: str) -> str:
        return str(self.jobs(f"{name}/logs", self.env["RAY_AUTH_TOKEN"]).json()["logs"])

    def runs(self) -> list[dict[str, Any]]:
        found = self.tracking("experiments/search", "admin", {"max_results": 100}).json()["experiments"]
        ids = [experiment["experiment_id"] for experiment in found]
        answer = self.tracking("runs/search", "admin", {"experiment_ids": ids, "max_results": 1000}).json()
        return list(answer.get("runs", []))

    def champion(self) -> str:
        alias = self.tracking("registered-models/alias?name=bin-counter&alias=champion", "serving")
        return str(alias.json()["model_version"]["version"])

    def answers(self) -> bool:
        """Whether a model is served; 503 is the answer while there is no champion."""
        try:
            return requests.get(f"{self.model}/ping", timeout=5).status_code == 200
        except requests.RequestException:
            return False


def settings(work: Path, name: str, example: bool) -> Path:
    """A .env on free ports: the example's secrets, or fresh ones."""
    file = work / name
    if example:
        shutil.copy(ROOT / ".env.example", file)
    else:
        subprocess.run([ROOT / "deploy" / "new-env", file], check=True)
    text = file.read_text()
    for key in ("MLFLOW_PORT", "RAY_PORT", "MODEL_PORT"):
        text = re.sub(rf"^{key}=.*", f"{key}={free_port()}", text, flags=re.MULTILINE)
    file.write_text(re.sub(r"^RAY_WORKER_CPUS=.*", "RAY_WORKER_CPUS=1", text, flags=re.MULTILINE))
    return file


def refuses_the_examples_secrets(work: Path) -> None:
    stack = Stack(settings(work, "example.env", example=True))
    try:
        stack.up()
        names = stack.lasting()
        until("all refuse", lambda: all("refusing to start" in podman("logs", name) for name in names), 60)
        for url in (stack.mlflow, stack.ray, stack.model):
            try:
                requests.get(url, timeout=5)
                raise AssertionError(f"{url} answers")
            except requests.RequestException:
                pass
    finally:
        stack.remove()


def refuses_strangers(stack: Stack) -> None:
    assert requests.get(f"{stack.mlflow}/health", timeout=10).status_code == 200
    for path, body in {
        "experiments/search": {"max_results": 1},
        "experiments/create": {"name": "intruder"},
        "runs/create": {"experiment_id": "0"},
        "registered-models/create": {"name": "intruder"},
        "users/create": {"username": "intruder", "password": "intruder-intruder"},
    }.items():
        assert stack.tracking(path, body=body).status_code == 401, path
        assert stack.tracking(path, "admin", body, "not-the-password").status_code == 401, path
    artifact = f"{stack.mlflow}/api/2.0/mlflow-artifacts/artifacts/0/x/artifacts/file.txt"
    assert requests.put(artifact, data=b"x", timeout=30).status_code == 401
    assert requests.get(artifact, timeout=30).status_code == 401
    assert requests.get(stack.mlflow, timeout=30).status_code == 401
    assert requests.get(stack.mlflow, headers={"Host": "evil.example"}, timeout=30).status_code == 403
    for user in ("admin", "sweeps", "serving"):
        assert stack.tracking("experiments/search", user, {"max_results": 1}).status_code == 200, user
    stranger = {"username": "x", "password": "x" * 16}
    assert stack.tracking("users/create", "sweeps", stranger).status_code == 403
    job = {"entrypoint": "true"}
    assert stack.jobs().status_code == 401
    assert stack.jobs(body=job).status_code == 401
    assert stack.jobs(token="x" * 48, body=job).status_code == 403
    assert requests.get(f"{stack.ray}/nodes?view=summary", timeout=30).status_code == 401
    assert stack.jobs(token=stack.env["RAY_AUTH_TOKEN"]).status_code == 200


def only_the_owner_moves_the_alias(stack: Stack) -> None:
    move = {"name": "bin-counter", "alias": "champion", "version": "1"}
    assert stack.tracking("registered-models/alias", "serving", move).status_code == 403


def changes_champion_without_a_gap(stack: Stack, photo: bytes) -> None:
    """Another version becomes champion, and the first one again, under 32 clients: each request is answered."""
    first, name = stack.champion(), "bin-counter"
    path = f"model-versions/get?name={name}&version={first}"
    known = stack.tracking(path, "serving").json()["model_version"]
    copy = {key: known[key] for key in ("name", "source", "run_id", "model_id") if known.get(key)}
    second = stack.tracking("model-versions/create", "sweeps", copy).json()["model_version"]["version"]
    over, seen = threading.Event(), list[str]()

    def ask() -> None:
        while not over.is_set():
            seen.append(predict(stack.model, [photo], timeout=60)[0]["model_version"])

    with ThreadPoolExecutor(32) as pool:
        clients = [pool.submit(ask) for _ in range(32)]
        try:
            for version in (second, first):
                move = {"name": name, "alias": "champion", "version": version}
                assert stack.tracking("registered-models/alias", "sweeps", move).status_code == 200
                until(f"all see version {version}", lambda: set(seen[-32:]) == {version})  # noqa: B023
        finally:
            over.set()
    for client in clients:
        client.result()  # raises if a request failed


def no_secret_lies_about(stack: Stack, job_log: str) -> None:
    token = stack.env["RAY_AUTH_TOKEN"]
    texts = {f"the log of {name}": podman("logs", name) for name in stack.containers()}
    texts["the job's log"] = job_log
    texts["the jobs' metadata"] = stack.jobs(token=token).text
    texts["MLflow's runs"] = json.dumps(stack.runs())
    for where, text in texts.items():
        assert text or "volume" in where, where
        for secret in stack.secrets:
            assert secret not in text, f"a secret is in {where}"
    # All that is kept: the database's files, the artifacts in the store, the sweeps' home.
    patterns = stack.env_file.with_suffix(".secrets")
    patterns.write_text("\n".join(stack.secrets) + "\n")
    for volume in ("postgres", "s3", "home"):
        place = podman("volume", "inspect", f"{PROJECT}_{volume}", "--format", "{{.Mountpoint}}").strip()
        assert any(Path(place).iterdir()), volume
        found = subprocess.run(["grep", "-rlaF", "-f", str(patterns), place], capture_output=True, text=True)
        assert found.returncode == 1, f"a secret is in {found.stdout or found.stderr}"


def survives_kills(stack: Stack, photo: bytes) -> None:
    for name in stack.lasting():
        print(
            f"{kill(stack, name):7.1f} s  {name.removeprefix(PROJECT + '_')} killed and healthy again",
            flush=True,
        )
    stack.wait_all_healthy()
    until("all workers are in the cluster again", lambda: stack.nodes() == WORKERS + 1)
    until("the champion is served again", stack.answers)
    predict(stack.model, [photo], timeout=60)
    small = stack.jobs("", stack.env["RAY_AUTH_TOKEN"], {"entrypoint": "true"}).json()["submission_id"]
    stack.job_log(small)


def goes_on_after_the_heads_death(stack: Stack) -> None:
    """Ray forgets its jobs with its head; the head's volume has the sweep, and what was sent."""
    name = stack.binsweep("submit", *LONGER).strip()
    until("trials run", lambda: stack.said(name).count(" starts: ") >= 3)
    kill(stack, f"{PROJECT}_ray-head_1")
    until("all workers are in the cluster again", lambda: stack.nodes() == WORKERS + 1)
    stack.binsweep("resume", name)
    log = stack.job_log(name)
    assert "going on with quickstart-" in log, log[:2000]


def kill(stack: Stack, name: str) -> float:
    """Kill the first process of a container, and with it all of them; the seconds until another one is healthy."""

    def process() -> str:
        return podman("inspect", name, "--format", "{{.State.Pid}}").strip()

    until(f"{name} runs", lambda: process() != "0")  # a worker restarts by itself when its head was killed
    before = process()
    os.kill(int(before), signal.SIGKILL)
    waited = until(f"{name} starts again", lambda: process() not in ("0", before))
    return waited + stack.wait_healthy(name)


def main(work: Path) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the stack is removed then, too
    write_synthetic(work / "photos", 3, 7, 160, [0, 1, 2])
    photo = next((work / "photos").rglob("*.jpg")).read_bytes()
    with step("refuses to start with the example's secrets"):
        refuses_the_examples_secrets(work)
    stack = Stack(settings(work, "fresh.env", example=False))
    try:
        with step(f"up, healthy, {WORKERS} workers in the cluster"):
            stack.up()
            stack.wait_all_healthy()
            until("all workers are in the cluster", lambda: stack.nodes() == WORKERS + 1)
        with step("refuses strangers"):
            refuses_strangers(stack)
        assert requests.get(f"{stack.model}/ping", timeout=10).status_code == 503
        with step("a sweep submitted from outside, promoted"):
            name = stack.binsweep("submit", *SWEEP).strip()
            log = stack.job_log(name)
        with step("the champion is served, a photo answered"):
            until("the champion is served", stack.answers)
            row = predict(stack.model, [photo], timeout=60)[0]
            version = stack.champion()
        only_the_owner_moves_the_alias(stack)
        with step("another champion and back under 32 clients: no request is lost"):
            changes_champion_without_a_gap(stack, photo)
        with step("no secret in logs, runs, artifacts, database, home or jobs"):
            no_secret_lies_about(stack, log)
        runs = len(stack.runs())
        with step("down, up: everything is still there"):
            stack.down()
            stack.up()
            stack.wait_all_healthy()
            until("the champion is served", stack.answers)
            assert (len(stack.runs()), stack.champion()) == (runs, version)
            assert predict(stack.model, [photo], timeout=60)[0] == row
        with step(f"kill -9 of each of {len(stack.lasting())} containers in turn"):
            survives_kills(stack, photo)
        assert (len(stack.runs()), stack.champion()) == (runs, version)
        with step("the head killed in the middle of a sweep, which goes on"):
            goes_on_after_the_heads_death(stack)
        no_secret_lies_about(stack, log)
        print(f"passed: {runs} runs, champion version {version}, the photo has {row['count']} item(s)")
    except BaseException:
        for name in stack.containers():
            print(f"== {name}\n{podman('logs', '--tail', '15', name)}", file=sys.stderr)
        raise
    finally:
        stack.remove()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
