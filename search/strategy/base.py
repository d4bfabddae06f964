"""The Strategy interface, through which the runners and the simulator use a search algorithm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

from binsweep.search.spec.space import SearchSpace
from binsweep.search.steering.state import Wish


@dataclass(frozen=True)
class Suggestion:
    """A trial to run, with its parameters and the reason; a paused trial to resume if `epochs_done` is above 0."""

    number: int
    params: dict[str, Any]
    reason: str
    epochs_done: int = 0  # resume after this epoch, from the checkpoint written when the trial was paused
    last_epoch: int | None = None  # where it ends; None: where its configuration says
    request: str = ""  # the id of the request of a person that it begins with


class Decision(StrEnum):
    CONTINUE = "continue"
    PAUSE = "pause"  # keep a checkpoint of this epoch and free the worker; a later suggestion may resume the trial
    STOP = "stop"


@dataclass(frozen=True)
class Verdict:
    """Whether a trial goes on after an epoch, and why."""

    decision: Decision
    reason: str


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; a `violation` above 0 is the relative excess over a limit."""

    state: Literal["completed", "stopped", "failed"]
    reason: str = ""
    violation: float = 0.0


@dataclass(frozen=True)
class Record:
    """One trial as stored in the study; `value` is its best over epochs, reached at `epoch`."""

    number: int
    state: Literal["running", "paused", "completed", "stopped", "failed"]
    params: dict[str, Any]
    value: float | None
    epoch: int | None
    values: dict[int, float] = field(default_factory=dict)  # by epoch, from 1
    suggested_because: str = ""
    ended_because: str = ""
    feasible: bool = True  # it exceeded no limit
    last_epoch: int | None = None  # where it ends, if that is earlier than its configuration says
    request: str = ""  # the id of the request of a person that it has begun with


class Strategy(Protocol):
    """What to try next and what to stop. All calls come from one thread; epochs count from 1."""

    def suggest(self, begin: bool = True) -> Suggestion | None:
        """The next trial, or a paused one to resume; None if there is neither.

        With `begin=False` no new trial begins; only paused trials that have earned it are resumed.
        """

    def steer(self, wishes: Sequence[Wish], pinned: Mapping[int, str], space: SearchSpace) -> None:
        """What people have asked for until now: configurations to try before any others, trials to be trained to their
        end, with the reason, and the part of the space that new configurations are taken from."""

    @property
    def is_used_up(self) -> bool:
        """Whether every configuration of the space was tried."""

    def note_seconds(self, number: int, seconds: float, start: float | None = None) -> None:
        """Record how long an epoch of a running trial took, and if it was the first since a start, the start before it,
        so that what trials gain is weighed against their time. Called before the epoch is observed."""

    def note_time_left(self, seconds: float, whole: float) -> None:
        """From now on, only what can end in so many seconds is suggested, and no trial waits that should be ended.
        `whole` is what the sweep has from its beginning to its end."""

    def training_seconds(self, number: int | None = None, done: int = 0) -> float | None:
        """How long a trial trains from epoch `done` to its end, or the longest training of a typical configuration;
        None if nothing was measured yet."""

    def reachable(self, number: int, seconds: float) -> int:
        """The last epoch that a running trial gets to within so many seconds."""

    def end_at(self, number: int, last_epoch: int) -> None:
        """Let a trial end at an earlier epoch than its configuration says."""

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        """Record one epoch's value. Repeated, late and unknown reports change nothing."""

    def recall(self, number: int, epoch: int, value: float) -> None:
        """Record an epoch, known or not, after which an earlier process went on with the trial: nothing is judged, and
        a trial that is paused at it is running."""

    def note_cost(self, number: int, cost: float) -> None:
        """Record the inference cost of a running trial (above 0, smaller is better) for a search of the Pareto front
        of value and cost. Only the first call counts."""

    def finish(self, number: int, outcome: Outcome) -> None:
        """End a running or paused trial, once; later calls change nothing."""
