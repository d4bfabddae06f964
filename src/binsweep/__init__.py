"""Binsweep: experiment-tracked hyperparameter search."""

import importlib
from typing import Any

__version__ = "0.1.0"  # pyproject.toml reads it here

# For own training code, imported when they are asked for.
_EXPORTS = {"Trial": "search.own_code.trial", "from_optuna": "search.own_code.optuna_objective"}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
