"""Model versions: how they are registered, with which source and which photos."""
