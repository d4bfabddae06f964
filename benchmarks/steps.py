"""Where a training step's time goes, and how close it comes to the same step on random tensors in memory.

    python benchmarks/steps.py --data DIR [--trainable head|last_stage|later_stages|all]... [--images N] [--steps N]
        [--json OUT]

Each batch is trained twice in turn: read from the bank, and as random numbers of the same shape; medians in
milliseconds per step. `wait`: draw rows and read them from the bank (for `all`, decoded pixels, mirrored and
normalised); `copy`: bring them to the format and device of the network; `report`: validation, scores and the
checkpoint of one epoch, shared out over its steps. `of_memory` is the random step's time over the real one's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from trials import trial_data

from binsweep.data.resource_limits import cores
from binsweep.models.optimization import build_optimizer, build_schedule
from binsweep.models.precision import Precision, choose_precision, threads_of
from binsweep.models.sampling import training_batches
from binsweep.models.settings import Settings
from binsweep.models.train import _forward, train
from binsweep.models.trial_data import BatchFactory, TrialData, build_trial_model

PHASES = ("wait", "copy", "forward", "backward", "optimiser")


class Steps:
    """One network in training, each step cut into its phases."""

    def __init__(self, settings: Settings, data: TrialData) -> None:
        self.settings, self.data = settings, data
        self.precision = choose_precision(settings.precision)
        counter = build_trial_model(settings, data, self.precision)
        batches = BatchFactory(counter, settings, data.banks, self.precision)
        self.learn = batches.open(data.train, settings.augment)
        self.net = counter.suffix(counter.cut(settings.trainable)).train()
        if settings.trainable == "head":
            self.precision = Precision(self.precision.device, None)
        self.optimizer = build_optimizer(self.net, settings)
        self.schedule = build_schedule(self.optimizer, settings, 1_000_000)

    def now(self) -> float:
        if self.precision.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def learn_from(self, inputs: Tensor, labels: Tensor) -> list[float]:
        """The seconds from the copy to the optimiser."""
        marks = [self.now()]
        inputs = inputs.to(self.precision.device)
        marks.append(self.now())
        loss = F.cross_entropy(_forward(self.net, inputs, self.precision), labels)
        marks.append(self.now())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        marks.append(self.now())
        self.optimizer.step()
        self.schedule.step()
        marks.append(self.now())
        return [after - before for before, after in pairwise(marks)]

    def measure(self, steps: int) -> tuple[list[list[float]], list[float]]:
        """Seconds of each phase on the bank's batches, and of whole steps on random tensors, in turn."""
        generator = torch.Generator().manual_seed(0)
        real: list[list[float]] = []
        memory: list[float] = []
        while len(real) < steps:
            batches = training_batches(self.learn, self.settings, generator)
            start = self.now()
            for inputs, labels, _ in batches:
                waited = self.now() - start
                if len(labels) == self.settings.batch_size:
                    real.append([waited, *self.learn_from(inputs, labels)])
                    random = torch.randn_like(inputs)
                    memory.append(sum(self.learn_from(random, labels)))
                if len(real) == steps:
                    break
                start = self.now()
        return real[2:], memory[2:]  # the first ones choose kernels


def report_seconds(settings: Settings, data: TrialData, folder: Path) -> float:
    """What an epoch costs beyond its training steps."""
    costs: list[float] = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Any) -> bool:
        start = time.perf_counter()
        snapshot.checkpoint().save(folder / "best.pt")
        snapshot.state().save(folder / "last.pt")
        trained = len(data.train) / metrics["images_per_second"]
        costs.append(metrics["seconds"] - trained + time.perf_counter() - start)
        return len(costs) < settings.epochs

    train(settings, data, report)
    return median(costs)


def measure(settings: Settings, data: TrialData, steps: int, folder: Path) -> dict[str, Any]:
    real, memory = Steps(settings, data).measure(steps)
    row: dict[str, Any] = {
        phase: 1000 * median(times) for phase, times in zip(PHASES, zip(*real, strict=True), strict=True)
    }
    whole = median(sum(step) for step in real)
    row["report"] = 1000 * report_seconds(settings, data, folder) * settings.batch_size / len(data.train)
    row["images_per_second"] = settings.batch_size / whole
    row["of_memory"] = median(memory) / whole
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help="bins in the public bucket's layout")
    parser.add_argument("--trainable", choices=["head", "last_stage", "later_stages", "all"], action="append")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = trial_data(chosen.data, chosen.images, folder)
        for trainable in chosen.trainable or ["head", "last_stage", "all"]:
            settings = Settings(trainable=trainable, epochs=2, batch_size=chosen.batch_size)
            torch.set_num_threads(threads_of(trainable, cores()))
            steps = chosen.steps * 20 if trainable == "head" else chosen.steps
            rows[trainable] = row = measure(settings, data, steps, folder)
            print(trainable, "  ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
