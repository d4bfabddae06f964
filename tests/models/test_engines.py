"""Engines compute what the trained network computes, or are not taken."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from binsweep.data.errors import UserError
from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.engines.choice import AUTO_ENGINE, MAX_ENGINE_DIFFERENCE, choose_engine, open_engine
from binsweep.models.engines.names import ENGINE_CLASSES, EngineChoice, EngineName
from binsweep.models.engines.onnx_file import to_onnx
from binsweep.models.network import HEADS, CountingModel, CountingModelConfig
from binsweep.models.predictor import Predictor

SIZE = 64
ONNX_ENGINES: list[EngineName] = ["openvino", "onnxruntime"]


def network(backbone: str = "mobilenet_v2", head: str = "classify", seed: int = 0) -> CountingModel:
    """A counter with random weights that tells photos apart: its batch norms know the statistics of photos."""
    torch.manual_seed(seed)
    architecture = ARCHITECTURES[backbone]
    classes = (0, 2, 3)
    config = CountingModelConfig(
        backbone, head, classes, SIZE, architecture.mean, architecture.std, head_classes=(0, 1, 2, 3)
    )
    counter = CountingModel(config)
    for module in counter.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        counter.train()(torch.from_numpy(photos()))
    return counter.eval()


def photos(number: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, SIZE, SIZE, 3), dtype=np.uint8)


def expected(predictor: Predictor, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        table: np.ndarray = predictor(torch.from_numpy(images)).numpy()
    return table


def test_every_name_has_a_class_and_a_choice() -> None:
    assert set(get_args(EngineName)) == set(ENGINE_CLASSES)
    assert set(get_args(EngineChoice)) == {"auto", *ENGINE_CLASSES}


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "efficientnet_lite0", "resnet18"])
@pytest.mark.parametrize("engine", ONNX_ENGINES)
def test_a_network_is_computed_alike_for_any_number_of_photos(
    tmp_path: Path, engine: EngineName, backbone: str
) -> None:
    predictor = Predictor([network(backbone)]).eval()
    (tmp_path / "network.onnx").write_bytes(to_onnx(predictor))
    compute = open_engine(engine, {"network": tmp_path / "network.onnx"})
    table = expected(predictor, photos())
    assert table.std(axis=0).max() > 1e-3  # photos are told apart, so that an error shows
    for count in (5, 1, 3):
        found = compute(photos()[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, table[:count], atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("engine", ONNX_ENGINES)
def test_ensembles_mirror_images_temperature_and_heads_are_computed_too(
    engine: EngineName, head: str
) -> None:
    members = [network(head=head), network(head=head, seed=1)]
    predictor = Predictor(members, flip=True, decoding="mean", temperature=1.7).eval()
    taken = choose_engine(engine, predictor, photos())
    assert taken.name == engine and taken.onnx
    assert f"{MAX_ENGINE_DIFFERENCE:g} allowed" in taken.reason and engine in taken.reason


def test_the_given_network_stays_as_it_is() -> None:
    predictor = Predictor([network()]).eval()
    before = {key: value.clone() for key, value in predictor.state_dict().items()}
    to_onnx(predictor)
    after = predictor.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


class Unknown(nn.Module):
    """An operation that ONNX lacks."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.special.bessel_j0(hidden[:, :4]).log_softmax(dim=1)


def test_what_cannot_be_converted_is_left_to_torch_and_said() -> None:
    predictor = Predictor([network()]).eval()
    predictor.counters[0].head = Unknown()
    taken = choose_engine("auto", predictor, photos())
    assert taken.name == "torch" and not taken.onnx
    assert AUTO_ENGINE in taken.reason and "bessel_j0" in taken.reason
    with pytest.raises(UserError, match=r"register.engine: openvino: .*bessel_j0"):
        choose_engine("openvino", predictor, photos())


class Random(nn.Module):
    """What no two engines compute alike."""

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden[:, :4] + torch.randn_like(hidden[:, :4])).log_softmax(dim=1)


def test_an_engine_that_computes_something_else_is_not_taken() -> None:
    predictor = Predictor([network()]).eval()
    predictor.counters[0].head = Random()
    taken = choose_engine("auto", predictor, photos())
    assert taken.name == "torch" and "computes something else" in taken.reason
    with pytest.raises(UserError, match="computes something else"):
        choose_engine("onnxruntime", predictor, photos())


def test_torch_is_taken_where_it_is_asked_for() -> None:
    taken = choose_engine("torch", Predictor([network()]).eval(), photos())
    assert taken.name == "torch" and not taken.onnx and "register.engine" in taken.reason
