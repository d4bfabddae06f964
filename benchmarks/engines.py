"""What computes a trained network fastest on a CPU: eager PyTorch, OpenVINO or ONNX Runtime.

    python benchmarks/engines.py [--backbones efficientnet_lite0,resnet18] [--batches 1,8,32] [--rounds 15]

Each engine has a process of its own with as many threads, and they take turns, so that what else the machine does
meets all. PyTorch computes as the served model does: batch norms folded, channels last. Printed are the median
milliseconds of a batch and of the time that the cores spent on it (which other work disturbs less), their ratios to
PyTorch's, and how far the probabilities differ from its.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from binsweep.models.build import build_model
from binsweep.models.engines.choice import open_engine
from binsweep.models.engines.names import ENGINE_CLASSES, EngineName
from binsweep.models.engines.onnx_file import to_onnx
from binsweep.models.predictor import Predictor
from binsweep.models.settings import Settings

SIZE, N_WARM_UP = 224, 3


def work(engine: EngineName, folder: Path, orders: Connection) -> None:
    """Answer each batch with its seconds and its probabilities; the first answer is the seconds of the start."""
    began = time.perf_counter()
    files = {"config": "config.json", "weights": "weights.pt", "network": "network.onnx"}
    compute = open_engine(engine, {name: folder / file for name, file in files.items()})
    compute(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    orders.send(time.perf_counter() - began)
    while (images := orders.recv()) is not None:
        began, busy = time.perf_counter(), time.process_time()
        table = compute(images)
        orders.send((time.perf_counter() - began, time.process_time() - busy, table))


def write_network(backbone: str, folder: Path) -> None:
    """The files of a served model."""
    predictor = Predictor([build_model(Settings(backbone=backbone, weights="none"), (1, 2, 3, 4, 5), SIZE)])
    (folder / "config.json").write_text(json.dumps(predictor.to_dict()))
    torch.save(predictor.state_dict(), folder / "weights.pt")
    (folder / "network.onnx").write_bytes(to_onnx(predictor))


def compare(backbone: str, batches: list[int], rounds: int) -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_network(backbone, folder)
        workers = {}
        for engine in ENGINE_CLASSES:
            here, there = context.Pipe()
            context.Process(target=work, args=(engine, folder, there), daemon=True).start()
            there.close()  # so that the end of the worker is noticed
            workers[engine] = here
            print(
                f"{backbone}: {engine} answers after {here.recv():.2f} s (imports, compilation, first photo)"
            )
        for batch in batches:
            images = np.random.default_rng(batch).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
            seconds: dict[str, list[tuple[float, float]]] = {engine: [] for engine in workers}
            tables = {}
            for number in range(N_WARM_UP + rounds):
                for engine, worker in workers.items():
                    worker.send(images)
                    took, busy, tables[engine] = worker.recv()
                    if number >= N_WARM_UP:
                        seconds[engine].append((took, busy))
            base = np.median(seconds["torch"], axis=0)
            for engine, times in seconds.items():
                middle = np.median(times, axis=0)
                (took, busy), (faster, cheaper) = 1000 * middle, base / middle
                off = float(np.abs(tables[engine] - tables["torch"]).max())
                print(
                    f"{backbone}, batch {batch}: {engine} {took:.1f} ms ({faster:.2f} times as fast; at best "
                    f"{1000 * np.min(times, axis=0)[0]:.1f} ms), {busy:.1f} ms of the cores ({cheaper:.2f} times as "
                    f"cheap), probabilities differ by at most {off:.1e}",
                    flush=True,
                )
        for worker in workers.values():
            worker.send(None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", default="efficientnet_lite0,resnet18")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    for backbone in args.backbones.split(","):
        compare(backbone, [int(batch) for batch in args.batches.split(",")], args.rounds)


if __name__ == "__main__":
    main()
