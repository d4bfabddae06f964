"""The Strategy seam: the only door through which runners and the simulator meet a search algorithm."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

Goal = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Suggestion:
    """A trial to run, its parameters, and why these; with `epochs_done`, a paused trial to go on with."""

    number: int
    params: dict[str, Any]
    reason: str
    epochs_done: int = 0  # begin after this epoch, from the checkpoint that the trial was paused with


class Decision(StrEnum):
    CONTINUE = "continue"
    PAUSE = "pause"  # keep a checkpoint of this epoch and free the worker; a later suggestion may go on
    STOP = "stop"


@dataclass(frozen=True)
class Verdict:
    """Whether a trial goes on after an epoch, and why."""

    decision: Decision
    reason: str


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, as its runner saw it; with `violation` it broke a limit, by that part of it."""

    state: Literal["completed", "stopped", "failed"]
    reason: str = ""
    violation: float = 0.0


@dataclass(frozen=True)
class Record:
    """One trial as the study remembers it; `value` is its best over epochs, seen at `epoch`."""

    number: int
    state: Literal["running", "paused", "completed", "stopped", "failed"]
    params: dict[str, Any]
    value: float | None
    epoch: int | None
    values: dict[int, float] = field(default_factory=dict)  # by epoch, from 1
    suggested_because: str = ""
    ended_because: str = ""
    feasible: bool = True  # it broke no limit


class Strategy(Protocol):
    """What to try next and what to stop. Calls come from one thread; epochs count from 1."""

    def suggest(self, begin: bool = True) -> Suggestion | None:
        """The next trial, or a paused one to go on with; None when there is neither.

        Where no further trial may `begin`, only paused ones that have earned it go on.
        """

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        """Take in one epoch's value. Repeated, late or unknown reports change nothing."""

    def note_cost(self, number: int, cost: float) -> None:
        """What a running trial's counter costs where it is used (above 0, smaller is better), where the whole front
        of value against cost is searched. The first call counts."""

    def finish(self, number: int, outcome: Outcome) -> None:
        """End a trial that runs or is paused, once; later calls change nothing."""
