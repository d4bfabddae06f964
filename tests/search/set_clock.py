"""A wall clock that is set while processes run, for them alone: tests of clocks that jump.

libfaketime is made for that, too, but its version 0.9.10 lets Python's `time.sleep` fail where only the wall clock is
set; so set_clock.c is a library of our own.
"""

import mmap
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("set_clock.c")
HOUR = 3600


class Clock:
    """The clock of all processes that are started with `env`."""

    def __init__(self, folder: Path) -> None:
        if sys.platform != "linux" or not (compiler := shutil.which("cc")):
            pytest.skip("setting the clock of single processes needs Linux and a C compiler")
        library, file = folder / "set_clock.so", folder / "clock"
        words = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE, "-ldl"]
        built = subprocess.run(words, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        file.write_bytes(struct.pack("q", 0))
        with file.open("r+b") as stream:
            self._seconds = mmap.mmap(stream.fileno(), 8)
        self.env = {"LD_PRELOAD": str(library), "SET_CLOCK": str(file)}

    def set(self, seconds: int) -> None:
        """From now on it is so many seconds ahead, or, below 0, behind."""
        self._seconds[:] = struct.pack("q", seconds)
