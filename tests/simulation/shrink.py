"""From a schedule that breaks a promise to a shortest one that still does."""

from __future__ import annotations

import re
from collections.abc import Callable

from .plan import Plan, smaller
from .world import Outcome, run

MAX_TRIES = 400


def _kind(problem: str) -> str:
    """A broken promise without its numbers."""
    return re.sub(r"[-\d.e]+", "#", problem.partition("(")[0])[:60]


def shrink(plan: Plan, run: Callable[[Plan], Outcome] = run, tries: int = MAX_TRIES) -> Plan:
    """Take away from a schedule while it breaks the same promise; one that breaks none is returned as it is."""
    wanted = {_kind(problem) for problem in run(plan).problems}
    if not wanted:
        return plan
    progress = True
    while progress and tries:
        progress = False
        for candidate in smaller(plan):
            if not tries:
                break
            tries -= 1
            if wanted & {_kind(problem) for problem in run(candidate).problems}:
                plan, progress = candidate, True
                break
    return plan
