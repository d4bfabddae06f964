"""The requests of people, in the process that runs the sweep: taken in once, and what they have put in force."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.steering.inbox import read_answers, waiting_requests, withdraw, write_answers
from binsweep.search.steering.judge import SteeredTrial, answer_all
from binsweep.search.steering.request import AnsweredRequest
from binsweep.search.steering.state import state_after

LOOK_SECONDS = 0.5  # between two looks into the inbox while nothing else happens


class Steering:
    """Takes in the requests to the sweep in `folder`; `state` is what is in force, `answers` all that were taken in."""

    def __init__(self, spec: SweepSpec, folder: Path) -> None:
        """`spec` is the sweep's as it was written."""
        self._spec, self._folder = spec, folder
        self.answers = read_answers(folder)
        self.state = state_after(self.answers)

    @property
    def spec(self) -> SweepSpec:
        """The spec with the present budget."""
        return self.state.spec_of(self._spec)

    def take_in(self, trials: Mapping[int, SteeredTrial]) -> list[AnsweredRequest]:
        """Answer what has arrived; the answers are kept, on the disk, when this returns."""
        requests = waiting_requests(self._folder)
        known = {one.request.id for one in self.answers} if requests else set()
        found = answer_all(self._spec, trials, self.answers, [one for one in requests if one.id not in known])
        if found:
            self._keep([*self.answers, *found])
        for request in requests:
            withdraw(self._folder, request)
        return found

    def note_begun(self, wish: str, number: int) -> None:
        """A trial has begun with the configuration of this request. Changes nothing if that is known."""
        if any(one.is_waiting and one.request.id == wish for one in self.answers):
            self._keep([_begun(one, number) if one.request.id == wish else one for one in self.answers])

    def refuse_rest(self, reason: str) -> Iterator[AnsweredRequest]:
        """The sweep has ended: refuse what has arrived since the last look, and configurations that wait."""
        refused = [AnsweredRequest(one, False, reason, time.time()) for one in waiting_requests(self._folder)]
        dropped = [replace(one, granted=False, answer=reason) for one in self.answers if one.is_waiting]
        if refused or dropped:
            ids = {one.request.id: one for one in dropped}
            self._keep([*(ids.get(one.request.id, one) for one in self.answers), *refused])
        for one in refused:
            withdraw(self._folder, one.request)
        yield from [*dropped, *refused]

    def _keep(self, answers: list[AnsweredRequest]) -> None:
        write_answers(self._folder, answers)
        self.answers, self.state = answers, state_after(answers)


def _begun(one: AnsweredRequest, number: int) -> AnsweredRequest:
    return replace(one, answer=f"trial {number} begins", effect={**one.effect, "trial": number})
