"""The temperature that makes probabilities fit, found again where it is known."""

import numpy as np
import pytest
import torch

from binsweep.models.calibration import fit_temperature
from binsweep.models.metrics import log_losses
from binsweep.models.predictor import calibrate


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found(true: float) -> None:
    """Labels drawn from probabilities that the model gives at `true` times their logits."""
    rng = np.random.default_rng(0)
    right = torch.from_numpy(rng.dirichlet(np.full(5, 0.7), 40_000).astype(np.float32))
    labels = (right.numpy().cumsum(1) > rng.random((len(right), 1))).argmax(1)
    said = calibrate(right, 1 / true)
    assert fit_temperature(said.numpy(), labels) == pytest.approx(true, rel=0.05)
    torch.testing.assert_close(calibrate(said, true), right, rtol=1e-3, atol=1e-4)


def test_the_most_likely_count_stays() -> None:
    table = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(6), 500).astype(np.float32))
    for temperature in (0.25, 0.8, 3.0):
        assert torch.equal(calibrate(table, temperature).argmax(1), table.argmax(1))


def test_few_photos_make_no_model_certain() -> None:
    table = np.full((5, 3), 0.2, np.float32)
    table[:, 1] = 0.6
    assert fit_temperature(table, np.ones(5, np.int64)) == pytest.approx(0.25, rel=1e-3)
    assert fit_temperature(table, np.zeros(5, np.int64)) == pytest.approx(4.0, rel=1e-3)


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    table = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    losses = log_losses(table, np.array([0, 0]))
    assert losses[0] == pytest.approx(-np.log(1e-12)) and losses[1] == 0
