"""What computes a trained network fastest on a CPU: eager PyTorch, OpenVINO or ONNX Runtime.

    python benchmarks/engines.py [--backbones efficientnet_lite0,resnet18] [--batches 1,8,32] [--rounds 15]

Each engine has a process of its own with as many threads, and they take turns, so that what else the machine does
meets all. PyTorch computes as the served model does: batch norms folded, channels last. Printed are the median
milliseconds of a batch and of the time that the cores spent on it (which other work disturbs less), their ratios to
PyTorch's, and how far the probabilities differ from its.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from binsweep.data.resource_limits import cores

SIZE, N_WARM_UP = 224, 3
Network = Callable[[np.ndarray], np.ndarray]


def torch_engine(folder: Path) -> Network:
    import torch

    from binsweep.models.predictor import Predictor

    torch.set_num_threads(cores())
    predictor: Predictor = torch.load(folder / "network.pt", weights_only=False)

    def compute(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            table: np.ndarray = predictor(torch.from_numpy(images)).numpy()
        return table

    return compute


def openvino_engine(folder: Path, precision: str = "f32", hint: str = "LATENCY") -> Network:
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": cores(),
        "PERFORMANCE_HINT": hint,
    }
    core = openvino.Core()
    request = core.compile_model(
        core.read_model(folder / "network.onnx"), "CPU", options
    ).create_infer_request()

    def compute(images: np.ndarray) -> np.ndarray:
        request.infer([images], share_inputs=True)
        table: np.ndarray = request.get_output_tensor().data.copy()
        return table

    return compute


def onnxruntime_engine(folder: Path) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # it takes cores from the decoders
    session = onnxruntime.InferenceSession(folder / "network.onnx", options, ["CPUExecutionProvider"])

    def compute(images: np.ndarray) -> np.ndarray:
        (table,) = session.run(None, {"images": images})
        return np.asarray(table)

    return compute


ENGINES: dict[str, Callable[[Path], Network]] = {
    "torch": torch_engine,
    "openvino": openvino_engine,
    "onnxruntime": onnxruntime_engine,
}


def work(engine: str, folder: Path, orders: Connection) -> None:
    """Answer each batch with the seconds and the probabilities; the first answer is the seconds of the start."""
    began = time.perf_counter()
    compute = ENGINES[engine](folder)
    compute(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    orders.send(time.perf_counter() - began)
    while (images := orders.recv()) is not None:
        began, busy = time.perf_counter(), time.process_time()
        table = compute(images)
        orders.send((time.perf_counter() - began, time.process_time() - busy, table))


def write_networks(backbone: str, folder: Path) -> None:
    """The same network for each engine."""
    import torch

    from binsweep.models.build import build_model
    from binsweep.models.network import fold_norms
    from binsweep.models.predictor import Predictor
    from binsweep.models.settings import Settings

    predictor = Predictor(
        [build_model(Settings(backbone=backbone, weights="none"), (1, 2, 3, 4, 5), SIZE)]
    ).eval()
    fold_norms(predictor)
    example = torch.zeros((2, SIZE, SIZE, 3), dtype=torch.uint8)
    torch.onnx.export(
        predictor,
        (example,),
        str(folder / "network.onnx"),
        dynamo=False,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_axes={"images": {0: "photos"}, "probabilities": {0: "photos"}},
    )
    torch.save(predictor.to(memory_format=torch.channels_last), folder / "network.pt")


def compare(backbone: str, batches: list[int], rounds: int) -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        writer = context.Process(target=write_networks, args=(backbone, folder))
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit(1)
        workers = {}
        for engine in ENGINES:
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
