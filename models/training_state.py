"""The state of a training after an epoch, from which it continues as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binsweep.data.atomic_write import atomic_path


@dataclass(frozen=True)
class TrainingState:
    """The end of one epoch; `history` holds the metrics of all epochs so far.

    `random` holds the states of PyTorch's generators: the CPU's, the one that orders the trial's photos, and the GPU's
    where there is one.
    """

    epoch: int
    history: list[dict[str, float]]
    net: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    random: list[Tensor]
    health: dict[str, Any] = field(default_factory=dict)  # of the HealthMonitor; empty in older files
    average: dict[str, Tensor] = field(default_factory=dict)  # of the averaged weights, if there are any

    def save(self, path: Path) -> None:
        """Write the file atomically; `load_training_state` reads it."""
        with atomic_path(path) as temporary:
            torch.save(asdict(self), temporary)


def load_training_state(path: Path) -> TrainingState | None:
    """Read a state without unpickling code; None if the file is absent or damaged, and training starts anew."""
    try:
        return TrainingState(**torch.load(path, map_location="cpu", weights_only=True))
    except (
        Exception
    ):  # absent, truncated and corrupt files raise many kinds of errors, with the same consequence
        return None


def judged_weights(state: TrainingState) -> dict[str, Tensor]:
    """The weights that validation judges: the averaged ones, where there are any."""
    if not state.average:
        return state.net
    prefix = "module."  # of AveragedModel, beside its number of averaged steps
    return {key.removeprefix(prefix): value for key, value in state.average.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Beginning:
    """Where a section begins: after `epoch`, with the metrics of the epochs until then, and the weights of the section
    before it, if there is one. With a `state` of its own it goes on from there."""

    epoch: int = 0
    history: Sequence[dict[str, float]] = ()
    weights: Mapping[str, Tensor] | None = None
    state: TrainingState | None = None

    def at(self, state: TrainingState) -> Beginning:
        """The same section, after what is stored: its own epochs, or the end of the section before it."""
        if state.epoch > self.epoch:
            return Beginning(self.epoch, state.history, state=state)
        return Beginning(self.epoch, state.history, judged_weights(state))


def capture(
    epoch: int,
    history: list[dict[str, float]],
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    generator: torch.Generator,
    health: dict[str, Any],
    average: nn.Module | None,
) -> TrainingState:
    """The current state; `generator` is the one that orders the photos, `average` holds the averaged weights."""
    random = [torch.get_rng_state(), generator.get_state()]
    if torch.cuda.is_available():
        random.append(torch.cuda.get_rng_state())
    return TrainingState(
        epoch,
        list(history),
        net.state_dict(),
        optimizer.state_dict(),
        schedule.state_dict(),
        random,
        health,
        {} if average is None else average.state_dict(),
    )


def restore(
    state: TrainingState,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    generator: torch.Generator,
    average: nn.Module | None,
) -> None:
    """Put everything back into the state that `capture` recorded."""
    net.load_state_dict(state.net)
    if average is not None:
        average.load_state_dict(state.average)
    optimizer.load_state_dict(state.optimizer)
    schedule.load_state_dict(state.schedule)
    torch.set_rng_state(state.random[0])
    generator.set_state(state.random[1])
    if torch.cuda.is_available() and len(state.random) > 2:
        torch.cuda.set_rng_state(state.random[2])
