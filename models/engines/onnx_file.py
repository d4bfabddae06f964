"""A trained network as one ONNX file: pixels in, probabilities out."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path

import torch

from binsweep.models.network import fold_norms
from binsweep.models.predictor import Predictor

INPUT, OUTPUT = "images", "probabilities"


def to_onnx(predictor: Predictor) -> bytes:
    """The network with its preprocessing, its batch norms folded: uint8 RGB [N, S, S, 3] -> float32 [N, K], any N.

    Raises whatever PyTorch's exporter raises for operations that ONNX lacks.
    """
    folded = copy.deepcopy(predictor).cpu().eval()
    # Traced with two photos: a batch of one would be taken for a constant.
    example = torch.zeros((2, *2 * (predictor.image_size,), 3), dtype=torch.uint8)
    fold_norms(folded, example)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder) / "network.onnx"
        warnings.simplefilter("ignore")
        # The exporter by tracing: the one by torch.export fails on type checks in timm's forward passes.
        torch.onnx.export(
            folded,
            (example,),
            file,
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "photos"}, OUTPUT: {0: "photos"}},
        )
        return file.read_bytes()
