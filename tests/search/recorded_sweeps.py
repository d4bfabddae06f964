"""Sweeps as their run log records them, without training anything: for the report and `status`."""

import json
import math
import random
from pathlib import Path
from typing import Any

from binsweep.search.history.run_keys import finalist_key, refit_key, trial_key
from binsweep.search.spec.parser import parse_spec
from binsweep.tracking.runlog.spool import Spool

START = 1_700_000_000.0
RAW: dict[str, Any] = {
    "name": "recorded",
    "data": {"source": "somewhere"},
    "space": {
        "backbone": ["resnet18", "efficientnet_lite0"],
        "lr": {"low": 1e-4, "high": 0.1, "log": True},
        "weight_decay": {"low": 1e-3, "high": 1.0, "log": True},
        "epochs": {"low": 2, "high": 30},
    },
    "budget": {"trials": 1000},
    "resources": {"cpus_per_trial": 2, "cpu_hour_price": 0.5},
}


class Recorded:
    """Writes a sweep's folder; `at` is its clock in seconds."""

    def __init__(self, folder: Path, status: str = "finished", **changes: Any) -> None:
        self.folder, self.at, self.slept = folder, START, 0.0
        (folder / "spool").mkdir(parents=True)
        self.spool = Spool(folder / "spool", lambda record: None)
        spec = parse_spec({**RAW, **changes})
        state = {"id": folder.name, "status": status, "ended_by": "budget.trials: all were started"}
        (folder / "sweep.json").write_text(json.dumps({**state, "spec": spec.raw}))
        (folder / "spec.yaml").write_text("")
        self.add("sweep", "start", tags={"slots": "2"}, params={})
        splits = {"train": {"1": 30, "2": 70}, "validation": {"1": 15, "2": 5}}
        self.add("sweep", "dataset", profile={"splits": splits})

    def add(self, key: str, kind: str, **record: Any) -> None:
        awake = int(1000 * (self.at - START - self.slept))
        self.spool.append({"kind": kind, "at": int(1000 * self.at), "up": awake, "key": key, **record})

    def sleep(self, seconds: float) -> None:
        """The machine is suspended: its clock on the wall goes on."""
        self.at += seconds
        self.slept += seconds

    def start(self, number: int, **params: Any) -> None:
        text = {name: str(value) for name, value in params.items()}
        self.add(
            trial_key(number),
            "start",
            tags={"suggested_because": "a guess", "cpus": "2", "gpus": "0"},
            params=text,
        )

    def epoch(self, number: int, epoch: int, accuracy: float, loss: float = 1.0) -> None:
        values = {"train_loss": loss, "val_loss": loss, "val_accuracy": accuracy, "val_rmse": 1.2}
        self.add(trial_key(number), "metrics", step=epoch, values={**values, "images_per_second": 100.0})

    def tags(self, number: int, **tags: str) -> None:
        self.add(trial_key(number), "tags", values={k.replace("__", "."): v for k, v in tags.items()})

    def promoted(self, number: int, **params: Any) -> None:
        """What a promotion adds: the trial's configuration trained again with two seeds, and a refit of both."""
        text = {name: str(value) for name, value in params.items()}
        again = [finalist_key(number, seed) for seed in (1, 2)]
        for key in [*again, *map(refit_key, again), refit_key(trial_key(number))]:
            self.at += 500
            self.add(key, "start", tags={"binsweep.kind": "finalist"}, params=text)
            for epoch in (1, 2):
                self.at += 10
                values = {"train_loss": 0.1, "val_loss": 0.1, "val_accuracy": 0.99, "val_rmse": 0.1}
                self.add(key, "metrics", step=epoch, values={**values, "images_per_second": 1.0})
            self.add(key, "end", status="FINISHED")

    def close(self) -> Path:
        self.spool.close()
        return self.folder


def random_sweep(folder: Path, trials: int, seed: int = 0) -> Path:
    """A sweep whose value depends on lr, on backbone a little, and on weight decay not at all."""
    return random_trials(folder, trials, seed).close()


def random_trials(folder: Path, trials: int, seed: int = 0) -> Recorded:
    """The same, to be written on."""
    draw = random.Random(seed)
    sweep = Recorded(folder)
    for number in range(trials):
        lr, backbone = 10 ** draw.uniform(-4, -1), draw.choice(["resnet18", "efficientnet_lite0"])
        epochs = draw.randint(2, 30)
        done = epochs if draw.random() < 0.3 else draw.randint(1, epochs)
        sweep.start(number, lr=lr, backbone=backbone, weight_decay=10 ** draw.uniform(-3, 0), epochs=epochs)
        top = 0.5 - 0.1 * (math.log10(lr) + 1.2) ** 2 + 0.02 * (backbone == "resnet18")
        for epoch in range(1, done + 1):
            sweep.at += 1
            sweep.epoch(number, epoch, round(top * (1 - 0.5**epoch) + draw.gauss(0, 0.005), 4))
        state = "completed" if done == epochs else "stopped"
        sweep.tags(number, state=state, ended_because="because")
    return sweep
