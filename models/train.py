"""The training of one trial: set up, then for each epoch train, validate, and report a snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binsweep.models.batches import Batches, JoinedBatches
from binsweep.models.checkpoint import Checkpoint
from binsweep.models.decoding import Decoding, decode_indices
from binsweep.models.distributed import SINGLE_PROCESS, ProcessGroup, current_group
from binsweep.models.health_monitor import HealthMonitor
from binsweep.models.health_rules import HealthFinding, HealthRule
from binsweep.models.labelling import labelling_of
from binsweep.models.levels import Level
from binsweep.models.optimization import (
    build_average,
    build_optimizer,
    build_schedule,
    class_weights,
    end_schedule_at,
)
from binsweep.models.precision import Precision, choose_precision
from binsweep.models.profiler import Profile
from binsweep.models.sampling import epoch_rows, training_batches
from binsweep.models.settings import Settings
from binsweep.models.training_state import Beginning, TrainingState, capture, restore
from binsweep.models.trial_data import (
    INFERENCE_BATCH,
    NO_AUGMENT,
    BatchFactory,
    TrialData,
    build_trial_model,
)

RANK_SEED_PRIME = 1_000_003
FORWARD_SHARE = 1 / 3  # of a training step, without the backward pass and the optimiser


@dataclass(frozen=True)
class TrainOptions:
    """How to run a training, beyond the settings of its trial.

    `start_from` continues after that state's epoch, with the curve of an uninterrupted training. `micro_batches` splits
    each batch to save memory; the gradients add up to those of the whole batch. `refit` trains on the validation split
    as well, so that its `val_*` metrics are no evidence. `decoding` makes counts of the validation split's
    probabilities. `trace` is the file for a torch.profiler trace of a few steps.
    `rules` overrides the action or thresholds of individual health rules. Without `use_feature_bank`, the frozen part
    runs again for every batch, to the same losses. The sections `earlier` are trained before: the training begins with
    their weights, and counts their epochs.
    """

    use_feature_bank: bool = True
    earlier: tuple[Level, ...] = ()
    start_from: TrainingState | None = None
    micro_batches: int = 1
    refit: bool = False
    decoding: Decoding = "argmax"
    trace: Path | None = None
    rules: Mapping[str, HealthRule] | None = None


DEFAULT_OPTIONS = TrainOptions()


@dataclass(frozen=True)
class Snapshot:
    """What can be saved of an epoch, built only on request: the model, or all that is needed to continue training.

    A state shares the training's tensors: save it before the report returns.
    """

    checkpoint: Callable[[], Checkpoint]
    state: Callable[[], TrainingState]
    findings: tuple[HealthFinding, ...] = ()  # of health and profile rules that fired for the first time


# Called after every epoch with the epoch (from 1), its metrics and its snapshot. Returns whether to continue.
Report = Callable[[int, dict[str, float], Snapshot], bool]


def train(
    settings: Settings, data: TrialData, report: Report, options: TrainOptions = DEFAULT_OPTIONS
) -> None:
    """Train one trial and report every epoch; return after the last epoch, or when `report` returns False.

    Where torch.distributed is initialised, its processes train together on a shard of every batch each. All of them
    call this with the same arguments; only rank 0 calls `report`. The losses equal those of one process up to rounding,
    unless the network has dropout (each rank draws its own masks) or unfrozen batch norms run on a CPU (each rank
    normalises its own shard).

    The same settings and data give the same numbers on the same machine with the same number of threads. GPU kernels
    add in no fixed order: there, the losses of a head are the same up to rounding, and those of a whole network trained
    from random weights differ by percents, because training magnifies rounding.

    Metrics: `train_*` (running, in training mode) and `val_*` loss and scores: of counts accuracy, rmse, mae, of names
    those of `models.labelling`; `val_accuracy_class_LABEL`; `lr` of the epoch's last step; `images_per_second` of
    training; `seconds` of the whole epoch; `level` from 1, if there are several.
    """
    levels = (*options.earlier, Level(settings, data.image_size))
    state, begin = options.start_from, Beginning()
    for number, level in enumerate(levels, 1):
        end = begin.epoch + level.settings.epochs
        if state is not None and state.epoch >= end and number < len(levels):
            begin = Beginning(end)
            continue
        if state is not None:
            begin = begin.at(state)
        trainer = _Trainer(levels[:number], data.at_size(level.image_size), options, begin)
        if not _train_level(trainer, end, report):
            return
        begin, state = trainer.ending(), None
        del trainer  # before the next network is built


def measure_epoch(settings: Settings, data: TrialData, limit: float) -> float:
    """The seconds that an epoch of these settings takes in this process, by training for `limit` seconds.

    Not measured are other trainings beside it, and a start from an earlier section.
    """
    level = Level(settings, data.image_size)
    return _Trainer([level], data, DEFAULT_OPTIONS, Beginning()).epoch_seconds(limit)


def _train_level(trainer: _Trainer, last_epoch: int, report: Report) -> bool:
    """Train and report the epochs up to the last one; returns whether to continue."""
    for epoch in range(len(trainer.history) + 1, last_epoch + 1):
        trained = trainer.train_epoch(epoch)
        log_probabilities = trainer.validate()
        metrics, findings = trainer.score(epoch, trained, log_probabilities)
        snapshot = trainer.snapshot(epoch, metrics, log_probabilities, findings)
        proceed = trainer.group.rank > 0 or report(epoch, metrics, snapshot)
        if not trainer.group.from_first(proceed):
            return False
    return True


@dataclass(frozen=True)
class _TrainedEpoch:
    """The training part of an epoch, over all ranks; `predicted` and `actual` are class indices int64 [N]."""

    started: float  # time.perf_counter()
    loss: float
    predicted: Tensor
    actual: Tensor
    lr: float
    images_per_second: float


class _Trainer:
    """Network, data and optimiser of the last of `levels`, and the steps that an epoch consists of."""

    def __init__(
        self, levels: Sequence[Level], data: TrialData, options: TrainOptions, begin: Beginning
    ) -> None:
        settings = levels[-1].settings
        self.settings, self.data, self.options = settings, data, options
        self.earlier, self.begin = tuple(levels[:-1]), begin
        self.group = current_group()
        self.precision = choose_precision(settings.precision)
        self.profile = Profile(self.precision.device, torch.get_num_threads(), options.trace)
        self.generator = torch.Generator().manual_seed(settings.seed)
        torch.manual_seed(settings.seed)  # dropout draws from the global generator
        self._open_data_and_network()
        if begin.weights is not None:
            # Stages that were frozen until now are not among them.
            self.net.load_state_dict({**self.net.state_dict(), **begin.weights})
        self.optimizer = build_optimizer(self.net, settings)
        self.average = build_average(self.net, settings)
        self.judged_net = self.net if self.average is None else self.average.module
        labels = self.train_batches.labels
        steps = settings.epochs * len(epoch_rows(labels, settings, torch.Generator()))
        self.schedule = build_schedule(self.optimizer, settings, steps)
        self.class_weights: Tensor | None = None
        if settings.balance == "weights":
            self.class_weights = class_weights(labels, len(data.head_classes)).to(self.precision.device)
        own_labels = torch.from_numpy(data.train.labels)
        self.monitor = HealthMonitor(
            self.net, settings, own_labels, data.classes, options.rules, len(data.head_classes)
        )
        self.history = list(begin.history)
        if (state := begin.state) is not None:
            restore(state, self.net, self.optimizer, self.schedule, self.generator, self.average)
            end_schedule_at(self.schedule, steps)  # the trial may have been shortened since
            self.monitor.restore(state.health)

    def _open_data_and_network(self) -> None:
        settings, data, options = self.settings, self.data, self.options
        # A part that was frozen until now must be the one that the section before was trained on: the one of seed 0,
        # where it has no pre-trained weights. The head's weights are replaced.
        drawn = replace(settings, seed=0) if self.earlier else settings
        model = build_trial_model(drawn, data, self.precision)
        batches = BatchFactory(
            model, settings, data.banks, self.precision, options.use_feature_bank, options.micro_batches
        )
        self.val_batches = batches.open(data.validation, NO_AUGMENT)
        self.train_batches: Batches = batches.open(data.train, settings.augment)
        if options.refit:
            validation = batches.open(data.validation, settings.augment)
            self.train_batches = JoinedBatches(self.train_batches, validation)
        if data.train_also is not None:
            places = torch.tensor([data.head_classes.index(count) for count in data.classes])
            self.train_batches.labels = places[self.train_batches.labels]
            others = batches.open(data.train_also, settings.augment)
            self.train_batches = JoinedBatches(self.train_batches, others)
        self.answer = model.answer
        if settings.trainable == "head":
            self.precision = Precision(self.precision.device, None)  # a head is too small to gain from bf16
        self.net = model.suffix(model.cut(settings.trainable))
        self.parallel_net = self.group.parallel(self.net)

    def train_epoch(self, epoch: int) -> _TrainedEpoch:
        """One pass over the training data."""
        started = time.perf_counter()
        self.net.train()
        if self.group.size > 1:  # each rank draws its own dropout masks, also after a resume
            seed = (self.settings.seed * RANK_SEED_PRIME + epoch) * RANK_SEED_PRIME + self.group.rank
            torch.manual_seed(seed % 2**63)
        losses, predicted, actual, examples = [], [], [], 0
        self.profile.epoch_begins()
        for inputs, labels, batch_labels in training_batches(
            self.train_batches, self.settings, self.generator, self.profile.mark, self.group
        ):
            self.profile.mark("wait")
            loss, log_probabilities, lr = self._step(inputs, labels, batch_labels)
            # Kept on the device: reading them here would make every step wait for the GPU.
            losses.append(loss * len(batch_labels))
            predicted.append(log_probabilities.argmax(1))
            actual.append(labels)
            examples += len(batch_labels)
            self.profile.step_done()
        # Reading the loss waits for the device, so it comes before the clock is read.
        mean_loss = float(self.group.sum(torch.stack(losses).sum())) / examples
        images_per_second = examples / (time.perf_counter() - started)
        self.profile.training_done()
        all_predicted, all_actual = (self.group.gather(torch.cat(rows)) for rows in (predicted, actual))
        return _TrainedEpoch(started, mean_loss, all_predicted, all_actual, float(lr), images_per_second)

    def epoch_seconds(self, limit: float) -> float:
        """About how long an epoch takes, by training steps for `limit` seconds, of which the first only warms up.

        The network has learnt from these steps: it is of no further use.
        """
        self.net.train()
        self.profile.epoch_begins()
        ends = [time.perf_counter()]
        for inputs, labels, batch_labels in training_batches(
            self.train_batches, self.settings, self.generator, self.profile.mark, self.group
        ):
            self._step(inputs, labels, batch_labels)
            self.profile.step_done()
            ends.append(time.perf_counter())
            if ends[-1] - ends[1] > limit:
                break
        warm = ends[1:] if len(ends) > 2 else ends
        step = (warm[-1] - warm[0]) / (len(warm) - 1)
        steps = len(epoch_rows(self.train_batches.labels, self.settings, torch.Generator()))
        return step * (steps + FORWARD_SHARE * len(self.val_batches.labels) / self.settings.batch_size)

    def _step(self, inputs: Tensor, labels: Tensor, batch_labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """Train on this rank's shard of a batch; returns what `_backward` returns, and the learning rate."""
        self.optimizer.zero_grad(set_to_none=True)
        self.monitor.before_step(inputs)
        loss, log_probabilities = self._backward(inputs, labels, batch_labels)
        self.monitor.after_backward(loss * self.group.size)  # of the shard: about the batch's
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.net)
        lr: float = self.schedule.get_last_lr()[0]
        self.monitor.after_step(lr)
        self.schedule.step()
        return loss, log_probabilities, lr

    def _backward(self, inputs: Tensor, labels: Tensor, batch_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients of this rank's shard of a batch.

        Returns the shard's contribution to the batch's mean loss, and its log-probabilities [B, K], both detached.

        The loss of each micro-batch counts by its share of the whole batch's (class) weight, so that the gradients add
        up to those of the whole batch; a group takes the mean over its ranks, so there it is multiplied by their
        number. Only the batch statistics of unfrozen normalisation layers are those of the micro-batches.
        """
        net, mark, size = self.parallel_net, self.profile.mark, self.group.size
        total, log_probabilities = torch.zeros((), device=labels.device), []
        batch_weight = self._weight(batch_labels)
        # Every rank has the same number of micro-batches, some of them empty: forward passes may wait for one another.
        count = self.options.micro_batches
        micro_batches = zip(inputs.tensor_split(count), labels.tensor_split(count), strict=True)
        for number, (some_inputs, some_labels) in enumerate(micro_batches, 1):
            with self.group.accumulate(net, more=number < count):
                output = _forward(net, some_inputs, self.precision)
                if len(some_labels):
                    smoothing = self.settings.label_smoothing
                    loss = F.cross_entropy(output, some_labels, self.class_weights, label_smoothing=smoothing)
                else:
                    loss = output.sum()  # zero, with a gradient of zero
                if count > 1 or size > 1:
                    loss = loss * (self._weight(some_labels) / batch_weight)
                mark("forward")
                (loss * size if size > 1 else loss).backward()
                mark("backward")
            total = total + loss.detach()
            log_probabilities.append(output.detach())
        return total, torch.cat(log_probabilities)

    def _weight(self, labels: Tensor) -> Tensor | int:
        return len(labels) if self.class_weights is None else self.class_weights[labels].sum()

    def validate(self) -> Tensor:
        """Log-probabilities float32 [N, K] of the classes on the validation split, on the CPU."""
        self.group.average_statistics(self.net)
        if self.average is not None:
            self.group.average_statistics(self.average)
        batch = max(1, INFERENCE_BATCH // self.options.micro_batches)
        output = _predict(self.judged_net, self.val_batches, self.precision, self.group, batch)
        return self.answer(output).cpu()

    def score(
        self, epoch: int, trained: _TrainedEpoch, log_probabilities: Tensor
    ) -> tuple[dict[str, float], tuple[HealthFinding, ...]]:
        """The epoch's metrics, also added to the history, and what rules found in it for the first time."""
        figures, advice = self.profile.epoch_done(epoch, self.options.micro_batches)
        labels, classes = self.val_batches.labels, np.asarray(self.data.classes)
        probabilities = log_probabilities.exp().numpy()
        predicted = decode_indices(probabilities, self.data.classes, self.options.decoding)
        learned, labelling = np.asarray(self.data.head_classes), labelling_of(self.data.classes)
        on_train = labelling.training_scores(learned[trained.predicted.cpu()], learned[trained.actual.cpu()])
        on_validation = labelling.validation_scores(
            probabilities, classes[predicted], classes[labels], self.data.classes
        )
        metrics = {
            "train_loss": trained.loss,
            **{f"train_{name}": value for name, value in on_train.items()},
            "val_loss": float(F.nll_loss(log_probabilities, labels)),
            **{f"val_{name}": value for name, value in on_validation.items()},
            "lr": trained.lr,
            "images_per_second": trained.images_per_second,
            "seconds": time.perf_counter() - trained.started,
            **figures,
        }
        if self.options.earlier:
            metrics["level"] = float(len(self.earlier) + 1)
        self.history.append(metrics)
        # What happened at another level says nothing about this one.
        before = self.begin.epoch
        found = self.monitor.epoch_done(epoch, self.history[before:], predicted, labels.numpy())
        return metrics, (*found, *advice)

    def ending(self) -> Beginning:
        """Where the next section begins."""
        weights = {key: value.detach().cpu().clone() for key, value in self.judged_net.state_dict().items()}
        return Beginning(len(self.history), self.history, weights)

    def snapshot(
        self,
        epoch: int,
        metrics: dict[str, float],
        log_probabilities: Tensor,
        findings: tuple[HealthFinding, ...],
    ) -> Snapshot:
        """The epoch as its report can save it."""
        settings, data = self.settings, self.data

        def checkpoint() -> Checkpoint:
            weights = {
                key: value.detach().cpu().clone() for key, value in self.judged_net.state_dict().items()
            }
            return Checkpoint(
                epoch,
                metrics,
                settings,
                data.classes,
                data.image_size,
                weights,
                log_probabilities,
                () if data.head_classes == data.classes else data.head_classes,
                self.earlier,
            )

        def state() -> TrainingState:
            return capture(
                epoch,
                self.history,
                self.net,
                self.optimizer,
                self.schedule,
                self.generator,
                self.monitor.state(),
                self.average,
            )

        return Snapshot(checkpoint, state, findings)


def _forward(net: nn.Module, inputs: Tensor, precision: Precision) -> Tensor:
    """Log-probabilities float32 [B, K]."""
    if precision.autocast is None:
        inputs = inputs.float()  # a bank may hold bfloat16
    with precision.context():
        log_probabilities: Tensor = net(inputs).float()
    return log_probabilities


def _predict(
    net: nn.Module,
    split: Batches,
    precision: Precision,
    group: ProcessGroup = SINGLE_PROCESS,
    batch: int = INFERENCE_BATCH,
) -> Tensor:
    """Log-probabilities float32 [N, K] of a split, unaugmented; each rank computes its shard and receives all."""
    net.eval()
    log_probabilities = []
    rows_here = torch.arange(len(split.labels))[group.shard(len(split.labels))]
    for rows in rows_here.split(batch):
        with torch.no_grad():
            log_probabilities.append(_forward(net, split.take(rows, torch.zeros_like(rows)), precision))
    return group.gather(torch.cat(log_probabilities))
