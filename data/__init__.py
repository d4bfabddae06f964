"""What do we learn from? Bins and their labels: reading, splitting, decoding, banks."""

VERSION = "0.1.0"  # of the whole product; pyproject.toml reads it here
