"""How much faster several processes train one trial than one does, with the same batch and as many threads in all.

    python benchmarks/ddp.py [--data DIR] [--trainable head|last_stage|all]... [--images N] [--batch-size N]
                             [--rounds N] [--json OUT]

Without --data, on rendered bins. With C cores: one process of C threads against C processes of one thread (what
`resources.workers_per_trial: C` starts), and against one process of one thread. Each round trains all of them in turn,
two epochs each, of which the second counts; medians over the rounds, with the lowest and highest. Processes are
started as a group by torch.distributed (gloo, or NCCL on GPUs), without Ray: what Ray adds is their start.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

import torch
import torch.distributed as dist
from trials import trial_data

from binsweep.data.resource_limits import cores
from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.models.settings import Settings
from binsweep.models.train import train
from binsweep.models.trial_data import TrialData, build_banks

SIZE = 224


def member(rank: int, size: int, threads: int, meet: Path, data: TrialData, settings: Settings) -> None:
    """One process of a group of `size`; the first writes its curve to a file beside `meet`."""
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    if size > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, f"file://{meet}", rank=rank, world_size=size)
    curve: list[dict[str, float]] = []
    train(settings, data, lambda epoch, metrics, snapshot: curve.append(metrics) is None)
    if rank == 0:
        meet.with_suffix(".json").write_text(json.dumps(curve))
    # Not through the interpreter's end: now and then PyTorch aborts there, with a thread of the group still running.
    sys.stdout.flush()
    os._exit(0)


def run(size: int, threads: int, data: TrialData, settings: Settings, folder: Path) -> list[dict[str, float]]:
    """The curve of a trial trained by `size` fresh processes."""
    meet = Path(tempfile.mkdtemp(dir=folder)) / "meet"
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=member, args=(rank, size, threads, meet, data, settings))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a process failed")
    curve: list[dict[str, float]] = json.loads(meet.with_suffix(".json").read_text())
    return curve


def measure(settings: Settings, data: TrialData, rounds: int, folder: Path) -> dict[str, Any]:
    build_banks(settings, data)
    ways = {f"{size}x{threads}": (size, threads) for size, threads in ((1, 1), (1, cores()), (cores(), 1))}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, float] = {}
    for _ in range(rounds):
        for way, (size, threads) in ways.items():
            last = run(size, threads, data, settings, folder)[-1]
            speeds[way].append(last["images_per_second"])
            losses[way] = last["train_loss"]
    one, group = f"1x{cores()}", f"{cores()}x1"
    return {
        "images_per_second": {way: [min(s), median(s), max(s)] for way, s in speeds.items()},
        "speed_up_at_equal_threads": median(speeds[group]) / median(speeds[one]),
        "speed_up_over_one_thread": median(speeds[group]) / median(speeds["1x1"]),
        "train_loss": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="bins in the public bucket's layout")
    parser.add_argument("--trainable", choices=["head", "last_stage", "all"], action="append")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = chosen.data
        if source is None:
            source = folder / "bins"
            write_synthetic(source, chosen.images, 0, SIZE, [1, 2, 3, 4, 5])
        data = trial_data(source, chosen.images, folder)
        for trainable in chosen.trainable or ["head", "last_stage", "all"]:
            settings = Settings(trainable=trainable, epochs=2, batch_size=chosen.batch_size)
            rows[trainable] = row = measure(settings, data, chosen.rounds, folder)
            for way, (low, middle, high) in row["images_per_second"].items():
                loss = row["train_loss"][way]
                print(
                    f"{trainable:<10} {way}: {middle:8.1f} images/s ({low:.1f} to {high:.1f}), loss {loss:.6f}"
                )
            for key in ("speed_up_at_equal_threads", "speed_up_over_one_thread"):
                print(f"{trainable:<10} {key} {row[key]:.2f}", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
