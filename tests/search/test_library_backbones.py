"""A sweep over networks of torchvision and of timm, through the promotion to a served model."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.search.spec.parser import parse_spec
from binsweep.search.workflows.preflight import check_before_start
from binsweep.search.workflows.prepare import prepare
from binsweep.search.workflows.promote import promote_sweep
from binsweep.search.workflows.sweep import run_sweep

# Photos are resized bilinearly for the first and bicubically for the second.
BACKBONES = ["mobilenet_v3_small", "timm/test_vit"]


@pytest.mark.integration
@pytest.mark.parametrize(("backbones", "engine"), [(BACKBONES, "auto"), (BACKBONES[1:], "torch")])
def test_networks_of_libraries_are_searched_promoted_and_served(
    backbones: list[str], engine: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    bins = tmp_path / "bins"
    write_synthetic(bins, 90, 0, 96, [0, 1, 2])
    name = f"library-{engine}"
    spec = parse_spec(
        {
            "name": name,
            "data": {"source": str(bins), "image_size": 64},
            "model": {"weights": "none", "trainable": "last_stage", "epochs": 2, "batch_size": 8},
            "space": {"backbone": backbones},
            "search": {"sampler": "grid", "stopping": "none"},
            "budget": {"trials": len(backbones)},
            "objective": {"metric": "val_loss"},
            "register": {"model": name, "finalists": 0, "engine": engine},
        }
    )
    check_before_start(spec, runner="local")
    result = run_sweep(prepare(spec, tmp_path), "local", server)
    assert not result.failed
    assert {record.params["backbone"] for record in result.leaderboard} == set(backbones)
    model, outcome = promote_sweep(name, tmp_path, server)
    assert outcome.version is not None
    version = MlflowClient(server).get_model_version(model, outcome.version)
    served = [rule for rule in outcome.rules if rule.name == "served as evaluated"]
    assert [rule.passed for rule in served] == [True], served
    assert (version.tags["engine"] == "torch") == (engine == "torch")
