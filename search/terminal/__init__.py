"""Text for terminals: formats of values, and streams."""
