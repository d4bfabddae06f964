"""What a sweep records while it runs: the run log, the decision log and the live table."""
