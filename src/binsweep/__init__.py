"""Binsweep: experiment-tracked hyperparameter search.

`sweep`, `open`, `compare` and `load_model` are the Python API (docs/python.md); `Trial` is what own training code is
given.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from binsweep.data.errors import UserError as UserError
    from binsweep.search.api.comparison import SweepComparison as SweepComparison
    from binsweep.search.api.comparison import compare as compare
    from binsweep.search.api.models import load_model as load_model
    from binsweep.search.api.sweeps import Sweep as Sweep
    from binsweep.search.api.sweeps import open as open
    from binsweep.search.api.sweeps import sweep as sweep
    from binsweep.search.own_code.optuna_objective import from_optuna as from_optuna
    from binsweep.search.own_code.trial import Trial as Trial
    from binsweep.search.workflows.launch import SweepError as SweepError

__version__ = "0.1.0"  # pyproject.toml reads it here

# Imported when they are first asked for: every process imports this file, and most need none of them.
_EXPORTS = {
    "UserError": "binsweep.data.errors",
    "compare": "binsweep.search.api.comparison",
    "SweepComparison": "binsweep.search.api.comparison",
    "load_model": "binsweep.search.api.models",
    "Sweep": "binsweep.search.api.sweeps",
    "open": "binsweep.search.api.sweeps",
    "sweep": "binsweep.search.api.sweeps",
    "Trial": "binsweep.search.own_code.trial",
    "from_optuna": "binsweep.search.own_code.optuna_objective",
    "SweepError": "binsweep.search.workflows.launch",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'binsweep' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
