"""Rules that watch a trial learn, and say in words what is wrong.

Names and defaults are those of the rules of the SageMaker Debugger where it has such a rule; a default that
differs says why. A rule is a pure function from a few numbers to what was seen, or an empty text. `HealthMonitor`
collects those numbers in the training loop: at a few sampled steps, always the same ones, and at the end of every
epoch. What a step leaves stays on the device until the epoch is over, as reading it would make the step wait for a GPU.
"""

from __future__ import annotations

import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from binsweep.models.metrics import confusion_matrix
from binsweep.models.settings import Settings

History = Sequence[Mapping[str, float]]
Matrix = NDArray[np.int64]  # [K, K]: row = true class, column = predicted class
SAMPLED_STEPS = 50  # at least so many steps,
SAMPLED_IMAGES = 3200  # and so many images, from one sampled step to the next


Action = Literal["note", "stop", "ignore"]


@dataclass(frozen=True)
class HealthRule:
    """What is asked of a rule: what happens when it sees something, and thresholds other than its defaults."""

    action: Action = "note"
    thresholds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HealthFinding:
    """What a rule saw, first at this epoch; `kind` says whether the rule is one of health or of the profile."""

    rule: str
    epoch: int
    text: str
    kind: Literal["health", "profile"] = "health"

    @property
    def name(self) -> str:
        """As tags have it: health.overfit, profile.data_bound."""
        return f"{self.kind}.{self.rule}"


# Rules on epochs: losses per epoch, and what was said about validation.


def loss_not_decreasing(losses: Sequence[float], num_epochs: int = 3, diff_percent: float = 0.1) -> str:
    """The training loss is not `diff_percent` below that of `num_epochs` before.

    SageMaker compares batches 10 steps apart; means over epochs are less noisy, so 3 of them suffice.
    """
    if len(losses) <= num_epochs:
        return ""
    before, now = losses[-1 - num_epochs], losses[-1]
    if not now > before * (1 - diff_percent / 100):
        return ""
    return f"training loss {now:.3g}, {num_epochs} epochs ago {before:.3g}: try another lr, a lower one first"


def overfit(
    train: Sequence[float], validation: Sequence[float], patience: int = 1, ratio_threshold: float = 0.1
) -> str:
    """In the last `patience` epochs the validation loss is above the training loss by `ratio_threshold` of it."""
    pairs = list(zip(train, validation, strict=True))[-patience:]
    if len(pairs) < patience or not all(v - t > ratio_threshold * t for t, v in pairs):
        return ""
    t, v = pairs[-1]
    share = "far" if t <= 0 else f"{(v - t) / t:.0%}"
    above = f"validation loss {v:.3g} is {share} above the training loss {t:.3g}"
    return f"{above}: more weight_decay, augmentation or data"


def overtraining(
    train: Sequence[float],
    validation: Sequence[float],
    patience_train: int = 5,
    patience_validation: int = 10,
    delta: float = 0.01,
) -> str:
    """A loss has not improved by `delta` on its best for so many epochs."""
    for name, losses, patience in (
        ("training", train, patience_train),
        ("validation", validation, patience_validation),
    ):
        since = _epochs_since_best(losses, delta)
        if since >= patience:
            return f"the {name} loss has not improved by {delta:g} for {since} epochs: train shorter"
    return ""


def _epochs_since_best(losses: Sequence[float], delta: float) -> int:
    best, at = math.inf, 0
    for epoch, loss in enumerate(losses):
        if loss < best - delta:
            best, at = loss, epoch
    return len(losses) - 1 - at


def class_imbalance(
    counts: Sequence[int],
    matrix: Matrix,
    classes: Sequence[int],
    balanced: bool,
    threshold_imbalance: float = 10.0,
    threshold_misprediction: float = 0.7,
) -> str:
    """The largest class has `threshold_imbalance` times the photos of the smallest in training, and nothing is done
    about it; or of a class with less than half the photos of the largest more than `threshold_misprediction` are
    mispredicted in validation.
    """
    largest, smallest = max(counts), min(counts)
    if not balanced and largest > threshold_imbalance * max(smallest, 1):
        return f"the largest class has {largest} photos in training, the smallest {smallest}: set balance: weights"
    for index, row in enumerate(matrix):
        if counts[index] < largest / 2 and row.sum() and 1 - row[index] / row.sum() > threshold_misprediction:
            wrong = 1 - row[index] / row.sum()
            which = f"the bins with {classes[index]}, rare in training,"
            return f"{wrong:.0%} of {which} are mispredicted: set balance: weights"
    return ""


def confusion(matrix: Matrix, classes: Sequence[int], max_off_diag: float = 0.5) -> str:
    """More than `max_off_diag` of a class is taken for one other class.

    SageMaker's 0.1 (with 90 % right) suits digits; counts are confused with their neighbours far more often.
    """
    for row, count in zip(matrix, classes, strict=True):
        taken = int(row.argmax())
        if row.sum() and classes[taken] != count and row[taken] / row.sum() > max_off_diag:
            return f"{row[taken] / row.sum():.0%} of the bins with {count} are taken for {classes[taken]}"
    return ""


def collapsed_prediction(matrix: Matrix, classes: Sequence[int], threshold: float = 0.95) -> str:
    """One count makes up `threshold` of all predictions, although it is not that common. Not one of SageMaker's."""
    said, true = matrix.sum(axis=0), matrix.sum(axis=1)
    top, total = int(said.argmax()), matrix.sum()
    if not total or said[top] / total < threshold or true[top] / total >= threshold:
        return ""
    return f"{said[top] / total:.0%} of the predictions are {classes[top]}: another lr, or balance: weights"


def stalled_training(gap_seconds: float, threshold: float = 1800.0) -> str:
    """From one step to the next it took longer than `threshold` seconds."""
    return f"a step took {gap_seconds / 60:.0f} minutes" if gap_seconds > threshold else ""


def similar_across_runs(metrics: Mapping[str, float], others: Mapping[int, Mapping[str, float]]) -> str:
    """At the same epoch the losses equal those of another trial with other parameters, to six digits."""
    for number, other in others.items():
        if all(math.isclose(metrics[loss], other[loss], rel_tol=1e-6) for loss in ("train_loss", "val_loss")):
            return f"the losses are those of trial {number}: what the two differ in has no effect"
    return ""


# Rules on sampled steps: what tensors look like. Names are those of parameters or layers.


def vanishing_gradient(gradients: Mapping[str, float], threshold: float = 1e-7) -> str:
    """The mean of a gradient's absolute values is below `threshold`."""
    return _named(
        gradients,
        lambda value: value < threshold,
        "the mean gradient of {} is {:.1e}: raise lr, or train shorter",
    )


def exploding_tensor(tensors: Mapping[str, float]) -> str:
    """A loss, gradient or weight is not finite."""
    return _named(tensors, lambda value: not math.isfinite(value), "{} is {}: lower lr")


def dead_relu(
    activity: Mapping[str, Tensor], threshold_inactivity: float = 1.0, threshold_layer: float = 50.0
) -> str:
    """More than `threshold_layer` percent of a layer's units are active in less than `threshold_inactivity` percent of
    images.

    `activity` holds the share of images that each unit of a layer is above zero for, [units].
    """
    dead = {
        name: 100 * float((share < threshold_inactivity / 100).float().mean())
        for name, share in activity.items()
    }
    return _named(
        dead,
        lambda value: value > threshold_layer,
        "{1:.0f} % of the units of {0} are never active: lower lr",
    )


def saturated_activation(
    saturation: Mapping[str, Tensor], threshold_inactivity: float = 1.0, threshold_layer: float = 50.0
) -> str:
    """More than `threshold_layer` percent of a tanh or sigmoid layer's units are within its working range for less than
    `threshold_inactivity` percent of images.

    `saturation` holds the share of images that each unit is outside for, [units]; the range is WORKING_RANGES.
    """
    units = {
        name: 100 * float((1 - share < threshold_inactivity / 100).float().mean())
        for name, share in saturation.items()
    }
    return _named(
        units, lambda value: value > threshold_layer, "{1:.0f} % of the units of {0} are saturated: lower lr"
    )


# From (SageMaker's thresholds) an input on the gradient is below 1e-7.
WORKING_RANGES: dict[type[nn.Module], tuple[float, float]] = {
    nn.Tanh: (-9.4999, 9.4999),
    nn.Sigmoid: (-23.0, 16.99999),
}


def poor_weight_initialization(
    loss: float, classes: int, variances: Sequence[float], threshold: float = 10.0, worst: float = 2.0
) -> str:
    """Before the first update, the loss is `worst` times that of guessing (log K); or the variances of the activations'
    inputs differ by more than a factor of `threshold` between layers.

    `variances` are empty where layers carry pre-trained weights, whose variances differ by design.
    """
    if loss > worst * math.log(max(classes, 2)):
        return f"the loss begins at {loss:.3g}, guessing has {math.log(classes):.3g}: the head is drawn too large"
    if len(variances) > 1 and max(variances) > threshold * min(variances):
        return f"the variances of activation inputs range from {min(variances):.2g} to {max(variances):.2g}"
    return ""


def weight_update_ratio(
    ratios: Mapping[str, float], large_threshold: float = 10.0, small_threshold: float = 1e-8
) -> str:
    """A step changes a parameter by more than `large_threshold` of its norm, or less than `small_threshold`."""
    return _named(
        ratios, lambda r: r > large_threshold, "a step changed {} by {:.3g} of its norm: lower lr"
    ) or _named(
        ratios, lambda r: r < small_threshold, "a step changed {} by only {:.1e} of its norm: raise lr"
    )


def unchanged_tensor(ratios: Sequence[Mapping[str, float]], num_steps: int = 3, rtol: float = 1e-5) -> str:
    """In each of the last `num_steps` sampled steps a parameter changed by less than `rtol` of its norm."""
    if len(ratios) < num_steps:
        return ""
    last = ratios[-num_steps:]
    most = {name: max(step[name] for step in last) for name in last[0] if all(name in step for step in last)}
    return _named(most, lambda ratio: ratio < rtol, "{} hardly changes ({:.1e} of its norm a step): raise lr")


def tensor_variance(variance: float, max_threshold: float = 10.0, min_threshold: float = 1e-5) -> str:
    """The variance of normalised images lies outside of the two thresholds."""
    if min_threshold <= variance <= max_threshold:
        return ""
    return f"the normalised images have a variance of {variance:.3g}: the wrong mean and std, or empty photos"


def check_input_images(mean: float, threshold_mean: float = 1.0) -> str:
    """The mean of normalised images differs from zero by more than `threshold_mean`.

    SageMaker's 0.2 is for statistics of the data itself; ours are those of the backbone's own training.
    """
    if abs(mean) <= threshold_mean:
        return ""
    return (
        f"the normalised images have a mean of {mean:.2g}: dark or bright photos, or the wrong mean and std"
    )


def _named(values: Mapping[str, float], wrong: Callable[[float], bool], text: str) -> str:
    """`text` with name and value of the first that is `wrong`, and how many more there are."""
    found = [name for name, value in values.items() if wrong(value)]
    if not found:
        return ""
    more = f" ({len(found) - 1} more like it)" if len(found) > 1 else ""
    return text.format(found[0], values[found[0]]) + more


RULES: dict[str, Callable[..., str]] = {
    rule.__name__: rule
    for rule in (
        loss_not_decreasing,
        overfit,
        overtraining,
        class_imbalance,
        confusion,
        collapsed_prediction,
        stalled_training,
        similar_across_runs,
        vanishing_gradient,
        exploding_tensor,
        dead_relu,
        saturated_activation,
        poor_weight_initialization,
        weight_update_ratio,
        unchanged_tensor,
        tensor_variance,
        check_input_images,
    )
}


def thresholds_of(rule: str) -> dict[str, float]:
    """The thresholds that a rule takes, and their defaults."""
    parameters = inspect.signature(RULES[rule]).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


# What happens by chance once in a while must be seen so often in a row.
IN_A_ROW = {
    "collapsed_prediction": 2,
    "confusion": 3,
    "class_imbalance": 3,
    "vanishing_gradient": 2,
    "dead_relu": 2,
}


@dataclass
class _Sample:
    """What one sampled step leaves, on the device and unread."""

    first: bool  # the first step of all
    images: Tensor | None = None  # their moments
    inputs: list[Tensor] = field(default_factory=list)  # the moments of what goes into each activation
    activity: dict[str, Tensor] = field(default_factory=dict)
    saturation: dict[str, Tensor] = field(default_factory=dict)
    gradients: list[str] = field(default_factory=list)  # whose means follow the loss in `means`
    means: Tensor | None = None
    norms: Tensor | None = None  # of each parameter's change and of what it was before, in turn
    lr: float = 0.0


class HealthMonitor:
    """Watches one training: told before, within and after each step, and at the end of each epoch.

    `rules` are those that are to do other than note what they see by their default thresholds.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: Settings,
        labels: Tensor,
        classes: Sequence[int],
        rules: Mapping[str, HealthRule] | None = None,
    ) -> None:
        self._net, self._settings, self._classes = net, settings, classes
        self._rules = rules or {}
        self._counts = torch.bincount(labels.cpu(), minlength=len(classes)).tolist()
        self._parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self._layers = {name: module for name, module in net.named_modules() if _watched(module)}
        self._every = max(SAMPLED_STEPS, SAMPLED_IMAGES // settings.batch_size)
        self._step = 0
        self._due = False
        self._last = 0.0
        self._gap = 0.0
        self._streaks: Counter[str] = Counter()
        self._seen: dict[str, str] = {}  # by rule, since the last epoch
        self._told: set[str] = set()
        self._ratios: list[dict[str, float]] = []
        asked = self._rules.get("unchanged_tensor", HealthRule()).thresholds
        self._kept = int({**thresholds_of("unchanged_tensor"), **asked}["num_steps"])
        self._samples: list[_Sample] = []  # of this epoch
        self._sample = _Sample(False)
        self._hooks: list[Any] = []
        self._before: list[Tensor] = []

    def before_step(self, inputs: Tensor) -> None:
        """Before the forward pass of `inputs`, what the trained part is given."""
        now = time.monotonic()
        self._gap = max(self._gap, now - self._last if self._last else 0.0)
        self._last = now
        self._due = self._step % self._every == 0
        self._step += 1
        if not self._due:
            return
        self._sample = _Sample(self._step == 1)
        # Images only: what a frozen stage gives varies as its weights have it.
        if inputs.dim() == 4 and inputs.shape[1] == 3:
            self._sample.images = _moments(inputs)
        self._hooks = [
            layer.register_forward_pre_hook(self._look(name)) for name, layer in self._layers.items()
        ]

    def _look(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        sample = self._sample

        def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach()
            spatial = tuple(range(2, values.dim()))  # a unit of a convolution is a channel
            if (limits := WORKING_RANGES.get(type(layer))) is not None:
                outside = ((values < limits[0]) | (values > limits[1])).float()
                sample.saturation[name] = (outside.mean(spatial) if spatial else outside).mean(0)
                return
            sample.activity[name] = (
                (values > 0).float().amax(spatial) if spatial else (values > 0).float()
            ).mean(0)
            if sample.first:
                sample.inputs.append(_moments(values))

        return look

    def after_backward(self, loss: Tensor) -> None:
        """Between the backward pass and the optimiser's step."""
        if not self._due:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        scalars = [loss.detach().float(), *(grad.abs().mean().float() for grad in gradients.values())]
        self._sample.gradients, self._sample.means = list(gradients), torch.stack(scalars)
        self._before = [parameter.detach().clone() for parameter in self._parameters.values()]

    def after_step(self, lr: float) -> None:
        """After the optimiser's step, with the learning rate that it had."""
        if not self._due:
            return
        norms = []
        for parameter, before in zip(self._parameters.values(), self._before, strict=True):
            norms += [(parameter.detach() - before).norm(), before.norm()]
        self._sample.norms, self._sample.lr = torch.stack([norm.float() for norm in norms]), lr
        self._samples.append(self._sample)
        self._before = []

    def _judge_step(self, sample: _Sample) -> None:
        if sample.images is not None:
            mean, variance = _mean_and_variance(sample.images)
            self._judge(tensor_variance, variance)
            self._judge(check_input_images, mean)
        assert sample.means is not None and sample.norms is not None
        first, *means = sample.means.tolist()
        by_name = dict(zip(sample.gradients, means, strict=True))
        self._judge(exploding_tensor, {"the loss": first, **by_name})
        self._judge(vanishing_gradient, by_name)
        self._judge(dead_relu, sample.activity)
        self._judge(saturated_activation, sample.saturation)
        if sample.first:
            fresh = self._settings.weights == "none" and self._settings.trainable == "all"
            variances = [_mean_and_variance(moments)[1] for moments in sample.inputs] if fresh else []
            self._judge(poor_weight_initialization, first, len(self._classes), variances)
        values = sample.norms.tolist()
        pairs = zip(self._parameters, values[::2], values[1::2], strict=True)
        # A parameter that begins at zero (a bias) has no ratio yet.
        ratios = {name: change / norm for name, change, norm in pairs if norm > 1e-3}
        # One-cycle begins and ends with steps next to nothing, as it should.
        if sample.lr > 0.01 * self._settings.lr:
            self._ratios = [*self._ratios, ratios][-self._kept :]
            self._judge(weight_update_ratio, ratios)
            self._judge(unchanged_tensor, self._ratios)

    def _judge(self, rule: Callable[..., str], *numbers: Any) -> None:
        name = rule.__name__
        asked = self._rules.get(name, HealthRule())
        if asked.action == "ignore":
            return
        text = rule(*numbers, **asked.thresholds)
        self._streaks[name] = self._streaks[name] + 1 if text else 0
        if text and self._streaks[name] >= IN_A_ROW.get(name, 1):
            self._seen.setdefault(name, text)

    def epoch_done(
        self, epoch: int, history: History, predicted: Tensor, actual: Tensor
    ) -> tuple[HealthFinding, ...]:
        """What was found since the last epoch and not before.

        `predicted` and `actual` are class indices int64 [N] of validation.
        """
        train, validation = ([metrics[name] for metrics in history] for name in ("train_loss", "val_loss"))
        places = range(len(self._classes))
        matrix = confusion_matrix(predicted.cpu().numpy(), actual.cpu().numpy(), places)
        for sample in self._samples:
            self._judge_step(sample)
        self._samples = []
        self._judge(loss_not_decreasing, train)
        self._judge(overfit, train, validation)
        self._judge(overtraining, train, validation)
        balanced = self._settings.balance != "none"
        self._judge(class_imbalance, self._counts, matrix, self._classes, balanced)
        self._judge(confusion, matrix, self._classes)
        self._judge(collapsed_prediction, matrix, self._classes)
        self._judge(stalled_training, self._gap)
        self._judge(exploding_tensor, {"the loss": train[-1], "the validation loss": validation[-1]})
        found = tuple(
            HealthFinding(rule, epoch, text) for rule, text in self._seen.items() if rule not in self._told
        )
        self._told |= self._seen.keys()
        self._seen, self._gap, self._last = {}, 0.0, 0.0
        return found


def _moments(values: Tensor, rows: int = 16) -> Tensor:
    """The means of some rows' values and of their squares, [2]; a tenth of the time of `torch.var`."""
    some = values.detach()[:rows].float()
    return torch.stack([some.mean(), some.square().mean()])


def _mean_and_variance(moments: Tensor) -> tuple[float, float]:
    mean, square = moments.tolist()
    return mean, square - mean**2


def _watched(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU | nn.ReLU6) or type(module) in WORKING_RANGES
