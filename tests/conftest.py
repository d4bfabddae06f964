"""What the tests of every room share: small real data, made once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data.manifest import Manifest, load_manifest
from data.pixels import open_pixel_bank
from data.split import Split
from data.synthetic import write_synthetic
from models.train import TrialData
from tracking.server import tracking_server

SIZE = 64
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
