"""A request to a sweep, and the answer that it got."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

Kind = Literal["enqueue", "stop-trial", "budget", "pause", "resume", "pin", "unpin", "narrow"]


def requester() -> str:
    """The person whose process this is: BINSWEEP_USER, or user@host."""
    if named := os.environ.get("BINSWEEP_USER"):
        return named
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _new_id() -> str:
    """Ids sort in the order of their requests."""
    return f"{time.time_ns():020d}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class Request:
    """What somebody asks of a sweep.

    `trial` is the one to stop, pin or unpin, or the one whose configuration is tried again with changes. `values` are a
    configuration's, or the changes; limits of the budget, such as 90 or "+30"; or by parameter the list of its choices
    or the two ends of its range.
    """

    kind: Kind
    trial: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    who: str = field(default_factory=requester)
    when: float = field(default_factory=time.time)  # seconds since 1970
    id: str = field(default_factory=_new_id)

    def __str__(self) -> str:
        """As it is written on the command line."""
        trial = [] if self.trial is None else [f"{'--like ' * (self.kind == 'enqueue')}{self.trial}"]
        return " ".join([self.kind, *trial, *(f"{name}={_text(v)}" for name, v in self.values.items())])

    def after(self, others: Iterable[Request]) -> Request:
        """This request, by its id later than `others` too if the clock was set back since they were made."""
        latest = max((one.id for one in others), default="")
        return self if self.id > latest else replace(self, id=f"{int(latest[:20]) + 1:020d}{self.id[20:]}")

    @classmethod
    def from_json(cls, raw: Any) -> Request:
        """The request that `asdict` of it describes. Raises ValueError for anything else."""
        if not isinstance(raw, dict) or raw.keys() != cls.__dataclass_fields__.keys():
            raise ValueError("not a request")
        trial, values, text = raw["trial"], raw["values"], (raw["who"], raw["id"])
        if raw["kind"] not in get_args(Kind) or not all(isinstance(one, str) for one in text):
            raise ValueError("not a request")
        if not isinstance(values, dict) or not isinstance(raw["when"], int | float):
            raise ValueError("not a request")
        if not (trial is None or type(trial) is int):
            raise ValueError("not a request")
        return cls(**raw)


def _text(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    is_range = len(value) == 2 and all(type(one) in (int, float) for one in value)
    return (".." if is_range else ",").join(map(str, value))


@dataclass(frozen=True)
class AnsweredRequest:
    """A request that the sweep has taken in: whether it is granted, and the answer, a sentence.

    `effect` is what is in force from then on. A configuration waits until the number of the trial that has begun with
    it is in `effect`.
    """

    request: Request
    granted: bool
    answer: str
    at: float  # seconds since 1970
    effect: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_waiting(self) -> bool:
        """Whether it is a configuration that no trial has begun with."""
        return self.granted and self.request.kind == "enqueue" and "trial" not in self.effect

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> AnsweredRequest:
        """The answered request that `as_json` has written."""
        return cls(**{**raw, "request": Request.from_json(raw["request"])})
