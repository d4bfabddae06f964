"""MLflow's settings of a whole process, which a caller in Python may use for runs of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow.tracking import fluent, is_tracking_uri_set

_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")  # MLflow sets them with the settings


@contextmanager
def process_settings(tracking_uri: str) -> Iterator[None]:
    """Let the functions of `mlflow` that take no server use `tracking_uri` within this block.

    Afterwards the process's server and experiment are as they were: an embedded server ends, and what is logged to the
    caller's own experiment must not go into that of a sweep.
    """
    known: bool = is_tracking_uri_set()  # type: ignore[no-untyped-call]
    uri = mlflow.get_tracking_uri() if known else None
    experiment = fluent._active_experiment_id
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(uri)  # type: ignore[arg-type]  # None: as if it had never been set
        fluent._active_experiment_id = experiment
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
