"""The served model takes no more threads than its container has cores, also where MLflow alone is started there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.limited import limited

from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.network import CountingModel, CountingModelConfig
from binsweep.models.predictor import Predictor
from binsweep.tracking.registry.registration import saved_model

LOAD = """
import sys, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1]).unwrap_python_model()
print(model.network.threads, model.readers._max_workers)
"""


@pytest.mark.integration
def test_the_model_file_knows_the_limit_of_its_container(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["mobilenet_v2"]
    config = CountingModelConfig(
        "mobilenet_v2", "classify", (0, 2, 3), 64, architecture.mean, architecture.std
    )
    env = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    with saved_model(Predictor([CountingModel(config).eval()])) as model, limited(0.5, 2 * 2**30) as within:
        done = subprocess.run(
            [*within, sys.executable, "-c", LOAD, str(model)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["1", "1"]
