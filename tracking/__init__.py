"""MLflow: server, run log, model registry, evaluation, promotion, serving. Only this package imports it."""

from binsweep.tracking.mlflow_defaults import configure_client

# MLflow reads its settings while it is imported, so they must be set before any module here imports it.
configure_client()

__all__ = ["configure_client"]
