"""Inference costs: measured once for models of the same cost, and higher for the larger network."""

from binsweep.models.inference_cost import photo_costs
from binsweep.models.settings import Settings


def test_a_larger_network_costs_more_and_training_settings_change_nothing() -> None:
    small = photo_costs(Settings(backbone="efficientnet_lite0", weights="none"), (1, 2, 3), 64)
    large = photo_costs(Settings(backbone="resnet50", weights="none"), (1, 2, 3), 64)
    assert 5 < small["megabytes"] < 40 < large["megabytes"] < 130
    assert small["latency_ms"] > 0
    again = photo_costs(
        Settings(backbone="efficientnet_lite0", weights="none", lr=0.5, seed=3), (1, 2, 3), 64
    )
    assert again is small
