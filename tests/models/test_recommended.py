"""The recommended settings: valid for every backbone, however it is trained."""

import pytest

from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.recommended import PREFERRED, RATES, recommended_settings
from binsweep.models.settings import BOUNDS, CHOICES, TYPES


def test_rates_are_those_of_backbones() -> None:
    assert RATES.keys() <= ARCHITECTURES.keys()


@pytest.mark.parametrize("optimizer", CHOICES["optimizer"])
@pytest.mark.parametrize("trainable", CHOICES["trainable"])
@pytest.mark.parametrize("backbone", ARCHITECTURES)
def test_recommended_settings_are_settings(backbone: str, trainable: str, optimizer: str) -> None:
    for name, value in recommended_settings(backbone, trainable, optimizer).items():
        assert type(value) is TYPES[name], name
        assert value in CHOICES.get(name, (value,)), name
        low, high = BOUNDS.get(name, (0, 0))
        assert isinstance(value, str) or low <= value < high, name


def test_a_head_learns_faster_than_the_backbone_and_sgd_takes_larger_steps() -> None:
    for backbone in ARCHITECTURES:
        rates = {
            (part, optimizer): recommended_settings(backbone, part, optimizer)["lr"]
            for part in CHOICES["trainable"]
            for optimizer in CHOICES["optimizer"]
        }
        assert rates["head", "adamw"] > rates["all", "adamw"], backbone
        assert all(rates[part, "sgd"] > rates[part, "adamw"] for part in CHOICES["trainable"]), backbone


def test_preferred_choices_exist() -> None:
    assert all(set(values) == set(CHOICES[name]) for name, values in PREFERRED.items())
