"""How much the libraries log while Binsweep uses them."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

MLFLOW_LEVEL = "MLFLOW_LOGGING_LEVEL"  # read when MLflow is imported
QUIET_LEVELS = {
    **dict.fromkeys(("mlflow", "alembic", "ray", "optuna"), logging.ERROR),
    # Ray Tune logs each failed trial as an error; the sweep reports it already, with the reason.
    "ray.tune": logging.CRITICAL,
    # In a notebook it recommends a package that nothing here uses. Ray sets the level of `ray` itself when imported.
    "ray.widgets.util": logging.ERROR,
}


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Let the libraries log errors only within this block; afterwards their loggers are as they were."""
    before = {name: logging.getLogger(name).level for name in QUIET_LEVELS}
    os.environ.setdefault(MLFLOW_LEVEL, "ERROR")
    for name, level in QUIET_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
