"""Collects what the health rules need during a training, and applies them.

Statistics of tensors are taken at a few sampled steps, always the same ones. They stay on the device until the end of
the epoch, because reading them would make a step wait for the GPU.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from binsweep.data.labels import Label
from binsweep.models.health_rules import (
    MIN_CONSECUTIVE,
    HealthFinding,
    HealthRule,
    check_input_images,
    class_imbalance,
    collapsed_prediction,
    confusion,
    dead_relu,
    exploding_tensor,
    loss_not_decreasing,
    overfit,
    overtraining,
    poor_weight_initialization,
    saturated_activation,
    stalled_training,
    tensor_variance,
    thresholds_of,
    unchanged_tensor,
    vanishing_gradient,
    weight_update_ratio,
)
from binsweep.models.metrics import confusion_matrix
from binsweep.models.settings import Settings

# The smallest distance between two sampled steps: both must have passed.
MIN_STEPS_BETWEEN_SAMPLES = 50
MIN_IMAGES_BETWEEN_SAMPLES = 3200
MIN_NORM_FOR_RATIO = 1e-3  # a parameter that starts at zero (a bias) has no meaningful ratio yet
MIN_LR_SHARE_FOR_RATIO = 0.01  # one-cycle begins and ends with tiny steps, which are no problem
ROWS_FOR_MOMENTS = 16
# Outside of these inputs (SageMaker's thresholds) the gradient is below 1e-7.
WORKING_RANGES: dict[type[nn.Module], tuple[float, float]] = {
    nn.Tanh: (-9.4999, 9.4999),
    nn.Sigmoid: (-23.0, 16.99999),
}

History = Sequence[Mapping[str, float]]
Indices = NDArray[np.int64]


@dataclass
class _Sample:
    """The statistics of one sampled step, on the device and unread; moments are mean and mean square, [2]."""

    is_first_step: bool
    image_moments: Tensor | None = None
    activation_moments: list[Tensor] = field(default_factory=list)  # of the inputs of each activation
    activity: dict[str, Tensor] = field(default_factory=dict)
    saturation: dict[str, Tensor] = field(default_factory=dict)
    gradient_names: list[str] = field(default_factory=list)
    loss_and_gradients: Tensor | None = None  # the loss, then the mean absolute value of each gradient
    norms: Tensor | None = (
        None  # for each parameter, the norms of its change and of its value before the step
    )
    lr: float = 0.0


class HealthMonitor:
    """Monitors one training; called before, within and after each step, and at the end of each epoch.

    `rules` overrides the action or thresholds of individual rules.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: Settings,
        labels: Tensor,
        classes: Sequence[Label],
        rules: Mapping[str, HealthRule] | None = None,
        n_head_classes: int | None = None,
    ) -> None:
        """Monitor `net`; `labels` are the training photos' indices in `classes`.

        `n_head_classes` is the number of counts that the head tells apart, if they are more than the classes.
        """
        self._settings, self._classes = settings, classes
        self._n_head_classes = n_head_classes or len(classes)
        self._rules = rules or {}
        self._class_counts = torch.bincount(labels.cpu(), minlength=len(classes)).tolist()
        self._parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self._layers = {name: module for name, module in net.named_modules() if _is_activation(module)}
        self._interval = max(MIN_STEPS_BETWEEN_SAMPLES, MIN_IMAGES_BETWEEN_SAMPLES // settings.batch_size)
        self._step = 0
        self._due = False
        self._last_step_time = 0.0
        self._longest_gap = 0.0  # in this epoch, seconds between two steps
        self._consecutive: Counter[str] = Counter()  # how many times in a row each rule has fired
        self._found: dict[str, str] = {}  # by rule, in this epoch
        self._reported: set[str] = set()
        self._ratios: list[dict[str, float]] = []
        thresholds = {**thresholds_of("unchanged_tensor"), **self._rule("unchanged_tensor").thresholds}
        self._kept_ratios = int(thresholds["num_steps"])
        self._samples: list[_Sample] = []  # of this epoch
        self._sample = _Sample(False)
        self._hooks: list[Any] = []
        self._before: list[Tensor] = []

    def state(self) -> dict[str, Any]:
        """What the rules must know of earlier epochs, as plain types: a resumed training has the same findings."""
        return {
            "step": self._step,
            "consecutive": dict(self._consecutive),
            "reported": sorted(self._reported),
            "ratios": list(self._ratios),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned; an empty one changes nothing."""
        if state:
            self._step = state["step"]
            self._consecutive = Counter(state["consecutive"])
            self._reported = set(state["reported"])
            self._ratios = list(state["ratios"])

    def _rule(self, name: str) -> HealthRule:
        return self._rules.get(name, HealthRule())

    def before_step(self, inputs: Tensor) -> None:
        """Called before the forward pass of `inputs` through the trained part."""
        now = time.monotonic()
        self._longest_gap = max(
            self._longest_gap, now - self._last_step_time if self._last_step_time else 0.0
        )
        self._last_step_time = now
        self._due = self._step % self._interval == 0
        self._step += 1
        if not self._due:
            return
        self._sample = _Sample(self._step == 1)
        # Images only: the variance of a frozen stage's output depends on its weights.
        if inputs.dim() == 4 and inputs.shape[1] == 3:
            self._sample.image_moments = _moments(inputs)
        self._hooks = [
            layer.register_forward_pre_hook(self._record_inputs_of(name))
            for name, layer in self._layers.items()
        ]

    def _record_inputs_of(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        sample = self._sample

        def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach()
            spatial = tuple(range(2, values.dim()))  # a unit of a convolution is a channel
            if (limits := WORKING_RANGES.get(type(layer))) is not None:
                outside = ((values < limits[0]) | (values > limits[1])).float()
                sample.saturation[name] = (outside.mean(spatial) if spatial else outside).mean(0)
                return
            active = (values > 0).float()
            sample.activity[name] = (active.amax(spatial) if spatial else active).mean(0)
            if sample.is_first_step:
                sample.activation_moments.append(_moments(values))

        return record

    def after_backward(self, loss: Tensor) -> None:
        """Called between the backward pass and the optimiser's step."""
        if not self._due:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        scalars = [loss.detach().float(), *(grad.abs().mean().float() for grad in gradients.values())]
        self._sample.gradient_names = list(gradients)
        self._sample.loss_and_gradients = torch.stack(scalars)
        self._before = [parameter.detach().clone() for parameter in self._parameters.values()]

    def after_step(self, lr: float) -> None:
        """Called after the optimiser's step, with its learning rate."""
        if not self._due:
            return
        norms = []
        for parameter, before in zip(self._parameters.values(), self._before, strict=True):
            norms += [(parameter.detach() - before).norm(), before.norm()]
        self._sample.norms, self._sample.lr = torch.stack([norm.float() for norm in norms]), lr
        self._samples.append(self._sample)
        self._before = []

    def _judge_step(self, sample: _Sample) -> None:
        if sample.image_moments is not None:
            mean, variance = _mean_and_variance(sample.image_moments)
            self._judge(tensor_variance, variance)
            self._judge(check_input_images, mean)
        assert sample.loss_and_gradients is not None and sample.norms is not None
        loss, *means = sample.loss_and_gradients.tolist()
        gradients = dict(zip(sample.gradient_names, means, strict=True))
        self._judge(exploding_tensor, {"the loss": loss, **gradients})
        # Of weights only: the next norm removes a bias that no activation separates from it, whose gradient is then 0.
        weights = {name: value for name, value in gradients.items() if self._parameters[name].dim() > 1}
        self._judge(vanishing_gradient, weights)
        self._judge(dead_relu, sample.activity)
        self._judge(saturated_activation, sample.saturation)
        if sample.is_first_step:
            is_random = self._settings.weights == "none" and self._settings.trainable == "all"
            moments = sample.activation_moments if is_random else []
            variances = [_mean_and_variance(pair)[1] for pair in moments]
            self._judge(poor_weight_initialization, loss, self._n_head_classes, variances)
        norms = sample.norms.tolist()
        changes = zip(self._parameters, norms[::2], norms[1::2], strict=True)
        ratios = {name: change / norm for name, change, norm in changes if norm > MIN_NORM_FOR_RATIO}
        if sample.lr > MIN_LR_SHARE_FOR_RATIO * self._settings.lr:
            self._ratios = [*self._ratios, ratios][-self._kept_ratios :]
            self._judge(weight_update_ratio, ratios)
            self._judge(unchanged_tensor, self._ratios)

    def _judge(self, rule: Callable[..., str], *arguments: Any) -> None:
        name = rule.__name__
        config = self._rule(name)
        if config.action == "ignore":
            return
        text = rule(*arguments, **config.thresholds)
        self._consecutive[name] = self._consecutive[name] + 1 if text else 0
        if text and self._consecutive[name] >= MIN_CONSECUTIVE.get(name, 1):
            self._found.setdefault(name, text)

    def epoch_done(
        self, epoch: int, history: History, predicted: Indices, actual: Indices
    ) -> tuple[HealthFinding, ...]:
        """The findings of this epoch, without those of rules that were reported before.

        `predicted` and `actual` are class indices int64 [N] of the validation split.
        """
        train, validation = ([metrics[name] for metrics in history] for name in ("train_loss", "val_loss"))
        indices = range(len(self._classes))
        matrix = confusion_matrix(predicted, actual, indices)
        for sample in self._samples:
            self._judge_step(sample)
        self._samples = []
        self._judge(loss_not_decreasing, train)
        self._judge(overfit, train, validation)
        self._judge(overtraining, train, validation)
        balanced = self._settings.balance != "none"
        self._judge(class_imbalance, self._class_counts, matrix, self._classes, balanced)
        self._judge(confusion, matrix, self._classes)
        self._judge(collapsed_prediction, matrix, self._classes)
        self._judge(stalled_training, self._longest_gap)
        self._judge(exploding_tensor, {"the loss": train[-1], "the validation loss": validation[-1]})
        findings = tuple(
            HealthFinding(rule, epoch, text)
            for rule, text in self._found.items()
            if rule not in self._reported
        )
        self._reported |= self._found.keys()
        self._found, self._longest_gap, self._last_step_time = {}, 0.0, 0.0
        return findings


def _moments(values: Tensor) -> Tensor:
    """Mean and mean square of the first rows, [2]; takes a tenth of the time of `torch.var`."""
    rows = values.detach()[:ROWS_FOR_MOMENTS].float()
    return torch.stack([rows.mean(), rows.square().mean()])


def _mean_and_variance(moments: Tensor) -> tuple[float, float]:
    mean, square = moments.tolist()
    return mean, square - mean**2


def _is_activation(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU | nn.ReLU6) or type(module) in WORKING_RANGES
