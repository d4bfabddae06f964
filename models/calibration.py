"""Calibration: how sure a model says it is, against how often it is right."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from binsweep.models.metrics import log_losses
from binsweep.models.predictor import calibrate

# On few photos the likelihood alone may ask for more: a model that has them all right would be made certain.
_LOWEST, _HIGHEST = 0.25, 4.0


def fit_temperature(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature, from 0.25 to 4, with the least log loss on these photos; arrays as in `log_losses`.

    One number fitted on photos that were not trained on (Guo et al., On calibration of modern neural networks, ICML
    2017).
    """
    table = torch.from_numpy(probabilities)

    def loss(log_temperature: float) -> float:
        return float(log_losses(calibrate(table, math.exp(log_temperature)).numpy(), labels).mean())

    found = minimize_scalar(loss, bounds=(math.log(_LOWEST), math.log(_HIGHEST)), method="bounded")
    return math.exp(float(found.x))
