"""Every backbone and head: shapes, the cut, and rebuilding from a stored config and state."""

import json

import pytest
import torch

from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.network import (
    HEADS,
    CountingModel,
    CountingModelConfig,
    fold_norms,
    interval_log_probabilities,
)

CLASSES = (0, 1, 2, 4, 5)


each = pytest.mark.parametrize(
    "backbone",
    # 138 million weights take as long as all the others.
    [pytest.param(name, marks=pytest.mark.night if name == "vgg16" else ()) for name in ARCHITECTURES],
)


def counter_of(backbone: str, head: str = "classify", size: int = 96) -> CountingModel:
    architecture = ARCHITECTURES[backbone]
    torch.manual_seed(0)
    return CountingModel(
        CountingModelConfig(backbone, head, CLASSES, size, architecture.mean, architecture.std)
    ).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(
        0, 256, (2, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@each
def test_cutting_a_backbone_anywhere_changes_nothing(backbone: str, images: torch.Tensor) -> None:
    counter = counter_of(backbone)
    with torch.inference_mode():
        whole = counter(images)
        assert whole.shape == (2, len(CLASSES))
        for trainable in ("head", "last_stage", "later_stages", "all"):
            cut = counter.cut(trainable)
            parts = counter.suffix(cut)(counter.prefix(cut)(counter.normalise(images)))
            torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@each
def test_batch_norms_are_part_of_their_convolutions(backbone: str, images: torch.Tensor) -> None:
    counter = counter_of(backbone).double()  # rounding of single precision grows with so odd norms
    with torch.inference_mode():
        for norm in counter.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):  # fresh ones hardly change a value
                for value in norm.state_dict().values():
                    if value.is_floating_point():
                        value.uniform_(0.5, 2)
        before = counter(images)
        fold_norms(counter, images)
        torch.testing.assert_close(counter(images), before)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in counter.modules())


@pytest.mark.parametrize("backbone", ARCHITECTURES)
def test_the_last_stage_starts_before_pooling_and_after_the_stem(backbone: str) -> None:
    counter = counter_of(backbone)
    assert 0 < counter.cut("later_stages") < counter.cut("last_stage") < counter.cut("head")
    assert counter.cut("head") == len(counter.backbone)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_probabilities_that_add_up(head: str, images: torch.Tensor) -> None:
    counter = counter_of("resnet18", head)
    with torch.inference_mode():
        probabilities = counter(images).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_an_easy_count(head: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(256, 16)
    label = (hidden[:, 0] * 2 + 2).round().clamp(0, 4).long()
    net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), HEADS[head](32, CLASSES))
    optimizer = torch.optim.AdamW(net.parameters(), 0.02)
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(net(hidden), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net(hidden).argmax(1) == label).float().mean() > 0.85


def test_interval_probabilities_are_right_and_stay_finite_far_out() -> None:
    edges = torch.tensor([[-1.0, 0.5, 2.0]], dtype=torch.float64)
    levels = torch.sigmoid(edges)
    wanted = torch.cat([levels[:, :1], levels[:, 1:] - levels[:, :-1], 1 - levels[:, -1:]], dim=1)
    torch.testing.assert_close(interval_log_probabilities(edges).exp(), wanted)
    far = interval_log_probabilities(torch.tensor([[-300.0, -200.0, 500.0]], requires_grad=True))
    assert torch.isfinite(far).all()


def test_config_survives_json() -> None:
    config = counter_of("efficientnet_lite0").config
    assert CountingModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_state_of_another_network_is_refused() -> None:
    with pytest.raises(RuntimeError, match="missing"):
        ARCHITECTURES["resnet18"].build({"conv1.weight": torch.zeros(64, 3, 7, 7)})
    state = ARCHITECTURES["resnet18"].create().state_dict()
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(RuntimeError, match="of another shape"):
        ARCHITECTURES["resnet18"].build(state)
