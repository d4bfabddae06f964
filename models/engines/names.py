"""The names of the engines, as specifications and versions have them, and their classes."""

from __future__ import annotations

from typing import Literal

EngineName = Literal["openvino", "onnxruntime", "torch"]
EngineChoice = Literal["auto", "openvino", "onnxruntime", "torch"]
# Each in the module `ENGINE_engine` of this package.
ENGINE_CLASSES: dict[EngineName, str] = {
    "openvino": "OpenVinoEngine",
    "onnxruntime": "OnnxRuntimeEngine",
    "torch": "TorchEngine",
}
