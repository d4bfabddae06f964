"""The health rules: pure functions from a few numbers of a training to a sentence about a problem, or an empty text.

Names and defaults are those of the SageMaker Debugger's rules where it has such a rule; a default that differs gives
the reason. `health_monitor` collects the numbers during a training.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from binsweep.data.labels import Label
from binsweep.models.labelling import labelling_of

if TYPE_CHECKING:
    from torch import Tensor  # slow to import, and own training code has these rules without it

Matrix = NDArray[np.int64]  # [K, K]: row = true class, column = predicted class
Action = Literal["note", "stop", "ignore"]


@dataclass(frozen=True)
class HealthRule:
    """The configuration of a rule: what happens when it fires, and thresholds that replace its defaults."""

    action: Action = "note"
    thresholds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HealthFinding:
    """A problem that a rule found, first at this epoch. `kind` tells health rules from those of the profiler."""

    rule: str
    epoch: int
    text: str
    kind: Literal["health", "profile"] = "health"

    @property
    def name(self) -> str:
        """The name of its tag: health.overfit, profile.data_bound."""
        return f"{self.kind}.{self.rule}"


# Rules on epochs: the losses of each epoch, and the predictions for the validation split.


def loss_not_decreasing(losses: Sequence[float], num_epochs: int = 3, diff_percent: float = 0.1) -> str:
    """The training loss is not `diff_percent` below its value `num_epochs` epochs ago.

    SageMaker compares batches 10 steps apart; means over epochs are less noisy, so 3 epochs suffice.
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
    """In each of the last `patience` epochs, the validation loss is above (1 + `ratio_threshold`) x training loss."""
    pairs = list(zip(train, validation, strict=True))[-patience:]
    if len(pairs) < patience or not all(v - t > ratio_threshold * t for t, v in pairs):
        return ""
    t, v = pairs[-1]
    excess = "far" if t <= 0 else f"{(v - t) / t:.0%}"
    problem = f"validation loss {v:.3g} is {excess} above the training loss {t:.3g}"
    return f"{problem}: more weight_decay, augmentation or data"


def overtraining(
    train: Sequence[float],
    validation: Sequence[float],
    patience_train: int = 5,
    patience_validation: int = 10,
    delta: float = 0.01,
) -> str:
    """The training or validation loss has not improved by `delta` for the number of epochs of its patience."""
    for name, losses, patience in (
        ("training", train, patience_train),
        ("validation", validation, patience_validation),
    ):
        epochs = _epochs_since_best(losses, delta)
        if epochs >= patience:
            return f"the {name} loss has not improved by {delta:g} for {epochs} epochs: train shorter"
    return ""


def _epochs_since_best(losses: Sequence[float], delta: float) -> int:
    best, best_epoch = math.inf, 0
    for epoch, loss in enumerate(losses):
        if loss < best - delta:
            best, best_epoch = loss, epoch
    return len(losses) - 1 - best_epoch


def class_imbalance(
    counts: Sequence[int],
    matrix: Matrix,
    classes: Sequence[Label],
    balanced: bool,
    threshold_imbalance: float = 10.0,
    threshold_misprediction: float = 0.7,
) -> str:
    """Some classes have too few photos to be learned.

    Either the largest class has more than `threshold_imbalance` times the training photos of the smallest, and training
    is not `balanced`; or a class with less than half the training photos of the largest is mispredicted in more than
    `threshold_misprediction` of its validation photos. A class without training photos, of which the sweep warns before
    it starts, is left out: no weight helps it.
    """
    largest, smallest = max(counts), min((count for count in counts if count), default=0)
    if not balanced and largest > threshold_imbalance * smallest:
        return f"the largest class has {largest} photos in training, the smallest {smallest}: set balance: weights"
    for index, row in enumerate(matrix):
        if (
            0 < counts[index] < largest / 2
            and row.sum()
            and 1 - row[index] / row.sum() > threshold_misprediction
        ):
            wrong = 1 - row[index] / row.sum()
            photos = labelling_of(classes).words.photos_of.format(classes[index])
            rare = f"{photos}, rare in training,"
            return f"{wrong:.0%} of {rare} are mispredicted: set balance: weights"
    return ""


def confusion(matrix: Matrix, classes: Sequence[Label], max_off_diag: float = 0.5) -> str:
    """More than `max_off_diag` of a class is predicted to be one particular other class.

    SageMaker's 0.1 (with 90 % correct) suits digits; counts are confused with their neighbours far more often.
    """
    for row, count in zip(matrix, classes, strict=True):
        top = int(row.argmax())
        if row.sum() and classes[top] != count and row[top] / row.sum() > max_off_diag:
            photos = labelling_of(classes).words.photos_of.format(count)
            return f"{row[top] / row.sum():.0%} of {photos} are taken for {classes[top]}"
    return ""


def collapsed_prediction(matrix: Matrix, classes: Sequence[Label], threshold: float = 0.95) -> str:
    """One count makes up `threshold` of all predictions, but not of all true counts. SageMaker has no such rule."""
    predicted, true = matrix.sum(axis=0), matrix.sum(axis=1)
    top, total = int(predicted.argmax()), matrix.sum()
    if not total or predicted[top] / total < threshold or true[top] / total >= threshold:
        return ""
    return (
        f"{predicted[top] / total:.0%} of the predictions are {classes[top]}: another lr, or balance: weights"
    )


def stalled_training(gap_seconds: float, threshold: float = 1800.0) -> str:
    """More than `threshold` seconds passed between two steps."""
    return f"a step took {gap_seconds / 60:.0f} minutes" if gap_seconds > threshold else ""


def similar_across_runs(metrics: Mapping[str, float], others: Mapping[int, Mapping[str, float]]) -> str:
    """The losses equal those of another trial, with other parameters, at the same epoch to six digits."""
    for number, other in others.items():
        if all(math.isclose(metrics[loss], other[loss], rel_tol=1e-6) for loss in ("train_loss", "val_loss")):
            return f"the losses are those of trial {number}: what the two differ in has no effect"
    return ""


# Rules on sampled steps: statistics of tensors, by the name of the parameter or layer.


def vanishing_gradient(gradients: Mapping[str, float], threshold: float = 1e-7) -> str:
    """The mean of a gradient's absolute values is below `threshold`."""
    return _first_match(
        gradients,
        lambda value: value < threshold,
        "the mean gradient of {} is {:.1e}: raise lr, or train shorter",
    )


def exploding_tensor(tensors: Mapping[str, float]) -> str:
    """A loss, gradient or weight is not finite."""
    return _first_match(tensors, lambda value: not math.isfinite(value), "{} is {}: lower lr")


def dead_relu(
    activity: Mapping[str, Tensor], threshold_inactivity: float = 1.0, threshold_layer: float = 50.0
) -> str:
    """More than `threshold_layer` percent of a layer's units are active for less than `threshold_inactivity` percent of
    the images.

    `activity` holds, for each layer, the share of images for which each unit is above zero, [units].
    """
    dead = {
        name: 100 * float((share < threshold_inactivity / 100).float().mean())
        for name, share in activity.items()
    }
    return _first_match(
        dead,
        lambda value: value > threshold_layer,
        "{1:.0f} % of the units of {0} are never active: lower lr",
    )


def saturated_activation(
    saturation: Mapping[str, Tensor], threshold_inactivity: float = 1.0, threshold_layer: float = 50.0
) -> str:
    """More than `threshold_layer` percent of a tanh or sigmoid layer's units are within the working range for less than
    `threshold_inactivity` percent of the images.

    `saturation` holds, for each layer, the share of images for which each unit is outside of the range, [units].
    """
    saturated = {
        name: 100 * float((1 - share < threshold_inactivity / 100).float().mean())
        for name, share in saturation.items()
    }
    return _first_match(
        saturated,
        lambda value: value > threshold_layer,
        "{1:.0f} % of the units of {0} are saturated: lower lr",
    )


def poor_weight_initialization(
    loss: float, classes: int, variances: Sequence[float], threshold: float = 10.0, worst: float = 2.0
) -> str:
    """Before the first update, the loss is above `worst` times that of guessing (log K), or the variances of the
    activations' inputs differ between layers by more than a factor of `threshold`.

    `variances` is empty for pre-trained weights, whose variances differ by design.
    """
    if loss > worst * math.log(max(classes, 2)):
        return f"the loss begins at {loss:.3g}, guessing has {math.log(classes):.3g}: the initial weights are too large"
    if len(variances) > 1 and max(variances) > threshold * min(variances):
        return f"the variances of activation inputs range from {min(variances):.2g} to {max(variances):.2g}"
    return ""


def weight_update_ratio(
    ratios: Mapping[str, float], large_threshold: float = 10.0, small_threshold: float = 1e-8
) -> str:
    """A step changes a parameter by more than `large_threshold` or less than `small_threshold` times its norm."""
    return _first_match(
        ratios, lambda r: r > large_threshold, "a step changed {} by {:.3g} of its norm: lower lr"
    ) or _first_match(
        ratios, lambda r: r < small_threshold, "a step changed {} by only {:.1e} of its norm: raise lr"
    )


def unchanged_tensor(ratios: Sequence[Mapping[str, float]], num_steps: int = 3, rtol: float = 1e-5) -> str:
    """In each of the last `num_steps` sampled steps, a parameter changed by less than `rtol` of its norm."""
    if len(ratios) < num_steps:
        return ""
    last = ratios[-num_steps:]
    largest = {
        name: max(step[name] for step in last) for name in last[0] if all(name in step for step in last)
    }
    return _first_match(
        largest, lambda ratio: ratio < rtol, "{} hardly changes ({:.1e} of its norm a step): raise lr"
    )


def tensor_variance(variance: float, max_threshold: float = 10.0, min_threshold: float = 1e-5) -> str:
    """The variance of the normalised images lies outside of the two thresholds."""
    if min_threshold <= variance <= max_threshold:
        return ""
    return f"the normalised images have a variance of {variance:.3g}: the wrong mean and std, or empty photos"


def check_input_images(mean: float, threshold_mean: float = 1.0) -> str:
    """The mean of the normalised images differs from zero by more than `threshold_mean`.

    SageMaker's 0.2 is for images normalised by their own statistics; here they are those of the backbone's training.
    """
    if abs(mean) <= threshold_mean:
        return ""
    return (
        f"the normalised images have a mean of {mean:.2g}: dark or bright photos, or the wrong mean and std"
    )


def _first_match(values: Mapping[str, float], is_wrong: Callable[[float], bool], text: str) -> str:
    """`text` with name and value of the first wrong entry, and the number of further ones."""
    found = [name for name, value in values.items() if is_wrong(value)]
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
    """The thresholds of a rule with their defaults."""
    parameters = inspect.signature(RULES[rule]).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.default is not parameter.empty
    }


# How many times in a row a rule must fire before it counts, where one time may be chance. 1 for the others.
MIN_CONSECUTIVE = {
    "collapsed_prediction": 2,
    "confusion": 3,
    "class_imbalance": 3,
    "vanishing_gradient": 2,
    "dead_relu": 2,
}
