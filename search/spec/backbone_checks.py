"""Checks of the networks that a sweep names: whether they exist, take its photos and can be cut into stages."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

import torch

from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.backbones.library import (
    UnfitBackbone,
    UnfitSize,
    UnknownBackbone,
    find_architecture,
    find_in_library,
    known_names,
    meta_network,
)
from binsweep.search.spec.problems import Problem

EXAMPLES = "efficientnet_lite0, convnext_tiny or timm/vit_small_patch14_dinov2"
MAX_NEAR = 3
MIN_SIZE_INCEPTION = 75
# Below these photo sizes the network's last stage has a single position, and batch norm needs a second photo.
MIN_SIZE_FOR_BATCH_OF_ONE = 33
MIN_SIZE_FOR_BATCH_OF_ONE_INCEPTION = 107


def near_backbones(name: str) -> str:
    """A hint for a name that no backbone has: the most similar ones."""
    near = difflib.get_close_matches(name, known_names(name), n=MAX_NEAR, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    return f"a network of torchvision or timm, such as {EXAMPLES}"


def is_backbone(name: str) -> bool:
    """Whether a network has this name."""
    try:
        return name in ARCHITECTURES or bool(find_in_library(name))
    except UnknownBackbone:
        return False


def backbone_problems(
    path: str, size_path: str, names: Sequence[str], sizes: Sequence[int]
) -> Iterator[Problem]:
    """The mistakes in how networks and image sizes fit; `path` and `size_path` are their keys."""
    for name in names:
        if name == "inception_v3" and min(sizes) < MIN_SIZE_INCEPTION:
            rule = f"inception_v3 needs at least {MIN_SIZE_INCEPTION}"
            yield Problem(size_path, rule, min(sizes), "raise it, or leave inception_v3 out")
        if name not in ARCHITECTURES:
            yield from _library_problems(path, size_path, name, sizes)


def _library_problems(path: str, size_path: str, name: str, sizes: Sequence[int]) -> Iterator[Problem]:
    shapes = []
    for size in sizes:
        try:
            find_architecture(name, size)
        except UnfitSize as error:
            yield Problem(size_path, str(error), size, error.hint)
        except UnfitBackbone as error:
            yield Problem(path, str(error), name, error.hint)
            return
        else:
            shapes.append({key: value.shape for key, value in meta_network(name, size).state_dict().items()})
    if any(one != shapes[0] for one in shapes):
        rule = f"the shapes of {name}'s weights depend on it, so that no level can go on with those of the one before"
        yield Problem(size_path, rule, list(sizes), f"give one size, or leave {name} out")


def batch_of_one_problem(names: Sequence[str], size: int) -> str:
    """Why a batch of one photo of this size cannot train one of the networks, as a hint; "" if it can."""
    least = MIN_SIZE_FOR_BATCH_OF_ONE_INCEPTION if "inception_v3" in names else MIN_SIZE_FOR_BATCH_OF_ONE
    if any(name in ARCHITECTURES for name in names) and size < least:
        return f"batch norm needs more than one position: 2, or data.image_size from {least}"
    for name in names:
        if name in ARCHITECTURES:
            continue
        try:
            meta_network(name, size).train()(torch.empty((1, 3, size, size), device="meta"))
        except ValueError:  # of a batch norm, which computes statistics over photos and positions
            return f"batch norm of {name} needs more than one position: 2, or larger photos"
    return ""
