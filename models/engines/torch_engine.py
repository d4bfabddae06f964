"""A network computed by PyTorch, from its config and its weights.

This file is part of models that are served by PyTorch (their source is stored in the registry).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from binsweep.models.network import fold_norms
from binsweep.models.predictor import Predictor


class TorchEngine:
    """Probabilities float32 [N, K] of uint8 photos [N, S, S, 3]; `files` are the model's `config` and `weights`.

    Created and called by one thread. If a second thread ever used more than one core, OpenMP (libgomp) would count
    more threads than cores and let them sleep after every layer.
    """

    def __init__(self, files: Mapping[str, str], max_threads: int) -> None:
        if max_threads < torch.get_num_threads():  # PyTorch ignores the limits of containers
            torch.set_num_threads(max_threads)
        self.threads = torch.get_num_threads()
        self.predictor = Predictor.from_dict(json.loads(Path(files["config"]).read_text())).eval()
        self.predictor.load_state_dict(torch.load(files["weights"], map_location="cpu", weights_only=True))
        size = self.predictor.image_size
        fold_norms(self.predictor, torch.zeros((1, size, size, 3), dtype=torch.uint8))
        self.predictor.to(memory_format=torch.channels_last)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            table: np.ndarray = self.predictor(torch.from_numpy(images)).numpy()
        return table
