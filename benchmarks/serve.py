"""What serving adds to counting, and what engines make of it: latency, batches, clients at once, a sustained run.

    python benchmarks/serve.py [--engines torch,onnxruntime,openvino] [--minutes 10] [--backbone efficientnet_lite0]
                               [--photos DIR] [--rounds 10]

Serves a counter (ImageNet backbone, untrained head) with `mlflow models serve`, once for each engine, and asks over
HTTP, one photo of 224 px at a time and 32 at a time; the baseline decodes and counts the same photos in this process
with as many threads, by PyTorch as the first engine serves it. All take turns, so that what else the machine does
meets all. Then 8 clients ask at once, and one asks beside another's batches of 256. At the end one client asks the
last engine without a pause for so many minutes, while the memory of the server's processes is noted every second.
Ratios are to the first engine.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
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
from binsweep.models.engines.choice import choose_engine
from binsweep.models.engines.names import EngineName
from binsweep.models.network import fold_norms
from binsweep.models.predictor import Predictor
from binsweep.models.settings import Settings
from binsweep.tracking.registry.registration import saved_model
from binsweep.tracking.serving import model_server
from binsweep.tracking.serving.model_server import ServedModel, predict, serve_model

SIZE, EACH, BATCH = 224, 10, 32
N_CLIENTS, CROWD_SECONDS = 8, 5
MIB = 2**20
MAX_START_SECONDS = 600.0  # next to other work PyTorch takes longer than a service waits for it


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


def singles(url: str, photos: list[bytes], until: float) -> list[float]:
    times: list[float] = []
    while time.monotonic() < until:
        times.append(timed(lambda: predict(url, photos[:1], 60)))
    return times


def crowds(served: dict[str, str], photos: list[bytes], rounds: int) -> None:
    """Many clients with one photo each time, and one beside a client with batches of the most rows."""

    def large(url: str, until: float) -> None:
        while time.monotonic() < until:
            predict(url, (photos * MAX_ROWS)[:MAX_ROWS], 60)

    crowd: dict[str, list[float]] = {engine: [] for engine in served}
    beside: dict[str, list[float]] = {engine: [] for engine in served}
    with ThreadPoolExecutor(N_CLIENTS) as clients:
        for _ in range(rounds):
            for engine, url in served.items():
                until = time.monotonic() + CROWD_SECONDS
                work = [clients.submit(singles, url, photos, until) for _ in range(N_CLIENTS)]
                crowd[engine] += [took for one in work for took in one.result()]
        for _ in range(rounds):
            for engine, url in served.items():
                until = time.monotonic() + CROWD_SECONDS
                batches = clients.submit(large, url, until)
                beside[engine] += singles(url, photos, until)
                batches.result()
    first = next(iter(crowd.values()))
    for engine, times in crowd.items():
        rate = len(times) / CROWD_SECONDS / rounds
        print(
            f"{engine}: {N_CLIENTS} clients {rate:.1f} photos/s ({len(times) / len(first):.2f} times), "
            f"p99 {np.percentile(times, 99):.0f} ms"
        )
    for engine, times in beside.items():
        print(
            f"{engine}: beside batches of {MAX_ROWS} p50 {np.median(times):.0f} ms, "
            f"p99 {np.percentile(times, 99):.0f} ms"
        )


def start(predictor: Predictor, engine: EngineName, photos: list[bytes], open_all: ExitStack) -> ServedModel:
    """A server whose model is a folder; the tracking address is asked by nobody."""
    images = np.stack([decode(photo, SIZE) for photo in photos[:8]])
    taken = choose_engine(engine, predictor, images)
    model = open_all.enter_context(saved_model(predictor, taken))
    began = time.monotonic()
    server = open_all.enter_context(serve_model(str(model), "sqlite:////nowhere/none.db"))
    predict(server.url, photos[:1], 60)
    print(f"{engine}: first answer after {time.monotonic() - began:.1f} s ({taken.reason})", flush=True)
    return server


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", default="torch,onnxruntime,openvino")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs; rendered bins without it")
    args = parser.parse_args()
    model_server.START_SECONDS = MAX_START_SECONDS
    torch.set_num_threads(cores())
    counter = build_model(Settings(backbone=args.backbone), (1, 2, 3, 4, 5), SIZE)
    predictor = Predictor([counter]).eval()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as open_all:
        folder = args.photos
        if folder is None:
            write_synthetic(Path(temporary) / "bins", 64, 0, SIZE, [1, 2, 3, 4, 5])
            folder = Path(temporary) / "bins" / "bin-images"
        photos = [file.read_bytes() for file in sorted(folder.glob("*.jpg"))[:64]]
        servers = {engine: start(predictor, engine, photos, open_all) for engine in args.engines.split(",")}
        served = {engine: server.url for engine, server in servers.items()}
        measure(served, predictor, photos, args.rounds)
        crowds(served, photos, max(1, args.rounds // 3))
        for engine, server in servers.items():
            print(f"{engine}: {memory(server.server.pid):.0f} MiB resident after all of this")
        engine, server = list(servers.items())[-1]
        print(f"{engine}, without a pause:")
        sustained(server.url, server.server.pid, photos, args.minutes)


def measure(served: dict[str, str], predictor: Predictor, photos: list[bytes], rounds: int) -> None:
    evaluated = copy.deepcopy(predictor).to(memory_format=torch.channels_last)
    folded = copy.deepcopy(evaluated)
    fold_norms(folded, torch.zeros((1, *2 * (folded.image_size,), 3), dtype=torch.uint8))

    def here(photo: bytes, network: Predictor) -> np.ndarray:
        with torch.inference_mode():
            table: np.ndarray = network(torch.from_numpy(decode(photo, SIZE)[None])).numpy()
        return table

    expected = np.concatenate([here(photo, evaluated) for photo in photos])
    for engine, url in served.items():
        answered = [list(row["probabilities"].values()) for row in predict(url, photos, 60)]
        print(f"{engine}: probabilities differ by at most {float(np.abs(expected - answered).max()):.1e}")
    inside: list[float] = []
    outside: dict[str, list[float]] = {engine: [] for engine in served}
    batches: dict[str, list[float]] = {engine: [] for engine in served}
    for number in range(rounds):
        some = [photos[(number * EACH + place) % len(photos)] for place in range(EACH)]
        inside += [timed(lambda: here(photo, folded)) for photo in some]  # noqa: B023
        for engine, url in served.items():
            outside[engine] += [timed(lambda: predict(url, [photo], 60)) for photo in some]  # noqa: B023
        for engine, url in served.items():
            batches[engine].append(timed(lambda: predict(url, (photos * BATCH)[:BATCH], 60)))  # noqa: B023
    print(
        f"{len(photos)} photos, {cores()} threads; in process, folded: p50 {statistics.median(inside):.1f} ms"
    )
    first, first_batch = (statistics.median(next(iter(times.values()))) for times in (outside, batches))
    for engine, times in outside.items():
        p50, batch = statistics.median(times), statistics.median(batches[engine])
        print(
            f"{engine}: one photo p50 {p50:.1f} ms ({p50 / first:.2f} times), at best {min(times):.1f} ms, "
            f"p90 {np.percentile(times, 90):.1f} ms, p99 {np.percentile(times, 99):.1f} ms; "
            f"batches of {BATCH} {1000 * BATCH / batch:.1f} photos/s ({first_batch / batch:.2f} times, "
            f"at best {1000 * BATCH / min(batches[engine]):.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
