"""What serving adds to counting: latency against the same work in process, batches, and a sustained run.

    python benchmarks/serve.py [--minutes 10] [--backbone efficientnet_lite0] [--photos DIR]

Serves a counter (ImageNet backbone, untrained head) with `mlflow models serve` and asks it over HTTP, one photo of
224 px at a time and 32 at a time; the baseline decodes and counts the same photos in this process with as many
threads, once by the network as it was evaluated in training and once by the same with its batch norms folded, as it is
served. All take turns, so that what else the machine does meets all. Then 8 clients ask at once, and one asks beside
another's batches of 256. At the end one client asks without a pause for so many minutes, while the memory of the
server's processes is noted every second.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from binsweep.data.decode import decode
from binsweep.data.resource_limits import cores
from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.models.build import build_model
from binsweep.models.decoding import MAX_ROWS
from binsweep.models.network import fold_norms
from binsweep.models.predictor import Predictor
from binsweep.models.settings import Settings
from binsweep.tracking.registry.registration import saved_model
from binsweep.tracking.serving.model_server import predict, serve_model

SIZE, ROUNDS, EACH, BATCH = 224, 10, 10, 32
CROWD_SECONDS = 5
MIB = 2**20


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def memory(pid: int) -> float:
    """MiB of a process and all below it."""
    root = psutil.Process(pid)
    return sum(p.memory_info().rss for p in [root, *root.children(recursive=True)]) / MIB


def sustained(url: str, pid: int, photos: list[bytes], minutes: float) -> None:
    began, asked, errors, times, sizes, slowest = time.monotonic(), 0, 0, [], [], 0.0
    while (elapsed := time.monotonic() - began) < 60 * minutes:
        try:
            took = timed(lambda: predict(url, [photos[asked % len(photos)]], 60))  # noqa: B023
            slowest = max(slowest, took)
        except Exception as error:  # counted and shown: the run goes on
            errors += 1
            print(f"error after {elapsed:.0f} s: {error}")
        asked += 1
        if not times or elapsed - times[-1] >= 1:
            times.append(elapsed)
            sizes.append(memory(pid))
    warm = len(times) // 5  # allocators settle first
    slope = float(np.polyfit(np.array(times[warm:]) / 60, sizes[warm:], 1)[0])
    print(
        f"sustained: {minutes:g} min, {asked} requests ({asked / (60 * minutes):.1f}/s), {errors} errors, "
        f"slowest {slowest:.0f} ms; memory {sizes[warm]:.0f} to {sizes[-1]:.0f} MiB, slope {slope:+.2f} MiB/min"
    )


def crowds(url: str, photos: list[bytes]) -> None:
    """Many clients with one photo each time, and one beside a client with batches of the most rows."""

    def singles(until: float) -> list[float]:
        times: list[float] = []
        while time.monotonic() < until:
            times.append(timed(lambda: predict(url, photos[:1], 60)))
        return times

    def large(until: float) -> None:
        while time.monotonic() < until:
            predict(url, (photos * MAX_ROWS)[:MAX_ROWS], 60)

    with ThreadPoolExecutor(8) as clients:
        until = time.monotonic() + CROWD_SECONDS
        times = [one for some in clients.map(singles, [until] * 8) for one in some]
        print(f"8 clients: {len(times) / CROWD_SECONDS:.1f} photos/s, p99 {np.percentile(times, 99):.0f} ms")
        until = time.monotonic() + CROWD_SECONDS
        batches = clients.submit(large, until)
        times = singles(until)
        batches.result()
    print(
        f"beside batches of {MAX_ROWS}: p50 {np.median(times):.0f} ms, p99 {np.percentile(times, 99):.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs; rendered bins without it")
    args = parser.parse_args()
    torch.set_num_threads(cores())
    counter = build_model(Settings(backbone=args.backbone), (1, 2, 3, 4, 5), SIZE)
    predictor = Predictor([counter]).eval()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        folder = args.photos
        if folder is None:
            write_synthetic(home / "bins", 64, 0, SIZE, [1, 2, 3, 4, 5])
            folder = home / "bins" / "bin-images"
        photos = [file.read_bytes() for file in sorted(folder.glob("*.jpg"))[:64]]
        # A tracking address that nobody asks: the model is a folder.
        with saved_model(predictor) as model, serve_model(str(model), f"sqlite:///{home}/none.db") as served:
            measure(served.url, predictor, photos)
            crowds(served.url, photos)
            sustained(served.url, served.server.pid, photos, args.minutes)


def measure(url: str, predictor: Predictor, photos: list[bytes]) -> None:
    predictor.to(memory_format=torch.channels_last)
    folded = copy.deepcopy(predictor)
    fold_norms(folded)

    def here(photo: bytes, network: Predictor) -> np.ndarray:
        with torch.inference_mode():
            table: np.ndarray = network(torch.from_numpy(decode(photo, SIZE)[None])).numpy()
        return table

    inside, inside_folded, outside, batches = [], [], [], []
    said = [list(row["probabilities"].values()) for row in predict(url, photos, 60)]
    furthest = float(np.abs(np.concatenate([here(photo, predictor) for photo in photos]) - said).max())
    for number in range(ROUNDS):
        some = [photos[(number * EACH + place) % len(photos)] for place in range(EACH)]
        inside += [timed(lambda: here(photo, predictor)) for photo in some]  # noqa: B023
        inside_folded += [timed(lambda: here(photo, folded)) for photo in some]  # noqa: B023
        outside += [timed(lambda: predict(url, [photo], 60)) for photo in some]  # noqa: B023
        batches.append(timed(lambda: predict(url, (photos * BATCH)[:BATCH], 60)))
    p50, base = statistics.median(outside), statistics.median(inside)
    batch = statistics.median(batches)
    print(f"{len(photos)} photos, {cores()} threads; probabilities differ by at most {furthest:.1e}")
    print(f"one photo: in process p50 {base:.1f} ms, HTTP p50 {p50:.1f} ms, ratio {p50 / base:.2f}")
    fair = statistics.median(inside_folded)
    print(f"against the folded network in process: p50 {fair:.1f} ms, ratio {p50 / fair:.2f}")
    print(f"HTTP p90 {np.percentile(outside, 90):.1f} ms, p99 {np.percentile(outside, 99):.1f} ms")
    rates = 1000 / p50, 1000 * BATCH / batch
    print(
        f"photos/s: singles {rates[0]:.1f}, batches of {BATCH} {rates[1]:.1f}, ratio {rates[1] / rates[0]:.2f}"
    )


if __name__ == "__main__":
    main()
