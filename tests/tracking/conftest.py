"""Lets the tests of this package, and the processes they start, import the helpers next to them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
