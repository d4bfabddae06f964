"""What a sweep optimises: which of two values is better, and how trials are ranked."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Goal = Literal["maximize", "minimize"]
T = TypeVar("T")
LOSSES = ("train_loss", "val_loss")  # a training whose losses are not finite has diverged


@dataclass(frozen=True)
class Objective:
    """The metric and its direction; `metric` stays empty where values have no name, as in a strategy."""

    goal: Goal
    metric: str = ""
    cost_objective: str | None = None  # the cost that the report plots the metric against
    limits: Mapping[str, float] = field(default_factory=dict)  # upper limits of costs, by their names

    @property
    def sign(self) -> float:
        """Values times the sign are larger when better."""
        return 1.0 if self.goal == "maximize" else -1.0

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether `value` is better than `than`. Any number is better than None; NaN is never better."""
        if than is None:
            return not math.isnan(value)
        return self.sign * value > self.sign * than

    def value_of(self, metrics: Mapping[str, float]) -> float:
        """The value of an epoch; NaN if it diverged, since accuracy may stay a number when the loss is NaN."""
        return metrics[self.metric] if is_finite(metrics) else math.nan

    def what_is_broken(self, metrics: Mapping[str, float]) -> str:
        """Names the values for which `value_of` is not finite: "val_loss is nan"."""
        names = dict.fromkeys((self.metric, *LOSSES))
        broken = [name for name in names if not math.isfinite(metrics.get(name, 0.0))]
        return ", ".join(f"{name} is {metrics[name]}" for name in broken)

    def sort_key(self, value: float | None, number: int) -> tuple[float, int]:
        """Sorts trials best first; on ties the earlier trial comes first."""
        return -self.sign * (value or 0.0), number


def is_finite(metrics: Mapping[str, float]) -> bool:
    """Whether the losses of an epoch are finite, as far as it has any."""
    return all(math.isfinite(metrics[name]) for name in LOSSES if name in metrics)


def pareto_front(ranked: Iterable[T], cost: Callable[[T], float | None]) -> list[T]:
    """The items, given best first, that cost less than every better one. Items without a cost are left out."""
    front: list[T] = []
    least = math.inf
    for item in ranked:
        price = cost(item)
        if price is not None and (not front or price < least):
            front.append(item)
            least = price
    return front
