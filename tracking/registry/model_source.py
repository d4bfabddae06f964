"""One self-contained source file for the served model, concatenated from the modules that training uses.

With MLflow's `code_paths`, two versions in one process would share the first one's code. A single file avoids that,
and serving decodes and counts with the very code that was evaluated.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

# Set before the first import of PyTorch, which reads it. OpenMP threads that wait for each other at the end of a layer
# then spin for some 30 microseconds. The default of 3 milliseconds takes the cores from other processes, and from the
# very threads that are waited for (docs/promotion.md).
HEAD = """from __future__ import annotations

import os
import sys

if "mlflow.pyfunc.scoring_server" in sys.modules:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
"""
PARTS = tuple(
    f"binsweep.{part}"
    for part in (
        "data.resource_limits",
        "data.decode",
        "models.network",
        "models.predictor",
        "tracking.registry.served_model",
    )
)


def _body(source: str) -> str:
    """The source without its imports of this package and of `__future__`, which the head holds once."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "binsweep",
            "__future__",
        ):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines).strip()


def model_source() -> str:
    """The served model's source; asserts that no function or class is defined twice across its parts."""
    bodies = []
    for part in PARTS:
        # Not imported: importing the served module would set it as this process's model.
        spec = importlib.util.find_spec(part)
        assert spec is not None and spec.origin is not None, part
        bodies.append(_body(Path(spec.origin).read_text(encoding="utf-8")))
    names = [
        n.name for b in bodies for n in ast.parse(b).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))
    ]
    assert len(names) == len(set(names)), sorted(names)
    return "\n\n".join([HEAD, *bodies]) + "\n"
