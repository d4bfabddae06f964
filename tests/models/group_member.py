"""One process of a group that trains together, started by test_group.py: FOLDER RANK SIZE."""

import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from binsweep.models.settings import Settings
from binsweep.models.train import Snapshot, TrainOptions, train
from binsweep.models.training_state import load_training_state
from binsweep.models.trial_data import TrialData

Curve = list[dict[str, float]]


def curve_of(settings: Settings, data: TrialData, micro_batches: int, stop_after: int, file: Path) -> Curve:
    """The metrics of every epoch. Unless `stop_after` is 0, training stops after that epoch and resumes from a file."""
    curve: Curve = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        curve.append(metrics)
        if epoch == stop_after:
            snapshot.state().save(file)
        return epoch != stop_after

    train(settings, data, report, TrainOptions(micro_batches=micro_batches))
    if stop_after:
        torch.manual_seed(99)  # the process may have drawn other random numbers meanwhile
        stop_after = 0
        state = load_training_state(file)
        train(settings, data, report, TrainOptions(start_from=state, micro_batches=micro_batches))
    return curve


def main() -> None:
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=size)
    data, cases = pickle.loads((folder / "cases").read_bytes())
    curves = {
        name: curve_of(settings, data, micro_batches, stop_after, folder / f"{name}.pt")
        for name, (settings, micro_batches, stop_after) in cases.items()
    }
    (folder / f"curves-{rank}").write_bytes(pickle.dumps(curves))


if __name__ == "__main__":
    main()
