"""What a report costs: the run log against MLflow's own client, over SQLite and, where it is installed, PostgreSQL.

    python benchmarks/runlog.py [--epochs N] [--json OUT]

Every way logs the same: 20 metrics for each epoch of one run. `log_metric` is one request for each metric, as
most examples write it, `log_batch` one for each epoch, both waited for by the caller. The run log's caller waits
for a write to a file only; `through` counts until MLflow has everything.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from binsweep.tracking.mlflow_server.embedded import tracking_server
from binsweep.tracking.runlog.run_log import RunLog

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "tracking"))

NAMES = [f"metric_{i}" for i in range(20)]


def values(epoch: int) -> dict[str, float]:
    return {name: epoch + i / 7 for i, name in enumerate(NAMES)}


def timed(epochs: int, report: Callable[[int], None]) -> tuple[list[float], float]:
    """The seconds of each call, and of all together."""
    costs, began = [], time.perf_counter()
    for epoch in range(epochs):
        before = time.perf_counter()
        report(epoch)
        costs.append(time.perf_counter() - before)
    return costs, time.perf_counter() - began


def with_client(uri: str, epochs: int, batch: bool) -> dict[str, float]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("client")
    experiment = found.experiment_id if found else client.create_experiment("client")
    run = client.create_run(experiment).info.run_id

    def report(epoch: int) -> None:
        now = time.time_ns() // 1_000_000
        if batch:
            metrics = [Metric(name, value, now, epoch) for name, value in values(epoch).items()]
            client.log_batch(run, metrics=metrics)
            return
        for name, value in values(epoch).items():
            client.log_metric(run, name, value, now, epoch)

    costs, whole = timed(epochs, report)
    return {"report_ms": 1000 * statistics.median(costs), "metrics_per_second": len(NAMES) * epochs / whole}


def with_run_log(uri: str, epochs: int, folder: Path) -> dict[str, float]:
    log = RunLog(folder, uri, "runlog")
    log.start_run("trial-0", "trial 0")
    began = time.perf_counter()
    costs, into = timed(epochs, lambda epoch: log.metrics("trial-0", epoch, values(epoch)))
    assert log.flush(600) == 0
    through = time.perf_counter() - began
    log.close(10)
    count = len(NAMES) * epochs
    return {
        "report_ms": 1000 * statistics.median(costs),
        "metrics_per_second": count / into,
        "through_per_second": count / through,
    }


def compare(uri: str, epochs: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            "log_metric": with_client(uri, max(1, epochs // 50), batch=False),
            "log_batch": with_client(uri, max(1, epochs // 5), batch=True),
            "run log": with_run_log(uri, epochs, Path(folder)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        with tracking_server(Path(folder)) as uri:
            result["SQLite"] = compare(uri, arguments.epochs)
        import _pytest.outcomes
        from postgres import mlflow_on, postgres

        try:
            with postgres() as database, mlflow_on(database, Path(folder)) as uri:
                result["PostgreSQL"] = compare(uri, arguments.epochs)
        except _pytest.outcomes.Skipped as reason:
            print(reason, file=sys.stderr)
    print(f"{'':<11} {'':<10} {'a report, median':>17} {'metrics/s logged':>17} {'metrics/s in MLflow':>20}")
    for database_name, ways in result.items():
        for way, found in ways.items():
            arrived = found.get("through_per_second", found["metrics_per_second"])
            print(
                f"{database_name:<11} {way:<10} {found['report_ms']:>14.3f} ms "
                f"{found['metrics_per_second']:>17,.0f} {arrived:>20,.0f}"
            )
        ratio = ways["run log"]["through_per_second"] / ways["log_batch"]["metrics_per_second"]
        cost = ways["log_batch"]["report_ms"] / ways["run log"]["report_ms"]
        print(
            f"{database_name}: {ratio:.1f} times log_batch's throughput, a report {cost:,.0f} times cheaper"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
