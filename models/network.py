"""The counting model: a backbone in stages, and a head that gives a probability for every count.

This file is part of the served model (its source is stored in the registry), so it imports nothing but torch,
torchvision and timm.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from binsweep.models.backbones.architecture import State
from binsweep.models.backbones.library import find_architecture


@dataclass(frozen=True)
class CountingModelConfig:
    """Everything needed to rebuild a model before its weights are loaded; stored next to them.

    `image_size` in pixels (square); `mean` and `std` per RGB channel on the 0..1 scale; `classes` are the
    counts that it answers with, ascending, or the sorted names of classes. `head_classes` are those that its head
    tells apart, where it was trained on further counts; () stands for `classes`. Photos are resized with
    `interpolation`.
    """

    backbone: str
    head: str
    classes: tuple[int | str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hidden: int = 128
    head_classes: tuple[int | str, ...] = ()
    interpolation: str = "bilinear"

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


# Convolutions that use their weights as they are stored; others, such as those with standardised weights, do not.
_FOLDABLE = ("Conv2d", "Conv2dSame")


def fold_norms(network: nn.Module, images: Tensor) -> None:
    """Fold each batch norm of `network`, which must be in eval mode, into the convolution before it.

    In eval mode a batch norm is a linear map of each channel, so it can be merged into the convolution's weights and
    bias: the same function with fewer passes over memory (Jacob et al. 2018, "Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference", 3.2). Which norm takes the output of which convolution is
    seen in a forward pass of `images`.
    """
    pairs = _norms_after_convolutions(network, images)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in pairs:
                setattr(parent, name, fuse_conv_bn_eval(child, pairs[child]))  # type: ignore[type-var]
            elif child in pairs.values():
                # timm's norms include the activation.
                setattr(parent, name, getattr(child, "act", nn.Identity()))


def _norms_after_convolutions(network: nn.Module, images: Tensor) -> dict[nn.Module, nn.BatchNorm2d]:
    """The batch norms that take nothing but the output of one convolution, which nothing else takes, by convolution."""
    uses = _CountUses()
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # kept, so that no later tensor has the same id
    taken: list[tuple[nn.Module, nn.BatchNorm2d, int]] = []
    calls: Counter[nn.Module] = Counter()

    def after_convolution(conv: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[conv] += 1
        outputs[id(output)] = (conv, output)
        uses.counts[id(output)] = 0  # an earlier tensor may have had the same id

    def before_norm(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        if id(inputs[0]) in outputs:
            taken.append((outputs[id(inputs[0])][0], norm, id(inputs[0])))

    hooks = []
    for module in network.modules():
        if type(module).__name__ in _FOLDABLE:
            hooks.append(module.register_forward_hook(after_convolution))
        elif isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            hooks.append(module.register_forward_pre_hook(before_norm))
    with torch.no_grad(), uses:
        network(images)
    for hook in hooks:
        hook.remove()
    pairs = Counter((conv, norm) for conv, norm, one in taken if uses.counts[one] == 1)
    return {conv: norm for (conv, norm), times in pairs.items() if calls[conv] == calls[norm] == times}


class _CountUses(TorchFunctionMode):
    """Counts the operations that take each tensor, by its id; an operation is what gives a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(True for _ in _tensors_in(result)):
            self.counts.update(map(id, _tensors_in((args, list((kwargs or {}).values())))))
        return result


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors_in(one)


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
        state: State | None = None,
        backbone: nn.Sequential | None = None,
    ) -> None:
        """Build the backbone with the weights `state`, or use an existing `backbone`."""
        super().__init__()
        architecture = find_architecture(config.backbone, config.image_size)
        self.config = config
        self.backbone = architecture.build(state) if backbone is None else backbone
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
        architecture = find_architecture(self.config.backbone, self.config.image_size)
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
