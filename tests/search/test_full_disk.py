"""A disk that fills up while a sweep runs: a small file system of its own, filled to its last byte."""

import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from own_sweeps import EPOCHS as OWN_EPOCHS
from own_sweeps import METRICS, code_spec
from real_sweeps import assert_whole, curves, run, started, wait_for_epochs

from binsweep.models.trial_data import TrialData
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.photo_trial import run_trial
from binsweep.search.execution.trial import ERROR, ONE_CORE, TrialTask, is_disk_full
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_state import load_state
from binsweep.search.spec.parser import parse_spec
from binsweep.search.workflows.prepare import prepare
from binsweep.search.workflows.sweep import run_sweep

EPOCHS = 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can make a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    """Until not a byte more fits."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (2**20, 2**12):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def test_a_sweep_whose_disk_fills_up_ends_with_that_message_and_goes_on(
    bins: Path, server: str, small_disk: Path
) -> None:
    raw: dict[str, Any] = {
        "name": "full",
        "data": {"source": str(bins), "image_size": 64},
        "model": {"backbone": "efficientnet_lite0", "batch_size": 2},
        "space": {"lr": [0.001, 0.01], "epochs": [EPOCHS]},
        "search": {"sampler": "grid", "stopping": "none"},
        "budget": {"trials": 2},
    }
    spec = parse_spec(raw)
    prepared = prepare(spec, small_disk)

    def wait_and_fill() -> None:
        deadline = time.monotonic() + 120
        while not list(small_disk.glob("sweeps/*/trial-0000/best.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        fill(small_disk)

    thread = threading.Thread(target=wait_and_fill)
    thread.start()
    result = run_sweep(prepared, "local", server)
    thread.join()
    assert result.suspended and result.ended_by.startswith("disk: ") and "free some" in result.ended_by
    assert not result.failed and not list(result.folder.glob("trial-*/*.tmp"))

    (small_disk / "filler").unlink()
    after = run_sweep(prepared, "local", server, result.folder)
    assert not after.suspended and not after.failed and len(after.leaderboard) == 2
    assert load_state(result.folder)["status"] == "finished"
    course = read_history(result.folder)
    assert [(t.state, sorted(t.times)) for t in course.trials] == [
        ("completed", list(range(1, EPOCHS + 1)))
    ] * 2


@pytest.mark.night
@pytest.mark.quiet
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_disk_that_is_full_for_a_minute_costs_no_trial(
    runner: str, server: str, small_disk: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """The sweep ends and says why, as often as it is started meanwhile; afterwards the same command goes on."""
    name, trials = f"full-minute-{runner}", 6
    spec = code_spec(tmp_path, name, trials, params={"seconds": 0.5})
    process = started(spec, runner, small_disk, server)
    wait_for_epochs(small_disk, name, 8)
    fill(small_disk)
    full_since = time.monotonic()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "disk: " in said and "free some space to continue" in said, said
    meanwhile = run(spec, runner, small_disk, server)
    assert meanwhile.returncode and "free some" in meanwhile.stderr, meanwhile.stderr
    assert "Traceback" not in said + meanwhile.stderr
    time.sleep(max(0.0, 60 - (time.monotonic() - full_since)))
    (small_disk / "filler").unlink()
    done = run(spec, runner, small_disk, server)
    assert done.returncode == 0 and f"going on with {name}-1" in done.stderr, done.stderr
    assert_whole(server, small_disk, name, trials, OWN_EPOCHS, METRICS)
    alone = code_spec(tmp_path, f"{name}-alone", trials, params={"seconds": 0.0})
    assert run(alone, "local", tmp_path / "home", server).returncode == 0
    assert curves(server, name, METRICS) == curves(server, alone.stem, METRICS)
    figure(
        f"a disk full for a minute, {runner}: {trials} of {trials} trials complete, all curves as undisturbed"
    )


def test_a_trial_whose_files_do_not_fit_leaves_no_reason_and_no_half_file(
    trial_data: TrialData, small_disk: Path
) -> None:
    data = {"source": "none", "image_size": 64}
    spec = parse_spec({"name": "s", "data": data, "space": {"lr": [0.01]}, "budget": {"trials": 1}})
    folder = small_disk / "trial-0000"
    folder.mkdir()
    fill(small_disk)
    task = TrialTask(0, spec.sections({"lr": 0.01}, seed=0), folder, "val_accuracy", "maximize", 1)
    with pytest.raises((OSError, RuntimeError)) as refused:
        run_trial(task, trial_data, lambda epoch, metrics: True)
    assert is_disk_full(refused.value) and not list(folder.iterdir())


def test_a_reason_that_did_not_fit_is_no_reason(tmp_path: Path) -> None:
    data = {"source": "none"}
    spec = parse_spec({"name": "s", "data": data, "space": {"lr": [0.01]}, "budget": {"trials": 1}})
    controller = Controller(spec, None, tmp_path, lambda settings: ONE_CORE)  # type: ignore[arg-type]
    trial = controller._add(0, {"lr": 0.01}, "")
    trial.folder.mkdir()
    (trial.folder / ERROR).touch()
    assert controller.error_of(0) == ""


def test_other_errors_are_no_full_disk() -> None:
    assert not is_disk_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert not is_disk_full(RuntimeError("shapes differ"))
    try:
        raise KeyError("a") from OSError(errno.EDQUOT, "Disk quota exceeded")
    except KeyError as error:
        assert is_disk_full(error)


def test_causes_that_form_a_circle_have_an_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_disk_full(first)
    second.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_disk_full(first)
