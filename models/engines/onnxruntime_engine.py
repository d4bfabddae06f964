"""A network computed by ONNX Runtime, from its ONNX file.

This file is part of models that are served by ONNX Runtime (their source is stored in the registry).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime


class OnnxRuntimeEngine:
    """Probabilities float32 [N, K] of uint8 photos [N, S, S, 3]; `files` has the model's `network`, an ONNX file."""

    def __init__(self, files: Mapping[str, str], max_threads: int) -> None:
        self.threads = max_threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max_threads
        # Threads that wait would keep the cores from those that decode the next photos.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(files["network"], options, ["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        (table,) = self.session.run(None, {"images": images})
        return np.asarray(table)
