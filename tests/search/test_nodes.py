"""What a node keeps of trials whose worker was killed: nothing, from the next trial on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from binsweep.search.ray_backend.file_transfer import (
    FileServer,
    GivenUpError,
    node_home,
    remove_orphaned_trials,
    trial_folder,
)

HOLD = """
import sys, time
from binsweep.search.ray_backend.file_transfer import trial_folder
with trial_folder("trial-0007") as folder:
    (folder / "last.pt").write_bytes(b"much")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINSWEEP_HOME", str(tmp_path))


def worker() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_killed_workers_folder_goes_and_a_living_ones_stays() -> None:
    killed, left = worker()
    living, held = worker()
    try:
        assert left.is_dir() and held.is_dir(), "two that live leave each other alone"
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        (node_home() / "trials" / "trial-0003-old").mkdir()  # of a version that knew no locks
        with trial_folder("trial-0008") as mine:
            assert sorted((node_home() / "trials").glob("trial-*")) == sorted([held, mine])
            assert (held / "last.pt").exists()
        assert not mine.exists()
    finally:
        for process in (killed, living):
            process.kill()
            process.wait()
    remove_orphaned_trials()
    assert not list((node_home() / "trials").glob("trial-*"))


def test_the_driver_removes_what_is_gone_on_the_node(tmp_path: Path) -> None:
    server, folder = FileServer(tmp_path), tmp_path / "trial-0001"
    server.keep("trial-0001", "a", {"checkpoint-1/a": b"1", "checkpoint-1/b/c": b"2", "last.json": b"{}"})
    server.keep("trial-0001", "a", {"checkpoint-2/a": b"3"}, ["checkpoint-1/a", "checkpoint-1/b/c"])
    assert server.files("trial-0001") == {"checkpoint-2/a": b"3", "last.json": b"{}"}
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "last.json"]


def test_what_a_worker_sends_after_it_was_given_up_is_refused(tmp_path: Path) -> None:
    """As one behind a network that was cut: what it has sent arrives when another worker is far ahead."""
    server, name = FileServer(tmp_path), "trial-0001"
    server.take_over(name, "cut off")
    server.keep(name, "cut off", {"best.pt": b"1", "last.pt": b"1"})
    server.take_over(name, "next")
    (tmp_path / name / "best.pt").write_bytes(b"2")  # the next worker is on the driver's node
    with pytest.raises(GivenUpError, match="another worker has gone on with trial-0001"):
        server.keep(name, "cut off", {"best.pt": b"1"}, ["last.pt"])
    assert server.files(name) == {"best.pt": b"2", "last.pt": b"1"}
    server.keep("trial-0002", "cut off", {"best.pt": b"1"})
    assert server.files("trial-0002") == {"best.pt": b"1"}
