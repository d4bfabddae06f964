"""Sweeps of own code in real processes: helpers of the tests."""

import textwrap
from pathlib import Path
from typing import Any

import yaml

EPOCHS = 12
METRICS = ("val_score", "val_loss")

# A training whose curve depends on all of its past: it can only go on equally from the right checkpoint.
TRAIN = """
    import json
    import random
    import time


    def train(trial):
        saved = trial.checkpoint()
        state = json.loads((saved / "state.json").read_text()) if saved else {"score": 0.0, "seen": []}
        for epoch in trial.epochs():
            draw = random.Random(trial.seed * 1000 + epoch).random()
            state["score"] = 0.9 * state["score"] + draw * trial.params["lr"]
            state["seen"].append(epoch)
            assert state["seen"] == list(range(1, epoch + 1)), state["seen"]
            time.sleep(trial.params.get("seconds", 0.0))
            metrics = {"val_score": state["score"], "val_loss": 1 / (1 + state["score"])}
            trial.report(metrics, save=lambda folder: (folder / "state.json").write_text(json.dumps(state)))
"""

RAW: dict[str, Any] = {
    "trainer": "train.py:train",
    "space": {"lr": {"low": 1e-3, "high": 1.0, "log": True}},
    "objective": {"metric": "val_score", "goal": "maximize"},
    "fidelity": {"epochs": EPOCHS},
    "search": {"sampler": "random", "stopping": "none"},
}


def code_spec(folder: Path, name: str, trials: int | None, code: str = TRAIN, **changes: Any) -> Path:
    """A spec, and train.py next to it."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(textwrap.dedent(code))
    raw = {**RAW, "name": name, **changes}
    if trials is not None:
        raw["budget"] = {"trials": trials, **raw.get("budget", {})}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file
