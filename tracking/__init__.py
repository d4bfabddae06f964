"""What is remembered? Server, run log, registry and serving. Only this room imports MLflow."""

from binsweep.tracking.mlflow_defaults import configure_client

# MLflow reads its settings while it is imported, so they must stand before any module here imports it.
configure_client()

__all__ = ["configure_client"]
