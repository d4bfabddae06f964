"""How many workers one driver serves: the real strategy and the real run log under a virtual clock.

    python benchmarks/scale.py --workers 10,100,1000 --epoch-seconds 10,60 --samplers auto,random

Workers train the built-in synthetic family; their epochs take virtual time, with a third of it spread around the mean.
The driver is one queue: what it does for an epoch or a suggestion (the strategy's call with its SQLite writes, the run
log's call with its file) takes the time that was measured while doing it for real, and so does Ray Tune's own work for
a report, which is measured first, with trials that do nothing but report; the worker waits for it. Measured once every
worker has reported. What MLflow would have to take is printed beside, against what it was measured to take
(benchmarks/runlog.py). Before that: how many checkpoints a second the actor on the driver's node takes in for workers
on other nodes, written and synced to disk, without the network between them.
"""

import argparse
import heapq
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import optuna

# A script's own folder comes first on the path, where `search.py` would hide the package of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from binsweep.search.strategy.base import Decision, Outcome  # noqa: E402
from binsweep.search.strategy.factory import StrategyOptions, open_strategy  # noqa: E402
from binsweep.search.strategy.simulator import SyntheticTask  # noqa: E402
from binsweep.tracking.runlog.run_log import RunLog  # noqa: E402

METRICS = 20  # of an epoch's report
REPORTS = 500  # of each of the trials that do nothing else
CHECKPOINTS = ((0.1, 400), (3.0, 200), (50.0, 20))  # megabytes, and how many of them are sent
TRIALS = 40  # whose checkpoints these are
NOWHERE = "http://127.0.0.1:9"  # nothing listens: the run log's own cost, while MLflow is away


def main() -> None:
    """Print one row for each number of workers, length of an epoch and sampler."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", default="10,100,1000")
    parser.add_argument("--epoch-seconds", default="10,60")
    parser.add_argument("--samplers", default="auto,random")
    parser.add_argument("--events", type=int, default=3000, help="epochs that are measured in each row")
    parser.add_argument("--mlflow", type=float, default=7079, help="metrics a second that MLflow takes")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("tracking").setLevel(logging.ERROR)  # it is meant that MLflow is away
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    ray = ray_seconds()
    print(f"Ray Tune's own work for a report: {1000 * ray:.1f} ms", flush=True)
    for megabytes, rate in keeper_rates():
        print(f"checkpoints of {megabytes:g} MB taken in: {rate:.1f} a second", flush=True)
    print(
        "| sampler | workers | s an epoch | driver, ms | driver busy | workers wait | metrics/s | of MLflow |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for sampler in options.samplers.split(","):
        for workers in map(int, options.workers.split(",")):
            for seconds in map(float, options.epoch_seconds.split(",")):
                row = simulate(sampler, workers, seconds, options.events, ray)
                cost, busy, wait, rate = row
                print(
                    f"| {sampler} | {workers} | {seconds:g} | {1000 * cost:.1f} | {busy:.0%} | {wait:.0%} | "
                    f"{rate:.0f} | {rate / options.mlflow:.0%} |",
                    flush=True,
                )


def ray_seconds() -> float:
    """The driver's time for one report of METRICS metrics, by Ray Tune alone."""
    import binsweep.search.ray_backend.runner as runner  # it sets Ray up before Ray is imported

    def report_only(config: dict[str, int]) -> None:
        for epoch in range(REPORTS):
            runner.tune.report({"metrics": {f"metric_{i}": float(epoch) for i in range(METRICS)}})

    with runner.start_ray(2), tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        run = runner.tune.RunConfig(storage_path=folder, verbose=0)
        config = runner.tune.TuneConfig(num_samples=4)
        runner.tune.Tuner(report_only, tune_config=config, run_config=run).fit()
        return (time.process_time() - began) / (4 * REPORTS)


def keeper_rates() -> list[tuple[float, float]]:
    """For each size of a checkpoint in megabytes, how many a second the keeper takes in from several senders."""
    import binsweep.search.ray_backend.file_transfer as site
    import binsweep.search.ray_backend.runner as runner

    found = []
    with runner.start_ray(2), tempfile.TemporaryDirectory() as folder:
        actor = site.ray.remote(site.FileServer).options(
            num_cpus=0, max_concurrency=site.MAX_CONCURRENT_CALLS
        )
        keeper = actor.remote(Path(folder), Path(folder))
        for megabytes, count in CHECKPOINTS:
            content = random.Random(0).randbytes(int(1e6 * megabytes))
            site.ray.get(keeper.keep.remote("first", {"last.pt": content}))  # the actor has started
            began, waiting = time.perf_counter(), []
            for number in range(count):
                if len(waiting) == site.MAX_CONCURRENT_CALLS:
                    _, waiting = site.ray.wait(waiting)
                waiting.append(keeper.keep.remote(f"trial-{number % TRIALS}", {"last.pt": content}))
            site.ray.get(waiting)
            found.append((megabytes, count / (time.perf_counter() - began)))
    return found


def simulate(
    sampler: str, workers: int, seconds: float, events: int, ray: float
) -> tuple[float, float, float, float]:
    """The driver's mean seconds for an epoch, its busy share, the workers' waiting share, metrics a second."""
    task, dice = SyntheticTask(0), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        stopping = "auto" if sampler == "auto" else "asha"
        options = StrategyOptions(task.space, task.goal, task.max_epochs, sampler, stopping)
        strategy = open_strategy(Path(folder) / "study.db", "scale", options)
        log = RunLog(Path(folder) / "spool", NOWHERE, "scale")
        log.start_run("sweep", "scale")
        curves = {}
        queue: list[
            tuple[float, int, int, int]
        ] = []  # when a worker asks; its number; trial and epoch, or -1
        free = 0.0  # when the driver has done all that was asked before
        costs, waits, busy = [], 0.0, 0.0
        for worker in range(workers):
            heapq.heappush(queue, (dice.random() * seconds, worker, -1, 0))
        start, now, done = 0.0, 0.0, 0
        settled = workers  # epochs until every worker has reported once
        while done < settled + events:
            now, worker, number, epoch = heapq.heappop(queue)
            began = time.perf_counter()
            go_on = False
            if number >= 0:
                value = curves[number][epoch - 1]
                decision = strategy.observe(number, epoch, value).decision
                log.metrics(f"trial-{number}", epoch, {f"metric_{i}": value + i for i in range(METRICS)})
                go_on = decision is Decision.CONTINUE and epoch < task.max_epochs
                if not go_on and decision is not Decision.PAUSE:
                    ended = "completed" if decision is Decision.CONTINUE else "stopped"
                    strategy.finish(number, Outcome(ended))
                    log.end_run(f"trial-{number}", "FINISHED")
                done += 1
            if not go_on:
                suggestion = strategy.suggest()
                assert suggestion is not None, "a space without an end"
                number, epoch = suggestion.number, suggestion.epochs_done
                if number not in curves:
                    curves[number] = task.curve(suggestion.params)[0]
                    log.start_run(f"trial-{number}", f"{number}", "sweep", params=suggestion.params)
            cost = time.perf_counter() - began + ray
            begins = max(now, free)
            free = begins + cost
            if done == settled:
                start = now
                costs, waits, busy = [], 0.0, 0.0
            costs.append(cost)
            waits += free - now
            busy += cost
            length = seconds * dice.uniform(2 / 3, 4 / 3)
            heapq.heappush(queue, (free + length, worker, number, epoch + 1))
        log.close(0.0)
        passed = max(now, free) - start
        epochs = len(costs)
        return statistics.mean(costs), busy / passed, waits / (passed * workers), epochs * METRICS / passed


if __name__ == "__main__":
    main()
