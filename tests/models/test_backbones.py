"""Networks of torchvision and timm as backbones: one of each of twelve families, with random weights."""

import copy
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.backbones.library import (
    UnfitBackbone,
    UnfitSize,
    UnknownBackbone,
    find_architecture,
    find_in_library,
    weights_source,
)
from binsweep.models.build import build_model
from binsweep.models.engines.choice import choose_engine, open_engine
from binsweep.models.levels import Level
from binsweep.models.network import CountingModel, fold_norms
from binsweep.models.precision import choose_precision
from binsweep.models.predictor import Predictor
from binsweep.models.recommended import recommended_settings
from binsweep.models.settings import CHOICES, Settings
from binsweep.models.training_work import level_work
from binsweep.models.trial_data import BatchFactory, TrialData

SIZE = 64
CLASSES = (0, 1, 2, 4)
# The smallest network of each family.
FAMILIES = {
    "ResNet": "timm/test_resnet",
    "DenseNet": "densenet121",
    "VGG": "vgg11",
    "Inception": "googlenet",
    "MobileNetV3": "mobilenet_v3_small",
    "EfficientNetV2": "timm/tf_efficientnetv2_b0",
    "RegNet": "timm/regnety_002",
    "ConvNeXt": "timm/test_convnext",
    "Swin": "swin_t",
    "ViT": "timm/test_vit",
    "MaxViT": "timm/test_maxvit",
    "MLP-Mixer": "timm/mixer_s32_224",
}
families = pytest.mark.parametrize(
    "backbone",
    # 133 million weights take a minute and a half of these tests.
    [
        pytest.param(name, id=kind, marks=pytest.mark.night if kind == "VGG" else ())
        for kind, name in FAMILIES.items()
    ],
)


def settings_of(backbone: str, trainable: str = "all") -> Settings:
    return Settings(backbone=backbone, weights="none", trainable=trainable, precision="fp32")  # type: ignore[arg-type]


@lru_cache(maxsize=1)  # the tests of a backbone run one after another
def _counter(backbone: str) -> CountingModel:
    """With norms that matter: the statistics of fresh ones hardly change a value."""
    counter = build_model(settings_of(backbone), CLASSES, SIZE).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in counter.modules():
            if isinstance(norm, nn.BatchNorm2d):
                for value in (norm.weight, norm.running_var, norm.running_mean):
                    assert value is not None
                    value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
    return counter


def photos(number: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (number, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


@families
def test_the_stages_compute_what_the_library_computes(backbone: str) -> None:
    architecture = find_architecture(backbone, SIZE)
    torch.manual_seed(0)
    whole = architecture.create(None).eval()
    stages = nn.Sequential(*(stage for _, stage in architecture.stages(whole)))
    counter = _counter(backbone)
    images = counter.normalise(photos())  # in channels-last memory format
    with torch.inference_mode():
        expected = whole(images)
        assert expected.shape == (2, architecture.features)
        torch.testing.assert_close(stages(images), expected, rtol=0, atol=0)
        answer = counter(photos())
        for trainable in CHOICES["trainable"]:
            cut = counter.cut(trainable)
            parts = counter.suffix(cut)(counter.prefix(cut)(counter.normalise(photos())))
            torch.testing.assert_close(parts, answer, rtol=0, atol=0)
    cuts = [counter.cut(trainable) for trainable in ("all", "later_stages", "last_stage", "head")]
    assert cuts == sorted(set(cuts)) and cuts[-1] == len(counter.backbone)


@families
def test_folding_the_norms_changes_no_answer(backbone: str) -> None:
    counter = copy.deepcopy(_counter(backbone)).double()
    with torch.inference_mode():
        before = counter(photos())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in counter.modules())
    fold_norms(counter, photos())
    left = sum(isinstance(module, nn.BatchNorm2d) for module in counter.modules())
    assert left < norms or norms == 0
    with torch.inference_mode():
        torch.testing.assert_close(counter(photos()), before)


@families
def test_what_is_served_is_what_was_evaluated(backbone: str, tmp_path: Path) -> None:
    predictor = Predictor([_counter(backbone)], flip=True).eval()
    files = {"config": tmp_path / "config.json", "weights": tmp_path / "weights.pt"}
    files["config"].write_text(json.dumps(predictor.to_dict()))
    torch.save(predictor.state_dict(), files["weights"])
    served = open_engine("torch", files)
    with torch.inference_mode():
        expected = predictor(photos()).numpy()
    np.testing.assert_allclose(served(photos().numpy()), expected, atol=1e-5)


@families
def test_a_bank_holds_what_the_frozen_stages_compute(
    backbone: str, trial_data: TrialData, tmp_path: Path
) -> None:
    precision = choose_precision("fp32")
    rows = torch.arange(min(8, len(trial_data.validation)))
    for trainable in ("head", "last_stage"):
        settings = settings_of(backbone, trainable)
        model = build_model(settings, trial_data.classes, SIZE)
        taken = []
        for banked in (True, False):
            batches = BatchFactory(model, settings, tmp_path, precision, use_feature_bank=banked)
            taken.append(batches.open(trial_data.validation, "none").take(rows, torch.zeros_like(rows)))
        torch.testing.assert_close(taken[0], taken[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "timm/test_convnext", "timm/test_vit"])
def test_onnx_runtime_computes_the_same(backbone: str) -> None:
    taken = choose_engine("onnxruntime", Predictor([_counter(backbone)]).eval(), photos(3).numpy())
    assert taken.name == "onnxruntime" and taken.onnx


def test_training_changes_only_the_trained_stages_and_evaluation_drops_nothing() -> None:
    """torchvision's transformers drop whole paths at random while they are trained."""
    model = build_model(settings_of("swin_t", "last_stage"), CLASSES, SIZE)
    cut = model.cut("last_stage")
    frozen = copy.deepcopy(model.prefix(cut).state_dict())
    suffix = model.suffix(cut)
    with torch.no_grad():
        features = model.prefix(cut).eval()(model.normalise(photos(8)))
        assert torch.equal(suffix.eval()(features), suffix(features))
        torch.manual_seed(0)
        assert not torch.equal(suffix.train()(features), suffix(features))
    optimizer = torch.optim.SGD(suffix.parameters(), 0.1)
    before = copy.deepcopy(suffix.state_dict())
    suffix(features).square().sum().backward()
    optimizer.step()
    moved = {key for key, value in suffix.state_dict().items() if not torch.equal(before[key], value)}
    assert {"backbone", "head"} == {key.partition(".")[0] for key in moved}
    after = model.prefix(cut).state_dict()
    assert all(torch.equal(frozen[key], after[key]) for key in frozen)


def test_bare_names_are_torchvisions_then_timms() -> None:
    assert find_in_library("convnext_tiny") == ("torchvision", "convnext_tiny")
    assert find_in_library("timm/convnext_tiny") == ("timm", "convnext_tiny")
    assert find_in_library("convnext_atto") == ("timm", "convnext_atto")
    assert find_in_library("timm/convnext_tiny.in12k") == ("timm", "convnext_tiny.in12k")
    assert find_architecture("resnet18", SIZE) is ARCHITECTURES["resnet18"]
    for name in ("torchvision/convnext_atto", "timm/convnext_tiny.nothing", "keras/resnet50", ""):
        with pytest.raises(UnknownBackbone):
            find_in_library(name)


def test_preprocessing_and_weights_come_from_the_librarys_metadata() -> None:
    ours = find_architecture("timm/vit_tiny_patch16_224", SIZE)
    assert ours.mean == ours.std == (0.5, 0.5, 0.5) and ours.interpolation == "bicubic"
    config = build_model(settings_of("timm/test_vit"), CLASSES, SIZE).config
    assert config.interpolation == "bicubic"
    assert weights_source("convnext_tiny").url.endswith(".pth")
    assert weights_source("timm/convnext_tiny.in12k").hub == "timm/convnext_tiny.in12k"
    # torchvision rescales googlenet's input itself when it loads its weights.
    assert find_architecture("googlenet", SIZE).mean == (0.5, 0.5, 0.5)


def test_a_fixed_size_network_is_built_for_the_photos_and_takes_weights_of_another_size() -> None:
    for backbone in ("timm/test_vit", "vit_b_32"):
        states = {size: find_architecture(backbone, size).create(None).state_dict() for size in (64, 96)}
        state = states[96]
        assert any(state[key].shape != states[64][key].shape for key in state)
        net = find_architecture(backbone, 64).build(state).eval()
        with torch.inference_mode():
            assert net(torch.rand(1, 3, 64, 64)).isfinite().all()


def test_sizes_and_networks_that_cannot_be_used_are_named() -> None:
    with pytest.raises(UnfitSize, match=r"vit_b_32 takes no photos of this size .*indivisible") as caught:
        find_architecture("vit_b_32", 100)
    assert "224 px" in caught.value.hint
    with pytest.raises(UnfitBackbone, match="the stages of timm/crossvit_9_240 cannot be found") as caught:
        find_architecture("timm/crossvit_9_240", 240)
    assert not isinstance(caught.value, UnfitSize)


def test_costs_and_rates_are_known_for_every_network() -> None:
    def work(backbone: str) -> float:
        return level_work(Level(settings_of(backbone), 224))

    assert work("timm/test_vit") < work("vit_b_32") < work("vit_b_16")
    # timm's resnet18 is the network whose cost is in the table.
    assert work("timm/resnet18") == pytest.approx(work("resnet18"), rel=0.05)
    with_norms = recommended_settings("timm/test_resnet", "all", "adamw")["lr"]
    assert recommended_settings("timm/test_vit", "all", "adamw")["lr"] < with_norms


def test_older_weights_of_densenet_fit() -> None:
    architecture = find_architecture("densenet121", SIZE)
    whole = architecture.build()
    state = {
        key.partition(".")[2]: value for key, value in whole.state_dict().items() if "num_batches" not in key
    }
    renamed = {
        key.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.")
        .replace("norm2.", "norm.2.").replace("conv2.", "conv.2.")
        if "denselayer" in key
        else key: value
        for key, value in state.items()
    }  # fmt: skip
    assert renamed.keys() != state.keys()
    again = architecture.build(renamed)
    assert all(
        torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True)
    )
