"""How fast this machine trains is tried before a sweep with a limit on time."""

from pathlib import Path
from typing import Any

import pytest
from real_sweeps import run_here, spec_file

from binsweep.models.trial_data import TrialData
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.sweep_spec import PhotoSpec
from binsweep.search.strategy.factory import open_strategy
from binsweep.search.workflows.first_steps import try_first_steps
from binsweep.search.workflows.strategy_options import strategy_options

RAW: dict[str, Any] = {
    "name": "tried",
    "data": {"source": "./bins"},
    "model": {"backbone": "resnet18", "weights": "none", "trainable": "all", "epochs": 4, "batch_size": 16},
    "space": {"lr": {"low": 1.0e-4, "high": 1.0e-1, "log": True}},
    "budget": {"minutes": 1},
}


@pytest.mark.parametrize(
    ("trainable", "sampler"), [("all", "auto"), ("last_stage", "grid"), ("head", "auto")]
)
def test_a_few_steps_tell_how_long_an_epoch_takes(
    trial_data: TrialData, capsys: pytest.CaptureFixture[str], trainable: str, sampler: str
) -> None:
    space = {"lr": [0.01, 0.1]} if sampler == "grid" else RAW["space"]
    data = {"source": "./bins", "image_size": trial_data.image_size}
    raw = {**RAW, "data": data, "model": {**RAW["model"], "trainable": trainable}, "space": space}
    spec = parse_spec({**raw, "search": {"sampler": sampler}})
    assert isinstance(spec, PhotoSpec)
    strategy = open_strategy(None, "tried", strategy_options(spec))
    assert strategy.training_seconds() is None
    try_first_steps(spec, trial_data, strategy, seconds_left=10.0, at_once=2)
    seconds, told = strategy.training_seconds(), capsys.readouterr().err
    if trainable == "head":  # its epochs are short: nothing is tried
        assert seconds is None and not told
    else:
        assert seconds is not None and 0 < seconds < 60
        assert "tried a few steps: an epoch of resnet18 takes about" in told


def test_a_sweep_says_what_it_expects_to_get_through(tmp_path: Path, bins: Path, server: str) -> None:
    model = {"backbone": "resnet18", "weights": "none", "trainable": "all", "batch_size": 16}
    spec = spec_file(tmp_path, bins, "expects", 2, model=model, space={"lr": [0.001, 0.01]})
    spec.write_text(spec.read_text().replace("trials: 2", "minutes: 0.2"))
    done = run_here(
        "sweep", spec, "--runner", "local", BINSWEEP_HOME=str(tmp_path / "home"), MLFLOW_TRACKING_URI=server
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    (tried,) = (place for place, line in enumerate(lines) if line.startswith("tried a few steps"))
    assert lines[tried + 1].startswith("expected: about ") and "trainings of" in lines[tried + 1]
