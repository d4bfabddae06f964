"""The folders of the house's code, for whoever sends it to other machines."""

from pathlib import Path

ROOMS = tuple(Path(__file__).resolve().parents[1] / name for name in ("data", "models", "tracking", "search"))
