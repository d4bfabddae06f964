"""deploy/slurm.sh with a stand-in for Slurm: two nodes in networks of their own, and no real cluster."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from real_sweeps import EPOCHS, SLOW, assert_whole, run_here, spec_file
from two_nodes import networks, require_namespaces

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm.sh"
STAND_IN = Path(__file__).parent / "slurm"
JOB = 4217


def environment(folder: Path, server: str, start: int) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    return {
        **kept,
        "PATH": f"{STAND_IN}:{os.environ['PATH']}",
        "BINSWEEP_VENV": str(Path(sys.executable).parents[1]),
        "BINSWEEP_HOME": str(folder / "home"),
        "MLFLOW_TRACKING_URI": server,
        "RAY_worker_niceness": "0",
        "SLURM_JOB_ID": str(JOB),
        "SLURM_JOB_NODELIST": "node1,node2",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_RESTART_COUNT": str(start),
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_STAND_IN_LOG": str(folder / "slurm.log"),
    }


def left_behind() -> list[str]:
    """Processes of the job's Ray, by the folder in their command lines."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if f"/tmp/binsweep-{JOB}" in " ".join(process.cmdline()):
                found.append(" ".join(process.cmdline())[:100])
    return found


def wait_for_line(job: "subprocess.Popen[bytes]", log: Path, text: str) -> None:
    deadline = time.monotonic() + 300
    while text not in log.read_text():
        assert time.monotonic() < deadline and job.poll() is None, log.read_text()
        time.sleep(0.1)


def test_without_slurm_or_a_specification_it_says_so() -> None:
    bare = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    for words, text in (([], "usage: sbatch"), (["spec.yaml"], "is for sbatch")):
        done = subprocess.run(["bash", SCRIPT, *words], env=bare, capture_output=True, text=True, timeout=30)
        assert done.returncode != 0 and text in done.stderr


@pytest.mark.night
@pytest.mark.quiet
@pytest.mark.timeout(900)
def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(
    bins: Path, server: str, tmp_path: Path
) -> None:
    require_namespaces()
    file, said = spec_file(tmp_path, bins, "slurm", trials=3, model=SLOW), tmp_path / "job.log"
    with networks():
        first = subprocess.Popen(
            ["bash", SCRIPT, file],
            env=environment(tmp_path, server, 0),
            stdout=said.open("w"),
            stderr=subprocess.STDOUT,
        )
        wait_for_line(first, said, "trial 1 starts")  # there is one CPU on each node
        assert "2 nodes with 1 CPUs each, Ray's head is 10.213.77.1:24217" in said.read_text()
        first.send_signal(signal.SIGUSR1)  # as `--signal=B:USR1@180` does
        assert first.wait(180) == 130 and "the sweep will go on" in said.read_text(), said.read_text()
        asked = (tmp_path / "slurm.log").read_text().splitlines()
        assert asked[-1] == f"requeue {JOB}"
        assert any(line.startswith("node2: ray start --address=10.213.77.1:24217 ") for line in asked)
        assert not left_behind() and not Path(f"/tmp/binsweep-{JOB}").exists()
        secret = "RAY_AUTH_TOKEN"
        assert secret not in "".join(asked)

        again = subprocess.run(
            ["bash", SCRIPT, file],
            env=environment(tmp_path, server, 1),
            capture_output=True,
            text=True,
            timeout=400,
        )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "going on with slurm-1" in again.stderr
    assert (tmp_path / "slurm.log").read_text().count("requeue") == 1
    assert_whole(server, tmp_path / "home", "slurm", 3, EPOCHS)
    assert "2 at once" in run_here("status", "slurm-1", BINSWEEP_HOME=str(tmp_path / "home")).stdout
    assert not left_behind() and not Path(f"/tmp/binsweep-{JOB}").exists()
