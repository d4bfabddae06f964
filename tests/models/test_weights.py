"""Pre-trained weights that exist work; missing and unfit ones are refused before anything starts."""

from pathlib import Path

import pytest
import timm
import torch

from binsweep.data.errors import UserError
from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.pretrained import (
    available_offline,
    check_weights,
    file_hash,
    load_state,
    weights_file,
)

EFFICIENTNET_LITE = [f"efficientnet_lite{number}" for number in range(3)]


@pytest.mark.parametrize("backbone", EFFICIENTNET_LITE)
def test_lite_weights_give_the_same_features_as_the_whole_network(backbone: str) -> None:
    file = weights_file(backbone, "imagenet")
    assert file is not None
    state = load_state(backbone, file)
    reference = timm.create_model(f"tf_{backbone}").eval()
    reference.load_state_dict(state)
    images = torch.rand(1, 3, 96, 96) * 2 - 1
    with torch.inference_mode():
        features = ARCHITECTURES[backbone].build(state).eval()(images)
        torch.testing.assert_close(reference.classifier(features), reference(images))


def test_missing_imagenet_weights_name_what_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("BINSWEEP_OFFLINE", "1")
    assert set(available_offline()) == set(EFFICIENTNET_LITE)
    with pytest.raises(UserError) as caught:
        check_weights("resnet50", "imagenet")
    assert "resnet50" in caught.value.message
    assert "efficientnet_lite0" in caught.value.hint


def test_a_folder_of_weights_serves_several_backbones(tmp_path: Path) -> None:
    for backbone in ("resnet18", "mobilenet_v2"):
        torch.save(ARCHITECTURES[backbone].create().state_dict(), tmp_path / f"{backbone}.pth")
        check_weights(backbone, str(tmp_path))
    with pytest.raises(UserError, match=r"no file .*vgg16\.pth"):
        check_weights("vgg16", str(tmp_path))


def test_unfit_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a state dict"):
        check_weights("resnet18", str(file))
    torch.save({"epoch": 3}, file)
    with pytest.raises(UserError, match="no plain state dict"):
        check_weights("resnet18", str(file))
    torch.save(ARCHITECTURES["resnet34"].create().state_dict(), file)
    with pytest.raises(UserError, match="does not fit"):
        check_weights("mobilenet_v2", str(file))


def test_hash_names_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    assert file_hash(None) == "none"
    assert file_hash(tmp_path / "a") != file_hash(tmp_path / "b")
