"""A network computed by OpenVINO, from its ONNX file.

This file is part of models that are served by OpenVINO (their source is stored in the registry).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino


class OpenVinoEngine:
    """Probabilities float32 [N, K] of uint8 photos [N, S, S, 3]; `files` has the model's `network`, an ONNX file.

    For one thread at a time.
    """

    def __init__(self, files: Mapping[str, str], max_threads: int) -> None:
        self.threads = max_threads
        options = {
            # Where the processor has bf16, OpenVINO would compute in it, and differ from what was evaluated.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": max_threads,
            "PERFORMANCE_HINT": "LATENCY",  # all threads for one batch
        }
        compiled = openvino.Core().compile_model(files["network"], "CPU", options)
        self.request = compiled.create_infer_request()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.request.infer([images], share_inputs=True)
        table: np.ndarray = self.request.get_output_tensor().data.copy()  # the next batch overwrites it
        return table
