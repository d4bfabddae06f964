"""Lets these tests import the helpers in this folder and in that of the tracking tests."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "tracking"):
    sys.path.insert(0, str(folder))
