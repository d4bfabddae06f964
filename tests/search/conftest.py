"""Lets the tests of this room import the helpers that lie beside them and beside those of tracking."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "tracking"):
    sys.path.insert(0, str(folder))
