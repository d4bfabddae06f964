"""One self-contained source file for the served model, put together from the sources that training uses.

With MLflow's `code_paths`, two versions in one process would share the first one's code. A single file has no such
problem, and what decodes and counts at serving is, letter for letter, what was evaluated.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

# Before the first import of PyTorch, which reads it. Threads that wait for one another at the end of a layer stay
# awake for some 30 microseconds; the usual 3 milliseconds take the cores from whoever else works on the machine, and
# from the very threads that are waited for (docs/promotion.md).
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
    """The source without its imports of this package and without `from __future__` (moved to the top)."""
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
    """The served model's source. Every name is defined once across its parts, which this checks."""
    bodies = []
    for part in PARTS:
        # Found, not imported: importing the served module would declare it as this process's model.
        spec = importlib.util.find_spec(part)
        assert spec is not None and spec.origin is not None, part
        bodies.append(_body(Path(spec.origin).read_text(encoding="utf-8")))
    names = [
        n.name for b in bodies for n in ast.parse(b).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))
    ]
    assert len(names) == len(set(names)), sorted(names)
    return "\n\n".join([HEAD, *bodies]) + "\n"
