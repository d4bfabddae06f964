"""What happened in a sweep, read back from its files."""
