"""Which engine computes a network when it is served: the one asked for, or the one that works."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from binsweep.data.errors import UserError, first_line
from binsweep.data.resource_limits import cores
from binsweep.models.engines.names import ENGINE_CLASSES, EngineChoice, EngineName
from binsweep.models.engines.onnx_file import to_onnx
from binsweep.models.predictor import Predictor

# The fastest one (docs/serving.md).
AUTO_ENGINE: EngineName = "onnxruntime"
# Between the probabilities of the engine and of the network as it was trained.
MAX_ENGINE_DIFFERENCE = 1e-4
Network = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ServingEngine:
    """What computes a version, why, and for another engine than PyTorch the network as an ONNX file."""

    name: EngineName
    reason: str
    onnx: bytes = b""


def open_engine(engine: EngineName, files: Mapping[str, Path]) -> Network:
    """A network computed by `engine` with all cores, from the files of a served model: `network`, an ONNX file, or for
    PyTorch `config` and `weights`."""
    module = import_module(
        f"binsweep.models.engines.{engine}_engine"
    )  # an engine is imported when it is needed
    names = {name: str(file) for name, file in files.items()}
    network: Network = getattr(module, ENGINE_CLASSES[engine])(names, cores())
    return network


def choose_engine(choice: EngineChoice, predictor: Predictor, images: np.ndarray) -> ServingEngine:
    """The engine for a network, which must agree with it about the photos `images` (uint8 [N, S, S, 3]).

    `auto` is the fastest engine, or PyTorch where that cannot compute the network. Raises UserError if the engine
    that was asked for cannot.
    """
    if choice == "torch":
        return ServingEngine("torch", "computed by PyTorch, as register.engine says")
    name = AUTO_ENGINE if choice == "auto" else choice
    try:
        onnx = to_onnx(predictor)
        difference = _difference(name, onnx, predictor, images)
    except Exception as error:  # converters and engines have errors of any type
        reason = f"{name} cannot compute this network ({first_line(error)[:200]})"
    else:
        agreed = f"probabilities of {len(images)} photos differ by at most {difference:.1e}"
        agreed += f" from PyTorch's ({MAX_ENGINE_DIFFERENCE:g} allowed)"
        if difference <= MAX_ENGINE_DIFFERENCE:
            return ServingEngine(name, f"computed by {name} {version(name)}: {agreed}", onnx)
        reason = f"{name} computes something else: {agreed}"
    if choice != "auto":
        raise UserError(f"register.engine: {choice}: {reason}", "use auto, or torch, which always works")
    return ServingEngine("torch", f"computed by PyTorch: {reason}")


def _difference(engine: EngineName, onnx: bytes, predictor: Predictor, images: np.ndarray) -> float:
    """The largest difference of a probability; infinite for one that is not a number."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        file.write_bytes(onnx)
        network = open_engine(engine, {"network": file})
        # One at a time and together: the batch's size must not matter.
        tables = [np.concatenate([network(images[row : row + 1]) for row in range(len(images))])]
        tables.append(network(images))
    with torch.inference_mode():
        expected = predictor.eval()(torch.from_numpy(images)).numpy()
    difference = max(float(np.abs(table - expected).max()) for table in tables)
    return difference if np.isfinite(difference) else float("inf")
