"""What a feature bank in bf16 does to validation accuracy, beside one in fp32.

    python benchmarks/precision.py --data DIR [--images N] [--seeds N] [--epochs N] [--json OUT]

The same heads (one for each seed) are trained on both banks; prints the mean difference of their best validation
accuracies, bf16 minus fp32, with its standard error over the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from trials import trial_data

from binsweep.models.settings import Settings
from binsweep.models.train import train
from binsweep.models.trial_data import TrialData, build_banks


def best_accuracy(settings: Settings, data: TrialData) -> float:
    values: list[float] = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Any) -> bool:
        values.append(metrics["val_accuracy"])
        return True

    train(settings, data, report)
    return max(values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help="bins in the public bucket's layout")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = trial_data(chosen.data, chosen.images, folder)
        accuracies: dict[str, list[float]] = {}
        for precision in ("fp32", "bf16"):
            settings = [
                Settings(precision=precision, epochs=chosen.epochs, seed=i) for i in range(chosen.seeds)
            ]
            build_banks(settings[0], data)
            torch.set_num_threads(1)
            accuracies[precision] = [best_accuracy(each, data) for each in settings]
    differences = [b - a for a, b in zip(*accuracies.values(), strict=True)]
    answer = {
        "images": {"train": len(data.train), "validation": len(data.validation)},
        **{f"accuracy_{key}": mean(values) for key, values in accuracies.items()},
        "difference": mean(differences),
        "standard_error": stdev(differences) / math.sqrt(len(differences)),
        "largest": max(map(abs, differences)),
    }
    print(json.dumps(answer, indent=1))
    if chosen.json:
        chosen.json.write_text(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
