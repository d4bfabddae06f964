"""A Ray cluster of two or three nodes on one machine: each in its own network, none with a sight of the head's files.

Needs root and `ip` (network namespaces). The head has no CPU for trials unless asked: they run where no file is shared.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from slow_link import MTU, slow_link

HEAD = "10.213.77.1"
NODES = ("10.213.77.2", "10.213.77.3")  # the addresses of the others,
NETWORKS = ("binsweep-node", "binsweep-node2")  # and their namespaces
BRIDGE = "binsweep-net"
PORT, DASHBOARD = 26379, 28265
TOKEN = "0123456789abcdef0123456789abcdef"
RAY = [str(Path(sys.executable).with_name("ray"))]


def require_namespaces() -> None:
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("two nodes need root, ip and unshare")
    if subprocess.run(["ip", "netns", "add", "binsweep-try"], capture_output=True).returncode:
        pytest.skip("two nodes need network namespaces, which this machine does not give")
    subprocess.run(["ip", "netns", "del", "binsweep-try"], check=True)


@dataclass
class Cluster:
    """Where it is, and the processes of its nodes."""

    env: dict[str, str]
    hidden: Path  # a folder that the second node does not see
    log: Path
    head_cpus: int
    head: subprocess.Popen[bytes] = field(init=False)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    address = f"{HEAD}:{PORT}"
    url = f"http://127.0.0.1:{DASHBOARD}"

    def start_head(self) -> None:
        """Start a head that knows of nothing before."""
        command = [*RAY, "start", "--head", "--node-ip-address", HEAD, "--port", str(PORT)]
        command += ["--num-cpus", str(self.head_cpus), "--disable-usage-stats"]
        command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(DASHBOARD)]
        command += ["--object-store-memory", "200000000", "--block"]
        self.head = _start(command, self.env, self.log)
        self.wait(1)

    @property
    def node_home(self) -> Path:
        """BINSWEEP_HOME of the newest second node."""
        return self.log.parent / f"node-{len(self.nodes) - 1}"

    def add_node(self, cpus: int, gpus: int = 0, place: int = 0) -> None:
        """Start a node in the network of that place; for it the hidden folder and Ray's files are empty ones of its
        own. GPUs are what it claims: no device need be there."""
        home = "$BINSWEEP_HOME"
        script = (
            f"mount -t tmpfs none {self.hidden} && mount -t tmpfs none /tmp/ray && mkdir -p {home} && "
            f"exec {' '.join(RAY)} start --address {self.address} --node-ip-address {NODES[place]} --num-cpus {cpus} "
            f"--num-gpus {gpus} --object-store-memory 200000000 --disable-usage-stats --block"
        )
        env = {**self.env, "BINSWEEP_HOME": str(self.log.parent / f"node-{len(self.nodes)}")}
        command = ["ip", "netns", "exec", NETWORKS[place], "unshare", "-m", "sh", "-c", script]
        self.nodes.append(_start(command, env, self.log))
        self.wait(1 + len(self.nodes))

    def wait(self, alive: int, timeout: float = 180) -> None:
        """Until so many nodes are alive."""
        code = "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR'); "
        code += "print(sum(node['Alive'] for node in ray.nodes()))"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                socket.create_connection((HEAD, PORT), timeout=1).close()  # Ray itself waits long for it
                words = [sys.executable, "-c", code, self.address]
                asked = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60)
                if asked.stdout.strip() == str(alive):
                    return
            time.sleep(0.5)
        raise AssertionError(f"{alive} nodes were not alive in time: {self.log.read_text()[-2000:]}")


@contextlib.contextmanager
def two_nodes(
    folder: Path,
    server: str,
    head_cpus: int = 1,
    node_cpus: int = 1,
    node_gpus: int = 0,
    others: int = 1,
    linked: AbstractContextManager[None] | None = None,
) -> Iterator[Cluster]:
    """The cluster of a head and so many `others`, whose jobs log to `server`; `folder`/hidden is what only the head and
    its driver see. The network is `networks(others)`, or another one in which they have the same addresses."""
    require_namespaces()
    hidden = folder / "hidden"
    hidden.mkdir()
    Path("/tmp/ray").mkdir(exist_ok=True)
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # a job's `python` is this one
    # Ray's files are where the second node has a folder of its own, wherever TMPDIR is.
    env |= {"BINSWEEP_HOME": str(hidden / "home"), "MLFLOW_TRACKING_URI": server, "RAY_TMPDIR": "/tmp"}
    with linked or networks(others):
        cluster = Cluster(env, hidden, folder / "cluster.log", head_cpus)
        try:
            cluster.start_head()
            for place in range(others):
                cluster.add_node(node_cpus, node_gpus, place)
            yield cluster
        finally:
            for process in (*cluster.nodes, cluster.head):
                kill(process)


def _start(command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen(command, env=env, stdout=stream, stderr=stream, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """A node with everything that runs on it, at once, as when a machine dies."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def networks(others: int = 1) -> Iterator[None]:
    """A network of this machine, at HEAD, and so many namespaces, binsweep-node the first of them."""
    _remove_networks()
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{HEAD}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for place, (name, address) in enumerate(zip(NETWORKS, NODES, strict=True)):
            if place < others:
                here, there = f"binsweep-a{place}", f"binsweep-b{place}"
                ip("netns", "add", name)
                ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
                ip("link", "set", here, "master", BRIDGE, "up")
                ip("-n", name, "addr", "add", f"{address}/24", "dev", there)
                ip("-n", name, "link", "set", there, "up")
                ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        _remove_networks()


@contextlib.contextmanager
def slow_networks(delay: float, loss: float) -> Iterator[None]:
    """`networks` of one other, by a link on which packets are `delay` seconds late in each direction, or are lost."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("a slow link needs /dev/net/tun")
    _remove_networks()
    here, there, name = "binsweep-t0", "binsweep-t1", NETWORKS[0]
    with slow_link((here, there), delay, loss):
        try:
            ip("netns", "add", name)
            ip("link", "set", there, "netns", name)
            for inside, device, address in (([], here, HEAD), (["-n", name], there, NODES[0])):
                ip(*inside, "addr", "add", f"{address}/24", "dev", device)
                ip(*inside, "link", "set", device, "mtu", str(MTU), "up")
            ip("-n", name, "link", "set", "lo", "up")
            yield
        finally:
            _remove_networks()


def _remove_networks() -> None:
    for place, name in enumerate(NETWORKS):  # a namespace that is deleted may give its link back later
        subprocess.run(["ip", "link", "del", f"binsweep-a{place}"], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)
