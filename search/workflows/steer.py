"""Asking something of a sweep, from any process: checked at once, kept on the disk, and answered by the sweep.

The command line, the Python API and whatever shows a sweep to people steer it here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binsweep.data.errors import UserError
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_history import SweepHistory
from binsweep.search.history.sweep_state import load_state, read_spec, run_status
from binsweep.search.spec.space import Choice, SearchSpace, Value
from binsweep.search.steering.inbox import post, read_answers, withdraw
from binsweep.search.steering.judge import SteeredSweep, answer_all, judge
from binsweep.search.steering.request import AnsweredRequest, Kind, Request
from binsweep.search.steering.state import state_after

WAIT_SECONDS = 10.0  # for the answer of a sweep that runs
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Answer:
    """What became of a request that keeps the rules. One that has not `happened` is kept, and happens later."""

    request: Request
    text: str
    happened: bool

    def __str__(self) -> str:
        return self.text


def plan(folder: Path, request: Request, history: SweepHistory) -> str:
    """What the sweep in `folder`, of this history, would answer to a request; nothing is kept. Raises the errors of
    `steer`."""
    if history.status == "finished":
        raise _finished(history.id, history.ended_by)
    return _judge(folder, history, request)


def steer(
    folder: Path, request: Request, wait: float = WAIT_SECONDS, history: SweepHistory | None = None
) -> Answer:
    """Ask something of the sweep in `folder`, and wait so many seconds for its answer. Its present `history` is read
    where the caller has not read it.

    Raises UserError with the reason if the request breaks the sweep's rules, or if the sweep has ended; nothing is kept
    then. Otherwise it is on the disk when this returns, and happens once, whichever process is killed.
    """
    history = read_history(folder) if history is None else history
    planned = plan(folder, request, history)
    request = request.after(history.requests)
    post(folder, request)
    deadline = time.monotonic() + wait
    while True:
        answered = next((one for one in read_answers(folder) if one.request.id == request.id), None)
        if answered is not None and not answered.granted:
            raise UserError(
                f"{request}: {answered.answer}", f"`binsweep status {folder.name}` shows the sweep"
            )
        if answered is not None and not answered.is_waiting:
            return Answer(request, answered.answer, True)
        state = load_state(folder)
        status = run_status(folder, state)
        if status == "finished" and withdraw(folder, request):
            raise _finished(folder.name, state.get("ended_by", ""))
        if status == "unfinished":
            return Answer(request, f"{folder.name} does not run now; when it goes on: {planned}", False)
        if time.monotonic() >= deadline:
            return Answer(request, _not_yet(answered, planned), False)
        time.sleep(LOOK_SECONDS)


def _finished(sweep: str, ended_by: str) -> UserError:
    hint = (
        "first extend it: `binsweep sweep SPEC --resume` with a larger budget, such as --set budget.trials=40"
    )
    return UserError(f"{sweep} has finished ({ended_by})", hint)


def _judge(folder: Path, history: SweepHistory, request: Request) -> str:
    """What the sweep will answer, after the requests that wait for it already. Raises UserError if it will refuse."""
    spec = read_spec(folder)
    trials = {trial.number: trial for trial in history.trials}
    before = [*history.answers, *answer_all(spec, trials, history.answers, history.requests)]
    return judge(request, SteeredSweep(spec, trials, state_after(before)))[0]


def _not_yet(answered: AnsweredRequest | None, planned: str) -> str:
    if answered is not None:  # a configuration
        return f"accepted: {answered.answer}"
    return f"kept: the sweep takes it in after the epoch in progress; then: {planned}"


def read_values(kind: Kind, space: SearchSpace, given: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
    """The values of a request of this kind from texts by name, as a form has them: one for a value of a configuration
    or a limit, several for the choices or the two ends of what is narrowed."""
    if given and kind not in ("enqueue", "narrow", "budget"):
        raise UserError(f"{kind} takes no values, but got {', '.join(given)}", "leave them out")
    if kind == "budget":
        return dict(given)
    found: dict[str, Any] = {}
    for name, texts in given.items():
        if name not in space:
            found[name] = texts
        elif isinstance(texts, str):
            found[name] = _value(space, name, texts)
        else:
            found[name] = [_value(space, name, text) for text in texts]
    return found


def parse_configuration(space: SearchSpace, assignments: Sequence[str]) -> dict[str, Any]:
    """Values from `name=value`, as the space has them; those of names that are not searched stay text."""
    pairs = _pairs(assignments, "lr=0.01")
    return {name: _value(space, name, text) if name in space else text for name, text in pairs.items()}


def parse_parts(space: SearchSpace, assignments: Sequence[str]) -> dict[str, Any]:
    """What dimensions shall be narrowed to, from `name=low..high` or `name=choice,choice`."""
    found: dict[str, Any] = {}
    for name, text in _pairs(assignments, "lr=1e-4..1e-2 or backbone=resnet18,resnet34").items():
        if name not in space:
            found[name] = text
        elif isinstance(dimension := space[name], Choice):
            texts = [text] if text in map(str, dimension.values) else text.split(",")
            found[name] = [_value(space, name, one) for one in texts]
        else:
            found[name] = [_value(space, name, one) for one in text.split("..")]
    return found


def parse_limits(assignments: Sequence[str]) -> dict[str, Any]:
    """Limits of a budget from `minutes=90` or `minutes=+30`, as text."""
    return dict(_pairs(assignments, "minutes=+30"))


def _pairs(assignments: Sequence[str], example: str) -> Mapping[str, str]:
    found = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not (name and equals and text):
            raise UserError(f"{assignment}: not of the form name=value", f"such as {example}")
        found[name] = text
    return found


def _value(space: SearchSpace, name: str, text: str) -> Value:
    """A value of a dimension; text that is none is left as it is, to be refused with the others."""
    dimension = space[name]
    if isinstance(dimension, Choice):
        named = {
            str(value).lower() if isinstance(value, bool) else str(value): value for value in dimension.values
        }
        return named.get(text.lower() if text.lower() in ("true", "false") else text, text)
    try:
        return space.parse(name, text)
    except ValueError:
        return text
