"""Networks that are cut for real: a node, the head, MLflow and S3 whose packets the kernel drops; slow ones that lose
some; two nodes at once.

Afterwards every trial has ended once, every metric is there once, and all curves are those of an undisturbed sweep.
"""

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from bad_network import Rule, dropped, node_rules, port_rules, require_iptables
from mlflow import MlflowClient
from own_sweeps import EPOCHS, METRICS, TRAIN, code_spec
from real_sweeps import (
    assert_whole,
    command,
    curves,
    run_here,
    runs_of,
    started,
    started_by,
    trials_of,
    wait_for_epochs,
)
from two_nodes import HEAD, NETWORKS, NODES, Cluster, ip, kill, slow_networks, two_nodes

from binsweep.tracking.mlflow_server.embedded import tracking_server

pytestmark = [pytest.mark.night, pytest.mark.quiet, pytest.mark.timeout(900)]

SHORT_AND_LONG = pytest.mark.parametrize("seconds", [5, 120])
# Each trial ends with a file for the store behind MLflow.
WITH_NOTE = (
    textwrap.dedent(TRAIN) + "    open('note.txt', 'w').write('the end')\n    trial.artifact('note.txt')\n"
)


def undisturbed(folder: Path, server: str, trials: int) -> dict[Any, Any]:
    """The curves of the same trials without pauses and without any fault."""
    spec = code_spec(folder / "alone", f"undisturbed-{folder.name}", trials, params={"seconds": 0.0})
    where = {"BINSWEEP_HOME": str(folder / "home-alone"), "MLFLOW_TRACKING_URI": server}
    done = run_here("sweep", spec, "--runner", "local", **where)
    assert done.returncode == 0, done.stderr
    return curves(server, spec.stem, METRICS)


def begun(words: Sequence[str], env: dict[str, str], study: Path, epochs: int) -> subprocess.Popen[str]:
    """A sweep whose study has so many epochs."""
    process = started_by(words, env)
    wait_for_epochs(study.parents[2], study.parent.name.removesuffix("-1"), epochs)
    return process


def trained_by(cluster: Cluster) -> set[str]:
    """The trials that the newest node is training."""
    return {folder.name.rpartition("-")[0] for folder in cluster.node_home.glob("trials/trial-*")}


def cut(rules: Sequence[Rule], seconds: float, then: Callable[[], None] = lambda: None) -> None:
    """For so many seconds packets do not arrive; `then` is called before they do again."""
    with dropped(rules):
        time.sleep(seconds)
        then()


@SHORT_AND_LONG
def test_a_node_is_cut_off(seconds: int, server: str, tmp_path: Path, figure: Callable[[str], None]) -> None:
    """For five seconds it is waited for; after two minutes Ray has given it up, and its trial went on at the head."""
    require_iptables()
    name, trials = f"cut-node-{seconds}", 8 if seconds < 60 else 28
    with two_nodes(tmp_path, server) as cluster:
        home = cluster.hidden / "home"
        spec = code_spec(cluster.hidden / "code", name, trials, params={"seconds": 0.5})
        words = command(spec, "ray", "--address", cluster.address)
        process = begun(words, cluster.env, home / "sweeps" / f"{name}-1" / "study.db", 6)
        try:
            while not trained_by(cluster):
                assert process.poll() is None
                time.sleep(0.05)
            cut(node_rules(0), seconds)
            said = process.communicate(timeout=500)[1]
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert ("its worker died" in said) == (seconds > 60), said
        assert_whole(server, home, name, trials, EPOCHS, METRICS)
    assert curves(server, name, METRICS) == undisturbed(tmp_path, server, trials)
    figure(f"a node cut off for {seconds} s: {trials} of {trials} trials complete, all curves as undisturbed")


@SHORT_AND_LONG
def test_the_head_is_cut_off(
    seconds: int, server: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """The driver is on the other node. Without its head for two minutes a sweep ends, and the same command goes on."""
    require_iptables()
    name, trials, home = f"cut-head-{seconds}", 8, tmp_path / "driver"
    with two_nodes(tmp_path, server) as cluster:
        spec = code_spec(tmp_path / "code", name, trials, params={"seconds": 1.0})
        words = command(spec, "ray", "--address", cluster.address)
        env = {**cluster.env, "BINSWEEP_HOME": str(home)}
        del env["MLFLOW_TRACKING_URI"]  # an MLflow of its own, on the node
        ip(
            "-n", NETWORKS[0], "route", "add", "default", "via", HEAD
        )  # Ray asks by it which address a driver has
        process = begun(on_node(cluster, words), env, home / "sweeps" / f"{name}-1" / "study.db", 6)
        try:
            cut(node_rules(0), seconds)
            said = process.communicate(timeout=500)[1]
        finally:
            process.kill()
        if seconds > 60:
            assert process.returncode and "the same command goes on with the sweep" in said, said
            kill(cluster.nodes.pop())
            cluster.wait(1)
            cluster.add_node(1)
            again = subprocess.run(
                on_node(cluster, words), env=env, capture_output=True, text=True, timeout=400
            )
            assert again.returncode == 0 and f"going on with {name}-1" in again.stderr, again.stderr
        else:
            assert process.returncode == 0, said
    with tracking_server(home) as own:
        assert_whole(own, home, name, trials, EPOCHS, METRICS)
        found = curves(own, name, METRICS)
    assert found == undisturbed(tmp_path, server, trials)
    figure(
        f"the head cut off for {seconds} s: {trials} of {trials} trials complete, all curves as undisturbed"
    )


def on_node(cluster: Cluster, words: Sequence[str]) -> list[str]:
    """The command in the network and with the files of the newest node."""
    return ["nsenter", "-t", str(cluster.nodes[-1].pid), "-m", "-n", "--", *words]


@SHORT_AND_LONG
@pytest.mark.parametrize("what", ["MLflow", "S3"])
def test_a_service_is_cut_off(
    what: str, seconds: int, server: str, s3: Any, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Files of trials go straight to S3. The cut begins before the first trial ends, and that of two minutes lasts
    until all are trained."""
    require_iptables()
    name, trials, home = f"cut-{what.lower()}-{seconds}", 3, tmp_path / "home"
    client = MlflowClient(server)
    client.create_experiment(name, artifact_location=f"s3://{s3.bucket()}/runs")
    seconds_each = 0.5 if seconds < 60 else 4.0
    spec = code_spec(tmp_path, name, trials, WITH_NOTE, params={"seconds": seconds_each})

    def look() -> None:
        """While S3 is away, metrics reach MLflow."""
        known = trials_of(home / "sweeps" / f"{name}-1" / "study.db")
        sent = sum(
            len(points)
            for (_, metric), points in curves(server, name, METRICS).items()
            if metric == METRICS[0]
        )
        missing = sum(len(trial.intermediate_values) for trial in known) - sent
        assert missing * seconds_each < 60, f"MLflow lacks {missing} epochs of {seconds_each} s"

    process = started(spec, "local", home, server)
    try:
        wait_for_epochs(home, name, 9)
        address = urlsplit(server if what == "MLflow" else s3.url)
        cut(port_rules(address.port or 0), seconds, look if what == "S3" else lambda: None)
        said = process.communicate(timeout=500)[1]
    finally:
        process.kill()
    assert process.returncode == 0 and "did not reach" not in said, said
    assert_whole(server, home, name, trials, EPOCHS, METRICS)
    assert curves(server, name, METRICS) == undisturbed(tmp_path, server, trials)
    for run in runs_of(server, name)[1].values():
        assert [file.path for file in client.list_artifacts(run.info.run_id, "artifacts")] == [
            "artifacts/note.txt"
        ]
    figure(f"{what} cut off for {seconds} s: {trials} of {trials} trials complete, all curves as undisturbed")


@contextlib.contextmanager
def far_mlflow(folder: Path) -> Iterator[str]:
    """An MLflow server in the network of the other node."""
    port, log = 25005, folder / "far.log"
    words = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        NODES[0],
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    words += ["--backend-store-uri", f"sqlite:///{folder / 'far.db'}", "--allowed-hosts", "*"]
    words += ["--artifacts-destination", (folder / "far").as_uri()]
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["ip", "netns", "exec", NETWORKS[0], *words],
            env=env,
            cwd=folder,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        url, deadline, answers = f"http://{NODES[0]}:{port}", time.monotonic() + 180, False
        while not answers:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            with contextlib.suppress(requests.RequestException):
                answers = requests.get(f"{url}/health", timeout=10).ok
        yield url
    finally:
        kill(process)


def test_a_link_that_is_slow_and_loses_packets(
    server: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """The other node and MLflow are behind it: 300 ms there and back, and of 100 packets 5 are lost each way."""
    name, trials = "slow-link", 8
    link = slow_networks(delay=0.15, loss=0.05)
    with two_nodes(tmp_path, "", linked=link) as cluster, far_mlflow(tmp_path) as url:
        home = cluster.hidden / "home"
        spec = code_spec(cluster.hidden / "code", name, trials, params={"seconds": 0.5})
        words = command(spec, "ray", "--address", cluster.address)
        env = {**cluster.env, "MLFLOW_TRACKING_URI": url}
        process = begun(words, env, home / "sweeps" / f"{name}-1" / "study.db", 6)
        try:
            while not trained_by(cluster):
                assert process.poll() is None, "the other node got no trial"
                time.sleep(0.05)
            said = process.communicate(timeout=500)[1]
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert_whole(url, home, name, trials, EPOCHS, METRICS)
        found = curves(url, name, METRICS)
    assert found == undisturbed(tmp_path, server, trials)
    figure(
        f"5 % lost, 300 ms there and back: {trials} of {trials} trials complete, all curves as undisturbed"
    )


def test_two_nodes_of_three_are_lost_at_once(
    server: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    name, trials = "two-lost", 18
    with two_nodes(tmp_path, server, others=2) as cluster:
        home = cluster.hidden / "home"
        study = home / "sweeps" / f"{name}-1" / "study.db"
        spec = code_spec(cluster.hidden / "code", name, trials, params={"seconds": 0.4})
        process = begun(command(spec, "ray", "--address", cluster.address), cluster.env, study, 3)
        try:
            while sum(2 < len(one.intermediate_values) < EPOCHS for one in trials_of(study)) < 3:
                assert process.poll() is None
                time.sleep(0.05)
            for node in cluster.nodes:
                kill(node)
            said = process.communicate(timeout=500)[1]
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert said.count("its worker died") >= 2, said
        assert_whole(server, home, name, trials, EPOCHS, METRICS)
    assert curves(server, name, METRICS) == undisturbed(tmp_path, server, trials)
    figure(
        f"two nodes of three lost at once: {trials} of {trials} trials complete, all curves as undisturbed"
    )
