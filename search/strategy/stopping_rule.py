"""Stopping rules: pure functions from the values seen so far to a reason to stop, or None to go on.

Values here are oriented so that larger is better. An epoch is an absolute cost, so trials are compared at
equal epochs, whatever each one's own maximum: that is what `epochs` as a searched parameter needs. Two
guards keep that fair. A trial is not stopped at its own last epoch, where a stop saves nothing and a good
short training would be thrown away; and a trial that ends at a rung does not compete there, since its
learning-rate schedule has already come down and it would look better than those that still have far to go.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Curve:
    """What one trial has shown: its own last epoch, and a value per epoch (larger is better)."""

    last_epoch: int
    values: dict[int, float] = field(default_factory=dict)

    def best_until(self, epoch: int) -> float:
        """A trial is judged by its best epoch, so it is compared by its best so far."""
        return max(value for at, value in self.values.items() if at <= epoch)

    def mean_until(self, epoch: int) -> float:
        return statistics.fmean(value for at, value in self.values.items() if at <= epoch)


# (curves by trial, the trial, its epoch) -> why it must stop, or None
StoppingRule = Callable[[Mapping[int, Curve], int, int], str | None]


def never(curves: Mapping[int, Curve], number: int, epoch: int) -> None:
    """Every trial trains to its end."""
