"""How much faster trials are than in the stack that people write from the documentation, on the same data.

    python benchmarks/trials.py --data DIR [--trials N] [--trainable head|last_stage|all] [--json OUT]

Both sides train EfficientNet-Lite0 with the same recipe, data, split, epochs, seeds and configurations. Ours is the
product: `prepare` (manifest, decoding, banks, all from nothing in a fresh home) and `run_sweep` with Ray and a
real MLflow server. The plain side (plain_stack.py) trains the first few of our configurations again, because
each takes minutes; its seconds per trial are its wall time over its trials. The server runs before either clock
starts; Ray's start counts on our side only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from binsweep.data.banks.pixels import open_pixel_bank
from binsweep.data.manifest import load_manifest
from binsweep.data.resource_limits import cores
from binsweep.data.split import Split
from binsweep.models.trial_data import TrialData
from binsweep.search.spec.parser import parse_spec
from binsweep.search.workflows.preflight import check_before_start
from binsweep.search.workflows.prepare import prepare
from binsweep.search.workflows.sweep import run_sweep
from binsweep.tracking.mlflow_server.embedded import tracking_server

SIZE = 224


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help="bins in the public bucket's layout")
    parser.add_argument("--trials", type=int, help="ours; 100 for head, 8 for last_stage, 1 for all")
    parser.add_argument("--trainable", choices=["head", "last_stage", "all"], default="head")
    parser.add_argument("--epochs", type=int, help="of every trial; 5 for head, 3 for last_stage, 1 for all")
    parser.add_argument("--plain-trials", type=int, default=2, help="at once; 0: our side alone")
    parser.add_argument("--images", type=int, help="only so many photos of --data")
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args()
    few = {"head": (100, 5), "last_stage": (8, 3), "all": (1, 1)}[chosen.trainable]
    chosen.trials, chosen.epochs = chosen.trials or few[0], chosen.epochs or few[1]
    return chosen


def part_of(source: Path, images: int, folder: Path) -> Path:
    """The first `images` photos of `source` with their documents, as links."""
    for name in ("bin-images", "metadata"):
        (folder / name).mkdir(parents=True)
    for photo in sorted((source / "bin-images").iterdir())[:images]:
        (folder / "bin-images" / photo.name).symlink_to(photo.absolute())
        document = source / "metadata" / f"{photo.stem}.json"
        if document.exists():
            (folder / "metadata" / document.name).symlink_to(document.absolute())
    return folder


def trial_data(source: Path, images: int, folder: Path) -> TrialData:
    """The first `images` photos of `source` with 1 to 5 items, split and decoded under `folder`."""
    manifest = load_manifest(str(part_of(source, images, folder / "part")), [1, 2, 3, 4, 5], Split(), folder)
    train, validation = (open_pixel_bank(manifest, name, SIZE, folder) for name in ("train", "validation"))
    return TrialData(manifest.classes, SIZE, train, validation, folder / "banks")


def run_ours(chosen: argparse.Namespace, source: Path, home: Path, uri: str) -> dict[str, Any]:
    """The product's way; also what the plain side needs to train the same."""
    spec = parse_spec(
        {
            "name": "ours",
            "data": {"source": str(source), "classes": [1, 2, 3, 4, 5], "image_size": SIZE},
            "model": {"trainable": chosen.trainable, "epochs": chosen.epochs},
            "space": {
                "lr": {"low": 3e-4, "high": 3e-3, "log": True},
                "batch_size": [32, 64, 128] if chosen.trainable == "head" else [32],
            },
            "search": {"sampler": "random", "stopping": "none", "seed": 0},
            "budget": {"trials": chosen.trials},
            "resources": {"cpus_per_trial": 1 if chosen.trainable == "head" else cores()},
        }
    )
    check_before_start(spec)
    start = time.perf_counter()
    prepared = prepare(spec, home)
    manifest = prepared.records.manifest
    ready = time.perf_counter()
    result = run_sweep(prepared, "ray", uri)
    done = time.perf_counter()
    if result.failed or result.unsent:
        raise RuntimeError(f"{len(result.failed)} trials failed, {result.unsent} records were not sent")
    trials = sorted(result.leaderboard, key=lambda trial: trial.number)
    first, last = min(t.started for t in trials), max(t.ended or 0.0 for t in trials)
    return {
        "bank_seconds": ready - start,
        "sweep_seconds": done - ready,
        "trials_seconds": last - first,
        "trials": trials,
        "classes": manifest.classes,
        "photos": {
            name: [(str(i.path), manifest.classes.index(i.label)) for i in manifest.split(name)]
            for name in ("train", "validation")
        },
    }


def compare(chosen: argparse.Namespace, ours: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """The one object of --json."""
    trials, validation = ours["trials"], len(ours["photos"]["validation"])
    seconds = (ours["bank_seconds"] + ours["sweep_seconds"]) / len(trials)
    answer: dict[str, Any] = {
        "trainable": chosen.trainable,
        "epochs": chosen.epochs,
        "images": {name: len(photos) for name, photos in ours["photos"].items()},
        "binsweep_trials": len(trials),
        "binsweep_seconds_per_trial": seconds,
        "bank_seconds": ours["bank_seconds"],
        "sweep_seconds": ours["sweep_seconds"],
        "trials_seconds": ours["trials_seconds"],
        "best_binsweep": max(trial.value for trial in trials),
        "binsweep_images_per_second": trials[0].metrics["images_per_second"],
    }
    if not plain:
        return answer
    paired = {trial.settings.seed: trial.value for trial in trials}
    differences = [paired[seed] - value for seed, value in plain["accuracies"].items()]
    best = max(plain["accuracies"].values())
    each = plain["seconds"] / len(differences)
    return answer | {
        "plain_trials": len(differences),
        "plain_seconds_per_trial": each,
        "ratio": each / seconds,
        "best_plain": best,
        "best_binsweep_same_trials": max(paired[seed] for seed in plain["accuracies"]),
        "paired_difference": sum(differences) / len(differences),
        # Binomial, both sides as if independent: the same photos make the true error smaller.
        "standard_error": math.sqrt(2 * best * (1 - best) / validation),
        "plain_images_per_second": plain["images_per_second"],
    }


def main() -> None:
    chosen = arguments()
    with tempfile.TemporaryDirectory() as name, tracking_server(Path(name) / "server") as uri:
        folder = Path(name)
        source = (
            part_of(chosen.data, chosen.images, folder / "part") if chosen.images else chosen.data.absolute()
        )
        ours = run_ours(chosen, source, folder / "home", uri)
        plain: dict[str, Any] = {}
        if chosen.plain_trials:
            from plain_stack import run_plain

            configs = [{**t.params, "seed": t.settings.seed} for t in ours["trials"][: chosen.plain_trials]]
            job = {
                **ours["photos"],
                "size": SIZE,
                "classes": len(ours["classes"]),
                "epochs": chosen.epochs,
                "trainable": chosen.trainable,
                "uri": uri,
                "cpus_per_trial": max(1, cores() // len(configs)),
            }
            plain = run_plain(configs, job, folder / "plain")
        answer = compare(chosen, ours, plain)
    for key, value in answer.items():
        print(f"{key:<28} {value:.4g}" if isinstance(value, float) else f"{key:<28} {value}")
    if chosen.json:
        chosen.json.write_text(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
