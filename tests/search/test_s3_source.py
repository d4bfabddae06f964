"""A sweep from s3:// learns exactly what one from the folder learns."""

from pathlib import Path
from typing import Any

from binsweep.models.settings import Settings
from binsweep.models.train import train
from binsweep.search.spec.parser import parse_spec
from binsweep.search.workflows.prepare import prepare


def first_loss(source: str, home: Path) -> tuple[str, list[Any], float]:
    raw = {
        "name": "here-or-there",
        "data": {"source": source, "image_size": 64, "split": {"by": "group"}},
        "model": {"weights": "none"},
        "space": {"lr": [0.01], "batch_size": [8]},
        "budget": {"trials": 1},
    }
    prepared = prepare(parse_spec(raw), home)
    losses = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Any) -> bool:
        losses.append(metrics["train_loss"])
        return False

    train(Settings(weights="none", batch_size=8, lr=0.01, epochs=3), prepared.trainer.data, report)
    manifest = prepared.records.manifest
    return manifest.fingerprint, [item.split for item in manifest.items], losses[0]


def test_same_split_fingerprint_and_first_loss(s3: Any, bins: Path, tmp_path: Path) -> None:
    here = first_loss(str(bins), tmp_path / "a")
    there = first_loss(f"s3://{s3.bucket(bins)}", tmp_path / "b")
    assert there == here
