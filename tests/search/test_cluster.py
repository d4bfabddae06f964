"""Sweeps on a cluster of two nodes that share neither a disk nor an address."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial
from real_sweeps import (
    RAW,
    SLOW,
    assert_whole,
    command,
    curves,
    run,
    runs_of,
    spec_file,
    trials_of,
    wait_for_epochs,
)
from two_nodes import TOKEN, kill, two_nodes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def running(study: Path) -> list[FrozenTrial]:
    return [trial for trial in trials_of(study) if trial.state.name == "RUNNING"]


def test_a_lost_node_costs_no_trial(
    bins: Path, server: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Twenty trials on two nodes; one of them dies in the middle; what ran there goes on on the other one."""
    name = "two-nodes"
    spec = spec_file(tmp_path, bins, name, trials=20, model=SLOW)
    with two_nodes(tmp_path, server) as cluster:
        home = cluster.hidden / "home"
        words = command(spec, "ray", "--address", cluster.address)
        process = subprocess.Popen(words, env=cluster.env, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            said = ""
            while "trial 0 starts" not in said and process.poll() is None:
                said += process.stderr.readline()
            study = home / "sweeps" / f"{name}-1" / "study.db"
            while sum(3 < len(one.intermediate_values) < 20 for one in running(study)) < 2:
                assert process.poll() is None
            begun = trials_of(study)
            kill(cluster.nodes[0])
            said += process.communicate(timeout=400)[1]
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert "banks copied to 1 other node" in said and "its worker died" in said, said
        assert 1 < len(begun) < 20
        assert_whole(server, home, name, trials=20)
    undisturbed = run(
        spec_file(tmp_path, bins, "one-node", trials=20, model=SLOW), "ray", tmp_path / "home", server
    )
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert curves(server, name) == curves(server, "one-node")
    figure(f"a node lost with {len(begun)} of 20 trials begun: all complete, all curves as on one node")


def test_large_trials_go_to_the_gpu(bins: Path, server: str, tmp_path: Path) -> None:
    """The second node claims a GPU (no device is needed for that): large trials run there, others anywhere."""
    space = {**RAW["space"], "batch_size": [2, 4]}
    large = {"when": {"batch_size": [4]}, "gpus_per_trial": 1}
    model = {key: value for key, value in SLOW.items() if key != "batch_size"}
    spec = spec_file(
        tmp_path, bins, "mixed-nodes", trials=10, model=model, space=space, resources={"overrides": large}
    )
    with two_nodes(tmp_path, server, node_gpus=1) as cluster:
        words = command(spec, "ray", "--address", cluster.address)
        process = subprocess.Popen(words, env=cluster.env, stderr=subprocess.PIPE, text=True)
        seen: set[int] = set()
        try:
            while process.poll() is None:  # a trial has a folder on the node as long as it runs there
                seen |= {
                    int(folder.name.split("-")[1]) for folder in cluster.node_home.glob("trials/trial-*")
                }
                time.sleep(0.02)
            said = process.communicate()[1]
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert_whole(server, cluster.hidden / "home", "mixed-nodes", trials=10)
    trials = runs_of(server, "mixed-nodes")[1]
    wide = {number for number, run in trials.items() if run.data.params["batch_size"] == "4"}
    assert wide == {number for number, run in trials.items() if run.data.tags["gpus"] == "1"}
    assert wide and wide <= seen and len(wide) < 10, (wide, seen)


def test_a_sweep_is_sent_looked_at_stopped_and_resumed(bins: Path, server: str, tmp_path: Path) -> None:
    name = "sent"
    spec = spec_file(tmp_path, bins, name, trials=16, model=SLOW)
    with two_nodes(tmp_path, server) as cluster:
        home, elsewhere = (
            cluster.hidden / "home",
            {**cluster.env, "BINSWEEP_HOME": str(tmp_path / "elsewhere")},
        )

        def binsweep(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "binsweep", *words, "--dashboard", cluster.url],
                env={**elsewhere, **env},
                capture_output=True,
                text=True,
                timeout=180,
            )

        refused = binsweep("submit", str(spec), RAY_AUTH_TOKEN="f" * 32)
        assert refused.returncode == 2 and "Authentication" in refused.stderr, refused.stderr
        wrong = binsweep("submit", str(spec), "--set", "budget.trails=3")
        assert wrong.returncode == 2 and "trials" in wrong.stderr, wrong.stderr
        relative = binsweep("submit", str(spec), "--set", "data.source=here")
        assert relative.returncode == 2 and "runs on the cluster" in relative.stderr, relative.stderr
        assert json.loads(binsweep("status", "--json").stdout) == []

        sent = binsweep("submit", str(spec))
        assert sent.returncode == 0, sent.stderr
        job = sent.stdout.strip()
        assert job.startswith(f"{name}-")
        while not (home / "sweeps" / f"{name}-1" / "study.db").exists():
            (told,) = json.loads(binsweep("status", job, "--json").stdout)
            assert told["state"] in ("pending", "running"), told
        wait_for_epochs(home, name, 8)
        (told,) = json.loads(binsweep("status", job, "--json").stdout)
        assert told["state"] == "running" and any("trial" in line for line in told["said"])
        paused = binsweep("pause", job, BINSWEEP_USER="ana@elsewhere")
        assert paused.stdout.startswith("the sweep is paused"), paused.stderr
        unknown = binsweep("stop-trial", job, "99")
        assert unknown.returncode == 2 and unknown.stderr.startswith(
            "binsweep: there is no trial 99\n  hint: "
        )
        goes_on = binsweep("resume", job)
        assert goes_on.stdout == "the sweep goes on; it was paused by ana@elsewhere\n", goes_on.stderr
        stopped = binsweep("stop", job)
        assert stopped.returncode == 0 and f"{job}: stopped" in stopped.stdout, (
            stopped.stdout + stopped.stderr
        )
        again = binsweep("stop", job)
        assert again.returncode == 2 and "has ended" in again.stderr
        resumed = binsweep("resume", job)
        assert resumed.returncode == 0 and f"{job}.2" in resumed.stdout, resumed.stderr
        wait_for_epochs(home, name, 40)
        for process in (*cluster.nodes, cluster.head):
            kill(process)
        cluster.nodes.clear()
        cluster.start_head()  # it knows no job, and finds on the disk what was sent
        cluster.add_node(1)
        forgotten = binsweep("status", job)
        assert forgotten.returncode == 2 and f"`binsweep resume {job}` looks" in forgotten.stderr
        for other in ("sent-000000", "../../etc"):
            unknown = binsweep("resume", other)
            assert unknown.returncode == 2 and "has no such sweep either" in unknown.stderr, unknown.stderr
        assert json.loads(binsweep("status", "--json").stdout) == []
        found = binsweep("resume", job)
        assert found.returncode == 0 and f"{job} goes on as {job}" in found.stdout, found.stderr
        said = binsweep("logs", "-f", job)
        assert said.returncode == 0 and "going on with sent-1" in said.stdout, said.stdout + said.stderr
        deadline = time.monotonic() + 30
        while (state := json.loads(binsweep("status", job, "--json").stdout)[0])["state"] == "running":
            assert time.monotonic() < deadline
        assert state["state"] == "succeeded" and state["attempt"] == job
        assert_whole(server, home, name, trials=16)
        everything = "".join(path.read_text(errors="ignore") for path in home.rglob("*") if path.is_file())
        assert TOKEN not in everything + said.stdout + json.dumps(state)
