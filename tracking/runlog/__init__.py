"""Metrics and artifacts of runs: spooled on disk first, then delivered to MLflow in batches."""
