"""The counting model: a backbone in stages, and a head that gives a probability for every count.

This file is part of the served model (its source is stored in the registry), so it imports nothing but torch,
torchvision and timm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Stages = list[tuple[str, nn.Module]]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Inception's and EfficientNet-Lite's weights were trained on inputs scaled to -1..1, not by ImageNet's statistics.
INCEPTION_MEAN = INCEPTION_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class CountingModelConfig:
    """Everything needed to rebuild a model before its weights are loaded; stored next to them.

    `image_size` in pixels (square); `mean` and `std` per RGB channel on the 0..1 scale; `classes` are the
    counts that it answers with, ascending, or the sorted names of classes. `head_classes` are those that its head
    tells apart, where it was trained on further counts; () stands for `classes`.
    """

    backbone: str
    head: str
    classes: tuple[int | str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hidden: int = 128
    head_classes: tuple[int | str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> CountingModelConfig:
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return CountingModelConfig(**values)


def _resnet(net: Any) -> Stages:
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    layers = [(f"layer{i}", getattr(net, f"layer{i}")) for i in range(1, 5)]
    return [("stem", stem), *layers, ("pool", nn.Sequential(net.avgpool, nn.Flatten()))]


def _torchvision_features(groups: Sequence[int]) -> Callable[[Any], Stages]:
    """Cut `net.features` before each index of `groups`, where the resolution halves."""

    def stages(net: Any) -> Stages:
        ends = [*groups[1:], len(net.features)]
        cut = [(f"stage{i}", net.features[a:b]) for i, (a, b) in enumerate(zip(groups, ends, strict=True))]
        return [*cut, ("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))]

    return stages


def _vgg(net: Any) -> Stages:
    # The two wide linear layers belong to the backbone: the published recipe replaces only the last layer.
    pool = nn.Sequential(net.avgpool, nn.Flatten(), *list(net.classifier)[:-1])
    return [*_torchvision_features([0, 5, 10, 17, 24])(net)[:-1], ("pool", pool)]


def _inception(net: Any) -> Stages:
    names = [name for name, _ in net.named_children()]
    groups = [("stem", "Conv2d_1a_3x3", "Mixed_5b"), ("mixed5", "Mixed_5b", "Mixed_6a")]
    groups += [("mixed6", "Mixed_6a", "Mixed_7a"), ("mixed7", "Mixed_7a", "avgpool")]
    stages: Stages = []
    for stage, first, after in groups:
        modules = [getattr(net, name) for name in names[names.index(first) : names.index(after)]]
        stages.append((stage, nn.Sequential(*modules)))
    return [*stages, ("pool", nn.Sequential(net.avgpool, nn.Flatten()))]


def _lite(net: Any) -> Stages:
    blocks = [(f"blocks{i}", block) for i, block in enumerate(net.blocks)]
    tail = nn.Sequential(net.conv_head, net.bn2)
    stem = nn.Sequential(net.conv_stem, net.bn1)
    return [("stem", stem), *blocks, ("tail", tail), ("pool", net.global_pool)]


@dataclass(frozen=True)
class Architecture:
    """How to create a library's network and cut it into stages.

    `features` is the width after pooling, `last` the first stage that `trainable: last_stage` trains (the blocks at the
    last resolution), `later` the first one of `later_stages` (those at an eighth of the photo's resolution and below,
    a quarter of vgg16's).
    """

    create: Callable[[], Any]
    stages: Callable[[Any], Stages]
    features: int
    later: str
    last: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def _tv(name: str, **options: Any) -> Callable[[], Any]:
    def create() -> Any:
        import torchvision  # here, as importing it takes as long as torch, and ARCHITECTURES is often only read

        return getattr(torchvision.models, name)(weights=None, **options)

    return create


def _timm(name: str) -> Callable[[], Any]:
    def create() -> Any:
        import timm

        return timm.create_model(name, pretrained=False)

    return create


def _efficientnet_lite(number: int) -> Architecture:
    create = _timm(f"tf_efficientnet_lite{number}")
    return Architecture(create, _lite, 1280, "blocks2", "blocks5", INCEPTION_MEAN, INCEPTION_STD)


_EFFICIENTNET = _torchvision_features([0, 2, 3, 4, 6])
_MOBILENET = _torchvision_features([0, 2, 4, 7, 14])
_INCEPTION = _tv("inception_v3", aux_logits=False, init_weights=False)

ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(_tv("resnet18"), _resnet, 512, "layer2", "layer4"),
    "resnet34": Architecture(_tv("resnet34"), _resnet, 512, "layer2", "layer4"),
    "resnet50": Architecture(_tv("resnet50"), _resnet, 2048, "layer2", "layer4"),
    "efficientnet_b0": Architecture(_tv("efficientnet_b0"), _EFFICIENTNET, 1280, "stage2", "stage4"),
    "vgg16": Architecture(_tv("vgg16"), _vgg, 4096, "stage2", "stage4"),
    "inception_v3": Architecture(
        _INCEPTION, _inception, 2048, "mixed5", "mixed7", INCEPTION_MEAN, INCEPTION_STD
    ),
    "mobilenet_v2": Architecture(_tv("mobilenet_v2"), _MOBILENET, 1280, "stage2", "stage4"),
    **{f"efficientnet_lite{number}": _efficientnet_lite(number) for number in range(3)},
}


def interval_log_probabilities(edges: Tensor) -> Tensor:
    """Log-probabilities [B, K] of the intervals between K-1 ascending `edges` [B, K-1] under a logistic density.

    log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - exp(b - a)) for a > b, with s the logistic function. This form
    neither overflows nor cancels.
    """
    last, first = F.logsigmoid(-edges[:, -1:]), F.logsigmoid(edges[:, :1])
    gap = (edges[:, :-1] - edges[:, 1:]).clamp(max=-1e-6)
    inner = F.logsigmoid(edges[:, 1:]) + F.logsigmoid(-edges[:, :-1]) + torch.log1p(-gap.exp())
    return torch.cat([first, inner, last], dim=1)


class Classify(nn.Module):
    """One free logit per count: hidden [B, H] -> log-probabilities [B, K]."""

    def __init__(self, hidden: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.out = nn.Linear(hidden, len(classes))

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.out(hidden)
        return logits.log_softmax(dim=1)


class Ordinal(nn.Module):
    """Cumulative-link model: one score, K-1 learned ascending thresholds (McCullagh 1980, proportional odds)."""

    def __init__(self, hidden: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.out = nn.Linear(hidden, 1, bias=False)
        self.first = nn.Parameter(torch.tensor(-0.5 * (len(classes) - 2)))
        # softplus(0.54) = 1: thresholds start at a distance of 1, so that every count starts with some probability.
        self.gaps = nn.Parameter(torch.full((len(classes) - 2,), 0.54))

    def forward(self, hidden: Tensor) -> Tensor:
        steps = torch.cat([self.first.reshape(1), F.softplus(self.gaps)])
        return interval_log_probabilities(steps.cumsum(0) - self.out(hidden))


class Regress(nn.Module):
    """Predicts mean and scale of a logistic density over counts; a count's probability is that of its interval."""

    midpoints: Tensor

    def __init__(self, hidden: int, classes: Sequence[int]) -> None:
        super().__init__()
        counts = torch.tensor(classes, dtype=torch.float32)
        self.out = nn.Linear(hidden, 2)
        self.register_buffer("midpoints", (counts[1:] + counts[:-1]) / 2)
        with torch.no_grad():
            self.out.bias.copy_(torch.stack([counts.mean(), torch.tensor(0.54)]))

    def forward(self, hidden: Tensor) -> Tensor:
        mean, scale = self.out(hidden).split(1, dim=1)
        return interval_log_probabilities((self.midpoints - mean) / (F.softplus(scale) + 0.05))


HEADS: dict[str, type[nn.Module]] = {"classify": Classify, "ordinal": Ordinal, "regress": Regress}


def build_backbone(name: str, state: Mapping[str, Tensor] | None = None) -> nn.Sequential:
    """The named backbone as a sequence of stages, images [B, 3, S, S] -> features [B, F].

    `state` is a state dict with the library's names; entries of its classifier and of auxiliary outputs are ignored.
    Raises RuntimeError if another entry is missing or has another shape.
    """
    architecture = ARCHITECTURES[name]
    net = architecture.create()
    if state is not None:
        own = net.state_dict()
        optional = {key for key in own if key.startswith(("fc.", "classifier.", "AuxLogits."))}
        if name == "vgg16":
            optional = {key for key in own if key.startswith("classifier.6.")}
        missing = sorted(set(own) - optional - set(state))
        wrong = sorted(k for k in set(own) & set(state) - optional if own[k].shape != state[k].shape)
        if missing or wrong:
            raise RuntimeError(f"missing {missing[:3]}, of another shape {wrong[:3]}")
        net.load_state_dict({key: state[key] for key in own if key not in optional}, strict=False)
    return nn.Sequential(OrderedDict(architecture.stages(net)))


def fold_norms(module: nn.Module) -> None:
    """Fold each batch norm of `module`, which must be in eval mode, into the convolution before it.

    In eval mode a batch norm is a linear map of each channel, so it can be merged into the convolution's weights and
    bias: the same function with fewer passes over memory (Jacob et al. 2018, "Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference", 3.2). In every architecture here, a norm that follows a
    convolution among its module's children is also called right after it.
    """
    children = list(module.named_children())
    for (name, conv), (after, norm) in pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            # timm's norms include the activation.
            setattr(module, after, getattr(norm, "act", nn.Identity()))
    for child in module.children():
        fold_norms(child)


class CountingModel(nn.Module):
    """Log-probabilities of the counts of photos; preprocessing is part of the model.

    `forward` takes uint8 RGB [B, S, S, 3] and returns float32 [B, K]. `prefix` and `suffix` split the same
    network at a cut: `answer(suffix(cut)(prefix(cut)(normalise(x))))` equals `forward(x)`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: CountingModelConfig,
        state: Mapping[str, Tensor] | None = None,
        backbone: nn.Sequential | None = None,
    ) -> None:
        """Build the backbone with the weights `state`, or use an existing `backbone`."""
        super().__init__()
        architecture = ARCHITECTURES[config.backbone]
        self.config = config
        self.backbone = build_backbone(config.backbone, state) if backbone is None else backbone
        hidden = nn.Linear(architecture.features, config.hidden)
        head_classes = config.head_classes or config.classes
        self.head = nn.Sequential(hidden, nn.ReLU(), HEADS[config.head](config.hidden, head_classes))
        self._answers = [head_classes.index(count) for count in config.classes]
        self._all_answer = head_classes == config.classes
        # On the 0..255 scale, and not persistent, because the config stores them.
        for key, values in (("mean", config.mean), ("std", config.std)):
            scaled = torch.tensor(values).mul(255).view(1, 3, 1, 1)
            self.register_buffer(key, scaled, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3, S, S], channels last in memory."""
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def cut(self, trainable: str) -> int:
        """The number of frozen stages for `trainable`: head | last_stage | later_stages | all."""
        names = [name for name, _ in self.backbone.named_children()]
        if trainable == "head":
            return len(names)
        architecture = ARCHITECTURES[self.config.backbone]
        first = {"last_stage": architecture.last, "later_stages": architecture.later, "all": names[0]}
        return names.index(first[trainable])

    def prefix(self, cut: int) -> nn.Sequential:
        """The first `cut` stages; shares its parameters with this module."""
        return self.backbone[:cut]

    def suffix(self, cut: int) -> nn.Sequential:
        """Everything after the cut, head included; shares its parameters with this module."""
        return nn.Sequential(OrderedDict([("backbone", self.backbone[cut:]), ("head", self.head)]))

    def answer(self, log_probabilities: Tensor) -> Tensor:
        """Of the head's log-probabilities [B, head classes], those of the classes given that one of them is right."""
        if self._all_answer:
            return log_probabilities
        return log_probabilities[:, self._answers].log_softmax(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        log_probabilities: Tensor = self.head(self.backbone(self.normalise(images)))
        return self.answer(log_probabilities.float())
