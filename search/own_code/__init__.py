"""Training code of a person's own: what it is given, and the process that it runs in."""
