"""What watching, and a challenger in the shadow, cost a caller: the latency of one photo, and of 8 clients at once.

    python benchmarks/watching.py [--rounds 6] [--backbone efficientnet_lite0] [--engine onnxruntime]

Three servers of one version (untrained), one that does not watch, one that does, and one that also asks a challenger a
tenth of its requests, are asked in turn over HTTP with photos of 224 px, so that what else the machine does meets all.
Ratios are to the server that does not watch.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.engines.choice import choose_engine
from binsweep.models.network import CountingModel, CountingModelConfig
from binsweep.models.predictor import Predictor
from binsweep.tracking.mlflow_server.embedded import tracking_server
from binsweep.tracking.monitoring.shadow import SHADOW, ShadowTask
from binsweep.tracking.monitoring.store import WatchStore, store_path
from binsweep.tracking.processes import LOOPBACK, free_port, listen, local_url
from binsweep.tracking.registry.registration import register
from binsweep.tracking.serving.model_server import predict
from binsweep.tracking.serving.replica import WatchOptions, open_replica, start_replica

SIZE, N_PHOTOS, EACH = 224, 64, 50
N_CLIENTS, CROWD_SECONDS = 8, 5
NAME = "watched"


def timed(url: str, photo: bytes) -> float:
    """Milliseconds of one photo."""
    began = time.perf_counter()
    predict(url, [photo], 60)
    return 1000 * (time.perf_counter() - began)


def crowd(url: str, photos: list[bytes]) -> list[float]:
    """The milliseconds of 8 clients without a pause."""
    until = time.monotonic() + CROWD_SECONDS

    def ask(number: int) -> list[float]:
        times = []
        while time.monotonic() < until:
            times.append(timed(url, photos[(number + len(times)) % len(photos)]))
        return times

    with ThreadPoolExecutor(N_CLIENTS) as clients:
        return [took for times in clients.map(ask, range(N_CLIENTS)) for took in times]


def report(title: str, times: dict[str, list[float]]) -> None:
    off = times["off"]
    for name, taken in times.items():
        parts = [
            f"p{p} {np.percentile(taken, p):.1f} ms ({np.percentile(taken, p) / np.percentile(off, p):.2f} times)"
            for p in (50, 90, 99)
        ]
        print(f"{title}, watching {name}: {len(taken)} requests, {', '.join(parts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--engine", default="onnxruntime")
    args = parser.parse_args()
    known = ARCHITECTURES[args.backbone]
    config = CountingModelConfig(args.backbone, "classify", (1, 2, 3, 4, 5), SIZE, known.mean, known.std)
    predictor = Predictor([CountingModel(config)]).eval()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        home = Path(temporary) / "home"
        write_synthetic(Path(temporary) / "bins", N_PHOTOS, 0, SIZE, [1, 2, 3, 4, 5])
        photos = [file.read_bytes() for file in sorted((Path(temporary) / "bins").rglob("*.jpg"))]
        uri = stack.enter_context(tracking_server(home))
        client = MlflowClient(uri)
        run = client.create_run(client.create_experiment(NAME))
        engine = choose_engine(args.engine, predictor, np.zeros((2, SIZE, SIZE, 3), np.uint8))
        register(uri, run.info.run_id, NAME, predictor, {}, engine)
        urls = {}
        challenger = stack.enter_context(open_replica(NAME, "1", uri, [], in_background=True))
        shadow = ShadowTask("challenger", challenger.server.url, 0.1)
        options = WatchOptions(str(home))
        for name, watch, task in (
            ("off", None, None),
            ("on", options, None),
            ("with a shadow", options, shadow),
        ):
            port = free_port()
            listeners = [stack.enter_context(listener) for listener in listen(LOOPBACK, port)]
            replica = start_replica(f"models:/{NAME}/1", NAME, "1", uri, listeners, watch, task)
            stack.enter_context(replica).accept()
            urls[name] = local_url(LOOPBACK, port)
            predict(urls[name], photos, 60)
        single: dict[str, list[float]] = {name: [] for name in urls}
        many: dict[str, list[float]] = {name: [] for name in urls}
        for number in range(args.rounds):
            order = list(urls.items())[:: 1 if number % 2 else -1]
            for name, url in order:
                single[name] += [timed(url, photos[place % len(photos)]) for place in range(EACH)]
            for name, url in order:
                many[name] += crowd(url, photos)
        report("one client", single)
        report(f"{N_CLIENTS} clients", many)
        time.sleep(5)  # until everything is written
        totals = WatchStore(store_path(home, NAME)).totals("1")
        for figure in ("photos", SHADOW):
            print(f"{figure}:", {state: times for state, (times, _) in totals[figure].items()})


if __name__ == "__main__":
    main()
