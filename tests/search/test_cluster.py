"""Sweeps on a cluster of two nodes that share neither a disk nor an address."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial
from real_sweeps import SLOW, assert_whole, command, curves, run, spec_file, trials_of, wait_for_epochs
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
        assert "banks brought to 1 other node" in said and "its worker died" in said, said
        assert 1 < len(begun) < 20
        assert_whole(server, home, name, trials=20)
    undisturbed = run(
        spec_file(tmp_path, bins, "one-node", trials=20, model=SLOW), "ray", tmp_path / "home", server
    )
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert curves(server, name) == curves(server, "one-node")
    figure(f"a node lost with {len(begun)} of 20 trials begun: all complete, all curves as on one node")


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
                [sys.executable, "-m", "search.cli", *words, "--address", cluster.url],
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
        stopped = binsweep("stop", job)
        assert stopped.returncode == 0 and f"{job}: stopped" in stopped.stdout, (
            stopped.stdout + stopped.stderr
        )
        again = binsweep("stop", job)
        assert again.returncode == 2 and "has ended" in again.stderr
        resumed = binsweep("resume", job)
        assert resumed.returncode == 0, resumed.stderr
        said = binsweep("logs", "-f", job)
        assert said.returncode == 0 and "going on with sent-1" in said.stdout, said.stdout + said.stderr
        deadline = time.monotonic() + 30
        while (state := json.loads(binsweep("status", job, "--json").stdout)[0])["state"] == "running":
            assert time.monotonic() < deadline
        assert state["state"] == "succeeded" and state["attempt"] == f"{job}.2"
        assert_whole(server, home, name, trials=16)
        everything = "".join(path.read_text(errors="ignore") for path in home.rglob("*") if path.is_file())
        assert TOKEN not in everything + said.stdout + json.dumps(state)
