"""What the tests of all packages share: small real data, made once."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import requests
import torch

from binsweep.data.banks.pixels import open_pixel_bank
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.split import Split
from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.models.trial_data import TrialData
from binsweep.tracking.mlflow_server.embedded import tracking_server

SIZE = 64
SLOWEST_FIRST = ("test_resume.py", "test_sweep.py", "test_cli.py", "test_api.py", "test_notebook.py")
# Integration tests that measure, kill or wait at chosen moments: they run one after another (`quiet`).
NEED_QUIET = {
    "test_benchmarks.py",
    "test_cluster.py",
    "test_compose.py",
    "test_groups.py",
    "test_outages.py",
    "test_own_code_cluster.py",
    "test_postgres.py",
    "test_pull.py",
    "test_ray_doors.py",
    "test_resource_limits.py",
    "test_resume.py",
    "test_served_limits.py",
    "test_steering.py",
    "test_ui_browser.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a quiet machine, and start with the files that take minutes, so that no worker is left with one
    of them at the end."""

    def place(item: pytest.Item) -> int:
        name = item.path.name
        return SLOWEST_FIRST.index(name) if name in SLOWEST_FIRST else len(SLOWEST_FIRST)

    for item in items:
        if item.path.name in NEED_QUIET:
            item.add_marker(pytest.mark.quiet)
        if item.get_closest_marker("night"):
            item.add_marker(pytest.mark.integration)
        if item.get_closest_marker("integration") and not item.get_closest_marker("timeout"):
            item.add_marker(
                pytest.mark.timeout(900)
            )  # three minutes of an idle machine, and no machine is idle
    items.sort(key=place)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line of what was measured; all of them are printed together at the end of the run."""
    return lambda line: request.node.user_properties.append(("figure", line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    lines = [value for report in reports for name, value in report.user_properties if name == "figure"]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)


# Ray starts its workers with the lowest priority but four. Next to tests on all cores they would hardly run at all.
os.environ.setdefault("RAY_worker_niceness", "0")
# One thread: tests share the machine with the servers and workers they start, and thread pools that wait for a
# busy core are slower than one thread that runs.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 90 small synthetic bins with 0 to 2 items, in the public bucket's layout."""
    folder = tmp_path_factory.mktemp("data") / "bins"
    write_synthetic(folder, 90, 0, SIZE, [0, 1, 2])
    return folder


@pytest.fixture(scope="session")
def manifest(bins: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_manifest(str(bins), None, Split(), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def trial_data(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> TrialData:
    """What trials learn from: the bins decoded at their own size, with an empty folder for feature banks."""
    home = tmp_path_factory.mktemp("banks")
    train, validation = (open_pixel_bank(manifest, name, SIZE, home) for name in ("train", "validation"))
    return TrialData(manifest.classes, SIZE, train, validation, home / "banks")


@pytest.fixture
def real_bins() -> Path:
    """A folder of real bins in the bucket's layout; the test skips where BINSWEEP_REAL_BINS names none."""
    folder = os.environ.get("BINSWEEP_REAL_BINS", "")
    if not Path(folder, "bin-images").is_dir():
        pytest.skip("real bins are not here: set BINSWEEP_REAL_BINS to a folder in the bucket's layout")
    return Path(folder)


@pytest.fixture(autouse=True)
def _no_server_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("BINSWEEP_OFFLINE", "1")


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "home with #1 odd name"


@pytest.fixture(scope="session")
def server(server_home: Path) -> Iterator[str]:
    """The address of one real MLflow server for all tests: a cold database takes seconds to migrate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with tracking_server(server_home) as uri:
            yield uri


class S3:
    """A real S3 server in a process of its own, with the faults of tests/s3_server.py."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._buckets = 0
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        self.client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)

    def bucket(self, folder: Path | None = None, prefix: str = "") -> str:
        """A new bucket with the files of a folder in it."""
        self._buckets += 1
        name = f"bins-{self._buckets}"
        if folder is None:
            self.client.create_bucket(Bucket=name)
        else:
            wanted = {"folder": str(folder), "bucket": name, "prefix": prefix}
            requests.put(f"{self.url}/-/load", params=wanted, timeout=60).raise_for_status()
        return name

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def faults(self, **faults: float) -> None:
        none = {"latency": 0.0, "cut": 0.0, "deny": 0.0, "stall": 0.0}
        requests.put(f"{self.url}/-/faults", params={**none, **faults}, timeout=10)

    def gets(self) -> int:
        """How many objects were asked for until now."""
        counts = requests.get(f"{self.url}/-/counts", timeout=10).json()
        return sum(n for name, n in counts.items() if name.startswith("GET ") and name != "GET bucket")


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3]:
    script = Path(__file__).with_name("s3_server.py")
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            yield S3(int(process.stdout.readline()))
        finally:
            process.kill()


@pytest.fixture
def s3(s3_process: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3]:
    """The server without faults, named in the environment as an engineer would."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_process.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    s3_process.faults()
    yield s3_process
    s3_process.faults()
