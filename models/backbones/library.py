"""Every classification network of torchvision and timm by name.

This file is part of models that are served by PyTorch (their source is stored in the registry), so it imports nothing
but torch, torchvision and timm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import nn

from binsweep.models.backbones.architecture import (
    ADAPTATIONS,
    ARCHITECTURES,
    Adaptation,
    Architecture,
    State,
    WeightsSource,
    load_state_into,
    torchvision_weights,
)
from binsweep.models.backbones.cutting import CannotCut, Division, divide, resolutions

Library = Literal["torchvision", "timm"]
USUAL_IMAGE_SIZE = 224
# The files of a repository of the hub that may hold the weights, in the order in which timm looks for them.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class UnknownBackbone(LookupError):
    """No backbone has this name."""


class UnfitBackbone(ValueError):
    """A network that cannot be used: at this image size, or at all. The message says why, `hint` what would do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class UnfitSize(UnfitBackbone):
    """A network that does not take photos of this size, but of others."""


@dataclass(frozen=True)
class _Preprocessing:
    """What a network's weights are used to; `image_size` is the one of their training."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    image_size: int


def library_names(library: Library) -> list[str]:
    """The names of a library's classification networks, without its prefix."""
    if library == "timm":
        import timm  # here and below, as importing them takes as long as torch

        names: list[str] = timm.list_models()
        return names
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def known_names(like: str) -> list[str]:
    """Names of backbones in the way that `like` is written: bare, of a library, or with a tag of timm's weights."""
    import timm

    prefix, _, own = like.rpartition("/")
    network = own.partition(".")[0]
    if "." in own and timm.is_model(network):
        names = list(timm.models.get_arch_pretrained_cfgs(network))
    elif prefix == "torchvision":
        names = library_names("torchvision")
    else:
        names = library_names("timm")
        names += [] if prefix == "timm" else [*ARCHITECTURES, *library_names("torchvision")]
    start = f"{prefix}/" if prefix in ("timm", "torchvision") else ""
    return [f"{start}{name}" for name in dict.fromkeys(names)]


@lru_cache
def find_in_library(name: str) -> tuple[Library, str]:
    """The library of a backbone without a description of its own, and its name there.

    A bare name means torchvision's network, or timm's where torchvision has none; `torchvision/` and `timm/` before it
    choose. timm's names may end with the tag of weights, as in `convnext_tiny.in12k`. Raises UnknownBackbone.
    """
    prefix, _, own = name.rpartition("/")
    if prefix in ("", "torchvision") and own in library_names("torchvision"):
        return "torchvision", own
    if prefix in ("", "timm"):
        import timm

        tags = timm.models.get_arch_pretrained_cfgs(own.partition(".")[0]) if timm.is_model(own) else {}
        if timm.is_model(own) and ("." not in own or own in tags):
            return "timm", own
    raise UnknownBackbone(name)


def find_architecture(name: str, image_size: int) -> Architecture:
    """The named backbone for photos of `image_size` pixels: described by itself, or a library's network.

    Raises UnknownBackbone, and UnfitBackbone for a network that takes no such photos or cannot be cut into stages.
    """
    return ARCHITECTURES[name] if name in ARCHITECTURES else _library_architecture(name, image_size)


@lru_cache(maxsize=64)
def _library_architecture(name: str, image_size: int) -> Architecture:
    library, own = find_in_library(name)
    usual = _preprocessing(library, own)
    division = _division(name, image_size, usual.image_size)
    return Architecture(
        partial(_create, library, own, image_size),
        division.stages,
        division.features,
        division.later,
        division.last,
        usual.mean,
        usual.std,
        usual.interpolation,
        partial(_weights, library, own),
    )


def weights_source(name: str) -> WeightsSource:
    """Where the backbone's pre-trained weights come from. Raises UnknownBackbone."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name].weights()
    return _weights(*find_in_library(name))


def own_image_size(name: str) -> int:
    """The image size that the pre-trained weights of a library's network were trained for; the usual one for others."""
    if name in ARCHITECTURES:
        return USUAL_IMAGE_SIZE
    return _preprocessing(*find_in_library(name)).image_size


def interpolation_of(name: str) -> str:
    """How photos are resized for a backbone: `bilinear`, or as its pre-trained weights are used to."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name].interpolation
    return _preprocessing(*find_in_library(name)).interpolation


def meta_network(name: str, image_size: int) -> nn.Module:
    """The library's network on the meta device, where it has shapes but no values; without its classifier, unless the
    backbone has a description of its own."""
    if name in ARCHITECTURES:
        create = partial(ARCHITECTURES[name].create, None)
    else:
        create = partial(_create, *find_in_library(name), image_size)
    try:
        with torch.device("meta"):
            net: nn.Module = create()
    except NotImplementedError:  # its constructor looks at values
        net = create().to("meta")
    return net.eval()


def _weights(library: Library, own: str) -> WeightsSource:
    if library == "torchvision":
        return torchvision_weights(own)()
    import timm

    known = timm.models.get_pretrained_cfg(own)
    files = (known.hf_hub_filename,) if known.hf_hub_filename else _HUB_FILES
    return WeightsSource(
        f"{known.license or 'not known'} (timm, {known.hf_hub_id or known.url})",
        url=known.url or "",
        hub=known.hf_hub_id or "",
        files=files,
    )


def _preprocessing(library: Library, own: str) -> _Preprocessing:
    if library == "timm":
        import timm

        known = timm.models.get_pretrained_cfg(own)
        return _Preprocessing(tuple(known.mean), tuple(known.std), known.interpolation, known.input_size[1])
    import torchvision

    usual = torchvision.models.get_model_weights(own).DEFAULT.transforms()
    adaptation = _adaptation(own)
    mean, std = adaptation.mean or tuple(usual.mean), adaptation.std or tuple(usual.std)
    return _Preprocessing(mean, std, usual.interpolation.value, usual.crop_size[0])


def _adaptation(own: str) -> Adaptation:
    found = [beginning for beginning in ADAPTATIONS if own.startswith(beginning)]
    return ADAPTATIONS[max(found, key=len)] if found else Adaptation()


def _create(library: Library, own: str, image_size: int, state: State | None = None) -> nn.Module:
    """A library's network for photos of this size, without its classifier."""
    create = _create_torchvision if library == "torchvision" else _create_timm
    return create(own, image_size, state)


def _create_torchvision(own: str, image_size: int, state: State | None) -> nn.Module:
    import torchvision

    adaptation = _adaptation(own)
    net: nn.Module = torchvision.models.get_model(own, weights=None, **adaptation.options(image_size))
    # The last layer that gives a number for each class is the classifier; squeezenet's is a convolution.
    layers = [
        n
        for n, m in net.named_modules()
        if 1000 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))
    ]
    if state is not None:
        load_state_into(net, adaptation.state(state, image_size), (f"{layers[-1]}.",))
    parent, _, child = layers[-1].rpartition(".")
    setattr(net.get_submodule(parent), child, nn.Identity())
    return net


def _create_timm(own: str, image_size: int, state: State | None) -> nn.Module:
    import timm

    def create(**options: Any) -> Any:
        try:
            return timm.create_model(own, img_size=image_size, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(own, **options)  # it takes any size

    if state is None:
        net = create()
    else:
        # timm converts what a file holds: older names, positions of another image size.
        net = create(pretrained=True, pretrained_cfg_overlay={"state_dict": _with_classifier(own, state)})
    if not hasattr(net, "reset_classifier"):
        raise CannotCut("it is no classification network")
    net.reset_classifier(0)
    return net  # type: ignore[no-any-return]


def _with_classifier(own: str, state: State) -> dict[str, Any]:
    """A state dict with any classifier of the right shape, where only that is missing or another one."""
    import timm

    net = timm.create_model(own)
    layers = net.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{layer}." for layer in ([layers] if isinstance(layers, str) else layers))
    wanted = net.state_dict()
    classifier = {key: value for key, value in wanted.items() if prefixes and key.startswith(prefixes)}
    if not set(wanted) - set(classifier) <= set(state):
        return dict(state)  # in another format, which timm converts
    completed = dict(state)
    for key, value in classifier.items():
        # Some files have further classes in front, which timm removes.
        shape = (len(value) + (net.pretrained_cfg.get("label_offset") or 0), *value.shape[1:])
        if key not in state or state[key].shape != shape:
            completed[key] = value.new_zeros(shape)
    return completed


def _division(name: str, image_size: int, usual_size: int) -> Division:
    """How a library's network is cut. Raises UnfitBackbone."""
    try:
        return _divide_at(name, image_size, usual_size)
    except CannotCut as error:
        raise _no_stages(name, error) from error
    except Exception as error:  # whatever a library raises for a size that its network does not take
        if image_size == usual_size:
            raise _no_stages(name, error) from error
        _division(name, usual_size, usual_size)  # raises where the size is not to blame
        hint = f"its weights were trained at {usual_size} px"
        raise UnfitSize(f"{name} takes no photos of this size ({_reason(error)})", hint) from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _no_stages(name: str, error: Exception) -> UnfitBackbone:
    hint = "take another network: most are one line of blocks, which can be cut"
    return UnfitBackbone(f"the stages of {name} cannot be found: {_reason(error)}", hint)


def _divide_at(name: str, image_size: int, usual_size: int) -> Division:
    net = meta_network(name, image_size)
    info = getattr(net, "feature_info", None) or ()
    named = {one["module"]: float(one["reduction"]) for one in info if one.get("module")}
    if named:
        try:
            return divide(net, image_size, named)
        except CannotCut:  # at the places that the library names; there may be others
            pass
    usual = net if image_size == usual_size else meta_network(name, usual_size)
    return divide(net, image_size, resolutions(usual, usual_size))
