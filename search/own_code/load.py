"""Importing a function by the reference of a spec: FILE.py:FUNCTION, or package.module:FUNCTION."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_root: Path | None = None  # the folder that modules of own code are imported from


class LoadError(Exception):
    """Own code that cannot be imported, or has no such function; the message says where."""


def load_module(place: str) -> ModuleType:
    """Import a file with the modules next to it, or a module of an installed package. Raises LoadError."""
    name = place
    if place.endswith(".py"):
        _use_folder(Path(place).parent)
        name = Path(place).stem
    try:
        module = importlib.import_module(name)
        if place.endswith(".py") and getattr(module, "__file__", None) != place:
            raise ImportError(f"Python has a module {name} of its own: give the file another name")
        return module
    except BaseException as error:  # SystemExit, too: the code may call sys.exit while it is imported
        if isinstance(error, KeyboardInterrupt):
            raise
        raise LoadError(f"{place} cannot be imported: {describe_error(error, place)}") from error


def load_function(place: str, name: str, required: bool = True) -> Callable[..., Any] | None:
    """A function of a module. Raises LoadError if it cannot be imported, or lacks a `required` function."""
    module = load_module(place)
    found = getattr(module, name, None)
    if found is None and not required:
        return None
    if not callable(found):
        have = ", ".join(
            key
            for key, value in vars(module).items()
            if callable(value) and value.__module__ == module.__name__
        )
        raise LoadError(
            f"{place} has no function {name}: {f'it has {have}' if have else 'it has none at all'}"
        )
    return found  # type: ignore[no-any-return]


def describe_error(error: BaseException, place: str = "") -> str:
    """An exception with the last line of own code that led to it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name}, line {error.lineno})"
    root = str(Path(place).parent) if place.endswith(".py") else None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename, root)]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text.splitlines()[0]}{where}"


def _is_own(filename: str, root: str | None) -> bool:
    if root is not None:
        return filename.startswith(root)
    return "importlib" not in filename and not filename.startswith(str(Path(__file__).parent))


def _use_folder(folder: Path) -> None:
    """Import modules from this folder first, and forget those of the folder before it."""
    global _root
    if folder == _root:
        return
    if _root is not None:
        sys.path.remove(str(_root))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(_root)):
                del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    _root = folder
