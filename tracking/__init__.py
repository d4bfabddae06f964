"""What is remembered? The MLflow server, the run log, the registry and serving. Only this room imports MLflow."""
