"""What a training needs to go on as if it had never stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binsweep.data.atomic_write import atomic_path


@dataclass(frozen=True)
class TrainingState:
    """The end of one epoch: `history` holds the metrics of every epoch until then.

    `random` holds the states of PyTorch's generators: the CPU's, that of the trial's own order of images, and
    the GPU's where there is one.
    """

    epoch: int
    history: list[dict[str, float]]
    net: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    random: list[Tensor]

    def save(self, path: Path) -> None:
        """Write the file atomically; `load_training_state` reads it."""
        with atomic_path(path) as temporary:
            torch.save(asdict(self), temporary)


def load_training_state(path: Path) -> TrainingState | None:
    """Read a state without unpickling code; None when there is none, or a damaged one: training begins anew."""
    try:
        return TrainingState(**torch.load(path, map_location="cpu", weights_only=True))
    except (
        Exception
    ):  # none, cut, or flipped bits: they fail in many ways, and all of them mean the same here
        return None


def capture(
    epoch: int,
    history: list[dict[str, float]],
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    generator: torch.Generator,
) -> TrainingState:
    """The state now; `generator` is the one that orders the images."""
    random = [torch.get_rng_state(), generator.get_state()]
    if torch.cuda.is_available():
        random.append(torch.cuda.get_rng_state())
    return TrainingState(
        epoch, list(history), net.state_dict(), optimizer.state_dict(), schedule.state_dict(), random
    )


def restore(
    state: TrainingState,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    generator: torch.Generator,
) -> None:
    """Put everything back as `capture` found it."""
    net.load_state_dict(state.net)
    optimizer.load_state_dict(state.optimizer)
    schedule.load_state_dict(state.schedule)
    torch.set_rng_state(state.random[0])
    generator.set_state(state.random[1])
    if torch.cuda.is_available() and len(state.random) > 2:
        torch.cuda.set_rng_state(state.random[2])
