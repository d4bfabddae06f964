"""Stopping rules: pure functions from the values seen so far to a reason to stop, or None to go on.

Values are oriented so that larger is better. Trials are compared at equal epochs, whatever their own lengths, because
an epoch is an absolute cost; this is what `epochs` as a searched parameter needs. Two guards keep the comparison fair.
A trial is not stopped at its own last epoch, where a stop saves nothing and would discard a good short training. And a
trial whose last epoch is a rung does not compete there: its learning-rate schedule has already come down, and it would
look better than trials with many epochs left.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Curve:
    """The learning curve of one trial: its own last epoch, and a value per epoch (larger is better).

    `ends` are the epochs after which its fidelity levels end; () is the one level of a training without them.
    """

    last_epoch: int
    values: dict[int, float] = field(default_factory=dict)
    ends: Sequence[int] = ()

    def best_until(self, epoch: int) -> float:
        """The best value so far; a trial is judged by its best epoch."""
        return max(value for at, value in self.values.items() if at <= epoch)

    def mean_until(self, epoch: int) -> float:
        return statistics.fmean(value for at, value in self.values.items() if at <= epoch)


# Arguments: curves by trial, the trial's number, its epoch. Returns why the trial must stop, or None.
StoppingRule = Callable[[Mapping[int, Curve], int, int], str | None]


def never(curves: Mapping[int, Curve], number: int, epoch: int) -> None:
    """Every trial trains to its end."""
