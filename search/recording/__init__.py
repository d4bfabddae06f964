"""What a sweep writes while it runs: the run log, decisions and the live table."""
