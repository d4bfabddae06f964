"""What health rules and profile cost: the same training with and without them, in turn.

    python benchmarks/insight.py --data DIR [--trainable head|all]... [--batch-size N]... [--images N] [--repeats N]

`with_to_without` compares medians of the training steps' time, the other side with objects that do nothing in their
place. `own_health` and `own_profile` are the CPU time spent inside of the rules and of the profile, less what reading
the clock around them costs, as a share of the steps' time: on a busy machine the surer figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from trials import trial_data

import binsweep.models.train
from binsweep.data.resource_limits import cores
from binsweep.models.health_monitor import HealthMonitor
from binsweep.models.precision import threads_of
from binsweep.models.profiler import Profile
from binsweep.models.settings import Settings
from binsweep.models.train import train
from binsweep.models.trial_data import TrialData

WATCHED = ("before_step", "after_backward", "after_step", "epoch_done")
PROFILED = ("epoch_begins", "mark", "step_done", "training_done", "epoch_done")


class _Nothing:
    """Stands for a watch or a profile that does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.answer: Any = ()

    def epoch_done(self, *arguments: Any) -> Any:
        return self.answer

    def _none(self, *arguments: Any) -> None:
        return None

    before_step = after_backward = after_step = epoch_begins = mark = step_done = training_done = _none


class _NoProfile(_Nothing):
    def __init__(self, *arguments: Any) -> None:
        self.answer = ({}, ())


class _Clock:
    """Adds up this thread's CPU time within the given methods of a class, nested calls counted once."""

    def __init__(self, owner: type, names: tuple[str, ...]) -> None:
        self.calls, self.spent, self._owner = 0, 0.0, owner
        self._plain = {name: getattr(owner, name) for name in names}
        self._inside = False

    def __enter__(self) -> _Clock:
        for name, method in self._plain.items():
            setattr(self._owner, name, self._timed(method))
        return self

    def __exit__(self, *error: object) -> None:
        for name, method in self._plain.items():
            setattr(self._owner, name, method)

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            if self._inside:
                return method(*arguments)
            self._inside, start = True, time.thread_time()
            try:
                return method(*arguments)
            finally:
                self.spent += time.thread_time() - start
                self.calls += 1
                self._inside = False

        return timed

    @property
    def seconds(self) -> float:
        """The time spent, less that of as many calls of a method that does nothing."""
        with _Clock(_Nothing, ("mark",)) as empty:
            nothing = _Nothing()
            for _ in range(self.calls):
                nothing.mark("wait")
        return max(0.0, self.spent - empty.spent)


def training(settings: Settings, data: TrialData) -> float:
    """Seconds of all training steps."""
    steps: list[float] = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Any) -> bool:
        steps.append(len(data.train) / metrics["images_per_second"])
        return True

    train(settings, data, report)
    return sum(steps)


def measure(settings: Settings, data: TrialData, repeats: int) -> dict[str, float]:
    training(settings, data)  # the first one chooses kernels
    with_both, without, own = [], [], []
    for _ in range(repeats):
        with_both.append(training(settings, data))
        binsweep.models.train.HealthMonitor, binsweep.models.train.Profile = _Nothing, _NoProfile  # type: ignore[assignment, misc]
        without.append(training(settings, data))
        binsweep.models.train.HealthMonitor, binsweep.models.train.Profile = HealthMonitor, Profile
        with _Clock(HealthMonitor, WATCHED) as watch, _Clock(Profile, PROFILED) as profile:
            steps = training(settings, data)
        own.append((watch.seconds / steps, profile.seconds / steps))
    return {
        "with_to_without": median(with_both) / median(without),
        "own_health": median(share for share, _ in own),
        "own_profile": median(share for _, share in own),
        "step_ms": 1000 * median(without) / settings.epochs / -(-len(data.train) // settings.batch_size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help="bins in the public bucket's layout")
    parser.add_argument("--trainable", choices=["head", "last_stage", "all"], action="append")
    parser.add_argument("--batch-size", type=int, action="append")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = trial_data(chosen.data, chosen.images, Path(folder))
        for trainable in chosen.trainable or ["head"]:
            torch.set_num_threads(threads_of(trainable, cores()))
            for batch_size in chosen.batch_size or [32, 256]:
                settings = Settings(trainable=trainable, epochs=chosen.epochs, batch_size=batch_size)
                row = measure(settings, data, chosen.repeats)
                text = "  ".join(f"{name} {value:.4f}" for name, value in row.items())
                print(f"{trainable} batch {batch_size}: {text}", flush=True)


if __name__ == "__main__":
    main()
