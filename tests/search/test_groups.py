"""Trials over several workers in real sweeps on Ray: what is lost is found again, and the curves are those of one."""

from pathlib import Path

import psutil
import pytest
from real_sweeps import (
    EPOCHS,
    assert_whole,
    curves,
    is_worker,
    run,
    runs_of,
    spec_file,
    started,
    wait_for_epochs,
)

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
def test_a_lost_worker_restarts_its_group_and_the_curves_are_those_of_one_process(
    bins: Path, server: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    spec = spec_file(tmp_path, bins, "group", trials=2, resources={"workers_per_trial": 2})
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

    alone = spec_file(tmp_path, bins, "alone", trials=2)
    assert run(alone, "local", home, server).returncode == 0
    found, expected = curves(server, "group"), curves(server, "alone")
    assert found.keys() == expected.keys()
    for key, points in expected.items():
        assert [value for _, value in found[key]] == pytest.approx([value for _, value in points], rel=TOLERANCE), key
