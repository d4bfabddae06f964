"""How fast `binsweep predict` answers about many photos, and how much memory that takes.

    python benchmarks/predict.py [--backbone efficientnet_lite0] [--photos DIR] [--each 128] [--rounds 4]
    python benchmarks/predict.py --memory 2000,100000

Without `--memory`: the same photos by three ways in turn, so that what else the machine does meets all. Two are loops
as `predict` was before: 32 photos are read, then decoded, then computed, by PyTorch, or by ONNX Runtime. The third is
`predict` as it is: reading, decoding and computing at once. The first way is the baseline of the ratios; printed are
the time of the clock, which other work disturbs, and that of the cores.

With `--memory`: the peak memory of `binsweep predict FOLDER --out FILE.parquet` for folders of so many photos, with a
model without a network, so that what grows with the photos is seen.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import mlflow
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from binsweep.data.decode import decode, read
from binsweep.data.resource_limits import cores
from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.models.build import build_model
from binsweep.models.engines.choice import choose_engine
from binsweep.models.predictor import Predictor
from binsweep.models.settings import Settings
from binsweep.search.workflows.photo_list import PhotoList, find_photos
from binsweep.search.workflows.predict import MAX_MODELS, answer_photos
from binsweep.tracking.registry.registration import saved_model
from binsweep.tracking.serving.model_server import BATCH_PHOTOS, Answer, open_model, open_models

SIZE, PHOTO_SIZE, N_LOOP_READERS = 224, 500, 8
NO_SERVER = "sqlite:////nowhere/none.db"  # the models are folders: nobody asks it
MODEL = """import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Constant(PythonModel):
    def predict(self, context, model_input, params=None):
        spread = {str(count): 1 / 6 for count in range(6)}
        row = {"count": 0, "expected_count": 2.5, "confidence": 1 / 6, "probabilities": spread, "error": ""}
        return pd.DataFrame([row] * len(model_input))


set_model(Constant())
"""
Rows = list[dict[str, object]]


def loop(files: list[Path], answer: Answer) -> Rows:
    """`predict` as it was: one batch after another, one step after another."""
    rows: Rows = []
    with ThreadPoolExecutor(N_LOOP_READERS) as readers:
        for start in range(0, len(files), BATCH_PHOTOS):
            rows += answer(list(readers.map(read, files[start : start + BATCH_PHOTOS])))
    return rows


def at_once(files: list[Path], answers: list[Answer]) -> Rows:
    photos = PhotoList(find_photos([str(file) for file in files], None))
    return [row for _, row in answer_photos(photos, answers)]


def compare(backbone: str, folder: Path, each: int, rounds: int) -> None:
    files = sorted(folder.glob("*.jpg"))
    predictor = Predictor([build_model(Settings(backbone=backbone), (1, 2, 3, 4, 5), SIZE)]).eval()
    images = np.stack([decode(file, SIZE) for file in files[:4]])
    with ExitStack() as stack:
        engines = ("torch", "onnxruntime")
        torch, onnx = (
            f"file:{stack.enter_context(saved_model(predictor, choose_engine(engine, predictor, images)))}"
            for engine in engines
        )
        slow, fast = open_model(torch, NO_SERVER), open_model(onnx, NO_SERVER)
        several = open_models(onnx, NO_SERVER, min(cores(), MAX_MODELS))
    ways: dict[str, Callable[[list[Path]], Rows]] = {
        "loop, PyTorch": lambda some: loop(some, slow),
        "loop, ONNX Runtime": lambda some: loop(some, fast),
        "predict, ONNX Runtime": lambda some: at_once(some, several),
    }
    for way in ways.values():  # the first passes allocate
        way(files[: 2 * BATCH_PHOTOS])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    worst = 0.0
    for number in range(rounds):
        some = [files[(number * each + place) % len(files)] for place in range(each)]
        tables = []
        for name, way in ways.items():
            began, busy = time.perf_counter(), time.process_time()
            rows = way(some)
            seconds[name].append((time.perf_counter() - began, time.process_time() - busy))
            tables.append(np.array([list(row["probabilities"].values()) for row in rows]))  # type: ignore[attr-defined]
        worst = max(worst, *(float(np.abs(table - tables[0]).max()) for table in tables))
        print(f"round {number + 1}, load {os.getloadavg()[0]:.1f}", flush=True)
    base = np.median(next(iter(seconds.values())), axis=0)
    for name, times in seconds.items():
        took, busy = np.median(times, axis=0)
        faster, cheaper = base / (took, busy)
        print(
            f"{name}: {each / took:.1f} photos/s ({faster:.2f} times), "
            f"{1000 * busy / each:.1f} ms of the cores a photo ({cheaper:.2f} times as cheap)"
        )
    print(
        f"{backbone}, {cores()} cores, {each} photos a round; "
        f"probabilities differ by at most {worst:.1e} from PyTorch's"
    )


def measure_memory(numbers: list[int]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model.py").write_text(MODEL)
        mlflow.pyfunc.save_model(
            str(folder / "model"), python_model=str(folder / "model.py"), pip_requirements=[]
        )
        Image.new("RGB", (32, 32)).save(folder / "photo.jpg")
        for number in numbers:
            photos = folder / str(number)
            photos.mkdir()
            for place in range(number):
                below = photos / f"{place // 1000:04d}"
                below.mkdir(exist_ok=True)
                if place % 1000 == 0:
                    first = below / "000.jpg"
                    first.write_bytes((folder / "photo.jpg").read_bytes())
                else:
                    os.link(first, below / f"{place % 1000:03d}.jpg")
            out = folder / f"{number}.parquet"
            command = [sys.executable, "-m", "binsweep", "predict", str(photos), "--out", str(out)]
            command += ["--model", f"file:{folder / 'model'}"]
            began = time.monotonic()
            process = subprocess.Popen(
                command, env={**os.environ, "BINSWEEP_HOME": str(folder / "home")}, stdout=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0, status
            print(
                f"{number:,} photos: at most {usage.ru_maxrss / 1024:.0f} MiB, {time.monotonic() - began:.0f} s, "
                f"a file of {out.stat().st_size / 2**20:.1f} MiB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs; rendered bins of 500 px without it")
    parser.add_argument("--each", type=int, default=4 * BATCH_PHOTOS, help="photos of each way in a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--memory", help="numbers of photos, such as 2000,100000")
    args = parser.parse_args()
    if args.memory:
        measure_memory([int(number) for number in args.memory.split(",")])
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.photos
        if folder is None:
            write_synthetic(Path(temporary) / "bins", 2 * args.each, 0, PHOTO_SIZE, [1, 2, 3, 4, 5])
            folder = Path(temporary) / "bins" / "bin-images"
        compare(args.backbone, folder, args.each, args.rounds)


if __name__ == "__main__":
    main()
