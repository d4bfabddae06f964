"""Starting Python processes that import the same modules as this one, and none from the working folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# The folder of the package binsweep, which is shipped to other machines. Not resolved: in a checkout it contains links
# to the four sub-packages.
PACKAGE = Path(__file__).absolute().parents[1]


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module, for an environment of `without_working_folder` or `subprocess_environment`."""
    return [sys.executable, "-m", module, *arguments]


def restart_in_utf8_mode() -> None:
    """Replace this process by the same program in UTF-8 mode, whatever the locale."""
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def without_working_folder(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which `python -m` does not import from its working folder.

    A user's own data.py or random.py there would shadow Python's.
    """
    return {**environment, "PYTHONSAFEPATH": "1"}


def current_import_path() -> str:
    """A PYTHONPATH with which another process imports the same modules as this one."""
    return os.pathsep.join(map(os.path.abspath, sys.path))


def subprocess_environment() -> dict[str, str]:
    """This process's environment for another Python process that imports the same modules."""
    return {**without_working_folder(os.environ), "PYTHONPATH": current_import_path()}


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the block and for the processes that are started in it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
