"""How this program starts Python again: with the modules that it found itself, none from the working folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# The folder of this package's code, for those who send it to other machines. Not resolved: in a checkout it holds
# links to the four folders.
PACKAGE = Path(__file__).absolute().parents[1]


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module; to be started with `without_working_folder` or `same_modules`."""
    return [sys.executable, "-m", module, *arguments]


def restart_in_utf8_mode() -> None:
    """Replace this process by the same program, whose text is UTF-8 whatever the locale says."""
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def without_working_folder(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which `python -m` does not look into its working folder first.

    There a person's own data.py or random.py would be taken for ours, or for Python's.
    """
    return {**environment, "PYTHONSAFEPATH": "1"}


def current_import_path() -> str:
    """A PYTHONPATH with which another process finds the modules where this one does."""
    return os.pathsep.join(map(os.path.abspath, sys.path))


def subprocess_environment() -> dict[str, str]:
    """This process's environment for another one that finds its modules where this one does."""
    return {**without_working_folder(os.environ), "PYTHONPATH": current_import_path()}


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Give an environment variable a value within this block, and for the processes that are started there."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
