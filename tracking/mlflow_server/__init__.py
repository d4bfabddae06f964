"""The embedded MLflow server of a home, and the servers that MLFLOW_TRACKING_URI names."""
