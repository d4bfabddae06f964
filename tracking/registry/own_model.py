"""Saving the model of own training code, as its function `model` gives it: a PythonModel, or a saved MLflow model."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any


def save_own_model(model: Any, folder: Path, code: Sequence[Path]) -> None:
    """Save what `model(checkpoint)` returned into `folder`, with the code files that it needs.

    Raises TypeError if it is neither an mlflow.pyfunc.PythonModel nor the folder of a saved MLflow model.
    """
    if isinstance(model, str | Path):
        if not (Path(model) / "MLmodel").is_file():
            raise TypeError(
                f"model returned {str(model)!r}, where there is no file MLmodel of a saved MLflow model"
            )
        shutil.copytree(model, folder)
        return
    import mlflow

    if not isinstance(model, mlflow.pyfunc.PythonModel):
        kind = type(model).__name__
        raise TypeError(
            f"model returned a {kind}: return an mlflow.pyfunc.PythonModel, or the folder of a saved model"
        )
    mlflow.pyfunc.save_model(
        str(folder),
        python_model=model,
        code_paths=[str(path) for path in code],
        pip_requirements=requirements_of(code),
    )


def requirements_of(code: Iterable[Path]) -> list[str]:
    """The installed packages that these files and folders import, at their versions, and MLflow's."""
    names: set[str] = {"mlflow"}
    for path in code:
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    known = sorted(name for name in names if name not in sys.stdlib_module_names and name in distributions)
    return sorted(
        {f"{one}=={version(one)}" for name in known for one in distributions[name][:1] if one != "binsweep"}
    )
