"""A champion that learned from photos of other counts: from the sweep to its answers."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from test_sweep import spec_of, sweep

from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.search.workflows.evaluate import evaluate_source, require_own_test_split
from binsweep.search.workflows.promote import promote_sweep
from binsweep.tracking.serving.model_server import predict, serve_model

pytestmark = pytest.mark.integration  # a sweep, whose best are evaluated and served


@pytest.mark.timeout(600)
def test_from_the_sweep_to_its_answers(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    bins, home, name = tmp_path / "bins", tmp_path / "home", "other-counts"
    write_synthetic(bins, 200, 0, 64, [0, 1, 2, 3, 5])
    spec = spec_of(
        bins,
        name=name,
        data={"source": "", "image_size": 64, "classes": [1, 2], "train_also": "others"},
        model={"trainable": "later_stages", "ema": 0.9, "augment": "flip_shift", "views": 3},
        objective={"metric": "val_rmse"},
        budget={"trials": 3},
        register={"model": name, "finalists": "auto", "seeds": 1, "ensemble": True, "refit": True},
    )
    sweep(spec, home, "ray", server)
    _, decision = promote_sweep(name, home, server)
    assert decision.version is not None, decision.notes
    tags = MlflowClient(server).get_model_version(name, decision.version).tags
    assert json.loads(tags["data"])["train_also"] == "others"
    assert any(note.startswith("temperature") for note in decision.notes)
    assert any("instead of mean" in note for note in decision.notes)

    # Its own data are known again, with what taught it, and none of that is in the test split.
    own = evaluate_source(f"models:/{name}/{decision.version}", str(bins), home, server)
    assert "the test split" in own.facts["photos"] and set(own.card.classes) <= {1, 2}
    split = require_own_test_split(tags, name, home)
    assert own.card.images == len(split)
    zeros = evaluate_source(
        f"models:/{name}/{decision.version}", str(bins), home, server, classes=[0, 1, 2], with_seen=True
    )
    assert "trained on or chosen by" in zeros.facts["photos"]

    # It answers with its classes only, also about a bin of another count.
    documents = ((file.stem, json.loads(file.read_text())) for file in (bins / "metadata").glob("*.json"))
    five = next(stem for stem, document in documents if document["EXPECTED_QUANTITY"] == 5)
    image = (bins / "bin-images" / f"{five}.jpg").read_bytes()
    with serve_model(f"models:/{name}/{decision.version}", server) as served:
        (row,) = predict(served.url, [image], 60)
    assert row["count"] in (1, 2) and set(row["probabilities"]) == {"1", "2"}
    np.testing.assert_allclose(sum(row["probabilities"].values()), 1, rtol=1e-3)
