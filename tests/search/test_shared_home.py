"""A home on a disk that two machines use at once, whether they see each other's locks or not.

Stands in for NFS, which needs a kernel that has it: one folder, mounted twice in user space (bindfs), whose locks are
passed on or stay with each mount (as with `nolock`); and a process for which the machine has another name and boot.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from own_sweeps import EPOCHS, METRICS, code_spec
from real_sweeps import assert_whole, command, curves, kill_all, run_here, started, wait_for_epochs

from binsweep.tracking.mlflow_server.embedded import tracking_server
from binsweep.tracking.processes import Server

pytestmark = [pytest.mark.night, pytest.mark.quiet, pytest.mark.timeout(900)]

OTHER = "other-machine"
SCRIPT = f'hostname {OTHER} && mount --bind $0 /proc/sys/kernel/random/boot_id && exec "$@"'


@pytest.fixture(params=["locks are seen", "locks are not seen"])
def homes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The same home, as this machine and as the other one has it mounted."""
    if os.geteuid() or not shutil.which("bindfs") or not Path("/dev/fuse").exists():
        pytest.skip("a disk of two machines needs root, bindfs and /dev/fuse")
    disk, mounts = tmp_path / "disk", [tmp_path / "here", tmp_path / "there"]
    options = ["--enable-lock-forwarding"] * (request.param == "locks are seen")
    for folder in (disk, *mounts):
        folder.mkdir()
    try:
        for mount in mounts:
            subprocess.run(["bindfs", "--multithreaded", *options, disk, mount], check=True)
        yield mounts[0] / "home", mounts[1] / "home"
    finally:
        for mount in mounts:
            subprocess.run(["umount", "-l", mount], capture_output=True)


@pytest.fixture
def elsewhere(homes: tuple[Path, Path], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command on the other machine, with that MLflow server or its home's own."""
    boot = tmp_path / "boot"
    boot.write_text("01234567-89ab-cdef-0123-456789abcdef\n")

    def run(words: Sequence[str], server: str = "") -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "BINSWEEP_HOME": str(homes[1]), "MLFLOW_TRACKING_URI": server}
        inside = ["unshare", "-m", "-u", "sh", "-c", SCRIPT, str(boot), *words]
        return subprocess.run(inside, env=env, capture_output=True, text=True, timeout=300)

    return run


def test_what_one_machine_runs_is_refused_to_another(
    homes: tuple[Path, Path], elsewhere: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    home, name, trials, me = homes[0], "shared", 7, socket.gethostname()
    spec = code_spec(tmp_path / "code", name, trials, params={"seconds": 0.8})
    process = started(spec, "local", home, "")
    try:
        wait_for_epochs(home, name, 3)
        asked = elsewhere(command(spec, "local"))
        assert asked.returncode == 2, asked.stderr
        assert f"the MLflow server of {homes[1]} runs on another machine, {me}" in asked.stderr
        url = Server(**json.loads((home / "mlflow" / "server.json").read_text())).url
        asked = elsewhere(command(spec, "local", "--resume"), url)
        assert asked.returncode == 2, asked.stderr
        assert f"process {process.pid} on {me} is at it" in asked.stderr
        asked = elsewhere([sys.executable, "-m", "binsweep", "status", name, "--json"])
        assert json.loads(asked.stdout)["status"] == "running", asked.stdout + asked.stderr
        assert process.poll() is None, "it has ended before the other machine was refused"
        said = process.communicate(timeout=300)[1]
    finally:
        process.kill()
    assert process.returncode == 0, said
    longer = elsewhere(command(spec, "local", "--resume", "--set", f"budget.trials={trials + 1}"))
    assert longer.returncode == 0, longer.stderr
    with tracking_server(homes[1]) as uri:
        assert_whole(uri, homes[1], name, trials + 1, EPOCHS, METRICS)


def test_another_machine_goes_on_with_what_a_dead_one_has_begun(
    homes: tuple[Path, Path],
    elsewhere: Callable[..., subprocess.CompletedProcess[str]],
    server: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    name = f"shared-{request.node.callspec.id.replace(' ', '-')}"
    spec = code_spec(tmp_path / "code", name, 3, params={"seconds": 0.3})
    process = started(spec, "local", homes[0], server)
    wait_for_epochs(homes[0], name, 6)
    kill_all(process)
    done = elsewhere(command(spec, "local"), server)
    assert done.returncode == 0 and f"going on with {name}-1" in done.stderr, done.stderr
    assert_whole(server, homes[1], name, 3, EPOCHS, METRICS)
    alone = code_spec(tmp_path / "alone", f"{name}-alone", 3, params={"seconds": 0.0})
    where = {"BINSWEEP_HOME": str(tmp_path / "home-alone"), "MLFLOW_TRACKING_URI": server}
    assert run_here("sweep", alone, "--runner", "local", **where).returncode == 0
    assert curves(server, name, METRICS) == curves(server, alone.stem, METRICS)
