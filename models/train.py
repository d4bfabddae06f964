"""The training of one trial, top to bottom."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binsweep.data.banks.features import open_feature_bank
from binsweep.data.banks.pixels import PixelBank
from binsweep.data.resource_limits import cores
from binsweep.models.augment import VERSION as AUGMENT_VERSION
from binsweep.models.augment import Augment, augment_images, views_of
from binsweep.models.batches import Batches, FeatureBatches, JoinedBatches, PixelBatches
from binsweep.models.build import Checkpoint, build_model
from binsweep.models.distributed import ProcessGroup, current_group
from binsweep.models.health_rules import HealthFinding, HealthMonitor, HealthRule
from binsweep.models.metrics import count_metrics, per_class
from binsweep.models.network import CountingModel
from binsweep.models.precision import Precision, choose_precision, disable_tf32, release_gpu_memory, send
from binsweep.models.pretrained import file_hash, weights_file
from binsweep.models.profiler import Mark, Profile, nothing
from binsweep.models.settings import Settings
from binsweep.models.training_state import TrainingState, capture, restore


@dataclass(frozen=True)
class Snapshot:
    """What can be kept of an epoch, made only when asked for: the counter as it is, or all that going on needs.

    A state shares the training's tensors: save it before the report returns.
    """

    checkpoint: Callable[[], Checkpoint]
    state: Callable[[], TrainingState]
    findings: tuple[
        HealthFinding, ...
    ] = ()  # what rules of health and profile saw in this epoch for the first time


# Called once an epoch with the epoch (from 1), its metrics, and what can be kept of it. Returns whether to go on.
Report = Callable[[int, dict[str, float], Snapshot], bool]
Progress = Callable[[int, int], None]
PLAIN: Augment = "none"
ALONE = ProcessGroup()
PRIME = 1_000_003
FORWARD = 256  # photos at a time where no gradients are kept
FRESH = 2**31  # so many views, drawn anew each time, are as good as endless


@dataclass(frozen=True)
class TrialData:
    """What every trial of a sweep learns from; small to send, the pixels stay in their memory-mapped files."""

    classes: tuple[int, ...]
    image_size: int
    train: PixelBank
    validation: PixelBank
    banks: Path  # the folder of the feature banks


def build_trial_model(settings: Settings, data: TrialData, precision: Precision) -> CountingModel:
    """A fresh counter for these photos, where and as the arithmetic computes; a backbone that is frozen as a whole is
    built when it is needed."""
    if precision.device.type == "cuda":
        disable_tf32()
    counter = build_model(settings, data.classes, data.image_size, postponed=True).to(precision.device)
    return counter.to(memory_format=torch.channels_last)


def open_batches(
    counter: CountingModel,
    settings: Settings,
    bank: PixelBank,
    folder: Path,
    precision: Precision,
    augment: Augment,
    stored: bool = True,
    progress: Progress | None = None,
    parts: int = 1,
) -> Batches:
    """A split's batches as the trained part takes them: from the feature bank where something is frozen.

    `stored=False` runs the frozen part again for every batch: the plain way, which the bank must equal. `parts` is
    into how many a GPU's batches are cut for want of memory.
    """
    cut = counter.cut(settings.trainable)
    device = precision.device
    prefix = counter.prefix(cut).eval()

    # On a CPU small batches stay in its caches (measured on 2 cores: 8 images at a time twice as fast as 64).
    batch, threads = (8, cores()) if device.type == "cpu" else (max(1, FORWARD // parts), 1)

    def front(images: Tensor) -> Tensor:
        with torch.no_grad(), precision.context():
            inputs = counter.normalise(send(images, device))
            codes = torch.cat([prefix(part) for part in inputs.split(batch)]) if cut else inputs
        return codes if cut == 0 or precision.autocast is None else codes.to(precision.autocast)

    def encode(images: Tensor, rows: Tensor, views: Tensor) -> Tensor:
        return front(augment_images(send(images, device), rows, views, augment))

    views = views_of(augment, settings.views if cut else FRESH)
    if cut == 0 or not stored:
        return PixelBatches(bank.pixels, bank.labels, front, device, augment, views)
    weights = file_hash(weights_file(settings.backbone, settings.weights))
    key = f"{bank.key}|{settings.backbone}|{weights}|before {settings.trainable}|{precision.name}"
    if augment not in ("none", "flip"):
        key += f"|{augment}-{AUGMENT_VERSION}"
    features = open_feature_bank(bank.pixels, encode, key, folder, views, progress, batch, threads)
    return FeatureBatches(features, bank.labels, device)


def build_banks(settings: Settings, data: TrialData, progress: Progress | None = None) -> None:
    """Compute the feature banks that a trial with these settings will ask for; nothing where nothing is frozen."""
    precision = choose_precision(settings.precision)
    counter = build_trial_model(settings, data, precision)
    if counter.cut(settings.trainable):
        for split, augment in ((data.train, settings.augment), (data.validation, PLAIN)):
            open_batches(counter, settings, split, data.banks, precision, augment, progress=progress)
    release_gpu_memory()  # to the trials, in processes of their own


def _optimizer(net: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    parameters = list(net.parameters())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay, fused=True)


def _schedule(optimizer: torch.optim.Optimizer, settings: Settings, steps: int) -> Any:
    """One-cycle (Smith & Topin 2017): up to `lr` over 30% of all steps, then down to nearly nothing."""
    if settings.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=steps, cycle_momentum=False
    )


def _class_weights(labels: Tensor, classes: int) -> Tensor:
    """Inverse frequency, mean 1 over the examples: N / (K n_c), the 'balanced' weights of King & Zeng 2001."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())


def _epoch_rows(labels: Tensor, settings: Settings, generator: torch.Generator) -> list[Tensor]:
    """The rows of every batch of one epoch; a last batch of one is joined to the batch before (batch norm)."""
    if settings.balance == "sampler":
        chance = _class_weights(labels, int(labels.max()) + 1)[labels]
        order = torch.multinomial(chance, len(labels), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(labels), generator=generator)
    batches = list(order.split(settings.batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _training_batches(
    split: Batches,
    settings: Settings,
    generator: torch.Generator,
    mark: Mark = nothing,
    group: ProcessGroup = ALONE,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs and labels of this rank's shards of one epoch's batches, and the labels of each whole batch.

    All random choices are drawn in a fixed order from `generator`, so that every rank of a group draws the same.
    """
    for rows in _epoch_rows(split.labels, settings, generator):
        views = torch.zeros_like(rows)
        if split.views > 1:
            views = torch.randint(0, split.views, (len(rows),), generator=generator)
        shard = group.shard(len(rows))
        taken = (
            shard if shard.stop > shard.start else slice(0, 1)
        )  # an empty shard, in the shape of a full one
        inputs = split.take(rows[taken], views[taken], mark)[: shard.stop - shard.start]
        labels = send(split.labels[rows], inputs.device)
        yield inputs, labels[shard], labels


def _forward(net: nn.Module, inputs: Tensor, precision: Precision) -> Tensor:
    """Log-probabilities float32 [B, K]."""
    if precision.autocast is None:
        inputs = inputs.float()  # a bank may hold bfloat16
    with precision.context():
        log_probabilities: Tensor = net(inputs).float()
    return log_probabilities


def _backward(
    net: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    batch_labels: Tensor,
    weight: Tensor | None,
    settings: Settings,
    precision: Precision,
    parts: int,
    mark: Mark,
    group: ProcessGroup = ALONE,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of a batch, of which this rank has a shard; returns what the shard adds to the batch's mean
    loss, and its log-probabilities [B, K], both detached.

    Each part's loss counts by its share of the whole batch's (class) weight, so that the sum is the whole batch's
    gradient; times the number of ranks, as a group takes the mean over them. Only batch statistics of unfrozen
    normalisation layers are those of the parts.
    """
    total, said = torch.zeros((), device=labels.device), []
    whole = len(batch_labels) if weight is None else weight[batch_labels].sum()
    # As many parts on every rank, some of them empty: their forward passes may wait for one another.
    cut = zip(inputs.tensor_split(parts), labels.tensor_split(parts), strict=True)
    for number, (some_inputs, some_labels) in enumerate(cut, 1):
        with group.accumulate(net, more=number < parts):
            log_probabilities = _forward(net, some_inputs, precision)
            if len(some_labels):
                loss = F.cross_entropy(
                    log_probabilities, some_labels, weight, label_smoothing=settings.label_smoothing
                )
            else:
                loss = log_probabilities.sum()  # nothing, with a gradient of zero
            if parts > 1 or group.size > 1:
                loss = loss * ((len(some_labels) if weight is None else weight[some_labels].sum()) / whole)
            mark("forward")
            (loss * group.size if group.size > 1 else loss).backward()
            mark("backward")
        total = total + loss.detach()
        said.append(log_probabilities.detach())
    return total, torch.cat(said)


def _predict(
    net: nn.Module, split: Batches, precision: Precision, group: ProcessGroup = ALONE, batch: int = FORWARD
) -> Tensor:
    """Log-probabilities float32 [N, K] of a split, unaugmented; each rank computes a part and has them all."""
    net.eval()
    parts = []
    rows_here = torch.arange(len(split.labels))[group.shard(len(split.labels))]
    for rows in rows_here.split(batch):
        with torch.no_grad():
            parts.append(_forward(net, split.take(rows, torch.zeros_like(rows)), precision))
    return group.gather(torch.cat(parts))


def _scores(
    name: str, loss: float, choice: Tensor, labels: Tensor, classes: np.ndarray[Any, Any]
) -> dict[str, float]:
    predicted, actual = classes[choice.cpu().numpy()], classes[labels.cpu().numpy()]
    scores = {"loss": loss, **count_metrics(predicted, actual)}
    if name == "val":
        table = per_class(predicted, actual, classes.tolist())
        scores |= {f"accuracy_class_{count}": row["accuracy"] for count, row in table.items()}
    return {f"{name}_{key}": value for key, value in scores.items()}


def train(
    settings: Settings,
    data: TrialData,
    report: Report,
    stored: bool = True,
    start_from: TrainingState | None = None,
    parts: int = 1,
    refit: bool = False,
    trace: Path | None = None,
    rules: Mapping[str, HealthRule] | None = None,
) -> None:
    """Train one trial and report every epoch; return when the epochs are done or `report` says stop.

    `start_from` goes on behind its epoch, and the curve is that of a training that never stopped. `parts` cuts
    each batch into so many micro-batches whose gradients add up to the whole batch's, for less memory. A `refit`
    learns from the validation split, too, and its `val_*` metrics then prove nothing.

    Health rules watch, those in `rules` as is said there, and a profile is taken: each report brings what their rules
    saw for the first time. `trace` is a file for what torch.profiler sees of a few steps.

    Where torch.distributed is set up, its processes train together, each a shard of every batch, and all call this
    with the same arguments; rank 0 alone calls `report`. The losses are then those of one process but for rounding,
    unless the network draws dropout masks (each rank its own) or a CPU normalises unfrozen batches (each rank its
    shard's).

    The same settings and data give the same numbers on the same machine with as many threads, unless it computes on
    a GPU, whose kernels add in no fixed order: there a head's losses are the same but for rounding, and those of a
    whole network that is trained from random weights differ by percents, as training magnifies it.

    Metrics: `train_*` (running, in training mode) and `val_*` loss, accuracy, rmse, mae; `val_accuracy_class_N`; `lr`
    of the epoch's last step; `images_per_second` of training; `seconds` of the whole epoch.
    """
    group = current_group()
    precision = choose_precision(settings.precision)
    profile = Profile(precision.device, torch.get_num_threads(), trace)
    generator = torch.Generator().manual_seed(settings.seed)
    torch.manual_seed(settings.seed)  # dropout draws from the global generator
    counter = build_trial_model(settings, data, precision)

    def batches(bank: PixelBank, augment: Augment) -> Batches:
        return open_batches(counter, settings, bank, data.banks, precision, augment, stored, parts=parts)

    learn, check = batches(data.train, settings.augment), batches(data.validation, PLAIN)
    if refit:
        learn = JoinedBatches(learn, batches(data.validation, settings.augment))

    net = counter.suffix(counter.cut(settings.trainable))
    if settings.trainable == "head":
        precision = Precision(precision.device, None)  # a head is too small to gain from bf16
    model = group.parallel(net)
    classes = np.asarray(data.classes)
    steps = settings.epochs * len(_epoch_rows(learn.labels, settings, torch.Generator()))
    optimizer = _optimizer(net, settings)
    schedule = _schedule(optimizer, settings, steps)
    weight = None
    if settings.balance == "weights":
        weight = _class_weights(learn.labels, len(classes)).to(precision.device)

    watch = HealthMonitor(net, settings, learn.labels, data.classes, rules)
    history: list[dict[str, float]] = []
    if start_from is not None:
        restore(start_from, net, optimizer, schedule, generator)
        history = list(start_from.history)

    for epoch in range(len(history) + 1, settings.epochs + 1):
        start = time.perf_counter()
        net.train()
        if group.size > 1:  # dropout of its own on every rank, also after a resume
            torch.manual_seed(((settings.seed * PRIME + epoch) * PRIME + group.rank) % 2**63)
        losses, choices, seen, examples = [], [], [], 0
        profile.epoch_begins()
        for inputs, labels, batch_labels in _training_batches(
            learn, settings, generator, profile.mark, group
        ):
            profile.mark("wait")
            optimizer.zero_grad(set_to_none=True)
            watch.before_step(inputs)
            loss, log_probabilities = _backward(
                model,
                inputs,
                labels,
                batch_labels,
                weight,
                settings,
                precision,
                parts,
                profile.mark,
                group,
            )
            watch.after_backward(loss * group.size)  # of the shard: about the batch's
            optimizer.step()
            lr = schedule.get_last_lr()[0]
            watch.after_step(lr)
            schedule.step()
            # Kept on the device: reading them here would make every step wait for the GPU.
            losses.append(loss * len(batch_labels))
            choices.append(log_probabilities.argmax(1))
            seen.append(labels)
            examples += len(batch_labels)
            profile.step_done()
        # Waits for the device, so before the clock.
        train_loss = float(group.sum(torch.stack(losses).sum())) / examples
        train_seconds = time.perf_counter() - start
        profile.training_done()

        choice, actual = group.gather(torch.cat(choices)), group.gather(torch.cat(seen))
        group.average_statistics(net)
        said = _predict(net, check, precision, group, max(1, FORWARD // parts)).cpu()
        figures, advice = profile.epoch_done(epoch, parts)
        metrics = {
            **_scores("train", train_loss, choice, actual, classes),
            **_scores("val", float(F.nll_loss(said, check.labels)), said.argmax(1), check.labels, classes),
            "lr": float(lr),
            "images_per_second": examples / train_seconds,
            "seconds": time.perf_counter() - start,
            **figures,
        }

        def checkpoint(
            epoch: int = epoch, metrics: dict[str, float] = metrics, said: Tensor = said
        ) -> Checkpoint:
            state = {key: value.detach().cpu().clone() for key, value in net.state_dict().items()}
            return Checkpoint(epoch, metrics, settings, data.classes, data.image_size, state, said)

        history.append(metrics)
        findings = (*watch.epoch_done(epoch, history, said.argmax(1), check.labels), *advice)
        state = functools.partial(capture, epoch, history, net, optimizer, schedule, generator)
        go_on = group.rank > 0 or report(epoch, metrics, Snapshot(checkpoint, state, findings))
        if not group.from_first(go_on):
            return
