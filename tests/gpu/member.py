"""One process of several on the same GPU or on one each: FOLDER RANK SIZE BACKEND, or FOLDER RANK alone for a trial of
its own that has half of the GPU."""

import json
import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from binsweep.models.levels import Level
from binsweep.models.train import train
from binsweep.search.execution.photo_trial import run_trial
from binsweep.search.execution.resources import TrialResources
from binsweep.search.execution.trial import TrialTask

Curve = list[dict[str, float]]


def together(folder: Path, rank: int, size: int, backend: str) -> Curve:
    data, settings = pickle.loads((folder / "job").read_bytes())
    torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group(backend, f"file://{folder}/rendezvous", rank=rank, world_size=size)
    curve: Curve = []
    train(settings, data, lambda epoch, metrics, snapshot: curve.append(metrics) is None)
    return curve


def beside(folder: Path, rank: int) -> Curve:
    data, settings = pickle.loads((folder / "job").read_bytes())
    resources = TrialResources({"CPU": 1.0, "GPU": 0.5})
    task = TrialTask(
        rank,
        (Level(settings, data.image_size),),
        folder / f"trial-{rank}",
        "val_loss",
        "minimize",
        1,
        resources=resources,
    )
    curve: Curve = []
    run_trial(task, data, lambda epoch, metrics: curve.append(metrics) is None)
    curve[-1]["most_memory"] = torch.cuda.max_memory_reserved()
    curve[-1]["kept"] = torch.cuda.memory_reserved()
    # An H100 kept 66 MiB: probably workspaces of cuBLAS's for two threads, of 32 MiB each, which a process has once
    # and no trial adds to.
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    curve[-1]["left"] = torch.cuda.memory_reserved()
    return curve


def main() -> None:
    folder, rank, *group = sys.argv[1:]
    curve = (
        together(Path(folder), int(rank), int(group[0]), group[1])
        if group
        else beside(Path(folder), int(rank))
    )
    Path(folder, f"curve-{rank}.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main()
