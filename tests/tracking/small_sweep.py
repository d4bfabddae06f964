"""A small sweep as the run log sees it, and what MLflow must hold of it afterwards."""

import time

from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient

from binsweep.tracking.runlog.run_log import RunLog
from binsweep.tracking.runlog.sender import KEY_TAG

# One epoch's worth: 20 metrics.
NAMES = [f"metric_{i}" for i in range(20)]


def value(trial: int, epoch: int, name: int) -> float:
    return trial + epoch / 7 + name / 1000


def runs_of(client: MlflowClient, experiment: str) -> dict[str, Run]:
    """The experiment's runs by local key, deleted ones left out; a key that comes twice fails."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id], run_view_type=ViewType.ACTIVE_ONLY)
    keys = [run.data.tags[KEY_TAG].split("/")[1] for run in runs]
    assert len(keys) == len(set(keys)), keys
    return dict(zip(keys, runs, strict=True))


def assert_complete(client: MlflowClient, experiment: str, trials: int, epochs: int) -> None:
    runs = runs_of(client, experiment)
    assert set(runs) == {"sweep", *(f"trial-{t}" for t in range(trials))}
    for t in range(trials):
        run = runs[f"trial-{t}"]
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"trial {t}"
        assert run.data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id
        assert run.data.params == {"lr": str(0.1 * t)}
        for i in (0, 19):
            history = client.get_metric_history(run.info.run_id, NAMES[i])
            points = sorted((point.step, point.value) for point in history)
            assert points == [(e, value(t, e, i)) for e in range(epochs)]


def write_sweep(log: RunLog, trials: int, epochs: int, pause: float = 0.0) -> None:
    log.start_run("sweep", "the sweep")
    for t in range(trials):
        log.start_run(f"trial-{t}", f"trial {t}", parent="sweep", params={"lr": 0.1 * t})
    for e in range(epochs):
        for t in range(trials):
            log.metrics(f"trial-{t}", e, {name: value(t, e, i) for i, name in enumerate(NAMES)})
        time.sleep(pause)
    for t in range(trials):
        log.end_run(f"trial-{t}", "FINISHED")
    log.end_run("sweep", "FINISHED")
