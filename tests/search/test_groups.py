"""Trials over several workers in real sweeps on Ray: what is lost is found again, and the curves are those of one."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest
from real_sweeps import (
    EPOCHS,
    assert_whole,
    command,
    curves,
    environment,
    is_worker,
    run,
    runs_of,
    spec_file,
    started,
    wait_for_epochs,
)
from two_nodes import two_nodes

from binsweep.data.errors import UserError
from binsweep.search.execution.resources import check_resources, gpus_per_worker
from binsweep.search.spec.schema import ResourcesPart

# Rates at which training is stable: a chaotic one blows up the last bit of a sum.
SPACE = {"lr": {"low": 1e-4, "high": 3e-3, "log": True}, "epochs": [EPOCHS]}
TOLERANCE = 1e-5  # gradients are summed in another order (tests/models/test_group.py)


def is_member(words: list[str]) -> bool:
    """Whether it is a process of a group beside the first, by the name that Ray gives it."""
    return words[0].startswith("ray::Member")


def kill_one(parent: int, sign: object) -> None:
    for child in psutil.Process(parent).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if words and sign(words):  # type: ignore[operator]
            child.kill()
            return
    raise AssertionError("no such process")


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_lost_worker_restarts_its_group_and_the_curves_are_those_of_one_process(
    bins: Path, server: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    spec = spec_file(tmp_path, bins, "group", trials=2, resources={"workers_per_trial": 2}, space=SPACE)
    process = started(spec, "ray", home, server)
    wait_for_epochs(home, "group", 3)
    kill_one(process.pid, is_member)
    wait_for_epochs(home, "group", EPOCHS + 3)  # within the second trial
    kill_one(process.pid, is_worker)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert errors.count("its worker died") == 2 and errors.count("goes on after epoch") == 2, errors
    assert_whole(server, home, "group", trials=2)
    _, runs = runs_of(server, "group")
    assert {run.data.tags["workers"] for run in runs.values()} == {"2"}

    assert_like_one_process("group", 2, bins, server, tmp_path)


def assert_like_one_process(name: str, trials: int, bins: Path, server: str, folder: Path) -> None:
    """The curves of the sweep are those of the same one, each trial trained by one process."""
    alone = spec_file(folder, bins, f"{name}-alone", trials=trials, space=SPACE)
    assert run(alone, "local", folder / "alone", server).returncode == 0
    found, expected = curves(server, name), curves(server, f"{name}-alone")
    assert found.keys() == expected.keys()
    for key, points in expected.items():
        values = [value for _, value in points]
        assert [value for _, value in found[key]] == pytest.approx(values, rel=TOLERANCE), key


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_group_spans_nodes_that_share_no_disk(bins: Path, server: str, tmp_path: Path) -> None:
    """One CPU on each node: no node has room for both workers."""
    spec = spec_file(tmp_path, bins, "across", trials=1, resources={"workers_per_trial": 2}, space=SPACE)
    with two_nodes(tmp_path, server) as cluster:
        words = command(spec, "ray", "--address", cluster.address)
        done = subprocess.run(words, env=cluster.env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        assert "banks copied to 1 other node" in done.stderr
        assert_whole(server, cluster.hidden / "home", "across", trials=1)
    assert_like_one_process("across", 1, bins, server, tmp_path)


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_group_halves_its_batches_together_and_tells_whose_error_it_was(
    bins: Path, server: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    searched = {"batch_size": [8, 16], "epochs": [2]}
    fixed = {"backbone": "efficientnet_lite0", "lr": 1e-3, "precision": "fp32"}
    changes = {"model": fixed, "space": searched, "search": {"sampler": "grid", "stopping": "none"}}
    spec = spec_file(tmp_path, bins, "faults", trials=2, resources={"workers_per_trial": 2}, **changes)
    env = environment(home, server)
    paths = [
        str(Path(__file__).with_name("faults")),
        str(Path(__file__).parents[2] / "src"),
        env.get("PYTHONPATH", ""),
    ]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run(command(spec, "ray"), env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    _, trials = runs_of(server, "faults")
    by_batch = {run.data.params["batch_size"]: run for run in trials.values()}
    assert by_batch["8"].info.status == "FINISHED" and by_batch["8"].data.metrics["micro_batches"] == 2
    assert by_batch["16"].info.status == "FAILED"
    assert by_batch["16"].data.tags["ended_because"] == "ValueError: no such kernel"


def test_workers_of_a_trial_multiply_what_it_needs() -> None:
    pair = ResourcesPart(cpus_per_trial=2, workers_per_trial=2)
    assert check_resources(pair, [{"CPU": 9.0}], "Ray") == 2
    assert check_resources(pair, [{"CPU": 3.0}, {"CPU": 3.0}], "Ray") == 1  # a worker on each node
    with pytest.raises(UserError, match="workers_per_trial: 2 requested, 1 fit"):
        check_resources(pair, [{"CPU": 3.0}], "Ray")
    # Silent about GPUs: as many as there are, and no two workers share one.
    assert (
        gpus_per_worker(pair, [{"CPU": 8.0, "GPU": 8.0}]) == 2 and gpus_per_worker(pair, [{"CPU": 8.0}]) == 0
    )
    with pytest.raises(UserError, match="workers_per_trial: 2 requested, 1 fit"):
        check_resources(pair, [{"CPU": 4.0, "GPU": 1.0}], "Ray")
    alone = ResourcesPart(cpus_per_trial=2)
    assert gpus_per_worker(alone, [{"CPU": 4.0, "GPU": 1.0}]) == 0.5
    assert gpus_per_worker(alone, [{"CPU": 4.0, "GPU": 4.0}]) == 2
