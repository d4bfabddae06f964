"""One self-contained source file for the served model, concatenated from the modules that training uses.

With MLflow's `code_paths`, two versions in one process would share the first one's code. A single file avoids that,
and serving decodes and counts with the very code that was evaluated.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from binsweep.models.backbones import families
from binsweep.models.engines.names import ENGINE_CLASSES, EngineName

# Set before the first import of PyTorch, which reads it. OpenMP threads that wait for each other at the end of a layer
# then spin for some 30 microseconds. The default of 3 milliseconds takes the cores from other processes, and from the
# very threads that are waited for (benchmarks/RESULTS.md).
HEAD = """from __future__ import annotations

import os
import sys

if "mlflow.pyfunc.scoring_server" in sys.modules:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
"""
_FAMILIES = tuple(file.removeprefix("binsweep.") for file in families.FILES)
_BACKBONES = (
    "models.backbones.architecture",
    *_FAMILIES,
    "models.backbones.cutting",
    "models.backbones.library",
)
# The parts of each engine: they hold a class for it.
ENGINE_PARTS: dict[EngineName, tuple[str, ...]] = {
    "openvino": ("models.engines.openvino_engine",),
    "onnxruntime": ("models.engines.onnxruntime_engine",),
    "torch": (*_BACKBONES, "models.network", "models.predictor", "models.engines.torch_engine"),
}
FOOT = """from mlflow.models import set_model

set_model(ServedCountingModel({engine}))
"""


def parts_of(engine: EngineName) -> tuple[str, ...]:
    """The modules of which a served model consists."""
    decoding = ("data.resource_limits", "data.decode", "models.decoding")
    parts = (*decoding, *ENGINE_PARTS[engine], "tracking.registry.served_model")
    return tuple(f"binsweep.{part}" for part in parts)


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


def model_source(engine: EngineName) -> str:
    """The served model's source; asserts that no function or class is defined twice across its parts."""
    bodies = []
    for part in parts_of(engine):
        spec = importlib.util.find_spec(part)
        assert spec is not None and spec.origin is not None, part
        bodies.append(_body(Path(spec.origin).read_text(encoding="utf-8")))
    names = [
        n.name for b in bodies for n in ast.parse(b).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))
    ]
    assert len(names) == len(set(names)), sorted(names)
    return "\n\n".join([HEAD, *bodies, FOOT.format(engine=ENGINE_CLASSES[engine])])
